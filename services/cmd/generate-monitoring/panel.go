package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// object is a part of a dashboard in Grafana's JSON. Its keys are written in order, so that the
// same source always makes the same file.
type object = map[string]any

// datasource is the one that the viewer chose.
var datasource = object{"type": "prometheus", "uid": "${datasource}"}

// panel is one picture of a dashboard.
type panel struct {
	// kind is Grafana's name of the visualisation: timeseries, stat, heatmap, state-timeline or
	// table.
	kind, title string
	// about explains the panel and when to worry. It is shown at the panel.
	about string
	// alert is the alert that watches the same; empty if none does.
	alert string
	// width is in units of the grid.
	width int
	// unit is Grafana's name of it; empty is a plain number.
	unit    string
	queries []query
	// limits colour a stat. A graph has dashed lines at them.
	limits []limit
	// stacked is for graphs.
	stacked bool
	// max is the end of the axis; nil is automatic.
	max *float64
	// colors are those of series by name, or of words in names.
	colors map[string]string
	// names has words for values.
	names map[int]string
	// columns are those of a table, by label or by the letter of the query.
	columns map[string]column
	// decimals is automatic if nil.
	decimals *int
	// defaultValue is shown if there is no data.
	defaultValue string
}

// query is one question to Prometheus.
type query struct {
	expr, legend string
	// dashed is for what was agreed instead of measured.
	dashed bool
}

// column is a column of a table.
type column struct {
	title, unit string
	limits      []limit
}

// limit is the value from which on a colour applies.
type limit struct {
	color string
	from  float64
}

// bad makes values red from a limit on.
func bad(from float64) []limit { return []limit{{"green", 0}, {"red", from}} }

// good makes values green from a limit on.
func good(from float64) []limit { return []limit{{"red", 0}, {"green", from}} }

// height returns the height of the panel in units of the grid.
func (p panel) height() int {
	switch p.kind {
	case "stat":
		return 4
	case "table":
		return 9
	default:
		return 8
	}
}

// object returns the panel as Grafana reads it, without its position.
func (p panel) object() (object, error) {
	about := p.about
	if p.alert != "" {
		about += fmt.Sprintf("\n\nAlert: [%s](%s)", p.alert, runbook(p.alert))
	}
	targets := []object{}
	for i, q := range p.queries {
		targets = append(targets, p.target(refID(i), q))
	}
	defaults, overrides := p.defaults(), p.overrides()
	o := object{
		"type": p.kind, "title": p.title, "description": about, "datasource": datasource, "targets": targets,
		"fieldConfig": object{"defaults": defaults, "overrides": overrides},
	}
	legend := object{
		"displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": []string{"lastNotNull", "max"},
	}
	switch p.kind {
	case "timeseries":
		defaults["custom"] = p.lines()
		o["options"] = object{"legend": legend, "tooltip": object{"mode": "multi", "sort": "desc"}}
	case "stat":
		defaults["color"] = object{"mode": "thresholds"}
		o["options"] = object{
			"colorMode": "background", "graphMode": "none", "textMode": "auto",
			"reduceOptions": object{"calcs": []string{"lastNotNull"}},
		}
	case "heatmap":
		o["options"] = object{
			"calculate": false, "color": object{"scheme": "Oranges", "mode": "scheme"},
			"yAxis": object{"unit": p.unit}, "tooltip": object{"mode": "single"}, "exemplars": object{"color": "blue"},
		}
	case "state-timeline":
		legend["calcs"], legend["displayMode"] = []string{}, "list"
		defaults["color"] = object{"mode": "thresholds"}
		o["options"] = object{"legend": legend, "mergeValues": true, "showValue": "never", "rowHeight": 0.8}
	case "table":
		defaults["color"] = object{"mode": "thresholds"}
		o["transformations"] = p.transformations()
		o["options"] = object{
			"showHeader": true, "sortBy": []object{{"displayName": p.columns["A"].title, "desc": true}},
		}
	default:
		return nil, fmt.Errorf("no kind %q", p.kind)
	}
	return o, nil
}

// refID returns the letter of a query.
func refID(i int) string { return string(rune('A' + i)) }

// target returns a query as Grafana reads it.
func (p panel) target(ref string, q query) object {
	t := object{
		"refId": ref, "expr": strings.TrimSpace(q.expr), "datasource": datasource,
		"legendFormat": cmp.Or(q.legend, "__auto"),
	}
	switch p.kind {
	case "table":
		t["format"], t["instant"] = "table", true
	case "stat":
		t["instant"] = true
	case "heatmap":
		t["format"], t["range"] = "heatmap", true
	default:
		t["range"], t["exemplar"] = true, strings.Contains(q.expr, "_bucket")
	}
	return t
}

// defaults are the properties of all series.
func (p panel) defaults() object {
	defaults := object{
		"unit": cmp.Or(p.unit, "short"), "thresholds": thresholds(p.limits), "color": object{"mode": "palette-classic"},
	}
	if p.max != nil {
		defaults["max"] = *p.max
	}
	if p.decimals != nil {
		defaults["decimals"] = *p.decimals
	}
	// A panel that shows only faults is empty if all is well.
	if !slices.ContainsFunc(p.queries, func(q query) bool { return !strings.HasSuffix(q.expr, " > 0") }) {
		defaults["noValue"] = "none"
	}
	if p.defaultValue != "" {
		defaults["noValue"] = p.defaultValue
	}
	if p.names != nil {
		words := object{}
		for value, word := range p.names {
			words[fmt.Sprint(value)] = object{"text": word, "color": p.colors[word], "index": value}
		}
		defaults["mappings"] = []object{{"type": "value", "options": words}}
	}
	return defaults
}

// lines are the properties of the lines of a graph.
func (p panel) lines() object {
	lines := object{"fillOpacity": 10, "lineWidth": 1, "showPoints": "auto", "spanNulls": false, "axisSoftMin": 0}
	if p.limits != nil {
		lines["thresholdsStyle"] = object{"mode": "dashed"}
	}
	if p.stacked {
		lines["stacking"], lines["fillOpacity"] = object{"mode": "normal"}, 60
	}
	return lines
}

// overrides are the properties of single series.
func (p panel) overrides() []object {
	overrides := []object{}
	for i, q := range p.queries {
		if q.dashed {
			overrides = append(overrides, override("byFrameRefID", refID(i), object{
				"custom.lineStyle":   object{"fill": "dash", "dash": []int{10, 10}},
				"custom.fillOpacity": 0,
				"color":              fixed("red"),
			}))
		}
	}
	if p.names == nil {
		for _, name := range sortedKeys(p.colors) {
			overrides = append(overrides, override("byName", name, object{"color": fixed(p.colors[name])}))
		}
	}
	for _, key := range sortedKeys(p.columns) {
		if c := p.columns[key]; ofQuery(key) {
			overrides = append(overrides, override("byName", c.title, object{
				"unit":               cmp.Or(c.unit, "short"),
				"thresholds":         thresholds(c.limits),
				"custom.cellOptions": object{"type": "color-text"},
			}))
		}
	}
	return overrides
}

// ofQuery reports whether the key of a column is the letter of a query.
func ofQuery(key string) bool { return len(key) == 1 }

// transformations join the queries of a table and name its columns.
func (p panel) transformations() []object {
	titles := object{}
	for key, c := range p.columns {
		if ofQuery(key) {
			key = "Value #" + key
		}
		titles[key] = c.title
	}
	return []object{
		{"id": "merge", "options": object{}},
		{"id": "organize", "options": object{"excludeByName": object{"Time": true}, "renameByName": titles}},
	}
}

// thresholds returns limits as Grafana reads them. The first colour applies to all lower values.
func thresholds(limits []limit) object {
	steps := []object{}
	if len(limits) == 0 {
		limits = []limit{{"text", 0}}
	}
	for i, l := range limits {
		step := object{"color": l.color, "value": l.from}
		if i == 0 {
			step["value"] = nil
		}
		steps = append(steps, step)
	}
	return object{"mode": "absolute", "steps": steps}
}

// fixed returns a colour that does not depend on the value.
func fixed(color string) object { return object{"mode": "fixed", "fixedColor": color} }

// override gives properties to the series that match.
func override(by, match string, properties object) object {
	list := []object{}
	for _, id := range sortedKeys(properties) {
		list = append(list, object{"id": id, "value": properties[id]})
	}
	return object{"matcher": object{"id": by, "options": match}, "properties": list}
}

// sortedKeys makes the output the same each time.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
