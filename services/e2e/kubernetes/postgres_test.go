package kubernetes

import (
	"bytes"
	_ "embed"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"text/template"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/testenv"
)

// postgresImage is the test's own database, of any Debian's PostgreSQL.
const postgresImage = "ordersystem/test-postgres:1"

//go:embed postgres/server.yaml
var postgresManifest string

// postgresValues are the chart's own example: three replicas of each service, and TLS.
const postgresValues = "charts/orders/ci/postgres-values.yaml"

// The steps are one story, as those of TestInstallation: PostgreSQL and three replicas of each service.
func TestReplicas(t *testing.T) {
	c := newCluster(t)
	loadPostgres(t, c)
	i := &installation{cluster: c, strimzi: newStrimzi(t, c), cart: &service{name: "cart", port: 5000},
		order: &service{name: "order", port: 7000}}
	i.strimzi.prepareKafka(t)
	i.strimzi.startKafka(t)
	i.strimzi.allow(t)
	i.strimzi.writeSecrets(t)
	i.strimzi.createTopics(t, contract.TopicCreated, contract.TopicUpdated, contract.TopicDeadLetter)
	tell(t, []step{
		{"pods wait for the Secret of their database", i.waitForDatabase},
		{"three replicas of each service are ready when it is there", i.startDatabase},
		{"helm test passes", i.helmTest},
		{"no request fails in an upgrade and a rollback", i.rollReplicas},
		{"orders flow again within seconds when a replica is killed", i.killReplicas},
		{"pods are evicted one at a time", i.evict},
		{"no order is lost and no pod restarts when the database does", i.restartDatabase},
		{"Pod Security warned of nothing", i.noWarnings},
	})
}

// loadPostgres builds the database's image and loads it into the cluster. TEST_POSTGRES_BASE is its base,
// if not the Dockerfile's.
func loadPostgres(t *testing.T, c *cluster) {
	t.Helper()
	build := []string{"build", "--quiet", "--tag", postgresImage}
	if base := os.Getenv("TEST_POSTGRES_BASE"); base != "" {
		build = append(build, "--build-arg", "POSTGRES_BASE="+base)
	}
	c.run(t, testenv.Docker(), append(build, "services/e2e/kubernetes/postgres")...)
	c.run(t, "sh", "-c", os.Getenv("TEST_IMAGE_LOAD"), "load", postgresImage)
}

func (i *installation) waitForDatabase(t *testing.T) {
	i.helm(t, "install", "orders", "charts/orders", "--values", postgresValues)
	for _, s := range []*service{i.cart, i.order} {
		eventually(t, time.Minute, s.name+" waits for its database", func() (bool, string) {
			waiting := i.kubectl(t, "get", "pods", "-l", s.selector(), "-o",
				"jsonpath={.items[*].status.containerStatuses[*].state.waiting.reason}")
			return waiting == strings.Repeat(" ContainerCreating", 3)[1:], waiting
		})
	}
}

// startDatabase plays CloudNativePG's part.
func (i *installation) startDatabase(t *testing.T) {
	ca := testenv.NewAuthority(t, "orders-db")
	host := "orders-db-rw." + i.namespace
	cert, key := ca.Issue(t, "orders-db-rw", host)
	password := fmt.Sprintf("p%d", time.Now().UnixNano())
	i.secret(t, "orders-db-ca", map[string][]byte{"ca.crt": ca.PEM, "ca.key": key})
	i.secret(t, "orders-db-server", map[string][]byte{"tls.crt": cert, "tls.key": key})
	i.secret(t, "orders-db-app", map[string][]byte{"password": []byte(password),
		"uri": fmt.Appendf(nil, "postgresql://orders:%s@%s:5432/orders", password, host)})
	var manifest bytes.Buffer
	if err := template.Must(template.New("").Parse(postgresManifest)).Execute(&manifest,
		map[string]any{"Image": postgresImage}); err != nil {
		t.Fatal(err)
	}
	i.apply(t, manifest.String())
	i.kubectl(t, "rollout", "status", "statefulset/orders-db", "--timeout=2m")
	i.rollReady(t)
	for _, s := range []*service{i.cart, i.order} {
		addresses := i.forward("service/orders-"+s.name, s.port, s.port+1)
		s.api, s.ops = "http://"+addresses[0], "http://"+addresses[1]
		if got := i.pods(t, s); len(got) != 3 {
			t.Errorf("%s has the pods %q, want 3", s.name, got)
		}
	}
}

func (i *installation) rollReady(t *testing.T) {
	t.Helper()
	for _, s := range []*service{i.cart, i.order} {
		i.kubectl(t, "rollout", "status", "deployment/orders-"+s.name, "--timeout=4m")
	}
}

// pods returns the names of a service's pods.
func (i *installation) pods(t *testing.T, s *service) []string {
	t.Helper()
	return strings.Fields(i.kubectl(t, "get", "pods", "-l", s.selector(), "-o", "jsonpath={.items[*].metadata.name}"))
}

func (i *installation) rollReplicas(t *testing.T) {
	before := i.pods(t, i.cart)
	end := i.check(t, "rollout", "-rate", "40", "-for", "100s", "place", "update", "find")
	i.helm(t, "upgrade", "orders", "charts/orders", "--values", postgresValues,
		"--set", "cart.logLevel=debug", "--set", "order.logLevel=debug")
	i.rollReady(t)
	i.helm(t, "rollback", "orders")
	i.rollReady(t)
	failed, retried, summary := end()
	t.Log(summary)
	if failed != 0 || retried != 0 {
		t.Errorf("%d orders failed, %d requests were sent again: %s", failed, retried, summary)
	}
	for _, name := range i.pods(t, i.cart) {
		for _, old := range before {
			if name == old {
				t.Errorf("Cart still has %s", name)
			}
		}
	}
}

// killReplicas kills each Cart, of which one publishes, and each Order, of which each has partitions.
func (i *installation) killReplicas(t *testing.T) {
	for _, s := range []*service{i.cart, i.order} {
		for n, pod := range i.pods(t, s) {
			i.kubectl(t, "delete", "pod", pod, "--force", "--grace-period=0")
			begin := time.Now()
			failed, _, summary := i.check(t, fmt.Sprintf("kill-%s-%d", s.name, n), "-n", "5", "place", "find")()
			t.Logf("%s: five orders were placed and found within %s: %s", pod,
				time.Since(begin).Round(100*time.Millisecond), summary)
			if failed != 0 {
				t.Errorf("after %s was killed: %s", pod, summary)
			}
			i.rollReady(t)
		}
	}
}

// evict asks for the eviction of two pods at once, as `kubectl drain` does.
func (i *installation) evict(t *testing.T) {
	for _, s := range []*service{i.cart, i.order} {
		evict := func(pod string) error {
			text := fmt.Sprintf(
				`{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": %q, "namespace": %q}}`,
				pod, i.namespace)
			path := fmt.Sprintf("/api/v1/namespaces/%s/pods/%s/eviction", i.namespace, pod)
			_, err := i.try(t.Context(), text, "kubectl", "create", "--raw", path, "-f", "-")
			return err
		}
		eventually(t, time.Minute, "one pod of "+s.name+" may be evicted", func() (bool, string) {
			allowed := i.kubectl(t, "get", "poddisruptionbudget", "orders-"+s.name, "-o",
				"jsonpath={.status.disruptionsAllowed}")
			return allowed == "1", allowed
		})
		results := make(chan error, 2)
		for _, pod := range i.pods(t, s)[:2] {
			go func() { results <- evict(pod) }()
		}
		one, other := <-results, <-results
		if one != nil {
			one, other = other, one
		}
		if one != nil {
			t.Errorf("no pod of %s can be evicted: %v, %v", s.name, one, other)
		} else if other == nil || !strings.Contains(other.Error(), "disruption budget") {
			t.Errorf("the second pod of %s is evicted with the first: %v", s.name, other)
		}
		i.rollReady(t)
	}
}

func (i *installation) restartDatabase(t *testing.T) {
	end := i.check(t, "database", "-rate", "20", "-for", "40s", "place", "update", "find")
	i.kubectl(t, "delete", "pod", "orders-db-0", "--grace-period=5")
	i.kubectl(t, "rollout", "status", "statefulset/orders-db", "--timeout=2m")
	failed, retried, summary := end()
	t.Logf("%d requests were sent again: %s", retried, summary)
	if failed != 0 {
		t.Errorf("orders failed: %s", summary)
	}
	i.rollReady(t)
	for _, s := range []*service{i.cart, i.order} {
		restarts := i.kubectl(t, "get", "pods", "-l", s.selector(), "-o",
			"jsonpath={.items[*].status.containerStatuses[*].restartCount}")
		if strings.Trim(restarts, "0 ") != "" {
			t.Errorf("the pods of %s were restarted %s times", s.name, restarts)
		}
	}
}

// check starts services/cmd/check in the cluster, where its requests go through the Services. It returns
// once the program runs. The function that it returns waits for the end, and returns how many orders
// failed and how many requests were sent again.
func (i *installation) check(
	t *testing.T, name string, args ...string,
) (end func() (failed, retried int, summary string)) {
	t.Helper()
	image := regexp.MustCompile(`image: (\S*/check:\S+)`).FindStringSubmatch(
		i.run(t, "helm", "template", "orders", "charts/orders", "--show-only", "templates/tests/check.yaml"))[1]
	i.apply(t, fmt.Sprintf(`{"apiVersion": "v1", "kind": "Pod",
		"metadata": {"name": "check-%s", "labels": {"app.kubernetes.io/name": "orders",
			"app.kubernetes.io/instance": "orders", "app.kubernetes.io/component": "test"}},
		"spec": {"restartPolicy": "Never", "automountServiceAccountToken": false, "enableServiceLinks": false,
			"securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
			"containers": [{"name": "check", "image": %q, "imagePullPolicy": "IfNotPresent", "args": ["%s"],
				"env": [{"name": "CART_URL", "value": "http://orders-cart:5000"},
					{"name": "ORDER_URL", "value": "http://orders-order:7000"}],
				"securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]}}`,
		name, image, strings.Join(args, `", "`)))
	phase := func() string { return i.kubectl(t, "get", "pod", "check-"+name, "-o", "jsonpath={.status.phase}") }
	eventually(t, time.Minute, "check runs", func() (bool, string) {
		now := phase()
		return now != "Pending" && now != "", now
	})
	return func() (failed, retried int, summary string) {
		t.Helper()
		eventually(t, 5*time.Minute, "check ends", func() (bool, string) {
			now := phase()
			return now == "Succeeded" || now == "Failed", now
		})
		log := i.kubectl(t, "logs", "check-"+name, "--tail=20")
		m := regexp.MustCompile(`(?m)^summary: .*failed (\d+), retried (\d+).*$`).FindStringSubmatch(log)
		if m == nil {
			t.Fatalf("check shows no summary:\n%s", log)
		}
		failed, err := strconv.Atoi(m[1])
		if err != nil {
			t.Fatal(err)
		}
		if retried, err = strconv.Atoi(m[2]); err != nil {
			t.Fatal(err)
		}
		return failed, retried, m[0]
	}
}
