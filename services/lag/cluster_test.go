package lag_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/lag"
)

// offsetsTopic keeps the commits of groups. The leader of a group's partition is its coordinator.
const offsetsTopic = "__consumer_offsets"

// clusterScenarios are those that need three brokers. Each of them leaves all three behind.
func clusterScenarios() map[string]func(*scenario) {
	return map[string]func(*scenario){
		"leader election":            leaderElection,
		"moved coordinator, new":     func(s *scenario) { movedCoordinator(s, true) },
		"moved coordinator, classic": func(s *scenario) { movedCoordinator(s, false) },
		"killed controller":          killedController,
	}
}

// A killed leader takes its partition away until another broker is elected. The other partitions are
// shown all the time. Nothing is counted twice when the partition is back.
func leaderElection(s *scenario) {
	topic := s.newTopic("t", 3)
	s.outlives(topic, s.broker(s.leader(topic.name, 0)))
}

// A killed controller takes no partition away but those that it led as a broker.
func killedController(s *scenario) {
	topic := s.newTopic("t", 3)
	s.outlives(topic, s.broker(s.controller()))
}

// outlives kills a broker, lets the cluster recover, and starts the broker again. Two groups read on
// meanwhile: one that the broker coordinates, and one that it does not.
func (s *scenario) outlives(topic *topicLog, victim *localkafka.Broker) {
	s.Helper()
	away := int32(victim.ID)
	led := make(map[int32]bool)
	// all are the partitions that get their first leaders back. The next scenario needs groups with different
	// coordinators, too.
	var all kadm.TopicsSet
	for p := range topic.partitions {
		led[int32(p)] = s.leader(topic.name, int32(p)) == away
		all.Add(topic.name, int32(p))
	}
	offsets, err := s.metadata(s.Context(), 1, offsetsTopic)
	if err != nil {
		s.Fatal(err)
	}
	for _, p := range offsets.Topics[0].Partitions {
		all.Add(offsetsTopic, p.Partition)
	}
	group := s.groupOf(func(coordinator int32) bool { return coordinator != away })
	moving := s.groupOf(func(coordinator int32) bool { return coordinator == away })
	member := topic.join(group, true)
	s.awaitMembers(group, 1)
	begin := time.Now()
	read := func() {
		for p := range int32(len(topic.partitions)) {
			topic.produce(p, 5)
			end := topic.partitions[p].end.last()
			topic.commitAs(member, group, p, end-3).steady = !led[p]
			topic.commit(moving, p, end-2)
		}
	}
	read()
	s.polls(3)
	settled := s.away.begin()
	victim.Kill()
	read()
	s.settle(victim, topic.name, group, moving)
	settled()
	read()
	s.polls(3)
	settled = s.away.begin()
	if err := victim.StartAgain(s.Context()); err != nil {
		s.Fatal(err)
	}
	s.elect(all)
	s.settle(nil, topic.name, group, moving)
	settled()
	read()
	s.polls(4)
	s.alive(group, begin, 1)
	s.alive(moving, begin, 0)
	for _, w := range s.watches {
		if p := s.now(w); p.Rewinds != 0 || p.Lost != 0 {
			s.Errorf("%v: %d rewinds, %d lost records; want none", w, p.Rewinds, p.Lost)
		}
	}
}

// While the coordinator of a group moves, the group is unknown at most. It never looks dead, and its
// counters go on.
func movedCoordinator(s *scenario, next bool) {
	// One of its polls is always under way.
	s.recorders = append(s.recorders, s.startRecorder(s.T, s.config(time.Millisecond, s.name+"-")))
	topic := s.newTopic("t", 1)
	topic.produce(0, 100)
	group := s.name + "-g"
	member := topic.join(group, next)
	s.awaitMembers(group, 1)
	topic.commitAs(member, group, 0, 30)
	s.polls(2)
	w := topic.commitAs(member, group, 0, 20)
	s.polls(2)
	topic.deleteBefore(0, 25)
	s.awaitStatus(w, lag.StatusLost)
	begin := time.Now()
	for i := range int64(8) {
		settled := s.away.begin()
		for range 5 {
			s.moveCoordinators()
			s.settle(nil, topic.name, group)
		}
		settled()
		topic.commitAs(member, group, 0, 30+5*i)
		s.polls(2)
	}
	if p := s.now(w); p.Rewinds != 1 || p.Lost != 5 {
		s.Errorf("the group has %d rewinds and %d lost records, want 1 and 5", p.Rewinds, p.Lost)
	}
	s.alive(group, begin, 1)
}

// alive checks that since begin a group never seems to be gone or to have lost members, and never seems
// to go back or to lose records. What is away is unknown instead.
func (s *scenario) alive(group string, begin time.Time, members int) {
	s.Helper()
	for _, r := range s.recorders {
		for _, o := range r.all() {
			g := o.Groups[group]
			if g == nil || o.Time.Before(begin) {
				continue
			}
			at := o.Time.Format("15:04:05.000")
			if g.State == "Dead" || g.Members != members && g.Members != -1 {
				s.Errorf("group %s is %s with %d members at %s", group, g.State, g.Members, at)
			}
			for _, t := range g.Topics {
				for _, p := range t.Partitions {
					if p.Status == lag.StatusRewound || members > 0 && p.Status == lag.StatusStopped {
						s.Errorf("group %s, partition %d: status %s at %s", group, p.Number, p.Status, at)
					}
				}
			}
		}
	}
}

// broker returns the broker with this ID.
func (l *lab) broker(id int32) *localkafka.Broker { return l.brokers[id-1] }

// leader returns the ID of the broker that leads a partition.
func (s *scenario) leader(topic string, partition int32) int32 {
	s.Helper()
	metadata, err := s.metadata(s.Context(), 1, topic)
	if err != nil {
		s.Fatal(err)
	}
	i := slices.IndexFunc(metadata.Topics[0].Partitions, func(p kmsg.MetadataResponseTopicPartition) bool {
		return p.Partition == partition
	})
	return metadata.Topics[0].Partitions[i].Leader
}

// metadata returns what a broker knows now. The clients have caches of their own.
func (s *scenario) metadata(ctx context.Context, broker int32, topics ...string) (*kmsg.MetadataResponse, error) {
	req := kmsg.NewPtrMetadataRequest()
	for _, name := range topics {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = &name
		req.Topics = append(req.Topics, t)
	}
	return req.RequestWith(ctx, s.kafka.Broker(int(broker)))
}

// controller returns the ID of the broker that is the active controller.
func (s *scenario) controller() int32 {
	s.Helper()
	req := kmsg.NewPtrDescribeQuorumRequest()
	metadata := kmsg.NewDescribeQuorumRequestTopic()
	metadata.Topic = "__cluster_metadata"
	metadata.Partitions = []kmsg.DescribeQuorumRequestTopicPartition{kmsg.NewDescribeQuorumRequestTopicPartition()}
	req.Topics = append(req.Topics, metadata)
	resp, err := req.RequestWith(s.Context(), s.kafka)
	if err != nil {
		s.Fatal(err)
	}
	return resp.Topics[0].Partitions[0].LeaderID
}

// groupOf returns the name of a group whose coordinator is as wanted.
func (s *scenario) groupOf(wanted func(coordinator int32) bool) string {
	s.Helper()
	for i := range 1000 {
		group := fmt.Sprintf("%s-g%d", s.name, i)
		found := s.admin.FindGroupCoordinators(s.Context(), group)[group]
		if found.Err != nil {
			s.Fatal(found.Err)
		}
		if wanted(found.NodeID) {
			return group
		}
	}
	s.Fatal("no group has such a coordinator")
	return ""
}

// moveCoordinators makes the next replica of each partition of the groups' commits its leader.
func (s *scenario) moveCoordinators() {
	s.Helper()
	before, err := s.metadata(s.Context(), 1, offsetsTopic)
	if err != nil {
		s.Fatal(err)
	}
	var next kadm.AlterPartitionAssignmentsReq
	var all kadm.TopicsSet
	for _, p := range before.Topics[0].Partitions {
		next.Assign(offsetsTopic, p.Partition, append(slices.Clone(p.Replicas[1:]), p.Replicas[0]))
		all.Add(offsetsTopic, p.Partition)
	}
	moved, err := s.admin.AlterPartitionAssignments(s.Context(), next)
	if err = errors.Join(err, moved.Error()); err != nil {
		s.Fatal(err)
	}
	s.elect(all)
	s.eventually("the new leaders", func(ctx context.Context) error {
		after, err := s.metadata(ctx, 1, offsetsTopic)
		if err != nil {
			return err
		}
		for _, p := range after.Topics[0].Partitions {
			if want := next[offsetsTopic][p.Partition][0]; p.Leader != want {
				return fmt.Errorf("broker %d leads partition %d, want %d", p.Leader, p.Partition, want)
			}
		}
		return nil
	})
}

// elect makes the first replicas the leaders, as soon as they are in sync.
func (s *scenario) elect(partitions kadm.TopicsSet) {
	s.Helper()
	s.eventually("the election", func(ctx context.Context) error {
		elected, err := s.admin.ElectLeaders(ctx, kadm.ElectPreferredReplica, partitions)
		if err != nil {
			return err
		}
		for _, topic := range elected {
			for _, p := range topic {
				if p.Err != nil && !errors.Is(p.Err, kerr.ElectionNotNeeded) {
					return p.Err
				}
			}
		}
		return nil
	})
}

// settle waits until each broker but the one that is away knows the same brokers and leaders, until all leaders
// respond, and until each of the groups is listed by its coordinator and by no other broker.
func (s *scenario) settle(away *localkafka.Broker, topic string, groups ...string) {
	s.Helper()
	var ids []int32
	for _, b := range s.brokers {
		if b != away {
			ids = append(ids, int32(b.ID))
		}
	}
	s.eventually("the cluster", func(ctx context.Context) error {
		var leaders map[string]int32
		lists := make(map[string][]int32)
		for _, id := range ids {
			known, listed, err := s.settled(ctx, id, ids, topic)
			if err != nil {
				return err
			}
			for _, group := range listed {
				lists[group] = append(lists[group], id)
			}
			// A broker that is behind would lead clients to a former coordinator.
			if leaders == nil {
				leaders = known
			} else if !maps.Equal(leaders, known) {
				return fmt.Errorf("broker %d knows other leaders than broker %d", id, ids[0])
			}
		}
		find := kmsg.NewPtrFindCoordinatorRequest()
		find.CoordinatorKeys = groups
		found, err := find.RequestWith(ctx, s.kafka.Broker(int(ids[0])))
		if err != nil {
			return err
		}
		for _, c := range found.Coordinators {
			// The former coordinator goes on for a while after it knows of its successor, and only then the
			// successor begins.
			if !slices.Equal(lists[c.Key], []int32{c.NodeID}) {
				return fmt.Errorf("brokers %v list group %s, whose coordinator is %d", lists[c.Key], c.Key, c.NodeID)
			}
		}
		ends, err := s.admin.ListEndOffsets(ctx, topic)
		return errors.Join(err, ends.Error())
	})
}

// settled returns the leaders of the partitions, by topic and number, and the groups that a broker lists. It is
// an error if the broker does not know these brokers and a leader among them for every partition, or has not
// loaded all groups that it coordinates.
func (s *scenario) settled(
	ctx context.Context, broker int32, all []int32, topic string,
) (leaders map[string]int32, groups []string, err error) {
	metadata, err := s.metadata(ctx, broker, topic, offsetsTopic)
	if err != nil {
		return nil, nil, err
	}
	if len(metadata.Brokers) != len(all) {
		return nil, nil, fmt.Errorf("broker %d knows %d brokers", broker, len(metadata.Brokers))
	}
	leaders = make(map[string]int32)
	for _, t := range metadata.Topics {
		for _, p := range t.Partitions {
			if !slices.Contains(all, p.Leader) {
				return nil, nil, fmt.Errorf("broker %d knows no leader of a partition", broker)
			}
			leaders[fmt.Sprintf("%s/%d", *t.Topic, p.Partition)] = p.Leader
		}
	}
	list, err := kmsg.NewPtrListGroupsRequest().RequestWith(ctx, s.kafka.Broker(int(broker)))
	if err != nil {
		return nil, nil, err
	}
	for _, g := range list.Groups {
		groups = append(groups, g.Group)
	}
	return leaders, groups, kerr.ErrorForCode(list.ErrorCode)
}

// eventually tries something until it succeeds.
func (s *scenario) eventually(what string, try func(context.Context) error) {
	s.Helper()
	for begin := time.Now(); ; time.Sleep(20 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(s.Context(), 3*time.Second)
		err := try(ctx)
		cancel()
		if err == nil {
			return
		}
		if time.Since(begin) > patience {
			s.Fatalf("%s: %v", what, err)
		}
	}
}
