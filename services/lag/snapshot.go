// Package lag tells how far consumer groups are behind: in records, in seconds, and whether that is about to change. It reads what the
// brokers know with Describe rights only, and never a record.
package lag

import "time"

// Snapshot is what one poll found. It is not changed once it is published.
type Snapshot struct {
	Time    time.Time // by this process' clock, before the first request
	Took    time.Duration
	Brokers []int32 // by ID
	// Groups are the watched ones: those that were wanted too when Kafka does not know them, as Dead and without topics.
	Groups map[string]*Group
	Topics map[string]*Topic // every topic that exists and is wanted, or that a group has to do with
	// Errors are what could not be read, by group or by topic; what they concern is missing here, or is marked.
	Errors []*ReadError
}

// Group is a consumer group, whether it has members or not.
type Group struct {
	Name     string
	State    string // as the broker says it: Stable, Empty, Assigning, Reconciling, PreparingRebalance, CompletingRebalance, Dead
	Protocol string // classic, consumer (KIP-848) or streams (KIP-1071)
	Members  int    // -1: not told, by a kind of group that this program does not know
	Topics   map[string]*GroupTopic
	missing  []string // topics that it has to do with and that could not be read at all
}

// GroupTopic is a group's way through one topic.
type GroupTopic struct {
	Topic      string
	Subscribed bool // a member reads it, or would if it were given partitions
	Unassigned int  // partitions of a subscribed topic that no member has
	Partial    bool // some partitions are missing, as their leaders did not answer: sums are not to be had
	Partitions []Partition
}

// Partition is a group's place in one partition.
type Partition struct {
	Number     int32
	Committed  int64         // -1: no commit
	Records    int64         // that can be read and were not, never negative
	Age        time.Duration // since the first unread record was appended, never negative; 0 when all is read
	AgeUnknown bool          // there is something unread, and how old it is could not be found out in time: at least Age
	Since      time.Time     // when this process first saw it: what a status says about time it can say only after a while
	Status     Status
	// Headroom is the part of the log that retention can take before it takes what is unread: 1 when all is read, 0 when the first
	// unread record is the log's first, below 0 when records were lost. Without an entry in the log it is NaN, and is shown nowhere.
	Headroom     float64
	LastProgress time.Time     // when the commit was last seen to move; zero: not since this process began
	Close        time.Duration // until all is read at the pace of the last minute; 0 when all is read, -1 when it is not catching up
	Lost         int64         // records that retention took unread, since this process began
	Rewinds      int64         // times that the commit went back, since this process began
}

// Status says what a group does with a partition, in words of its own data: no commit's time, no client's word.
type Status string

// The states, worst last.
const (
	StatusOK       Status = "ok"
	StatusSlow     Status = "slow"      // it reads, and falls behind
	StatusRewound  Status = "rewound"   // its commit went back and is not yet where it was
	StatusNoCommit Status = "no_commit" // it has members that read the topic, or commits elsewhere in it, and none here, where there are records
	StatusStalled  Status = "stalled"   // it has a reader, unread records, and does not move
	StatusStopped  Status = "stopped"   // it has no reader, and unread records
	StatusLost     Status = "lost"      // records were deleted before it read them, or its commit lies beyond the log's end
)

// Statuses are all of them, worst last.
func Statuses() []Status {
	return []Status{StatusOK, StatusSlow, StatusRewound, StatusNoCommit, StatusStalled, StatusStopped, StatusLost}
}

// Topic is what a topic's leaders say.
type Topic struct {
	Name       string
	Count      int              // of its partitions
	Partitions []TopicPartition // those whose leader answered
	Ready      bool             // all of them
}

// TopicPartition is a partition's log.
type TopicPartition struct {
	Number int32
	Start  int64 // the first offset that is still there
	Stable int64 // the last stable offset: readers of committed transactions come up to here
	End    int64 // the high watermark
	Replication
}

// Replication says which brokers have a partition.
type Replication struct {
	Leader    int32
	Preferred bool // the leader is the first of the replicas
	Replicas  int
	InSync    int // of the replicas
}
