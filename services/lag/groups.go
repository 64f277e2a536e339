package lag

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// knownKinds are the kinds of groups whose members this program can read.
var knownKinds = []string{"classic", "consumer", "streams", share}

// share is the kind of group of KIP-932. Its members share partitions and acknowledge each record.
// Instead of a commit, a partition has the offset of its first record that is not acknowledged.
const share = "share"

// readGroups lists the cluster's groups and reads the watched ones: members, state and commits.
// Wanted groups are in the result even if they do not exist, as Dead. former are the groups of the
// last poll; they are read too if no broker lists them.
//
// What could not be read of a group is unknown in it and has a ReadError. A group of which nothing
// could be read is absent. err is set only if no broker responded.
func readGroups(
	ctx context.Context, c *client, watched func(name string) bool, wanted []string, former []kafkaGroup,
) (found map[string]*kafkaGroup, errs []*ReadError, err error) {
	found, twice, errs, err := listGroups(ctx, c, watched)
	if err != nil {
		return nil, nil, err
	}
	missing, more := unlisted(found, errs, watched, slices.Concat(wanted, twice), former)
	errs = append(errs, more...)
	coordinated, more := findCoordinators(ctx, c, missing)
	errs = append(errs, more...)
	for _, g := range coordinated {
		found[g.name] = g
	}
	byCoordinator := make(map[int32][]*kafkaGroup)
	for _, g := range found {
		byCoordinator[g.coordinator] = append(byCoordinator[g.coordinator], g)
	}

	var mu sync.Mutex
	var wg sync.WaitGroup
	for broker, groups := range byCoordinator {
		wg.Go(func() {
			failed := readBroker(ctx, c, broker, groups)
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, failed...)
		})
	}
	wg.Wait()
	return found, append(errs, settle(found, errs, wanted)...), nil
}

// settle removes the groups of which nothing is known, and those that do not exist and are not
// wanted. Only the coordinator knows that a group does not exist, and only if it returns no commits
// of it either.
func settle(found map[string]*kafkaGroup, failed []*ReadError, wanted []string) (errs []*ReadError) {
	moved := make(map[string]bool)
	for _, e := range failed {
		if errors.Is(e.Err, kerr.NotCoordinator) {
			// Another broker has become the coordinator since. What this one listed is over.
			moved[e.Group] = true
		}
	}
	for name, g := range found {
		switch dead := g.state == "Dead"; {
		case moved[name], g.offsetsUnknown && (dead || g.state == ""):
			delete(found, name)
		case dead && len(g.commits) > 0:
			errs = append(errs, &ReadError{API: "ListGroups", Group: name, Err: errNotInResponse})
			delete(found, name)
		case dead && !slices.Contains(wanted, name):
			delete(found, name)
		case dead:
			g.kind = ""
		}
	}
	return errs
}

// readBroker reads the groups of one coordinator. Commits come first: a broker responds to one
// request of a connection after the other, and nothing may delay them. If there is no response the
// members are unknown too.
func readBroker(ctx context.Context, c *client, broker int32, groups []*kafkaGroup) []*ReadError {
	errs := listAgain(ctx, c, broker, groups)
	of := func(share bool) []*kafkaGroup {
		return slices.DeleteFunc(slices.Clone(groups), func(g *kafkaGroup) bool { return g.shares() != share })
	}
	more, responded := readCommits(ctx, c, broker, of(false))
	errs = append(errs, more...)
	if responded {
		errs = append(errs, readShareOffsets(ctx, c, broker, of(true))...)
	}
	if !responded {
		for _, g := range groups {
			g.undescribed()
		}
		return errs
	}
	return append(errs, describeGroups(ctx, c, broker, groups)...)
}

// listGroups asks each broker for the groups that it coordinates and keeps the watched ones. A group
// that two brokers list is not in found but in twice: its coordinator moves, or one of the brokers has
// kept what is long over.
func listGroups(
	ctx context.Context, c *client, watched func(name string) bool,
) (found map[string]*kafkaGroup, twice []string, errs []*ReadError, err error) {
	found = make(map[string]*kafkaGroup)
	responded := false
	for _, shard := range c.anyBroker(ctx, func() kmsg.Request { return kmsg.NewPtrListGroupsRequest() }) {
		if shard.Err != nil {
			errs = append(errs, &ReadError{API: "ListGroups", Err: shard.Err})
			continue
		}
		resp := shard.Resp.(*kmsg.ListGroupsResponse)
		if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
			// The response may still list the groups that the broker has loaded by now.
			errs = append(errs, &ReadError{API: "ListGroups", Err: err})
		}
		responded = true
		for _, g := range resp.Groups {
			if !watched(g.Group) {
				continue
			}
			if found[g.Group] != nil {
				twice = append(twice, g.Group)
			}
			found[g.Group] = &kafkaGroup{name: g.Group, coordinator: shard.Meta.NodeID}
			found[g.Group].list(g)
		}
	}
	if !responded {
		// There is an error for each broker, or one for their list.
		return nil, nil, nil, errs[0]
	}
	for _, name := range twice {
		delete(found, name)
	}
	return found, twice, errs, nil
}

// unlisted returns the groups to ask for although the lists do not show their coordinators: former
// ones and wanted ones. They may not exist, or a broker with an error may have them. A group is in no
// list either if its coordinator moves to a broker that has responded before. A wanted group of which
// nothing is known has a ReadError instead if a broker has one.
func unlisted(
	found map[string]*kafkaGroup,
	listErrs []*ReadError,
	watched func(name string) bool,
	wanted []string,
	former []kafkaGroup,
) (missing []*kafkaGroup, errs []*ReadError) {
	for _, g := range former {
		// A group without a kind did not exist in the last poll. If it is wanted, it is below.
		if found[g.name] != nil || !watched(g.name) || g.kind == "" {
			continue
		}
		m := &kafkaGroup{name: g.name, kind: g.kind, protocolType: g.protocolType}
		switch known := slices.Contains(knownKinds, g.kind); {
		case !known && len(listErrs) == 0:
			// Only the coordinator's list shows whether it still exists.
			m.kind, m.state = "", "Dead"
		case !known:
			// Only the list has the state of a group that cannot be described.
			m.state = g.state
		}
		missing = append(missing, m)
	}
	for _, name := range wanted {
		switch {
		case found[name] != nil || slices.ContainsFunc(missing, func(g *kafkaGroup) bool { return g.name == name }):
		case len(listErrs) > 0:
			errs = append(errs, &ReadError{API: listErrs[0].API, Group: name, Err: listErrs[0].Err})
		default:
			missing = append(missing, &kafkaGroup{name: name, state: "Dead"})
		}
	}
	return missing, errs
}

// findCoordinators sets the coordinators of groups that no broker listed. Such a group may not
// exist, or the user may lack the right to see it, which is an error here.
func findCoordinators(ctx context.Context, c *client, groups []*kafkaGroup) (found []*kafkaGroup, errs []*ReadError) {
	const api = "FindCoordinator"
	if len(groups) == 0 {
		return nil, nil
	}
	byName := make(map[string]*kafkaGroup)
	for _, g := range groups {
		byName[g.name] = g
	}
	request := func() kmsg.Request {
		req := kmsg.NewPtrFindCoordinatorRequest()
		req.CoordinatorKeys = slices.Sorted(maps.Keys(byName))
		return req
	}
	for _, shard := range c.anyBroker(ctx, request) {
		if shard.Err != nil {
			for _, name := range shard.Req.(*kmsg.FindCoordinatorRequest).CoordinatorKeys {
				errs = append(errs, &ReadError{API: api, Group: name, Err: shard.Err})
			}
			continue
		}
		for _, coordinator := range shard.Resp.(*kmsg.FindCoordinatorResponse).Coordinators {
			if err := kerr.ErrorForCode(coordinator.ErrorCode); err != nil {
				errs = append(errs, &ReadError{API: api, Group: coordinator.Key, Err: err})
			} else if g := byName[coordinator.Key]; g != nil {
				g.coordinator = coordinator.NodeID
				found = append(found, g)
			}
		}
	}
	return found, errs
}

// listAgain asks a coordinator for its list if some of the groups have no kind, because no broker
// listed them, or two did. It sets the kind and the state of those that are listed now.
func listAgain(ctx context.Context, c *client, broker int32, groups []*kafkaGroup) (errs []*ReadError) {
	const api = "ListGroups"
	left := make(map[string]*kafkaGroup)
	for _, g := range groups {
		if g.kind == "" {
			left[g.name] = g
		}
	}
	if len(left) == 0 {
		return nil
	}
	resp, err := c.one(ctx, broker, kmsg.NewPtrListGroupsRequest())
	if err == nil {
		list := resp.(*kmsg.ListGroupsResponse)
		err = kerr.ErrorForCode(list.ErrorCode)
		for _, listed := range list.Groups {
			if g := left[listed.Group]; g != nil {
				delete(left, g.name)
				g.list(listed)
			}
		}
	}
	if err == nil {
		return nil
	}
	for name, g := range left {
		g.offsetsUnknown = true
		errs = append(errs, &ReadError{API: api, Group: name, Err: err})
	}
	return errs
}

// readCommits sets the committed offsets of groups of one coordinator. It reports whether the
// coordinator responded.
func readCommits(
	ctx context.Context, c *client, broker int32, groups []*kafkaGroup,
) (errs []*ReadError, responded bool) {
	const api = "OffsetFetch"
	if len(groups) == 0 {
		return nil, true
	}
	req := kmsg.NewPtrOffsetFetchRequest()
	left := make(map[string]*kafkaGroup)
	for _, g := range groups {
		left[g.name] = g
		// A request group without topics asks for all of them.
		rg := kmsg.NewOffsetFetchRequestGroup()
		rg.Group = g.name
		req.Groups = append(req.Groups, rg)
	}
	var responses []kmsg.OffsetFetchResponseGroup
	resp, err := c.one(ctx, broker, req)
	if err == nil {
		responses = resp.(*kmsg.OffsetFetchResponse).Groups
	}
	for _, rg := range responses {
		g := left[rg.Group]
		if g == nil {
			continue
		}
		delete(left, rg.Group)
		if err := kerr.ErrorForCode(rg.ErrorCode); err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
			g.offsetsUnknown = true
			errs = append(errs, &ReadError{API: api, Group: g.name, Err: err})
			continue
		}
		g.commits = committedOffsets(rg.Topics)
	}
	for name, g := range left {
		g.offsetsUnknown = true
		errs = append(errs, &ReadError{API: api, Group: name, Err: cmp.Or(err, errNotInResponse)})
	}
	return errs, err == nil
}

// readShareOffsets sets the offsets of share groups of one coordinator. Kafka has them from 4.1 on,
// and the number of records that are left from 4.2 on.
func readShareOffsets(ctx context.Context, c *client, broker int32, groups []*kafkaGroup) (errs []*ReadError) {
	const api = "DescribeShareGroupOffsets"
	if len(groups) == 0 {
		return nil
	}
	req := kmsg.NewPtrDescribeShareGroupOffsetsRequest()
	left := make(map[string]*kafkaGroup)
	for _, g := range groups {
		left[g.name] = g
		// A request group without topics asks for all of them.
		rg := kmsg.NewDescribeShareGroupOffsetsRequestGroup()
		rg.GroupID = g.name
		req.Groups = append(req.Groups, rg)
	}
	var responses []kmsg.DescribeShareGroupOffsetsResponseGroup
	resp, err := c.one(ctx, broker, req)
	if err == nil {
		responses = resp.(*kmsg.DescribeShareGroupOffsetsResponse).Groups
	}
	for _, rg := range responses {
		g := left[rg.GroupID]
		if g == nil {
			continue
		}
		delete(left, rg.GroupID)
		if err := kerr.ErrorForCode(rg.ErrorCode); err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
			g.offsetsUnknown = true
			errs = append(errs, &ReadError{API: api, Group: g.name, Err: err})
			continue
		}
		g.takeShareOffsets(rg.Topics)
	}
	for name, g := range left {
		g.offsetsUnknown = true
		errs = append(errs, &ReadError{API: api, Group: name, Err: cmp.Or(err, errNotInResponse)})
	}
	return errs
}

// committedOffsets returns the committed offsets by topic and partition.
func committedOffsets(topics []kmsg.OffsetFetchResponseGroupTopic) map[string]map[int32]int64 {
	offsets := make(map[string]map[int32]int64, len(topics))
	for _, t := range topics {
		for _, p := range t.Partitions {
			if p.ErrorCode != 0 || p.Offset < 0 {
				// The topic is being deleted, or the partition has no commit.
				continue
			}
			if offsets[t.Topic] == nil {
				offsets[t.Topic] = make(map[int32]int64, len(t.Partitions))
			}
			offsets[t.Topic][p.Partition] = p.Offset
		}
	}
	return offsets
}

// describeGroups reads the members of groups of one coordinator, with one request for each kind of
// group. Groups that are Empty or Dead have no members, so they are not asked for.
func describeGroups(ctx context.Context, c *client, broker int32, groups []*kafkaGroup) (errs []*ReadError) {
	byKind := make(map[string]map[string]*kafkaGroup)
	for _, g := range groups {
		if g.state == "Empty" || g.state == "Dead" {
			continue
		}
		if byKind[g.kind] == nil {
			byKind[g.kind] = make(map[string]*kafkaGroup)
		}
		byKind[g.kind][g.name] = g
	}
	for kind, left := range byKind {
		if !slices.Contains(knownKinds, kind) {
			// The commits of a kind that this program does not know are still useful.
			for _, g := range left {
				g.undescribed()
			}
			continue
		}
		errs = append(errs, describeKind(ctx, c, broker, kind, left)...)
	}
	return errs
}

// describeKind reads the members of groups of one coordinator and one kind. It removes from left
// the groups that are in the response.
func describeKind(
	ctx context.Context, c *client, broker int32, kind string, left map[string]*kafkaGroup,
) (errs []*ReadError) {
	names := slices.Sorted(maps.Keys(left))
	var req kmsg.Request = &kmsg.DescribeGroupsRequest{Groups: names}
	switch kind {
	case "consumer":
		req = &kmsg.ConsumerGroupDescribeRequest{Groups: names}
	case "streams":
		req = &kmsg.StreamsGroupDescribeRequest{Groups: names}
	case share:
		req = &kmsg.ShareGroupDescribeRequest{GroupIDs: names}
	}
	api := kmsg.NameForKey(req.Key())
	// take returns the group that a part of the response describes, nil if it describes none.
	take := func(name, state string, code int16) *kafkaGroup {
		g := left[name]
		if g == nil {
			return nil
		}
		delete(left, name)
		switch err := kerr.ErrorForCode(code); {
		case errors.Is(err, kerr.GroupIDNotFound):
			// The group was deleted after it was listed.
			g.state = "Dead"
			return nil
		case err != nil:
			// The broker hides all members if the user may not see one of their topics.
			g.topicsHidden = errors.Is(err, kerr.TopicAuthorizationFailed)
			g.undescribed()
			errs = append(errs, &ReadError{API: api, Group: name, Err: err})
			return nil
		}
		g.state = state
		return g
	}
	resp, err := c.one(ctx, broker, req)
	switch resp := resp.(type) {
	case *kmsg.DescribeGroupsResponse:
		for _, d := range resp.Groups {
			if g := take(d.Group, d.State, d.ErrorCode); g != nil {
				g.describeClassic(d)
			}
		}
	case *kmsg.ConsumerGroupDescribeResponse:
		for _, d := range resp.Groups {
			if g := take(d.Group, d.State, d.ErrorCode); g != nil {
				g.describeConsumer(d)
			}
		}
	case *kmsg.StreamsGroupDescribeResponse:
		for _, d := range resp.Groups {
			if g := take(d.Group, d.State, d.ErrorCode); g != nil {
				g.describeStreams(d)
			}
		}
	case *kmsg.ShareGroupDescribeResponse:
		for _, d := range resp.Groups {
			if g := take(d.GroupID, d.GroupState, d.ErrorCode); g != nil {
				g.describeShare(d)
			}
		}
	}
	for name, g := range left {
		g.undescribed()
		errs = append(errs, &ReadError{API: api, Group: name, Err: cmp.Or(err, errNotInResponse)})
	}
	return errs
}
