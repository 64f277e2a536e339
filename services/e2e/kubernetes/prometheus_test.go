package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"ordersystem.dev/services/internal/child"
)

// prometheus is a real Prometheus on this machine. It scrapes the pods that the PodMonitors of the
// charts and of k8s/monitoring choose, and evaluates the rules of k8s/monitoring.
//
// The image of the Prometheus operator may be out of reach, so this file does the operator's work.
// Debian's Prometheus cannot discover pods by itself, so the test lists them.
type prometheus struct {
	url string
	// expressions are keyed by the name of their alert.
	rules map[string]string
}

// podMonitor has the fields of a PodMonitor that this test knows. Any other field is an error.
type podMonitor struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string
	Metadata   map[string]any
	Spec       struct {
		JobLabel        string   `yaml:"jobLabel"`
		PodTargetLabels []string `yaml:"podTargetLabels"`
		Selector        struct {
			MatchLabels map[string]string `yaml:"matchLabels"`
		}
		// The namespace is always the test's own here.
		NamespaceSelector   any `yaml:"namespaceSelector"`
		PodMetricsEndpoints []struct {
			Port, Path        string
			HonorLabels       bool `yaml:"honorLabels"`
			Relabelings       []map[string]any
			MetricRelabelings []map[string]any `yaml:"metricRelabelings"`
		} `yaml:"podMetricsEndpoints"`
	}
}

type rules struct {
	Kind string
	Spec struct {
		Groups []map[string]any
	}
}

// take keeps the expressions of alerts and returns the groups as Prometheus shall evaluate them.
// Groups without recording rules lose their interval, so that alerts are evaluated often. A
// recording rule counts evaluations and keeps its interval.
func (p *prometheus) take(r rules) (groups []any) {
	for _, group := range r.Spec.Groups {
		records := false
		for _, rule := range group["rules"].([]any) {
			if name, is := rule.(map[string]any)["alert"].(string); is {
				expression := "(" + rule.(map[string]any)["expr"].(string) + ")"
				// An alert may have a rule for each severity.
				if other := p.rules[name]; other != "" {
					expression = other + " or " + expression
				}
				p.rules[name] = expression
			} else {
				records = true
			}
		}
		if !records {
			delete(group, "interval")
		}
		groups = append(groups, group)
	}
	return groups
}

// startPrometheus starts Prometheus for the rest of the test. It finds and reads pods through the
// API server, so it works wherever kubectl does.
func startPrometheus(t *testing.T, c *cluster, charts ...string) *prometheus {
	t.Helper()
	server := c.serve(t, "kubectl", "proxy", "--port=%d")
	discovery := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		targets, err := pods(r.Context(), server, c.namespace)
		if err != nil {
			// Prometheus then keeps the targets that it knows.
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(targets)
	}))
	c.t.Cleanup(discovery.Close)
	manifests := []string{c.run(t, "kubectl", "kustomize", "k8s/monitoring")}
	for _, chart := range charts {
		manifests = append(manifests,
			c.helm(t, "template", filepath.Base(chart), chart, "--set", "monitoring.podMonitor.enabled=true",
				"--show-only", "templates/podmonitor.yaml"))
	}
	const next = "\n---\n"
	var scrapes, groups []any
	p := &prometheus{rules: map[string]string{}}
	for manifest := range strings.SplitSeq(strings.Join(manifests, next), next) {
		var m podMonitor
		var r rules
		err := yaml.Unmarshal([]byte(manifest), &r)
		switch r.Kind {
		case "PodMonitor":
			decoder := yaml.NewDecoder(strings.NewReader(manifest))
			decoder.KnownFields(true)
			err = decoder.Decode(&m)
			scrapes = append(scrapes, m.scrapes(c.namespace, server, discovery.URL)...)
		case "PrometheusRule":
			groups = append(groups, p.take(r)...)
		}
		if err != nil {
			t.Fatalf("%v in\n%s", err, manifest)
		}
	}

	// Prometheus outlives the step.
	dir := c.t.TempDir()
	err := errors.Join(writeJSON(filepath.Join(dir, "rules.json"), map[string]any{"groups": groups}),
		writeJSON(filepath.Join(dir, "prometheus.json"), map[string]any{
			"global":         map[string]string{"scrape_interval": "1s", "evaluation_interval": "1s"},
			"rule_files":     []string{"rules.json"},
			"scrape_configs": scrapes,
		}))
	if err != nil {
		t.Fatal(err)
	}
	p.url = "http://" + c.serve(t, "prometheus", "--web.listen-address=127.0.0.1:%d",
		"--config.file="+filepath.Join(dir, "prometheus.json"),
		"--storage.tsdb.path="+filepath.Join(dir, "data"), "--log.level=warn")
	return p
}

// scrapes returns the scrape configuration that the Prometheus operator would make of a PodMonitor,
// except that it goes through the API server.
func (m *podMonitor) scrapes(namespace, server, discovery string) (configs []any) {
	type relabel = map[string]any
	for n, endpoint := range m.Spec.PodMetricsEndpoints {
		steps := []relabel{{"action": "drop", "source_labels": []string{meta("pod_phase")},
			"regex": "(Failed|Succeeded)"}}
		for _, label := range slices.Sorted(maps.Keys(m.Spec.Selector.MatchLabels)) {
			steps = append(steps,
				relabel{"action": "keep", "source_labels": []string{meta("pod_label_" + label)},
					"regex": m.Spec.Selector.MatchLabels[label]})
		}
		job := fmt.Sprintf("%s/%s", namespace, m.Metadata["name"])
		steps = append(steps,
			relabel{"action": "keep", "source_labels": []string{meta("pod_container_port_name")},
				"regex": endpoint.Port},
			relabel{"source_labels": []string{meta("namespace")}, "target_label": "namespace"},
			relabel{"source_labels": []string{meta("pod_container_name")}, "target_label": "container"},
			relabel{"source_labels": []string{meta("pod_name")}, "target_label": "pod"},
			relabel{"target_label": "job", "replacement": job})
		if m.Spec.JobLabel != "" {
			steps = append(steps,
				relabel{"source_labels": []string{meta("pod_label_" + m.Spec.JobLabel)}, "regex": "(.+)",
					"target_label": "job"})
		}
		for _, label := range m.Spec.PodTargetLabels {
			steps = append(steps,
				relabel{"source_labels": []string{meta("pod_label_" + label)}, "regex": "(.+)",
					"target_label": strings.NewReplacer(".", "_", "/", "_").Replace(label)})
		}
		steps = append(steps,
			relabel{"target_label": "endpoint", "replacement": endpoint.Port},
			relabel{"source_labels": []string{"__address__"}, "target_label": "instance"})
		steps = append(append(steps, inPrometheus(endpoint.Relabelings)...),
			relabel{"source_labels": []string{meta("namespace"), meta("pod_name"), meta("pod_container_port_number"),
				"__metrics_path__"},
				"regex": "(.+);(.+);(.+);(.+)", "target_label": "__metrics_path__",
				"replacement": "/api/v1/namespaces/$1/pods/$2:$3/proxy$4"},
			relabel{"target_label": "__address__", "replacement": server})
		configs = append(configs, map[string]any{
			"job_name":               fmt.Sprintf("podMonitor/%s/%d", job, n),
			"metrics_path":           endpoint.Path,
			"honor_labels":           endpoint.HonorLabels,
			"relabel_configs":        steps,
			"metric_relabel_configs": inPrometheus(endpoint.MetricRelabelings),
			"http_sd_configs":        []any{map[string]any{"url": discovery, "refresh_interval": "1s"}},
		})
	}
	return configs
}

// meta returns the name of a label of Prometheus' discovery of pods.
func meta(name string) string {
	return "__meta_kubernetes_" + regexp.MustCompile(`\W`).ReplaceAllString(name, "_")
}

// target is a port of a pod.
type target struct {
	Targets []string          `json:"targets"`
	Labels  map[string]string `json:"labels"`
}

// pods returns the targets that Prometheus' own discovery would find.
func pods(ctx context.Context, server, namespace string) ([]target, error) {
	got, err := send(ctx, http.MethodGet, fmt.Sprintf("http://%s/api/v1/namespaces/%s/pods", server, namespace), "")
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []struct {
			Metadata struct {
				Name   string
				Labels map[string]string
			}
			Spec struct {
				Containers []struct {
					Name  string
					Ports []struct {
						Name          string
						ContainerPort int
					}
				}
			}
			Status struct{ Phase, PodIP string }
		}
	}
	if err := json.Unmarshal([]byte(got.body), &list); err != nil {
		return nil, err
	}
	targets := []target{}
	for _, pod := range list.Items {
		for _, container := range pod.Spec.Containers {
			for _, port := range container.Ports {
				labels := map[string]string{
					meta("namespace"): namespace, meta("pod_name"): pod.Metadata.Name,
					meta("pod_phase"):          pod.Status.Phase,
					meta("pod_container_name"): container.Name, meta("pod_container_port_name"): port.Name,
					meta("pod_container_port_number"): strconv.Itoa(port.ContainerPort),
				}
				for name, value := range pod.Metadata.Labels {
					labels[meta("pod_label_"+name)] = value
				}
				if pod.Status.PodIP != "" {
					targets = append(targets,
						target{[]string{net.JoinHostPort(pod.Status.PodIP, strconv.Itoa(port.ContainerPort))}, labels})
				}
			}
		}
	}
	return targets, nil
}

// inPrometheus returns relabelings with the field names of Prometheus' own configuration.
func inPrometheus(relabelings []map[string]any) (steps []map[string]any) {
	for _, r := range relabelings {
		step := map[string]any{}
		for name, value := range r {
			step[regexp.MustCompile("[A-Z]").ReplaceAllStringFunc(name,
				func(capital string) string { return "_" + strings.ToLower(capital) })] = value
		}
		steps = append(steps, step)
	}
	return steps
}

func writeJSON(file string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o600)
}

// serve runs a program until the whole test ends and returns its address when it listens. A free
// port replaces %d in the arguments.
func (c *cluster) serve(t *testing.T, program string, args ...string) (address string) {
	t.Helper()
	port := child.FreePort()
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "%d", strconv.Itoa(port))
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = c.t.Output(), c.t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	})
	address = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	eventually(t, 30*time.Second, program+" listens", func() (bool, string) {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
		}
		return err == nil, fmt.Sprint(err)
	})
	return address
}

// series has the values of samples by their labels, as Prometheus prints them.
type series map[string]float64

// query evaluates an expression now. A busy machine may need another try.
func (p *prometheus) query(t *testing.T, expression string) series {
	t.Helper()
	var got reply
	eventually(t, 30*time.Second, "Prometheus evaluates "+expression, func() (bool, string) {
		var err error
		got, err = send(t.Context(), http.MethodPost, p.url+"/api/v1/query",
			url.Values{"query": {expression}}.Encode(), "Content-Type", "application/x-www-form-urlencoded")
		return err == nil && got.status == http.StatusOK, fmt.Sprint(got.status, got.body, err)
	})
	var response struct {
		Data struct {
			Result []struct {
				Metric map[string]string
				Value  [2]any
			}
		}
	}
	if err := json.Unmarshal([]byte(got.body), &response); err != nil {
		t.Fatalf("%s: %v %s", expression, err, got.body)
	}
	found := series{}
	for _, r := range response.Data.Result {
		var labels []string
		for _, name := range slices.Sorted(maps.Keys(r.Metric)) {
			labels = append(labels, fmt.Sprintf("%s=%q", name, r.Metric[name]))
		}
		value, err := strconv.ParseFloat(fmt.Sprint(r.Value[1]), 64)
		if err != nil {
			t.Fatal(err)
		}
		found["{"+strings.Join(labels, ",")+"}"] = value
	}
	return found
}

// value returns the value of the only series.
func (p *prometheus) value(t *testing.T, expression string) (value float64, is bool) {
	t.Helper()
	found := p.query(t, expression)
	for _, value = range found {
	}
	return value, len(found) == 1
}

// holds evaluates the expression of an alert.
func (p *prometheus) holds(t *testing.T, alert string) series {
	t.Helper()
	expression, is := p.rules[alert]
	if !is {
		t.Fatalf("k8s/monitoring/rules.yaml has no alert %s", alert)
	}
	return p.query(t, expression)
}
