// Command generate-monitoring writes Prometheus' rules and Grafana's dashboards in k8s/monitoring.
// Both have one source: a panel shows the line at which an alert fires because it is the same
// constant. The command runs in the root of the repository.
package main

import (
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	if err := write(filepath.Join("k8s", "monitoring")); err != nil {
		fmt.Fprintln(os.Stderr, "generate-monitoring:", err)
		os.Exit(1)
	}
}

// write writes all files into dir. It removes dashboards that are no longer generated.
func write(dir string) error {
	old, err := filepath.Glob(filepath.Join(dir, "dashboards", "*.json"))
	if err != nil {
		return err
	}
	made, err := files()
	if err != nil {
		return err
	}
	for _, path := range old {
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if made[filepath.ToSlash(name)] == nil {
			if err := os.Remove(path); err != nil {
				return err
			}
		}
	}
	for name, text := range made {
		path := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// files returns the generated files by their paths in k8s/monitoring.
func files() (map[string][]byte, error) {
	made := map[string][]byte{}
	for _, d := range []dashboard{
		lagDashboard(), orderWayDashboard(), kafkaDashboard(), cartDashboard(), orderDashboard(),
	} {
		text, err := d.json()
		if err != nil {
			return nil, fmt.Errorf("dashboard %s: %w", d.name, err)
		}
		made["dashboards/"+d.name+".json"] = text
	}
	text, err := rulesYAML()
	if err != nil {
		return nil, err
	}
	made["rules.yaml"] = text
	return made, nil
}
