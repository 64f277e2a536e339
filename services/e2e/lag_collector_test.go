package e2e

import (
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"ordersystem.dev/services/internal/testenv"
)

// startCollector starts a collector of the groups that a pattern matches, with more lines in its file.
func startCollector(t testing.TB, kafka, groups, more string) *process {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	text := "clusters: [{name: orders, bootstrapServers: '" + kafka + "', discover: " + groups + "}]\n" +
		"interval: 1s\n" + more
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	addr := local(freePorts(1))
	collector := newProcess(t, "lag-collector", "CONFIG_FILE="+file, "OPS_ADDR="+addr)
	collector.ops = "http://" + addr
	return collector.start().ready()
}

// The collector shows groups that are behind, and whether it can read Kafka. It needs nothing but its
// file.
func TestLagCollectorWithoutKubernetes(t *testing.T) {
	t.Parallel()
	kafka, cart, order := startSystem(t)
	cart.create("read")
	settle(t, kafka.Addr, cart, order)
	order.stop()
	for _, id := range []string{"a", "b", "c"} {
		cart.create(id)
	}
	collector := startCollector(t, kafka.Addr, "order-.*", "watchNamespaces: [orders]\n")

	eventually(t, patience, "the unread orders are lag", func() (bool, string) {
		// The markers of transactions count too. No other group matches.
		return collector.metric("kafka_consumergroup_topic_lag") >= 3 &&
			collector.metric("kafka_consumergroup_topic_max_lag_seconds") > 0, ""
	})
	if got := do(t, http.MethodGet, collector.ops+"/healthz", ""); got.status != http.StatusOK {
		t.Errorf("/healthz responds with %d", got.status)
	}
	if !strings.Contains(collector.log(), `"keys":["watchNamespaces"]`) {
		t.Error("the log does not say that watchNamespaces has no effect")
	}

	kafka.Kill()
	collector.notReady("read cluster orders")
	if up := collector.metric("lag_collector_up"); up != 0 {
		t.Errorf("without Kafka, lag_collector_up is %v", up)
	}
	if err := kafka.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	collector.ready()
	collector.stop()
}

// Kubernetes' libraries would be two thirds of the program.
func TestLagCollectorLinksNoKubernetes(t *testing.T) {
	t.Parallel()
	testenv.RequireProgram(t, "go", "Go")
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "../cmd/lag-collector").Output()
	if err != nil {
		t.Fatal(err)
	}
	for dep := range strings.Lines(string(out)) {
		for _, unwanted := range []string{"k8s.io/", "confluent-kafka-go", "go-sqlite3"} {
			if strings.Contains(dep, unwanted) {
				t.Errorf("lag-collector links %s", dep)
			}
		}
	}
}
