package lag

import (
	"maps"
	"slices"
)

// choose decides which series are shown if there may be limit of them; 0 sets no limit. Wanted
// groups come first, then what the collector may not read, then the others. The series of a group's
// topics come before those of its partitions. A group or topic is left out as a whole, so that no sum
// is of a part.
func choose(m *metrics, s *Snapshot, objectives map[string][]Objective, limit int) shown {
	out := shown{
		groups: make(map[string]bool), partitions: make(map[string]bool), topics: make(map[string]bool),
		refusals: make(map[string]bool),
	}
	// fit adds name to names if its series fit and make sense.
	fit := func(names map[string]bool, name string, sensible bool, write func(*seriesWriter)) {
		w := &seriesWriter{}
		write(w)
		if !sensible || limit > 0 && out.series+w.count > limit {
			out.dropped += w.count
			return
		}
		out.series += w.count
		names[name] = true
	}
	sums := func(groups []*Group) {
		for _, g := range groups {
			fit(out.groups, g.Name, true, func(w *seriesWriter) { m.writeGroup(w, g, objectives[g.Name]) })
		}
	}
	partitions := func(groups []*Group) {
		for _, g := range groups {
			fit(out.partitions, g.Name, out.groups[g.Name], func(w *seriesWriter) { m.writePartitions(w, g) })
		}
	}
	wanted, others := ranked(s.Groups, objectives)
	sums(wanted)
	partitions(wanted)
	refusals := s.refusals()
	for _, text := range slices.Sorted(maps.Keys(refusals)) {
		fit(out.refusals, text, true, func(w *seriesWriter) { m.writeRefusal(w, refusals[text]) })
	}
	sums(others)
	for _, name := range slices.Sorted(maps.Keys(s.Topics)) {
		fit(out.topics, name, true, func(w *seriesWriter) { m.writeTopic(w, s.Topics[name]) })
	}
	partitions(others)
	return out
}

// ranked returns the groups with objectives and the others, each sorted by name.
func ranked(all map[string]*Group, objectives map[string][]Objective) (wanted, others []*Group) {
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if _, found := objectives[name]; found {
			wanted = append(wanted, all[name])
		} else {
			others = append(others, all[name])
		}
	}
	return wanted, others
}
