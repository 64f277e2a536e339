package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// object is a part of a dashboard as Grafana reads it. Its keys are written in order, so the same source makes the same file.
type object = map[string]any

// tag is what links the dashboards to each other.
const tag = "order-system"

// schemaVersion is Grafana 12's; later ones bring it up to theirs.
const schemaVersion = 42

type dashboard struct {
	name, title, about string // the name is the file's and the uid, so that links to it stay
	variables          []variable
	rows               []row
}

// variable is one that the viewer chooses from the values of a label.
type variable struct {
	name, title, query string
	all                string // what "All" stands for
}

type row struct {
	title  string
	panels []panel
}

type panel struct {
	kind, title  string
	about        string // what it means and when to worry, shown at the panel
	alert        string // that watches the same
	width        int    // of 24
	unit         string // as Grafana calls it; "" is a plain number
	queries      []query
	limits       []limit  // stats are coloured by them, graphs have dashed lines at them
	stacked      bool     // graphs only
	max          *float64 // of the axis
	colors       map[string]string
	names        map[int]string    // values that are words
	columns      map[string]column // of a table, by label or by the query's letter
	decimals     *int
	defaultValue string // shown where there is no data
}

// limit is a value from which on a colour holds.
type limit struct {
	color string
	from  float64
}

type query struct {
	expr, legend string
	dashed       bool // drawn as a limit: what was agreed, not what was measured
}

type column struct {
	title, unit string
	limits      []limit
}

// The variables by which the dashboards hang together.
var (
	kafkaCluster  = variable{"kafka_cluster", "Kafka cluster", "label_values(lag_collector_up, kafka_cluster)", ".+"}
	consumerGroup = variable{"consumergroup", "Consumer group", `label_values(kafka_consumergroup_members{kafka_cluster=~"$kafka_cluster"}, consumergroup)`, ".+"}
	topic         = variable{"topic", "Topic", `label_values(kafka_topic_partition_current_offset{kafka_cluster=~"$kafka_cluster"}, topic)`, ".+"}
	namespace     = variable{"namespace", "Namespace", "label_values(service_ready, namespace)", ".*"} // there is none outside of Kubernetes
)

// bad and good colour what is beyond a limit.
func bad(from float64) []limit  { return []limit{{"green", 0}, {"red", from}} }
func good(from float64) []limit { return []limit{{"red", 0}, {"green", from}} }

func (d dashboard) json() ([]byte, error) {
	variables := []object{{"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}}
	for _, v := range d.variables {
		variables = append(variables, object{
			"name": v.name, "label": v.title, "type": "query", "datasource": datasource,
			"query": object{"query": v.query, "refId": v.name}, "definition": v.query,
			"refresh": 2, "sort": 1, // at each change of the time range; by name
			"multi": true, "includeAll": true, "allValue": v.all, "current": object{"selected": true, "text": []string{"All"}, "value": []string{"$__all"}},
		})
	}
	panels, err := layout(d.rows)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	err = encoder.Encode(object{
		"uid": "orders-" + d.name, "title": d.title, "description": d.about, "tags": []string{tag},
		"schemaVersion": schemaVersion, "editable": false, "graphTooltip": 1, // one crosshair for all panels
		"refresh": "30s", "time": object{"from": "now-1h", "to": "now"}, "timezone": "browser",
		"templating": object{"list": variables}, "panels": panels, "annotations": object{"list": []object{}},
		"links": []object{{
			"type": "dashboards", "title": "Order system", "tags": []string{tag}, "includeVars": true, "keepTime": true, "asDropdown": false,
		}},
	})
	return b.Bytes(), err
}

var datasource = object{"type": "prometheus", "uid": "${datasource}"}

// layout places the panels of each row from left to right, in lines of 24.
func layout(rows []row) ([]object, error) {
	const height, statHeight, tableHeight = 8, 4, 9
	var all []object
	y := 0
	for _, r := range rows {
		all = append(all, object{"type": "row", "title": r.title, "collapsed": false, "panels": []object{}, "id": len(all) + 1, "gridPos": object{"x": 0, "y": y, "w": 24, "h": 1}})
		y++
		x, line := 0, 0
		for _, p := range r.panels {
			h := height
			switch p.kind {
			case "stat":
				h = statHeight
			case "table":
				h = tableHeight
			}
			if x+p.width > 24 {
				x, y, line = 0, y+line, 0
			}
			o, err := p.object()
			if err != nil {
				return nil, fmt.Errorf("panel %q: %w", p.title, err)
			}
			o["id"], o["gridPos"] = len(all)+1, object{"x": x, "y": y, "w": p.width, "h": h}
			all = append(all, o)
			x, line = x+p.width, max(line, h)
		}
		y += line
	}
	return all, nil
}

func (p panel) object() (object, error) {
	about := p.about
	if p.alert != "" {
		about += fmt.Sprintf("\n\nAlert: [%s](%s)", p.alert, runbook(p.alert))
	}
	var targets []object
	overrides := []object{}
	for i, q := range p.queries {
		ref := string(rune('A' + i))
		t := object{"refId": ref, "expr": strings.TrimSpace(q.expr), "datasource": datasource, "legendFormat": cmp.Or(q.legend, "__auto")}
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
		targets = append(targets, t)
		if q.dashed {
			overrides = append(overrides, override("byFrameRefID", ref, object{
				"custom.lineStyle": object{"fill": "dash", "dash": []int{10, 10}}, "custom.fillOpacity": 0, "color": fixed("red"),
			}))
		}
	}
	for _, name := range sortedKeys(p.colors) {
		overrides = append(overrides, override("byName", name, object{"color": fixed(p.colors[name])}))
	}
	defaults := object{"unit": cmp.Or(p.unit, "short"), "thresholds": thresholds(p.limits), "color": object{"mode": "palette-classic"}}
	if p.max != nil {
		defaults["max"] = *p.max
	}
	if p.decimals != nil {
		defaults["decimals"] = *p.decimals
	}
	if !slices.ContainsFunc(p.queries, func(q query) bool { return !strings.HasSuffix(q.expr, " > 0") }) {
		defaults["noValue"] = "none" // what shows only faults is empty when all is well
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
		overrides = []object{}
	}
	o := object{"type": p.kind, "title": p.title, "description": about, "datasource": datasource, "targets": targets}
	legend := object{"displayMode": "table", "placement": "bottom", "showLegend": true, "calcs": []string{"lastNotNull", "max"}}
	switch p.kind {
	case "timeseries":
		custom := object{"fillOpacity": 10, "lineWidth": 1, "showPoints": "auto", "spanNulls": false, "axisSoftMin": 0}
		if p.limits != nil {
			custom["thresholdsStyle"] = object{"mode": "dashed"}
		}
		if p.stacked {
			custom["stacking"], custom["fillOpacity"] = object{"mode": "normal"}, 60
		}
		defaults["custom"] = custom
		o["options"] = object{"legend": legend, "tooltip": object{"mode": "multi", "sort": "desc"}}
	case "stat":
		defaults["color"] = object{"mode": "thresholds"}
		o["options"] = object{"colorMode": "background", "graphMode": "none", "textMode": "auto", "reduceOptions": object{"calcs": []string{"lastNotNull"}}}
	case "heatmap":
		o["options"] = object{"calculate": false, "color": object{"scheme": "Oranges", "mode": "scheme"}, "yAxis": object{"unit": p.unit}, "tooltip": object{"mode": "single"}, "exemplars": object{"color": "blue"}}
	case "state-timeline":
		legend["calcs"] = []string{}
		legend["displayMode"] = "list"
		o["options"] = object{"legend": legend, "mergeValues": true, "showValue": "never", "rowHeight": 0.8}
		defaults["color"] = object{"mode": "thresholds"}
	case "table":
		hidden := object{"Time": true}
		titles := object{}
		for _, key := range sortedKeys(p.columns) {
			c := p.columns[key]
			name := key
			if len(key) == 1 { // the query's letter
				name = "Value #" + key
				overrides = append(overrides, override("byName", c.title, object{
					"unit": cmp.Or(c.unit, "short"), "thresholds": thresholds(c.limits), "custom.cellOptions": object{"type": "color-text"},
				}))
			}
			titles[name] = c.title
		}
		defaults["color"] = object{"mode": "thresholds"}
		o["transformations"] = []object{
			{"id": "merge", "options": object{}},
			{"id": "organize", "options": object{"excludeByName": hidden, "renameByName": titles}},
		}
		o["options"] = object{"showHeader": true, "sortBy": []object{{"displayName": p.columns["A"].title, "desc": true}}}
	default:
		return nil, fmt.Errorf("no kind %q", p.kind)
	}
	o["fieldConfig"] = object{"defaults": defaults, "overrides": overrides}
	return o, nil
}

func thresholds(limits []limit) object {
	steps := []object{}
	if len(limits) == 0 {
		limits = []limit{{"text", 0}}
	}
	for i, l := range limits {
		step := object{"color": l.color, "value": l.from}
		if i == 0 {
			step["value"] = nil // whatever is below
		}
		steps = append(steps, step)
	}
	return object{"mode": "absolute", "steps": steps}
}

func fixed(color string) object { return object{"mode": "fixed", "fixedColor": color} }

func override(by, what string, properties object) object {
	list := []object{}
	for _, id := range sortedKeys(properties) {
		list = append(list, object{"id": id, "value": properties[id]})
	}
	return object{"matcher": object{"id": by, "options": what}, "properties": list}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
