package lag

import (
	"slices"
	"time"
)

// Snapshot is what one poll found. It does not change after it is published, so it may be read
// concurrently.
type Snapshot struct {
	// Time is when the poll began, before its first request, by this process's clock.
	Time time.Time
	// Took is how long the poll took.
	Took time.Duration
	// Brokers are the IDs of the cluster's brokers, sorted.
	Brokers []int32
	// Groups are the watched groups by name. A wanted group that does not exist is here too, with
	// the state Dead and no topics.
	Groups map[string]*Group
	// Topics are the existing topics by name that an objective names or in which a group has
	// commits or a subscription.
	Topics map[string]*Topic
	// Errors are the groups and topics that could not be read, or not whole. What could not be read
	// is absent above, or marked.
	Errors []*ReadError
}

// refusals returns the errors that Kafka gave because the collector's user lacks rights, by their
// stable text. Several brokers may give the same error.
func (s *Snapshot) refusals() map[string]*ReadError {
	refusals := make(map[string]*ReadError)
	for _, e := range s.Errors {
		if e.Unauthorized() {
			refusals[e.Stable()] = e
		}
	}
	return refusals
}

// Group is a consumer group, with or without members.
type Group struct {
	Name string
	// State is the coordinator's word: Stable, Empty, Assigning, Reconciling, PreparingRebalance,
	// CompletingRebalance, NotReady or Dead.
	State string
	// Protocol is classic, consumer (KIP-848), streams (KIP-1071), share (KIP-932) or a kind that this
	// program does not know. It is empty for a group that does not exist.
	Protocol string
	// Members is -1 if their number is unknown: they could not be read, or this program does not know
	// the kind of group.
	Members int
	// OffsetsUnknown is true if the commits could not be read. There are no topics then.
	OffsetsUnknown bool
	// TopicsHidden is true if the group reads topics that the collector's user may not see.
	TopicsHidden bool
	// Rhythm is the longest time that the group regularly takes between two commits in a partition. 0
	// means that it is not known yet.
	Rhythm time.Duration
	// Topics are the topics by name in which the group has commits or a subscription.
	Topics map[string]*GroupTopic
	// missing are names of such topics, and of those in objectives, that could not be read at all.
	missing []string
}

// GroupTopic is the progress of a group in one topic.
type GroupTopic struct {
	Topic string
	// Subscribed is true if a member reads the topic, with or without assigned partitions.
	Subscribed bool
	// Unassigned is the number of partitions of a subscribed topic that no member has.
	Unassigned int
	// Partial is true if partitions are absent because their leaders did not respond. There are no
	// sums then.
	Partial bool
	// Partitions are sorted by number.
	Partitions []Partition
}

// Complete reports whether every partition and every age could be read. A sum of records needs
// every partition, a maximum of ages needs every age too.
func (t *GroupTopic) Complete() bool {
	return !t.Partial && !slices.ContainsFunc(t.Partitions, func(p Partition) bool { return p.AgeUnknown })
}

// Partition is the progress of a group in one partition.
type Partition struct {
	Number int32
	// Committed is the committed offset, -1 if there is none. For a share group it is the offset of
	// the first record that is not acknowledged.
	Committed int64
	// Records is the number of records that the group can read and has not read. It is never
	// negative.
	Records int64
	// Age is the time since the first unread record was appended: 0 if all is read, never negative.
	Age time.Duration
	// AgeUnknown is true if the age was not found in time. It is at least Age.
	AgeUnknown bool
	// Uncommitted is true if the group is known to read records of open transactions too, so that no
	// transaction withholds any from it. A share group does so by default.
	Uncommitted bool
	// Since is when this process first saw the partition. Stalled, stopped and slow need some time
	// after it.
	Since time.Time
	// Unmoved is since when the commit has not moved although there were unread records, as far as is
	// known: before Since if an earlier process saw it ([Collector.Resume]).
	Unmoved time.Time
	// Patience is how long the group may stand still here before it is stalled or stopped: a minute,
	// or twice the rhythm of its commits.
	Patience time.Duration
	Status   Status
	// Headroom is the part of the log that retention can delete before it deletes an unread record:
	// 1 if all is read, 0 if the first unread record is the log's first, negative if records were
	// lost. It is NaN for an empty log or without a commit, and then has no series.
	Headroom float64
	// LastProgress is when the commit was last seen to move, zero if it has not moved since this
	// process started.
	LastProgress time.Time
	// Close is the time until all is read at the pace of the last minute: 0 if all is read, -1 if
	// the group is not catching up.
	Close time.Duration
	// Lost is the number of records that retention deleted unread since this process started.
	Lost int64
	// Rewinds is how often the commit went back since this process started.
	Rewinds int64
}

// Standing is a partition in which a group did not move.
type Standing struct {
	Topic     string
	Partition int32
	// Committed is the committed offset.
	Committed int64
	// Since is the Partition's Unmoved.
	Since time.Time
}

// Status is what a group does with a partition. It follows from offsets and times alone.
type Status string

// The statuses, worst last.
const (
	// StatusOK means that the group keeps up or catches up.
	StatusOK Status = "ok"
	// StatusSlow means that the group reads and falls behind.
	StatusSlow Status = "slow"
	// StatusRewound means that the commit went back and has not reached its former offset.
	StatusRewound Status = "rewound"
	// StatusNoCommit means that the group reads the topic, or has commits in other partitions of
	// it, and has none in this partition, which has records.
	StatusNoCommit Status = "no_commit"
	// StatusStalled means that a member reads the topic, there are unread records, and the commit
	// does not move.
	StatusStalled Status = "stalled"
	// StatusStopped means that no member reads the topic and there are unread records.
	StatusStopped Status = "stopped"
	// StatusLost means that records were deleted before the group read them, or that the commit is
	// beyond the log's end.
	StatusLost Status = "lost"
)

// Statuses returns all statuses, worst last.
func Statuses() []Status {
	return []Status{
		StatusOK, StatusSlow, StatusRewound, StatusNoCommit, StatusStalled, StatusStopped, StatusLost,
	}
}

// Topic is a topic as its leaders describe it.
type Topic struct {
	Name string
	// Count is the number of partitions.
	Count int
	// Partitions are those whose leaders responded, sorted by number.
	Partitions []TopicPartition
	// Ready is true if all leaders responded.
	Ready bool
}

// TopicPartition is the log of one partition.
type TopicPartition struct {
	Number int32
	// Start is the first offset that still exists.
	Start int64
	// Stable is the last stable offset. Consumers of committed transactions read up to it.
	Stable int64
	// End is the high watermark.
	End int64
	// Open is how long the first open transaction has been open: the age of its first record. It is 0
	// if there is none.
	Open time.Duration
	// OpenUnknown is true if the age was not found in time. It is at least Open.
	OpenUnknown bool
	Replication
}

// Replication is which brokers have a partition.
type Replication struct {
	// Leader is a broker ID.
	Leader int32
	// Preferred is true if the leader is the first of the replicas.
	Preferred bool
	// Replicas is their number, InSync the number of those that are in sync.
	Replicas, InSync int
}
