package operator

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"ordersystem.dev/services/lag"
	"ordersystem.dev/services/operator/api/v1alpha1"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// ok is a partition of which all is read.
func ok(number int32) lag.Partition {
	return lag.Partition{Number: number, Committed: 100, Status: lag.StatusOK, LastProgress: noon}
}

// behind is one of which something is unread.
func behind(number int32, records int64, age time.Duration, status lag.Status) lag.Partition {
	return lag.Partition{Number: number, Committed: 100 - records, Records: records, Age: age, Status: status, LastProgress: noon, Close: -1}
}

// snapshotOf is what a poll finds of the group readers, which has one member and has been watched for an hour. Each topic's log has 100
// records, all in partitions that the group has to do with.
func snapshotOf(topics map[string][]lag.Partition) *lag.Snapshot {
	s := &lag.Snapshot{Time: noon, Topics: map[string]*lag.Topic{}}
	group := &lag.Group{Name: "readers", State: "Stable", Protocol: "consumer", Members: 1, Since: noon.Add(-time.Hour), Topics: map[string]*lag.GroupTopic{}}
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

func viewOf(s *lag.Snapshot) view {
	return view{now: noon, configured: []string{"main", "other"}, snapshot: s, interval: 5 * time.Second}
}

func consumerGroup(topics ...v1alpha1.TopicName) *v1alpha1.ConsumerGroup {
	return &v1alpha1.ConsumerGroup{
		ObjectMeta: metav1.ObjectMeta{Name: "readers", Namespace: "here", Generation: 3},
		Spec:       v1alpha1.ConsumerGroupSpec{Group: "readers", Cluster: "main", Topics: topics, Objective: v1alpha1.Objective{MaxLagSeconds: 10}},
	}
}

func condition(kind string, status metav1.ConditionStatus, reason, message string) metav1.Condition {
	return metav1.Condition{Type: kind, Status: status, Reason: reason, Message: message, ObservedGeneration: 3, LastTransitionTime: metav1.NewTime(noon)}
}

func TestStatusOfAGroupThatReads(t *testing.T) {
	t.Parallel()
	p := behind(1, 5, 4200*time.Millisecond, lag.StatusOK)
	p.Close = 2500 * time.Millisecond
	cg := consumerGroup()
	got, bare := viewOf(snapshotOf(map[string][]lag.Partition{"a": {ok(0), p}, "b": {ok(0)}})).observe(cg)
	want := v1alpha1.ConsumerGroupStatus{
		ObservedGeneration: 3, State: "Stable", Protocol: "consumer", Members: new(int32(1)), Lag: new(int64(5)), LagSeconds: new(int64(5)),
		WorstPartition:     &v1alpha1.PartitionStatus{Topic: "a", Partition: 1, Lag: new(int64(5)), LagSeconds: new(int64(5)), Status: "ok"},
		TimeToCloseSeconds: new(int64(3)),
		Topics: []v1alpha1.TopicStatus{
			{Name: "a", Ready: "True", Source: "Kafka", Lag: new(int64(5)), LagSeconds: new(int64(5))},
			{Name: "b", Ready: "True", Source: "Kafka", Lag: new(int64(0)), LagSeconds: new(int64(0))},
		},
		LastPollTime: new(metav1.NewTime(noon)),
		Conditions: []metav1.Condition{
			condition("Consuming", "True", "Reading", "1 member; 5 records unread, the oldest for 4.2s (a/1), at this pace for another 3s"),
			condition("WithinObjective", "True", "WithinObjective", "5 records unread, the oldest for 4.2s (a/1), at this pace for another 3s; the objective is 10s"),
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
	none := lag.Partition{Number: 1, Committed: -1, Status: lag.StatusNoCommit, Close: -1}
	lost := behind(1, 40, time.Hour, lag.StatusLost)
	lost.Lost = 7
	unmoved := behind(1, 40, time.Hour, lag.StatusOK) // as of a group that has just been found
	unmoved.LastProgress = time.Time{}
	with := func(partitions topics, change func(*lag.Snapshot)) *lag.Snapshot {
		s := snapshotOf(partitions)
		if change != nil {
			change(s)
		}
		return s
	}
	young := func(s *lag.Snapshot) { s.Groups["readers"].Since = noon.Add(-30 * time.Second) }
	gone := func(s *lag.Snapshot) {
		s.Groups["readers"] = &lag.Group{Name: "readers", State: "Dead", Since: noon.Add(-time.Hour)}
	}

	// What each condition says: Status/Reason, and a part of the message.
	for name, c := range map[string]struct {
		cg                        *v1alpha1.ConsumerGroup
		snapshot                  *lag.Snapshot
		view                      func(*view)
		before                    string // Status/Reason of Consuming
		ready, consuming, within  string
		message, messageOfReady   string
		messageOfWithin           string
		lagIsUnknown, bareIsKnown bool
	}{
		"all is read":        {snapshot: with(topics{"a": {ok(0)}}, nil), ready: "True/AllReady", consuming: "True/Reading", within: "True/WithinObjective", message: "1 member; all is read", messageOfWithin: "all is read; the objective is 10s"},
		"at the objective":   {snapshot: with(topics{"a": {behind(0, 1, 10*time.Second, lag.StatusOK)}}, nil), ready: "True/AllReady", consuming: "True/Reading", within: "True/WithinObjective"},
		"past the objective": {snapshot: with(topics{"a": {behind(0, 1, 10001*time.Millisecond, lag.StatusOK)}}, nil), ready: "True/AllReady", consuming: "True/Reading", within: "False/ObjectiveMissed", messageOfWithin: "1 record unread, the oldest for 11s (a/0); the objective is 10s; the condition Consuming says why"},
		"stalled": {snapshot: with(topics{"a": {ok(0), behind(1, 40, 2*time.Minute, lag.StatusStalled), behind(2, 50, 3*time.Minute, lag.StatusStalled)}}, nil),
			ready: "True/AllReady", consuming: "False/Stalled", within: "False/ObjectiveMissed", message: "a member has a/2 and 1 other partition (50 records unread, the oldest for 3m0s) and does not move on"},
		"stopped": {snapshot: with(topics{"a": {behind(0, 40, 2*time.Minute, lag.StatusStopped)}, "b": {behind(0, 90, 5*time.Minute, lag.StatusStalled)}}, func(s *lag.Snapshot) { s.Groups["readers"].Members = 0 }),
			ready: "True/AllReady", consuming: "False/Stopped", within: "False/ObjectiveMissed", message: "no member reads a/0 (40 records unread, the oldest for 2m0s): start the consumer (the group has 0 members)",
			messageOfWithin: "130 records unread, the oldest for 5m0s (b/0)"},
		"retention was faster":         {snapshot: with(topics{"a": {behind(0, 1, time.Hour, lag.StatusStopped), lost}}, nil), ready: "True/AllReady", consuming: "False/RecordsLost", within: "False/ObjectiveMissed", message: "a/1 (40 records unread, the oldest for 1h0m0s): retention took 7 records before they were read"},
		"a commit beyond the end":      {snapshot: with(topics{"a": {behind(0, 0, 0, lag.StatusLost)}}, nil), ready: "True/AllReady", consuming: "False/RecordsLost", within: "True/WithinObjective", message: "its commit lies beyond the log's end"},
		"a replay":                     {snapshot: with(topics{"a": {behind(0, 40, time.Hour, lag.StatusRewound), behind(1, 1, 0, lag.StatusSlow)}}, nil), ready: "True/AllReady", consuming: "True/Rewound", within: "False/ObjectiveMissed", message: "the commit went back in a/0"},
		"too slow":                     {snapshot: with(topics{"a": {behind(0, 40, time.Hour, lag.StatusSlow)}}, nil), ready: "True/AllReady", consuming: "True/FallingBehind", within: "False/ObjectiveMissed", message: "records come faster than a/0"},
		"shut down with all read":      {snapshot: with(topics{"a": {ok(0)}}, func(s *lag.Snapshot) { s.Groups["readers"].Members = 0 }), ready: "True/AllReady", consuming: "True/NoMembers", within: "True/WithinObjective"},
		"nothing to commit":            {snapshot: with(topics{"a": {ok(0), none}}, func(s *lag.Snapshot) { s.Topics["a"].Partitions[1].Start = 100 }), ready: "True/AllReady", consuming: "True/Reading", within: "True/WithinObjective"},
		"records and no commit, first": {snapshot: with(topics{"a": {ok(0), none}}, nil), ready: "True/AllReady", consuming: "Unknown/NotKnownYet", within: "True/WithinObjective", bareIsKnown: true},
		"records and no commit, while it reads": {snapshot: with(topics{"a": {ok(0), none}}, nil), view: func(v *view) { v.bareSince = noon.Add(-59 * time.Second) }, before: "True/Reading",
			ready: "True/AllReady", consuming: "True/Reading", within: "True/WithinObjective", message: "as before", bareIsKnown: true},
		"records and no commit for a minute": {snapshot: with(topics{"a": {ok(0), none}}, nil), view: func(v *view) { v.bareSince = noon.Add(-time.Minute) }, before: "True/Reading",
			ready: "True/AllReady", consuming: "False/NoCommit", within: "True/WithinObjective", message: "there are records, and no commit, in a/1: either", bareIsKnown: true},
		"no commit at all": {snapshot: with(topics{"a": {none}}, nil), view: func(v *view) { v.bareSince = noon.Add(-time.Minute) },
			ready: "True/AllReady", consuming: "False/NoCommit", within: "Unknown/NoCommit", lagIsUnknown: true, bareIsKnown: true},
		"nothing to read": {snapshot: with(topics{"a": {none}}, func(s *lag.Snapshot) { s.Topics["a"].Partitions[0].Start = 100 }), ready: "True/AllReady", consuming: "True/Reading", within: "True/WithinObjective",
			messageOfWithin: "there is nothing to read; the objective is 10s", lagIsUnknown: true},
		"a topic that it should read": {cg: consumerGroup("a", "b"), snapshot: with(topics{"a": {ok(0)}, "b": {ok(0)}}, func(s *lag.Snapshot) { delete(s.Groups["readers"].Topics, "b") }), view: func(v *view) { v.bareSince = noon.Add(-time.Minute) },
			ready: "True/AllReady", consuming: "False/NotSubscribed", within: "True/WithinObjective", message: "nothing to do with b, where there are records", bareIsKnown: true},
		"a topic of others": {cg: consumerGroup("a"), snapshot: with(topics{"a": {ok(0)}, "b": {behind(0, 9, time.Hour, lag.StatusStopped)}}, nil), ready: "True/AllReady", consuming: "True/Reading", within: "True/WithinObjective"},
		"unknown to Kafka":  {snapshot: with(nil, gone), ready: "Unknown/NotFound", consuming: "False/NotFound", within: "Unknown/NotFound", message: `Kafka knows no group "readers": start its consumer`, lagIsUnknown: true},
		"without topics":    {snapshot: with(nil, nil), ready: "Unknown/NoTopics", consuming: "Unknown/NoTopics", within: "Unknown/NoTopics", lagIsUnknown: true},

		"just found, and stuck before":     {snapshot: with(topics{"a": {unmoved}}, young), before: "False/Stalled", ready: "True/AllReady", consuming: "False/Stalled", within: "False/ObjectiveMissed", message: "as before"},
		"just found, and reading before":   {snapshot: with(topics{"a": {unmoved}}, young), before: "True/Reading", ready: "True/AllReady", consuming: "True/Reading", within: "False/ObjectiveMissed", message: "as before"},
		"just found, and unreadable":       {snapshot: with(topics{"a": {unmoved}}, young), before: "Unknown/ClusterUnreachable", ready: "True/AllReady", consuming: "Unknown/NotKnownYet", within: "False/ObjectiveMissed", message: "40 records unread, the oldest for 1h0m0s (a/1); whether the group moves"},
		"just found, and not there before": {snapshot: with(topics{"a": {unmoved}}, young), before: "False/NotFound", ready: "True/AllReady", consuming: "Unknown/NotKnownYet", within: "False/ObjectiveMissed"},
		"just found, and moving": {snapshot: with(topics{"a": {behind(1, 40, time.Hour, lag.StatusOK)}}, young), before: "False/Stalled",
			ready: "True/AllReady", consuming: "True/Reading", within: "False/ObjectiveMissed"},
		"just found, with all read":           {snapshot: with(topics{"a": {lag.Partition{Committed: 100, Status: lag.StatusOK}}}, young), before: "False/Stalled", ready: "True/AllReady", consuming: "True/Reading", within: "True/WithinObjective"},
		"watched long enough":                 {snapshot: with(topics{"a": {unmoved}}, func(s *lag.Snapshot) { s.Groups["readers"].Since = noon.Add(-65 * time.Second) }), before: "False/Stalled", ready: "True/AllReady", consuming: "True/Reading", within: "False/ObjectiveMissed"},
		"just found, and losing records":      {snapshot: with(topics{"a": {unmoved, lost}}, young), before: "True/Reading", ready: "True/AllReady", consuming: "False/RecordsLost", within: "False/ObjectiveMissed"},
		"just found, and no commit as before": {snapshot: with(topics{"a": {ok(0), none}}, young), before: "False/NoCommit", ready: "True/AllReady", consuming: "False/NoCommit", within: "True/WithinObjective", message: "as before", bareIsKnown: true},

		"another cluster": {cg: func() *v1alpha1.ConsumerGroup { cg := consumerGroup("a"); cg.Spec.Cluster = "elsewhere"; return cg }(),
			ready: "Unknown/UnknownCluster", consuming: "Unknown/UnknownCluster", within: "Unknown/UnknownCluster", message: `the operator knows no cluster "elsewhere", only main, other: correct`, lagIsUnknown: true},
		"an unreachable cluster": {snapshot: with(topics{"a": {ok(0)}}, nil), view: func(v *view) { v.unreachable = "could not be read since noon" }, before: "True/Reading",
			ready: "Unknown/ClusterUnreachable", consuming: "Unknown/ClusterUnreachable", within: "Unknown/ClusterUnreachable", message: "could not be read since noon", lagIsUnknown: true},
		"a group that may not be read": {snapshot: with(nil, func(s *lag.Snapshot) {
			s.Groups = nil
			s.Errors = []*lag.ReadError{{API: "OffsetFetch", Group: "readers", Err: errors.New("not authorized")}}
		}), ready: "Unknown/Unreadable", consuming: "Unknown/Unreadable", within: "Unknown/Unreadable", message: "OffsetFetch of group readers: not authorized", lagIsUnknown: true},
		"a partition without a leader": {snapshot: with(topics{"a": {ok(0)}, "b": {ok(0)}}, func(s *lag.Snapshot) { s.Topics["b"].Ready = false }),
			ready: "False/NotReady", consuming: "Unknown/Unreadable", within: "Unknown/Unreadable", messageOfReady: "of 2 topics, b not ready: a partition has no leader", lagIsUnknown: true},
		"a partition without a leader, and another that is stuck": {snapshot: with(topics{"a": {behind(0, 1, time.Hour, lag.StatusStalled)}, "b": {ok(0)}}, func(s *lag.Snapshot) { s.Topics["b"].Ready = false }),
			ready: "False/NotReady", consuming: "False/Stalled", within: "False/ObjectiveMissed", lagIsUnknown: true},
		"a topic that may not be read": {cg: consumerGroup("a", "b"), snapshot: with(topics{"a": {ok(0)}}, func(s *lag.Snapshot) {
			s.Errors = []*lag.ReadError{{API: "Metadata", Topic: "b", Err: errors.New("not authorized")}}
		}), ready: "Unknown/Unreadable", consuming: "Unknown/Unreadable", within: "Unknown/Unreadable", messageOfReady: "of 2 topics, b not known: Metadata of topic b: not authorized", lagIsUnknown: true},

		"a topic that is not there": {cg: consumerGroup("a", "b", "c"), snapshot: with(topics{"a": {ok(0)}}, nil), ready: "False/NotFound", consuming: "True/Reading", within: "True/WithinObjective",
			messageOfReady: "of 3 topics, b and 1 more not ready: Kafka has no such topic"},
		"a KafkaTopic that failed": {snapshot: with(topics{"a": {ok(0)}, "b": {ok(0)}}, nil), view: func(v *view) {
			v.strimzi = map[string]kafkaTopic{"b": {object: "bee", ready: "False", reason: "NotSupported", message: "Decreasing partitions not supported"}}
		}, ready: "False/NotSupported", consuming: "True/Reading", within: "True/WithinObjective", messageOfReady: "of 2 topics, b not ready: KafkaTopic bee is not ready: Decreasing partitions not supported"},
		"a KafkaTopic that failed for no word": {snapshot: with(topics{"a": {ok(0)}}, nil), view: func(v *view) {
			v.strimzi = map[string]kafkaTopic{"a": {object: "a", ready: "False", reason: "409 Conflict"}}
		}, ready: "False/NotReady", consuming: "True/Reading", within: "True/WithinObjective", messageOfReady: "KafkaTopic a is not ready: 409 Conflict"},
		"a KafkaTopic whose topic is not there": {cg: consumerGroup("a", "b"), snapshot: with(topics{"a": {ok(0)}}, nil), view: func(v *view) {
			v.strimzi = map[string]kafkaTopic{"b": {object: "b", ready: "True"}}
		}, ready: "False/NotFound", consuming: "True/Reading", within: "True/WithinObjective", messageOfReady: "KafkaTopic b is there and its topic is not"},
		"KafkaTopics of an unreachable cluster": {cg: consumerGroup("a"), view: func(v *view) {
			v.unreachable, v.strimzi = "could not be read", map[string]kafkaTopic{"a": {object: "a", ready: "True"}}
		}, ready: "True/AllReady", consuming: "Unknown/ClusterUnreachable", within: "Unknown/ClusterUnreachable", lagIsUnknown: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cg, v := c.cg, viewOf(c.snapshot)
			if cg == nil {
				cg = consumerGroup()
			}
			if c.view != nil {
				c.view(&v)
			}
			if status, reason, ok := strings.Cut(c.before, "/"); ok {
				cg.Status.Conditions = []metav1.Condition{condition("Consuming", metav1.ConditionStatus(status), reason, "as before")}
			}
			got, bareSince := v.observe(cg)
			for kind, want := range map[string]struct{ is, message string }{
				"TopicsReady": {c.ready, c.messageOfReady}, "Consuming": {c.consuming, c.message}, "WithinObjective": {c.within, c.messageOfWithin},
			} {
				is := meta.FindStatusCondition(got.Conditions, kind)
				if is == nil {
					t.Errorf("there is no condition %s", kind)
				} else if text := fmt.Sprintf("%s/%s", is.Status, is.Reason); text != want.is || !strings.Contains(is.Message, want.message) || is.ObservedGeneration != 3 {
					t.Errorf("%s is %s (generation %d), want %s\nit says %q\nwant    %q", kind, text, is.ObservedGeneration, want.is, is.Message, want.message)
				}
			}
			if unknown := got.Lag == nil && got.LagSeconds == nil; unknown != c.lagIsUnknown {
				t.Errorf("lag is not known: %v, want %v", unknown, c.lagIsUnknown)
			}
			if bareSince.IsZero() == c.bareIsKnown {
				t.Errorf("records without a commit since %v", bareSince)
			}
		})
	}
}

// The worst partition is that of the worst status, then that with the oldest record.
func TestWorstPartition(t *testing.T) {
	t.Parallel()
	got, _ := viewOf(snapshotOf(map[string][]lag.Partition{
		"a": {behind(0, 9, time.Hour, lag.StatusSlow), behind(1, 9, time.Minute, lag.StatusStalled)},
		"b": {ok(0), behind(1, 2, 2*time.Minute, lag.StatusStalled)},
	})).observe(consumerGroup())
	want := &v1alpha1.PartitionStatus{Topic: "b", Partition: 1, Lag: new(int64(2)), LagSeconds: new(int64(120)), Status: "stalled"}
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
		got, _ := viewOf(snapshotOf(map[string][]lag.Partition{"a": c.partitions})).observe(consumerGroup())
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
	got, _ := viewOf(s).observe(consumerGroup())
	if len(got.Topics) != 100 || got.Topics[98].Name != "t098" || got.Topics[99].Name != "t250" {
		t.Errorf("%d topics: %+v", len(got.Topics), got.Topics)
	}
	if text := meta.FindStatusCondition(got.Conditions, "TopicsReady").Message; !strings.HasPrefix(text, "of 300 topics, t250 not ready") {
		t.Error(text)
	}
}

func TestTransitionTimes(t *testing.T) {
	t.Parallel()
	cg := consumerGroup()
	v := viewOf(snapshotOf(map[string][]lag.Partition{"a": {ok(0)}}))
	cg.Status, _ = v.observe(cg)
	v.now = noon.Add(time.Minute)
	cg.Status, _ = v.observe(cg)
	v.snapshot = snapshotOf(map[string][]lag.Partition{"a": {behind(0, 1, time.Minute, lag.StatusStalled)}})
	cg.Status, _ = v.observe(cg)
	for _, c := range cg.Status.Conditions {
		want := noon
		if c.Type != "TopicsReady" {
			want = v.now
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
		"nothing":                       {func(*status) {}, time.Hour, 1, false},
		"a condition":                   {func(s *status) { s.Conditions[1].Reason = "Stalled" }, 0, 1, true},
		"a condition's message":         {func(s *status) { s.Conditions[1].Message = "9 records" }, 9 * time.Second, 1, false},
		"a condition's message, later":  {func(s *status) { s.Conditions[1].Message = "9 records" }, 10 * time.Second, 1, true},
		"the state":                     {func(s *status) { s.State = "Empty" }, 0, 1, true},
		"the protocol":                  {func(s *status) { s.Protocol = "consumer" }, 0, 1, true},
		"members":                       {func(s *status) { s.Members = new(int32(2)) }, 0, 1, true},
		"the generation":                {func(s *status) { s.ObservedGeneration++ }, 0, 1, true},
		"the worst status":              {func(s *status) { s.WorstPartition.Status = "slow" }, 0, 1, true},
		"the worst partition":           {func(s *status) { s.WorstPartition.Partition = 9 }, 9 * time.Second, 1, false},
		"a topic's readiness":           {func(s *status) { s.Topics[0].Ready = "False" }, 0, 1, true},
		"a topic's lag":                 {func(s *status) { s.Topics[0].Lag = new(int64(4)) }, 9 * time.Second, 1, false},
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
			Conditions:     []metav1.Condition{condition("TopicsReady", "True", "AllReady", "2"), condition("Consuming", "True", "Reading", "3")},
		}
		at(0)(&old)
		next := *old.DeepCopy()
		c.change(&next)
		if got := due(&old, &next, c.since, c.groups); got != c.want {
			t.Errorf("%s: due is %v", name, got)
		}
	}
}
