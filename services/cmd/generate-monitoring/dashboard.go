package main

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// What all dashboards have in common.
const (
	// tag is the tag of all dashboards. They link to each other by it.
	tag = "order-system"
	// schemaVersion is that of Grafana 12. Later versions of Grafana migrate it.
	schemaVersion = 42
	// gridWidth is the width of a dashboard in Grafana's units.
	gridWidth = 24
)

// dashboard is one page.
type dashboard struct {
	// name is that of the file, and part of the UID: links to the dashboard stay valid.
	name, title, about string
	variables          []variable
	rows               []row
}

// row is panels below a heading.
type row struct {
	title  string
	panels []panel
}

// variable is one that the viewer chooses from the values of a label.
type variable struct {
	name, title, query string
	// all is the regular expression for "All".
	all string
}

// The variables that the dashboards share.
var (
	kafkaCluster = variable{
		"kafka_cluster", "Kafka cluster", "label_values(lag_collector_up, kafka_cluster)", ".+",
	}
	consumerGroup = variable{
		"consumergroup", "Consumer group",
		`label_values(kafka_consumergroup_members{kafka_cluster=~"$kafka_cluster"}, consumergroup)`, ".+",
	}
	// An installation may have a prefix before its names in Kafka.
	orderGroups = variable{
		"consumergroup", "Consumer group",
		`label_values(kafka_consumergroup_members{consumergroup=~".*` + orderGroup + `"}, consumergroup)`,
		".*" + orderGroup,
	}
	topic = variable{
		"topic", "Topic",
		`label_values(kafka_topic_partition_current_offset{kafka_cluster=~"$kafka_cluster"}, topic)`, ".+",
	}
	// Outside Kubernetes a service has no namespace.
	namespace = variable{"namespace", "Namespace", "label_values(service_ready, namespace)", ".*"}
	release   = variable{
		"release", "Release", `label_values(service_ready{namespace=~"$namespace"}, ` + releaseLabel + ")", ".*",
	}
)

// json returns the dashboard as Grafana reads it.
func (d dashboard) json() ([]byte, error) {
	variables := []object{
		{"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
	}
	for _, v := range d.variables {
		variables = append(variables, v.object())
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
		"schemaVersion": schemaVersion, "editable": false,
		// One crosshair for all panels.
		"graphTooltip": 1,
		"refresh":      "30s", "time": object{"from": "now-1h", "to": "now"}, "timezone": "browser",
		"templating": object{"list": variables}, "panels": panels,
		"annotations": object{"list": []object{}},
		"links": []object{{
			"type": "dashboards", "title": "Order system", "tags": []string{tag},
			"includeVars": true, "keepTime": true, "asDropdown": false,
		}},
	})
	return b.Bytes(), err
}

// object returns the variable as Grafana reads it.
func (v variable) object() object {
	return object{
		"name": v.name, "label": v.title, "type": "query", "datasource": datasource,
		"query": object{"query": v.query, "refId": v.name}, "definition": v.query,
		// Read again at each change of the time range, sorted by name.
		"refresh": 2, "sort": 1,
		"multi": true, "includeAll": true, "allValue": v.all,
		"current": object{"selected": true, "text": []string{"All"}, "value": []string{"$__all"}},
	}
}

// layout places the panels of each row from left to right, in as many lines as they need.
func layout(rows []row) ([]object, error) {
	var all []object
	y := 0
	for _, r := range rows {
		all = append(all, object{
			"type": "row", "title": r.title, "collapsed": false, "panels": []object{}, "id": len(all) + 1,
			"gridPos": object{"x": 0, "y": y, "w": gridWidth, "h": 1},
		})
		y++
		x, lineHeight := 0, 0
		for _, p := range r.panels {
			if x+p.width > gridWidth {
				x, y, lineHeight = 0, y+lineHeight, 0
			}
			o, err := p.object()
			if err != nil {
				return nil, fmt.Errorf("panel %q: %w", p.title, err)
			}
			o["id"] = len(all) + 1
			o["gridPos"] = object{"x": x, "y": y, "w": p.width, "h": p.height()}
			all = append(all, o)
			x, lineHeight = x+p.width, max(lineHeight, p.height())
		}
		y += lineHeight
	}
	return all, nil
}
