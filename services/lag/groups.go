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

// groups lists the cluster's groups and reads those that are to be watched. The former ones, by what was known of them, are read too when
// a broker does not tell its groups. An error means that no broker answered.
func (r *reader) groups(ctx context.Context, watched func(name string) bool, wanted []string, former []group) (map[string]*group, []*ReadError, error) {
	found, errs, err := r.list(ctx, watched)
	if err != nil {
		return nil, nil, err
	}
	var missing []*group
	if len(errs) > 0 {
		for _, g := range former {
			if found[g.name] != nil || !watched(g.name) || g.kind == "" { // without a kind it did not exist, and is wanted
				continue
			}
			m := &group{name: g.name, kind: g.kind, protocolType: g.protocolType}
			if !slices.Contains(kinds, g.kind) {
				m.state = g.state // nobody but the list tells it
			}
			missing = append(missing, m)
		}
	}
	for _, name := range wanted {
		switch {
		case found[name] != nil || slices.ContainsFunc(missing, func(g *group) bool { return g.name == name }):
		case len(errs) > 0: // it may be one of those that were not told
			errs = append(errs, &ReadError{API: errs[0].API, Group: name, Err: errs[0].Err})
		default:
			missing = append(missing, &group{name: name, state: "Dead"})
		}
	}
	read := make(map[int32][]*group)
	for _, g := range found {
		read[g.coordinator] = append(read[g.coordinator], g)
	}
	coordinated, more := r.coordinators(ctx, missing)
	errs = append(errs, more...)
	for _, g := range coordinated {
		found[g.name] = g
		read[g.coordinator] = append(read[g.coordinator], g)
	}

	var mu sync.Mutex
	var wg sync.WaitGroup
	fail := func(failed []*ReadError) {
		mu.Lock()
		defer mu.Unlock()
		for _, e := range failed {
			delete(found, e.Group)
		}
		errs = append(errs, failed...)
	}
	for broker, groups := range read {
		wg.Go(func() { fail(r.commits(ctx, broker, groups)) })
		wg.Go(func() { fail(r.describe(ctx, broker, groups)) })
	}
	wg.Wait()
	return found, errs, nil
}

// list asks each broker for the groups that it coordinates.
func (r *reader) list(ctx context.Context, watched func(name string) bool) (map[string]*group, []*ReadError, error) {
	var errs []*ReadError
	found := make(map[string]*group)
	answered := false
	for _, shard := range r.askAny(ctx, kmsg.NewPtrListGroupsRequest()) {
		if shard.Err != nil {
			errs = append(errs, &ReadError{API: "ListGroups", Err: shard.Err})
			continue
		}
		resp := shard.Resp.(*kmsg.ListGroupsResponse)
		if err := kerr.ErrorForCode(resp.ErrorCode); err != nil { // it lists what it has by now
			errs = append(errs, &ReadError{API: "ListGroups", Err: err})
		}
		answered = true
		for _, g := range resp.Groups {
			if g.GroupType != "share" && watched(g.Group) { // share groups have no commits
				found[g.Group] = &group{
					name: g.Group, kind: cmp.Or(g.GroupType, "classic"), protocolType: g.ProtocolType, state: g.GroupState, coordinator: shard.Meta.NodeID,
				}
			}
		}
	}
	if !answered {
		return nil, nil, errs[0] // there is one for each broker, or for their list
	}
	return found, errs, nil
}

// coordinators asks who coordinates groups that nobody has listed: they may not exist, or the user may not see them.
func (r *reader) coordinators(ctx context.Context, groups []*group) (found []*group, errs []*ReadError) {
	if len(groups) == 0 {
		return nil, nil
	}
	byName := make(map[string]*group)
	for _, g := range groups {
		byName[g.name] = g
	}
	req := kmsg.NewPtrFindCoordinatorRequest()
	req.CoordinatorKeys = slices.Sorted(maps.Keys(byName))
	for _, shard := range r.askAny(ctx, req) {
		if shard.Err != nil {
			for _, name := range shard.Req.(*kmsg.FindCoordinatorRequest).CoordinatorKeys {
				errs = append(errs, &ReadError{API: "FindCoordinator", Group: name, Err: shard.Err})
			}
			continue
		}
		for _, c := range shard.Resp.(*kmsg.FindCoordinatorResponse).Coordinators {
			if err := kerr.ErrorForCode(c.ErrorCode); err != nil {
				errs = append(errs, &ReadError{API: "FindCoordinator", Group: c.Key, Err: err})
			} else if g := byName[c.Key]; g != nil {
				g.coordinator = c.NodeID
				found = append(found, g)
			}
		}
	}
	return found, errs
}

// commits reads the offsets that groups of one coordinator have committed.
func (r *reader) commits(ctx context.Context, broker int32, groups []*group) (errs []*ReadError) {
	const api = "OffsetFetch"
	req := kmsg.NewPtrOffsetFetchRequest()
	left := make(map[string]*group)
	for _, g := range groups {
		left[g.name] = g
		rg := kmsg.NewOffsetFetchRequestGroup() // no topics: all
		rg.Group = g.name
		req.Groups = append(req.Groups, rg)
	}
	var answered []kmsg.OffsetFetchResponseGroup
	resp, err := r.request(ctx, broker, req)
	if err == nil {
		answered = resp.(*kmsg.OffsetFetchResponse).Groups
	}
	for _, rg := range answered {
		g := left[rg.Group]
		if g == nil {
			continue
		}
		delete(left, rg.Group)
		if err := kerr.ErrorForCode(rg.ErrorCode); err != nil && !errors.Is(err, kerr.GroupIDNotFound) {
			errs = append(errs, &ReadError{API: api, Group: g.name, Err: err})
			continue
		}
		g.commits = make(map[string]map[int32]int64, len(rg.Topics))
		for _, t := range rg.Topics {
			for _, p := range t.Partitions {
				if p.ErrorCode != 0 || p.Offset < 0 {
					continue // of a topic that is being deleted, or no commit
				}
				if g.commits[t.Topic] == nil {
					g.commits[t.Topic] = make(map[int32]int64, len(t.Partitions))
				}
				g.commits[t.Topic][p.Partition] = p.Offset
			}
		}
	}
	for name := range left {
		errs = append(errs, &ReadError{API: api, Group: name, Err: cmp.Or(err, errNoAnswer)})
	}
	return errs
}

// kinds are those of which members can be read.
var kinds = []string{"classic", "consumer", "streams"}

// describe reads the members of groups of one coordinator, each kind of group by its own request. Of empty groups all is known.
func (r *reader) describe(ctx context.Context, broker int32, groups []*group) (errs []*ReadError) {
	byKind := make(map[string]map[string]*group)
	for _, g := range groups {
		if g.state == "Empty" || g.state == "Dead" {
			continue
		}
		if byKind[g.kind] == nil {
			byKind[g.kind] = make(map[string]*group)
		}
		byKind[g.kind][g.name] = g
	}
	for kind, left := range byKind {
		var req kmsg.Request
		names := slices.Sorted(maps.Keys(left))
		switch kind {
		case "classic":
			req = &kmsg.DescribeGroupsRequest{Groups: names}
		case "consumer":
			req = &kmsg.ConsumerGroupDescribeRequest{Groups: names}
		case "streams":
			req = &kmsg.StreamsGroupDescribeRequest{Groups: names}
		default: // one that this program does not know: its commits are worth something too
			for _, g := range left {
				g.members, g.reads.untold = -1, true
			}
			continue
		}
		api := kmsg.NameForKey(req.Key())
		resp, err := r.request(ctx, broker, req)
		take := func(name, state string, code int16) *group {
			g := left[name]
			if g == nil {
				return nil
			}
			delete(left, name)
			switch err := kerr.ErrorForCode(code); {
			case errors.Is(err, kerr.GroupIDNotFound): // deleted since it was listed
				g.state = "Dead"
				return nil
			case err != nil:
				errs = append(errs, &ReadError{API: api, Group: name, Err: err})
				return nil
			}
			g.state = state
			return g
		}
		switch resp := resp.(type) {
		case *kmsg.DescribeGroupsResponse:
			for _, d := range resp.Groups {
				if g := take(d.Group, d.State, d.ErrorCode); g != nil {
					g.classic(d)
				}
			}
		case *kmsg.ConsumerGroupDescribeResponse:
			for _, d := range resp.Groups {
				if g := take(d.Group, d.State, d.ErrorCode); g != nil {
					g.consumer(d)
				}
			}
		case *kmsg.StreamsGroupDescribeResponse:
			for _, d := range resp.Groups {
				if g := take(d.Group, d.State, d.ErrorCode); g != nil {
					g.streams(d)
				}
			}
		}
		for name := range left {
			errs = append(errs, &ReadError{API: api, Group: name, Err: cmp.Or(err, errNoAnswer)})
		}
	}
	return errs
}
