package operator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/twmb/franz-go/pkg/kerr"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"ordersystem.dev/services/lag"
	"ordersystem.dev/services/operator/api/v1alpha1"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// ok is a partition of which everything is read.
func ok(number int32) lag.Partition {
	return lag.Partition{
		Number: number, Committed: 100, Since: noon.Add(-time.Hour), Status: lag.StatusOK, LastProgress: noon,
	}
}

// behind is one of which something is unread.
func behind(number int32, records int64, age time.Duration, status lag.Status) lag.Partition {
	return lag.Partition{
		Number: number, Committed: 100 - records, Records: records, Age: age, Since: noon.Add(-time.Hour),
		Status: status, Unmoved: noon.Add(-age), LastProgress: noon, Close: -1,
	}
}

// snapshotOf is what a poll finds of the group readers, which has one member. Each topic's log has
// 100 records, all in partitions that the group has to do with.
func snapshotOf(topics map[string][]lag.Partition) *lag.Snapshot {
	s := &lag.Snapshot{Time: noon, Topics: map[string]*lag.Topic{}}
	group := &lag.Group{
		Name: "readers", State: "Stable", Protocol: "consumer", Members: 1, Topics: map[string]*lag.GroupTopic{},
	}
	for name, partitions := range topics {
		t := &lag.Topic{Name: name, Count: len(partitions), Ready: true}
		for _, p := range partitions {
			t.Partitions = append(t.Partitions, lag.TopicPartition{Number: p.Number, Stable: 100, End: 100})
		}
		s.Topics[name] = t
		group.Topics[name] = &lag.GroupTopic{Topic: name, Subscribed: true, Partitions: partitions}
	}
	s.Groups = map[string]*lag.Group{"readers": group}
	return s
}

func inputsOf(cg *v1alpha1.ConsumerGroup, s *lag.Snapshot) inputs {
	return inputs{cg: cg, now: noon, configured: []string{"main", "other"}, snapshot: s, interval: 5 * time.Second}
}

func consumerGroup(topics ...v1alpha1.TopicName) *v1alpha1.ConsumerGroup {
	return &v1alpha1.ConsumerGroup{
		ObjectMeta: metav1.ObjectMeta{Name: "readers", Namespace: "here", Generation: 3},
		Spec: v1alpha1.ConsumerGroupSpec{
			Group: "readers", Cluster: "main", Topics: topics, Objective: v1alpha1.Objective{MaxLagSeconds: 10},
		},
	}
}

func condition(kind string, status metav1.ConditionStatus, reason, message string) metav1.Condition {
	return metav1.Condition{
		Type: kind, Status: status, Reason: reason, Message: message, ObservedGeneration: 3,
		LastTransitionTime: metav1.NewTime(noon),
	}
}

func TestStatusOfAGroupThatReads(t *testing.T) {
	t.Parallel()
	p := behind(1, 5, 4200*time.Millisecond, lag.StatusOK)
	p.Close = 2500 * time.Millisecond
	cg := consumerGroup()
	got, bare := newStatus(inputsOf(cg, snapshotOf(map[string][]lag.Partition{"a": {ok(0), p}, "b": {ok(0)}})))
	want := v1alpha1.ConsumerGroupStatus{
		ObservedGeneration: 3, State: "Stable", Protocol: "consumer", Members: new(int32(1)),
		Lag: new(int64(5)), LagSeconds: new(int64(5)),
		WorstPartition: &v1alpha1.PartitionStatus{
			Topic: "a", Partition: 1, Lag: new(int64(5)), LagSeconds: new(int64(5)), Status: "ok",
		},
		TimeToCloseSeconds: new(int64(3)),
		Topics: []v1alpha1.TopicStatus{
			{Name: "a", Ready: "True", Source: "Kafka", Lag: new(int64(5)), LagSeconds: new(int64(5))},
			{Name: "b", Ready: "True", Source: "Kafka", Lag: new(int64(0)), LagSeconds: new(int64(0))},
		},
		LastPollTime: new(metav1.NewTime(noon)),
		Conditions: []metav1.Condition{
			condition(
				"Consuming", "True", "Reading",
				"1 member; 5 records unread, the oldest for 4.2s (a/1), caught up in 3s at this pace",
			),
			condition(
				"WithinObjective", "True", "WithinObjective",
				"5 records unread, the oldest for 4.2s (a/1), caught up in 3s at this pace; the objective is 10s",
			),
			condition("TopicsReady", "True", "AllReady", "2 topics are ready"),
		},
	}
	if diff := cmp.Diff(want, got); diff != "" || !bare.IsZero() {
		t.Errorf("bare since %v (-want +got):\n%s", bare, diff)
	}
}

func TestConditions(t *testing.T) {
	t.Parallel()
	type topics = map[string][]lag.Partition
	anHourAgo := noon.Add(-time.Hour)
	none := lag.Partition{Number: 1, Committed: -1, Since: anHourAgo, Status: lag.StatusNoCommit, Close: -1}
	// empty has no commit either, but nothing to commit.
	empty := lag.Partition{Number: 1, Committed: -1, Since: anHourAgo, Status: lag.StatusOK, Close: -1}
	lost := behind(1, 40, time.Hour, lag.StatusLost)
	lost.Lost = 7
	// lostBefore lost its records before this process began.
	lostBefore := behind(1, 40, time.Hour, lag.StatusLost)
	// beyond lost records too, but at another time.
	beyond := behind(1, 0, 0, lag.StatusLost)
	beyond.Lost = 7
	// watched has not moved since this process saw it for the first time.
	watched := func(d time.Duration) lag.Partition {
		p := behind(1, 40, time.Hour, lag.StatusOK)
		p.LastProgress, p.Since = time.Time{}, noon.Add(-d)
		return p
	}
	unmoved := watched(30 * time.Second)
	// ageless is as old as that at least.
	ageless := behind(1, 40, 5*time.Second, lag.StatusOK)
	ageless.AgeUnknown = true
	old := behind(1, 40, time.Minute, lag.StatusStalled)
	old.AgeUnknown = true
	// first returns p as the first poll that reads it finds it.
	first := func(p lag.Partition) lag.Partition {
		p.Since, p.LastProgress = noon, time.Time{}
		return p
	}
	with := func(partitions topics, change func(*lag.Snapshot)) *lag.Snapshot {
		s := snapshotOf(partitions)
		if change != nil {
			change(s)
		}
		return s
	}
	// starts sets the first offset of a/1.
	starts := func(offset int64) func(*lag.Snapshot) {
		return func(s *lag.Snapshot) { s.Topics["a"].Partitions[len(s.Topics["a"].Partitions)-1].Start = offset }
	}
	// open adds a transaction of 20 records to a/0, behind its 100 records.
	open := func(age time.Duration, unknown bool) func(*lag.Snapshot) {
		return func(s *lag.Snapshot) {
			p := &s.Topics["a"].Partitions[0]
			p.End, p.Open, p.OpenUnknown = p.Stable+20, age, unknown
		}
	}
	// beyondOpen has committed behind the beginning of that transaction.
	beyondOpen := ok(0)
	beyondOpen.Committed = 110
	// readsOpen reads records of open transactions too, and has not come to that one yet.
	readsOpen := behind(0, 10, time.Second, lag.StatusOK)
	readsOpen.Uncommitted = true
	members := func(n int) func(*lag.Snapshot) { return func(s *lag.Snapshot) { s.Groups["readers"].Members = n } }
	hidden := func(s *lag.Snapshot) {
		s.Groups["readers"].Members, s.Groups["readers"].TopicsHidden = -1, true
		s.Errors = []*lag.ReadError{
			{API: "ConsumerGroupDescribe", Group: "readers", Err: kerr.TopicAuthorizationFailed},
		}
	}
	shares := func(s *lag.Snapshot) { s.Groups["readers"].Protocol = "share" }
	partial := func(s *lag.Snapshot) { s.Groups["readers"].Topics["a"].Partial = true }
	fails := func(api, topic string, err error) func(*lag.Snapshot) {
		return func(s *lag.Snapshot) { s.Errors = []*lag.ReadError{{API: api, Topic: topic, Err: err}} }
	}
	elsewhere := consumerGroup("a")
	elsewhere.Spec.Cluster = "elsewhere"
	gone := func(s *lag.Snapshot) {
		s.Groups["readers"] = &lag.Group{Name: "readers", State: "Dead"}
	}

	// Each condition is wanted as Status/Reason, and with a part of its message.
	for name, c := range map[string]struct {
		cg                        *v1alpha1.ConsumerGroup
		snapshot                  *lag.Snapshot
		inputs                    func(*inputs)
		before                    string // Status/Reason of Consuming
		ready, consuming, within  string
		message, messageOfReady   string
		messageOfWithin           string
		lagIsUnknown, bareIsKnown bool
		membersAreUnknown         bool
	}{
		"everything is read": {
			snapshot: with(topics{"a": {ok(0)}}, nil), ready: "True/AllReady", consuming: "True/Reading",
			within: "True/WithinObjective", message: "1 member; everything is read",
			messageOfWithin: "everything is read; the objective is 10s",
		},
		"at the objective": {
			snapshot: with(topics{"a": {behind(0, 1, 10*time.Second, lag.StatusOK)}}, nil), ready: "True/AllReady",
			consuming: "True/Reading", within: "True/WithinObjective",
		},
		"past the objective": {
			snapshot: with(topics{"a": {behind(0, 1, 10001*time.Millisecond, lag.StatusOK)}}, nil),
			ready:    "True/AllReady", consuming: "True/Reading", within: "False/ObjectiveMissed",
			messageOfWithin: "1 record unread, the oldest for 11s (a/0); the objective is 10s; see the " +
				"condition Consuming",
		},
		"stalled": {
			snapshot: with(
				topics{
					"a": {
						ok(0), behind(1, 40, 2*time.Minute, lag.StatusStalled),
						behind(2, 50, 3*time.Minute, lag.StatusStalled),
					},
				},
				nil,
			),
			ready: "True/AllReady", consuming: "False/Stalled", within: "False/ObjectiveMissed",
			message: "a member is assigned a/2 and 1 other partition (50 records unread, the oldest for 3m0s) " +
				"and makes no progress",
		},
		"stopped": {
			snapshot: with(
				topics{
					"a": {behind(0, 40, 2*time.Minute, lag.StatusStopped)},
					"b": {behind(0, 90, 5*time.Minute, lag.StatusStalled)},
				},
				members(0),
			),
			ready: "True/AllReady", consuming: "False/Stopped", within: "False/ObjectiveMissed",
			message: "no member reads a/0 (40 records unread, the oldest for 2m0s), and its committed offset does " +
				"not move: start the consumer " +
				"(the group has 0 members)",
			messageOfWithin: "130 records unread, the oldest for 5m0s (b/0)",
		},
		"retention was faster": {
			snapshot: with(topics{"a": {behind(0, 1, time.Hour, lag.StatusStopped), lost}}, starts(67)),
			ready:    "True/AllReady", consuming: "False/RecordsLost", within: "False/ObjectiveMissed",
			message: "a/1 (40 records unread, the oldest for 1h0m0s): retention deleted 7 records before they " +
				"were read",
		},
		"retention was faster before": {
			snapshot: with(topics{"a": {lostBefore}}, starts(67)), ready: "True/AllReady",
			consuming: "False/RecordsLost", within: "False/ObjectiveMissed",
			message: "): retention deleted records before they were read. ",
		},
		"retention deleted all there was": {
			snapshot: with(topics{"a": {behind(1, 10, 0, lag.StatusLost)}}, starts(100)), ready: "True/AllReady",
			consuming: "False/RecordsLost", within: "True/WithinObjective",
			message: "): retention deleted records before they were read. ",
		},
		"a commit beyond the end": {
			snapshot: with(topics{"a": {beyond}}, nil), ready: "True/AllReady", consuming: "False/RecordsLost",
			within: "True/WithinObjective", message: "the committed offset is beyond the end of the log",
		},
		"a transaction hangs": {
			snapshot: with(topics{"a": {ok(0), ok(1)}}, open(5*time.Minute, false)), ready: "True/AllReady",
			consuming: "False/RecordsWithheld", within: "True/WithinObjective",
			message: "a transaction has been open in a/0 since 2026-03-01T11:55:00Z, and withholds 20 records",
		},
		"a transaction hangs whose beginning is not found yet": {
			snapshot: with(topics{"a": {ok(0)}}, open(5*time.Minute, true)), ready: "True/AllReady",
			consuming: "False/RecordsWithheld", within: "True/WithinObjective",
			message: "since 2026-03-01T11:55:00Z or earlier, and withholds",
		},
		"a transaction is open for a minute": {
			snapshot: with(topics{"a": {ok(0)}}, open(time.Minute, false)), ready: "True/AllReady",
			consuming: "True/Reading", within: "True/WithinObjective",
		},
		"a transaction hangs, and the group reads uncommitted records": {
			snapshot: with(topics{"a": {beyondOpen}}, open(5*time.Minute, false)), ready: "True/AllReady",
			consuming: "True/Reading", within: "True/WithinObjective",
		},
		"a transaction hangs before a group that reads uncommitted records": {
			snapshot: with(topics{"a": {readsOpen}}, open(5*time.Minute, false)), ready: "True/AllReady",
			consuming: "True/Reading", within: "True/WithinObjective",
		},
		"a transaction hangs in a topic of others": {
			cg:       consumerGroup("b"),
			snapshot: with(topics{"a": {ok(0)}, "b": {ok(0)}}, open(5*time.Minute, false)), ready: "True/AllReady",
			consuming: "True/Reading", within: "True/WithinObjective",
		},
		"a replay": {
			snapshot: with(
				topics{"a": {behind(0, 40, time.Hour, lag.StatusRewound), behind(1, 1, 0, lag.StatusSlow)}}, nil,
			),
			ready: "True/AllReady", consuming: "True/Rewound", within: "False/ObjectiveMissed",
			message: "the committed offset went back in a/0",
		},
		"too slow": {
			snapshot: with(topics{"a": {behind(0, 40, time.Hour, lag.StatusSlow)}}, nil), ready: "True/AllReady",
			consuming: "True/FallingBehind", within: "False/ObjectiveMissed", message: "records arrive faster " +
				"than they are read in a/0",
		},
		"shut down with all read": {
			snapshot: with(topics{"a": {ok(0)}}, members(0)), ready: "True/AllReady", consuming: "True/NoMembers",
			within: "True/WithinObjective",
		},
		"stalled, without known members": {
			snapshot: with(topics{"a": {behind(0, 1, 2*time.Minute, lag.StatusStalled)}}, members(-1)),
			ready:    "True/AllReady", consuming: "False/Stalled", within: "False/ObjectiveMissed",
			message: "that it cannot process$", membersAreUnknown: true,
		},
		"stopped, without known members": {
			snapshot: with(topics{"a": {behind(0, 1, 2*time.Minute, lag.StatusStopped)}}, members(-1)),
			ready:    "True/AllReady", consuming: "False/Stopped", within: "False/ObjectiveMissed",
			message: "start the consumer; if it runs without", membersAreUnknown: true,
		},
		"a share group that stands still": {
			snapshot: with(topics{"a": {behind(0, 1, 2*time.Minute, lag.StatusStalled)}}, shares),
			ready:    "True/AllReady", consuming: "False/Stalled", within: "False/ObjectiveMissed",
			message: "the share group has 1 member",
		},
		"a share group that has not begun": {
			snapshot: with(topics{"a": {none}}, shares),
			inputs:   func(in *inputs) { in.bareSince = noon.Add(-time.Minute) },
			ready:    "True/AllReady", consuming: "False/NoCommit", within: "Unknown/NoCommit", lagIsUnknown: true,
			bareIsKnown: true, message: "^the share group has not begun to read a/1",
		},
		"a share group whose offsets the broker does not return": {
			snapshot: with(nil, func(s *lag.Snapshot) {
				shares(s)
				s.Groups["readers"].OffsetsUnknown = true
				s.Errors = []*lag.ReadError{
					{API: "DescribeShareGroupOffsets", Group: "readers", Err: kerr.UnsupportedVersion},
				}
			}), ready: "Unknown/Unreadable", consuming: "Unknown/Unreadable", within: "Unknown/Unreadable",
			message: "^this is a share group, which has no committed offsets", lagIsUnknown: true,
		},
		"topics that Kafka hides": {
			snapshot: with(topics{"a": {ok(0)}}, hidden), ready: "True/AllReady", consuming: "Unknown/Unreadable",
			within: "Unknown/Unreadable", membersAreUnknown: true, lagIsUnknown: true,
		},
		"slow, without known members": {
			snapshot: with(topics{"a": {behind(0, 1, 2*time.Minute, lag.StatusSlow)}}, members(-1)),
			ready:    "True/AllReady", consuming: "True/FallingBehind", within: "False/ObjectiveMissed",
			message: "at most one for each partition$", membersAreUnknown: true,
		},
		"the members are not known": {
			snapshot: with(topics{"a": {ok(0)}}, members(-1)), ready: "True/AllReady", consuming: "True/Reading",
			within: "True/WithinObjective", message: "^everything is read", membersAreUnknown: true,
		},
		"nothing to commit": {
			snapshot: with(topics{"a": {ok(0), empty}}, starts(100)), ready: "True/AllReady",
			consuming: "True/Reading", within: "True/WithinObjective",
		},
		"records and no commit, first": {
			snapshot: with(topics{"a": {ok(0), none}}, nil), ready: "True/AllReady", consuming: "Unknown/NotKnownYet",
			within: "True/WithinObjective", bareIsKnown: true,
		},
		"records and no commit, while it reads": {
			snapshot: with(topics{"a": {ok(0), none}}, nil),
			inputs:   func(in *inputs) { in.bareSince = noon.Add(-59 * time.Second) },
			before:   "True/Reading", ready: "True/AllReady", consuming: "True/Reading", within: "True/WithinObjective",
			message: "as before", bareIsKnown: true,
		},
		"records and no commit for a minute": {
			snapshot: with(topics{"a": {ok(0), none}}, nil),
			inputs:   func(in *inputs) { in.bareSince = noon.Add(-time.Minute) },
			before:   "True/Reading", ready: "True/AllReady", consuming: "False/NoCommit",
			within: "True/WithinObjective", message: "there are records but no committed offset in a/1: the",
			bareIsKnown: true,
		},
		"no commit at all": {
			snapshot: with(topics{"a": {none}}, nil),
			inputs:   func(in *inputs) { in.bareSince = noon.Add(-time.Minute) },
			ready:    "True/AllReady", consuming: "False/NoCommit", within: "Unknown/NoCommit", lagIsUnknown: true,
			bareIsKnown: true,
		},
		"nothing to read": {
			snapshot: with(topics{"a": {empty}}, starts(100)),
			ready:    "True/AllReady", consuming: "True/Reading", within: "True/WithinObjective",
			messageOfWithin: "there is nothing to read; the objective is 10s", lagIsUnknown: true,
		},
		"a topic that it should read": {
			cg: consumerGroup("a", "b"),
			snapshot: with(
				topics{"a": {ok(0)}, "b": {ok(0)}}, func(s *lag.Snapshot) { delete(s.Groups["readers"].Topics, "b") },
			),
			inputs: func(in *inputs) { in.bareSince = noon.Add(-time.Minute) },
			ready:  "True/AllReady", consuming: "False/NotSubscribed", within: "True/WithinObjective",
			message: "does not subscribe to b, where there are records", bareIsKnown: true,
		},
		"a topic of others": {
			cg:       consumerGroup("a"),
			snapshot: with(topics{"a": {ok(0)}, "b": {behind(0, 9, time.Hour, lag.StatusStopped)}}, nil),
			ready:    "True/AllReady", consuming: "True/Reading", within: "True/WithinObjective",
		},
		"unknown to Kafka": {
			snapshot: with(nil, gone), ready: "Unknown/NotFound", consuming: "False/NotFound",
			within: "Unknown/NotFound", message: `Kafka has no group "readers": start its consumer`,
			lagIsUnknown: true,
		},
		"without topics": {
			snapshot: with(nil, nil), ready: "Unknown/NoTopics", consuming: "Unknown/NoTopics",
			within: "Unknown/NoTopics", lagIsUnknown: true,
		},

		"just found, and stuck before": {
			snapshot: with(topics{"a": {unmoved}}, nil), before: "False/Stalled", ready: "True/AllReady",
			consuming: "False/Stalled", within: "False/ObjectiveMissed", message: "as before",
		},
		"just found, and reading before": {
			snapshot: with(topics{"a": {unmoved}}, nil), before: "True/Reading", ready: "True/AllReady",
			consuming: "True/Reading", within: "False/ObjectiveMissed", message: "as before",
		},
		"just found, and unreadable": {
			snapshot: with(topics{"a": {unmoved}}, nil), before: "Unknown/ClusterUnreachable", ready: "True/AllReady",
			consuming: "Unknown/NotKnownYet", within: "False/ObjectiveMissed",
			message: "40 records unread, the oldest for 1h0m0s (a/1); whether the group makes progress",
		},
		"just found, and not there before": {
			snapshot: with(topics{"a": {unmoved}}, nil), before: "False/NotFound", ready: "True/AllReady",
			consuming: "Unknown/NotKnownYet", within: "False/ObjectiveMissed",
		},
		"just found, and moving": {
			snapshot: with(topics{"a": {behind(1, 40, time.Hour, lag.StatusOK)}}, nil),
			before:   "False/Stalled", ready: "True/AllReady", consuming: "True/Reading",
			within: "False/ObjectiveMissed",
		},
		"just found, with all read": {
			snapshot: with(topics{"a": {lag.Partition{Committed: 100, Since: noon, Status: lag.StatusOK}}}, nil),
			before:   "False/Stalled", ready: "True/AllReady", consuming: "True/Reading",
			within: "True/WithinObjective",
		},
		"watched long enough": {
			snapshot: with(topics{"a": {watched(65 * time.Second)}}, nil), before: "False/Stalled",
			ready: "True/AllReady", consuming: "True/Reading", within: "False/ObjectiveMissed",
		},
		"just found, and losing records": {
			snapshot: with(topics{"a": {unmoved, lost}}, nil), before: "True/Reading", ready: "True/AllReady",
			consuming: "False/RecordsLost", within: "False/ObjectiveMissed",
		},
		"just found, with a commit below the start": {
			snapshot: with(topics{"a": {first(behind(1, 40, time.Second, lag.StatusOK))}}, starts(61)),
			before:   "False/RecordsLost", ready: "True/AllReady", consuming: "False/RecordsLost",
			within: "True/WithinObjective", message: "as before",
		},
		"just found, with a commit beyond the end": {
			snapshot: with(topics{"a": {first(behind(1, -1, 0, lag.StatusOK))}}, nil), before: "False/RecordsLost",
			ready: "True/AllReady", consuming: "False/RecordsLost", within: "True/WithinObjective",
			message: "as before",
		},
		"found before, with a commit below the start": {
			snapshot: with(topics{"a": {behind(1, 40, time.Second, lag.StatusOK)}}, starts(61)),
			before:   "True/Reading", ready: "True/AllReady", consuming: "True/Reading", within: "True/WithinObjective",
			message: "1 member; 40 records unread",
		},
		"just found, and no commit as before": {
			snapshot: with(topics{"a": {ok(0), none}}, nil), before: "False/NoCommit", ready: "True/AllReady",
			consuming: "False/NoCommit", within: "True/WithinObjective", message: "as before", bareIsKnown: true,
		},

		"another cluster": {
			cg:    elsewhere,
			ready: "Unknown/UnknownCluster", consuming: "Unknown/UnknownCluster", within: "Unknown/UnknownCluster",
			message: `the operator's configuration has no cluster "elsewhere", only main, other: ` +
				`correct`, lagIsUnknown: true,
		},
		"an unreachable cluster": {
			snapshot: with(topics{"a": {ok(0)}}, nil),
			inputs:   func(in *inputs) { in.unreachable = "could not be read since noon" },
			before:   "True/Reading", ready: "Unknown/ClusterUnreachable", consuming: "Unknown/ClusterUnreachable",
			within: "Unknown/ClusterUnreachable", message: "could not be read since noon", lagIsUnknown: true,
		},
		"a group that may not be read": {
			snapshot: with(nil, func(s *lag.Snapshot) {
				s.Groups = nil
				s.Errors = []*lag.ReadError{{API: "OffsetFetch", Group: "readers", Err: kerr.GroupAuthorizationFailed}}
			}),
			ready: "Unknown/Unreadable", consuming: "Unknown/Unreadable", within: "Unknown/Unreadable",
			message: "^OffsetFetch of group readers: GROUP_AUTHORIZATION_FAILED: check that the operator's user " +
				"may Describe it$",
			lagIsUnknown: true,
		},
		"a group whose broker is away": {
			snapshot: with(nil, func(s *lag.Snapshot) {
				s.Groups = nil
				s.Errors = []*lag.ReadError{
					{
						API: "OffsetFetch", Group: "readers",
						Err: errors.New("read tcp 10.0.0.7:41834->10.0.0.9:9092: connection reset by peer"),
					},
				}
			}),
			ready: "Unknown/Unreadable", consuming: "Unknown/Unreadable", within: "Unknown/Unreadable",
			message: "^OffsetFetch of group readers: CONNECTION$", lagIsUnknown: true,
		},
		"a partition without a leader": {
			snapshot: with(topics{"a": {ok(0)}, "b": {ok(0)}}, func(s *lag.Snapshot) { s.Topics["b"].Ready = false }),
			ready:    "False/NotReady", consuming: "Unknown/Unreadable", within: "Unknown/Unreadable",
			messageOfReady: "of 2 topics, b not ready: a partition has no leader", lagIsUnknown: true,
		},
		"a partition without a leader, and another that is stuck": {
			snapshot: with(
				topics{"a": {behind(0, 1, time.Hour, lag.StatusStalled)}, "b": {ok(0)}},
				func(s *lag.Snapshot) { s.Topics["b"].Ready = false },
			),
			ready: "False/NotReady", consuming: "False/Stalled", within: "False/ObjectiveMissed",
			messageOfWithin: "at least 1 record unread", lagIsUnknown: true,
		},
		"a partition whose leader does not respond": {
			snapshot: with(topics{"a": {ok(0)}}, func(s *lag.Snapshot) {
				s.Topics["a"].Ready = false
				partial(s)
				fails("ListOffsets", "a", context.DeadlineExceeded)(s)
			}),
			ready: "False/NotReady", consuming: "Unknown/Unreadable", within: "Unknown/Unreadable",
			messageOfReady: "a partition has no leader that responds", lagIsUnknown: true,
		},
		"a part of a topic": {
			snapshot: with(topics{"a": {ok(0)}}, partial), ready: "True/AllReady", consuming: "Unknown/Unreadable",
			within: "Unknown/Unreadable", lagIsUnknown: true,
		},
		"a part of a topic, behind": {
			snapshot: with(topics{"a": {behind(0, 9, time.Minute, lag.StatusOK)}}, partial), ready: "True/AllReady",
			consuming: "Unknown/Unreadable", within: "False/ObjectiveMissed", lagIsUnknown: true,
		},
		"a part of a topic, without a commit": {
			snapshot: with(topics{"a": {none}}, partial), ready: "True/AllReady", consuming: "Unknown/Unreadable",
			within: "Unknown/Unreadable", lagIsUnknown: true, bareIsKnown: true,
		},
		"an age that was not found": {
			snapshot: with(topics{"a": {ok(0), ageless}}, fails("ListOffsets", "a", context.DeadlineExceeded)),
			ready:    "True/AllReady", consuming: "Unknown/Unreadable", within: "Unknown/Unreadable",
			messageOfWithin: "the age of their unread records", lagIsUnknown: true,
		},
		"no age that was found": {
			snapshot: with(topics{"a": {ageless}}, nil), ready: "True/AllReady", consuming: "Unknown/Unreadable",
			within: "Unknown/Unreadable", lagIsUnknown: true,
		},
		"an age that was not found, and is past the objective": {
			snapshot: with(topics{"a": {old}}, nil), ready: "True/AllReady", consuming: "False/Stalled",
			within: "False/ObjectiveMissed", message: "a/1 (40 records unread, the oldest for at least 1m0s)",
			messageOfWithin: "at least 40 records unread, the oldest for 1m0s", lagIsUnknown: true,
		},
		"an age that was not found, and one that was": {
			snapshot: with(topics{"a": {behind(0, 9, time.Minute, lag.StatusStopped), ageless}}, nil),
			ready:    "True/AllReady", consuming: "False/Stopped", within: "False/ObjectiveMissed",
			messageOfWithin: "at least 49 records unread, the oldest for 1m0s (a/0)", lagIsUnknown: true,
		},
		"an age that was not found, of another group": {
			snapshot: with(topics{"a": {ok(0)}}, fails("ListOffsets", "a", context.DeadlineExceeded)),
			ready:    "True/AllReady", consuming: "True/Reading", within: "True/WithinObjective",
		},
		"a topic that may not be read": {
			cg:       consumerGroup("a", "b"),
			snapshot: with(topics{"a": {ok(0)}}, fails("Metadata", "b", kerr.TopicAuthorizationFailed)),
			ready:    "Unknown/Unreadable", consuming: "Unknown/Unreadable", within: "Unknown/Unreadable",
			messageOfReady: "of 2 topics, b not known: Metadata of topic b: TOPIC_AUTHORIZATION_FAILED: check " +
				"that the operator's user may Describe it$",
			lagIsUnknown: true,
		},
		"a topic that is being made": {
			cg:       consumerGroup("a", "b"),
			snapshot: with(topics{"a": {ok(0)}}, fails("Metadata", "b", kerr.LeaderNotAvailable)),
			ready:    "Unknown/Unreadable", consuming: "Unknown/Unreadable", within: "Unknown/Unreadable",
			messageOfReady: "of 2 topics, b not known: Metadata of topic b: LEADER_NOT_AVAILABLE$",
			lagIsUnknown:   true,
		},

		"a topic that is not there": {
			cg:       consumerGroup("a", "b", "c"),
			snapshot: with(topics{"a": {ok(0)}}, nil),
			ready:    "False/NotFound", consuming: "True/Reading", within: "True/WithinObjective",
			messageOfReady: "of 3 topics, b and 1 more not ready: Kafka has no such topic",
		},
		"a KafkaTopic that failed": {
			snapshot: with(topics{"a": {ok(0)}, "b": {ok(0)}}, nil),
			inputs: func(in *inputs) {
				in.strimzi = map[string]kafkaTopic{
					"b": {
						object: "bee", ready: "False", reason: "NotSupported",
						message: "Decreasing partitions not supported",
					},
				}
			},
			ready: "False/NotSupported", consuming: "True/Reading", within: "True/WithinObjective",
			messageOfReady: "of 2 topics, b not ready: KafkaTopic bee is not ready: " +
				"Decreasing partitions not supported",
		},
		"a KafkaTopic that failed for no word": {
			snapshot: with(topics{"a": {ok(0)}}, nil),
			inputs: func(in *inputs) {
				in.strimzi = map[string]kafkaTopic{"a": {object: "a", ready: "False", reason: "409 Conflict"}}
			},
			ready: "False/NotReady", consuming: "True/Reading", within: "True/WithinObjective",
			messageOfReady: "KafkaTopic a is not ready: 409 Conflict",
		},
		"a KafkaTopic whose topic is not there": {
			cg:       consumerGroup("a", "b"),
			snapshot: with(topics{"a": {ok(0)}}, nil),
			inputs: func(in *inputs) {
				in.strimzi = map[string]kafkaTopic{"b": {object: "b", ready: "True"}}
			},
			ready: "False/NotFound", consuming: "True/Reading", within: "True/WithinObjective",
			messageOfReady: "KafkaTopic b exists and its topic does not",
		},
		"KafkaTopics of an unreachable cluster": {
			cg: consumerGroup("a"),
			inputs: func(in *inputs) {
				in.unreachable = "could not be read"
				in.strimzi = map[string]kafkaTopic{"a": {object: "a", ready: "True"}}
			},
			ready: "True/AllReady", consuming: "Unknown/ClusterUnreachable", within: "Unknown/ClusterUnreachable",
			lagIsUnknown: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cg := c.cg
			if cg == nil {
				cg = consumerGroup()
			}
			in := inputsOf(cg, c.snapshot)
			if c.inputs != nil {
				c.inputs(&in)
			}
			if status, reason, ok := strings.Cut(c.before, "/"); ok {
				cg.Status.Conditions = []metav1.Condition{
					condition("Consuming", metav1.ConditionStatus(status), reason, "as before"),
				}
			}
			got, bareSince := newStatus(in)
			for kind, want := range map[string]struct{ is, message string }{
				"TopicsReady": {c.ready, c.messageOfReady}, "Consuming": {c.consuming, c.message}, "WithinObjective": {
					c.within, c.messageOfWithin,
				},
			} {
				is := meta.FindStatusCondition(got.Conditions, kind)
				if is == nil {
					t.Errorf("there is no condition %s", kind)
					continue
				}
				text := fmt.Sprintf("%s/%s", is.Status, is.Reason)
				if text != want.is || is.ObservedGeneration != 3 ||
					!strings.Contains("^"+is.Message+"$", want.message) {
					t.Errorf("%s is %s (generation %d), want %s\nits message is %q\nwant           %q",
						kind, text, is.ObservedGeneration, want.is, is.Message, want.message)
				}
			}
			if unknown := got.Lag == nil && got.LagSeconds == nil; unknown != c.lagIsUnknown {
				t.Errorf("lag is not known: %v, want %v", unknown, c.lagIsUnknown)
			}
			if unknown := got.Members == nil; unknown != c.membersAreUnknown && got.State != "" {
				t.Errorf("members are not known: %v, want %v", unknown, c.membersAreUnknown)
			}
			if bareSince.IsZero() == c.bareIsKnown {
				t.Errorf("records without a commit since %v", bareSince)
			}
		})
	}
}

// What could not be read is not made up for: the topic that it is in has no numbers, and neither
// has the sum.
func TestNumbersOfAPart(t *testing.T) {
	t.Parallel()
	ageless := behind(0, 9, time.Hour, lag.StatusStalled)
	ageless.AgeUnknown = true
	s := snapshotOf(
		map[string][]lag.Partition{
			"a": {ok(0)}, "b": {behind(0, 2, time.Second, lag.StatusOK)},
			"c": {ageless, behind(1, 4, time.Second, lag.StatusOK)},
		},
	)
	s.Groups["readers"].Topics["a"].Partial = true
	got, _ := newStatus(inputsOf(consumerGroup(), s))
	got.Conditions = nil
	want := v1alpha1.ConsumerGroupStatus{
		ObservedGeneration: 3, State: "Stable", Protocol: "consumer", Members: new(int32(1)), LastPollTime: new(
			metav1.NewTime(noon),
		),
		WorstPartition: &v1alpha1.PartitionStatus{Topic: "c", Lag: new(int64(9)), Status: "stalled"},
		Standing: []v1alpha1.StandingPartition{
			{Topic: "c", Partition: 0, Offset: 91, Since: metav1.NewTime(noon.Add(-time.Hour))},
		},
		Topics: []v1alpha1.TopicStatus{
			{Name: "a", Ready: "True", Source: "Kafka"},
			{Name: "b", Ready: "True", Source: "Kafka", Lag: new(int64(2)), LagSeconds: new(int64(1))},
			{Name: "c", Ready: "True", Source: "Kafka"},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// The next leader needs to know where a group stood still, also if it could not be read since.
func TestStandingIsKeptWhileTheGroupCannotBeRead(t *testing.T) {
	t.Parallel()
	cg := consumerGroup("a")
	stopped := behind(0, 9, time.Hour, lag.StatusStopped)
	cg.Status, _ = newStatus(inputsOf(cg, snapshotOf(map[string][]lag.Partition{"a": {stopped}})))
	if len(cg.Status.Standing) != 1 {
		t.Fatalf("it stands still in %+v", cg.Status.Standing)
	}
	in := inputsOf(cg, snapshotOf(nil))
	in.unreachable = "cluster main has not been readable"
	if got, _ := newStatus(in); cmp.Diff(cg.Status.Standing, got.Standing) != "" {
		t.Errorf("while Kafka is away it stands still in %+v", got.Standing)
	}
	got, _ := newStatus(inputsOf(cg, snapshotOf(map[string][]lag.Partition{"a": {ok(0)}})))
	if got.Standing != nil {
		t.Errorf("a group that reads stands still in %+v", got.Standing)
	}
}

// A broker that restarts leaves a status as it is, whatever of it cannot be read meanwhile, for
// three polls.
func TestPartIsGivenTime(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*lag.Snapshot){
		"a topic that is not returned": func(s *lag.Snapshot) {
			delete(s.Topics, "a")
			s.Errors = []*lag.ReadError{{API: "Metadata", Topic: "a", Err: context.DeadlineExceeded}}
		},
		"a partition of a topic": func(s *lag.Snapshot) { s.Topics["a"].Ready = false },
		"a partition of a group": func(s *lag.Snapshot) { s.Groups["readers"].Topics["a"].Partial = true },
		"the age of a partition": func(s *lag.Snapshot) {
			s.Groups["readers"].Topics["a"].Partitions[0].AgeUnknown = true
			s.Errors = []*lag.ReadError{{API: "ListOffsets", Topic: "a", Err: context.DeadlineExceeded}}
		},
	} {
		b, cg := newBench(&api{}), consumerGroup("a")
		key := client.ObjectKeyFromObject(cg)
		b.r.groups[key] = &declared{}
		for polls, want := range []bool{true, false, false, false, true} {
			s := snapshotOf(map[string][]lag.Partition{"a": {ok(0)}})
			s.Time = b.time
			if polls > 0 {
				change(s)
			}
			b.poll(s, nil)
			if _, got := b.r.inputs(cg, *b.r.groups[key]); got != want {
				t.Errorf("%s: after %d polls without, there is a status: %v", name, polls, got)
			}
			b.time = b.time.Add(5 * time.Second)
		}
	}
}

// An error that is another one each time, by its text, is the same one in a status: it would be
// written after each poll.
func TestUnreachableStaysTheSame(t *testing.T) {
	t.Parallel()
	b, cg := newBench(&api{}), consumerGroup("a")
	want := "cluster main has not been readable since " + b.time.UTC().Format(time.RFC3339) +
		": ListGroups: CONNECTION; see the operator's log"
	b.time = b.time.Add(time.Minute)
	for port := range 2 {
		b.poll(
			nil,
			fmt.Errorf(
				"read cluster main: %w",
				&lag.ReadError{
					API: "ListGroups",
					Err: fmt.Errorf("read tcp 10.0.0.7:%d->10.0.0.9:9092: i/o timeout", 40000+port),
				},
			),
		)
		if in, ok := b.r.inputs(cg, declared{}); in.unreachable != want || !ok {
			t.Errorf("the message is %q, want %q", in.unreachable, want)
		}
	}
}

// The worst partition is that of the worst status, then that with the oldest record.
func TestWorstPartition(t *testing.T) {
	t.Parallel()
	got, _ := newStatus(inputsOf(consumerGroup(), snapshotOf(map[string][]lag.Partition{
		"a": {behind(0, 9, time.Hour, lag.StatusSlow), behind(1, 9, time.Minute, lag.StatusStalled)},
		"b": {ok(0), behind(1, 2, 2*time.Minute, lag.StatusStalled)},
	})))
	want := &v1alpha1.PartitionStatus{
		Topic: "b", Partition: 1, Lag: new(int64(2)), LagSeconds: new(int64(120)), Status: "stalled",
	}
	if diff := cmp.Diff(want, got.WorstPartition); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// One partition that does not catch up is enough for none to be promised.
func TestTimeToClose(t *testing.T) {
	t.Parallel()
	closing := behind(0, 9, time.Second, lag.StatusOK)
	closing.Close = time.Minute
	for name, c := range map[string]struct {
		partitions []lag.Partition
		want       *int64
	}{
		"it catches up":                {[]lag.Partition{ok(1), closing}, new(int64(60))},
		"one partition does not":       {[]lag.Partition{closing, behind(1, 9, time.Second, lag.StatusOK), ok(2)}, nil},
		"another one does":             {[]lag.Partition{behind(1, 9, time.Second, lag.StatusOK), closing}, nil},
		"there is nothing to catch up": {[]lag.Partition{ok(0)}, nil},
	} {
		got, _ := newStatus(inputsOf(consumerGroup(), snapshotOf(map[string][]lag.Partition{"a": c.partitions})))
		if diff := cmp.Diff(c.want, got.TimeToCloseSeconds); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// A group with many topics has a status that the API server can keep, with what is wrong in it.
func TestManyTopics(t *testing.T) {
	t.Parallel()
	topics := map[string][]lag.Partition{}
	for i := range 300 {
		topics[fmt.Sprintf("t%03d", i)] = []lag.Partition{ok(0)}
	}
	s := snapshotOf(topics)
	s.Topics["t250"].Ready = false
	got, _ := newStatus(inputsOf(consumerGroup(), s))
	if len(got.Topics) != 100 || got.Topics[98].Name != "t098" || got.Topics[99].Name != "t250" {
		t.Errorf("%d topics: %+v", len(got.Topics), got.Topics)
	}
	text := meta.FindStatusCondition(got.Conditions, "TopicsReady").Message
	if !strings.HasPrefix(text, "of 300 topics, t250 not ready") {
		t.Error(text)
	}
}

func TestTransitionTimes(t *testing.T) {
	t.Parallel()
	cg := consumerGroup()
	in := inputsOf(cg, snapshotOf(map[string][]lag.Partition{"a": {ok(0)}}))
	cg.Status, _ = newStatus(in)
	in.now = noon.Add(time.Minute)
	cg.Status, _ = newStatus(in)
	in.snapshot = snapshotOf(map[string][]lag.Partition{"a": {behind(0, 1, time.Minute, lag.StatusStalled)}})
	cg.Status, _ = newStatus(in)
	for _, c := range cg.Status.Conditions {
		want := noon
		if c.Type != "TopicsReady" {
			want = in.now
		}
		if !c.LastTransitionTime.Time.Equal(want) {
			t.Errorf("%s has changed at %v, want %v", c.Type, c.LastTransitionTime, want)
		}
	}
}

func TestDue(t *testing.T) {
	t.Parallel()
	type status = v1alpha1.ConsumerGroupStatus
	at := func(s int) func(*status) {
		return func(st *status) { st.LastPollTime = new(metav1.NewTime(noon.Add(time.Duration(s) * time.Second))) }
	}
	for name, c := range map[string]struct {
		change func(*status)
		since  time.Duration
		groups int
		want   bool
	}{
		"nothing":     {func(*status) {}, time.Hour, 1, false},
		"a condition": {func(s *status) { s.Conditions[1].Reason = "Stalled" }, 0, 1, true},
		"a condition's message": {
			func(s *status) { s.Conditions[1].Message = "9 records" }, 9 * time.Second, 1, false,
		},
		"a condition's message, later": {
			func(s *status) { s.Conditions[1].Message = "9 records" }, 10 * time.Second, 1, true,
		},
		"the state":        {func(s *status) { s.State = "Empty" }, 0, 1, true},
		"the protocol":     {func(s *status) { s.Protocol = "consumer" }, 0, 1, true},
		"members":          {func(s *status) { s.Members = new(int32(2)) }, 0, 1, true},
		"the generation":   {func(s *status) { s.ObservedGeneration++ }, 0, 1, true},
		"the worst status": {func(s *status) { s.WorstPartition.Status = "slow" }, 0, 1, true},
		"the worst partition": {
			func(s *status) { s.WorstPartition.Partition = 9 }, 9 * time.Second, 1, false,
		},
		"a topic's readiness": {func(s *status) { s.Topics[0].Ready = "False" }, 0, 1, true},
		"a topic's lag": {
			func(s *status) { s.Topics[0].Lag = new(int64(4)) }, 9 * time.Second, 1, false,
		},
		"numbers, too soon":             {func(s *status) { s.Lag = new(int64(4)) }, 9 * time.Second, 1, false},
		"numbers":                       {func(s *status) { s.Lag = new(int64(4)) }, 10 * time.Second, 200, true},
		"numbers of one among 1,000":    {func(s *status) { s.Lag = new(int64(4)) }, 49 * time.Second, 1000, false},
		"numbers of one of 1,000":       {func(s *status) { s.Lag = new(int64(4)) }, 50 * time.Second, 1000, true},
		"the poll alone":                {at(49), 49 * time.Second, 1, false},
		"the poll alone, nearly minute": {at(50), 50 * time.Second, 1, true},
		"the poll alone, among 2,000":   {at(99), 99 * time.Second, 2000, false},
	} {
		old := status{
			ObservedGeneration: 1, State: "Stable", Protocol: "classic", Members: new(int32(1)), Lag: new(int64(3)),
			WorstPartition: &v1alpha1.PartitionStatus{Topic: "a", Status: "ok"},
			Topics:         []v1alpha1.TopicStatus{{Name: "a", Ready: "True"}},
			Conditions: []metav1.Condition{
				condition("TopicsReady", "True", "AllReady", "2"), condition("Consuming", "True", "Reading", "3"),
			},
		}
		at(0)(&old)
		next := *old.DeepCopy()
		c.change(&next)
		if got := due(&old, &next, c.since, c.groups); got != c.want {
			t.Errorf("%s: due is %v", name, got)
		}
	}
}

// The next leader needs to know a rhythm that makes the patience longer than a minute.
func TestRhythmIsKept(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		group lag.Group
		want  int64
	}{
		{lag.Group{State: "Stable", Rhythm: 30 * time.Second}, 0},
		{lag.Group{State: "Stable", Rhythm: 90 * time.Second}, 90},
		// Its commits could not be read.
		{lag.Group{State: "Stable", OffsetsUnknown: true}, 40},
	} {
		cg := consumerGroup("a")
		cg.Status.RhythmSeconds = 40
		status, _ := newStatus(inputs{
			cg: cg, now: noon, configured: []string{cg.Spec.Cluster},
			snapshot: &lag.Snapshot{Time: noon, Groups: map[string]*lag.Group{cg.Spec.Group: &tt.group}},
		})
		if status.RhythmSeconds != tt.want {
			t.Errorf("of %+v a rhythm of %d s is kept, want %d s", tt.group, status.RhythmSeconds, tt.want)
		}
	}
}
