package kubernetes

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"ordersystem.dev/services/internal/child"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
)

// root is the repository, from which a user runs kubectl and helm.
const root = "../../.."

// kafkaImage is the test's own broker. Its tag changes with its content.
var kafkaImage = "ordersystem/test-kafka:" + localkafka.Version()

// cluster is a namespace of this run's own in the cluster that KUBECONFIG names. The test works by
// kubectl and helm, as a user does.
type cluster struct {
	// t is the whole test, not a step of it.
	t         *testing.T
	namespace string

	// Each function ends one kubectl port-forward.
	forwards []*atomic.Pointer[context.CancelFunc]

	mu sync.Mutex
	// warnings are those of Pod Security.
	warnings []string
}

// newCluster makes the namespace, and deletes it with everything in it when the test ends.
func newCluster(t *testing.T) *cluster {
	t.Helper()
	testenv.RequireCluster(t)
	if os.Getenv("TEST_IMAGE_LOAD") == "" {
		testenv.CannotRun(t, "TEST_IMAGE_LOAD is not set, which loads images into the cluster; "+
			`for kind it is 'kind load docker-image --name orders "$@"'`)
	}
	for _, program := range []string{"kubectl", "helm", "node", "prometheus"} {
		testenv.RequireProgram(t, program, "it")
	}
	testenv.RequireDocker(t)
	// `go test` does not see what helm, kubectl and docker read. It notices only which directories
	// a test walks and whether they changed. Without this walk it would show the cached result for
	// an older chart.
	for _, dir := range []string{"charts", "k8s", "services", "strimzi"} {
		if err := filepath.WalkDir(filepath.Join(root, dir),
			func(_ string, _ fs.DirEntry, err error) error { return err }); err != nil {
			t.Fatal(err)
		}
	}
	c := &cluster{t: t, namespace: fmt.Sprintf("orders-e2e-%06x", rand.IntN(1<<24))}
	loadImages(t, c)
	c.apply(t, fmt.Sprintf(`{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": %q, "labels": {
		"pod-security.kubernetes.io/enforce": "restricted",
		"pod-security.kubernetes.io/warn": "restricted"}}}`, c.namespace))
	t.Cleanup(func() {
		// The test's context has ended by now.
		if out, err := exec.Command("kubectl", "delete", "namespace", c.namespace,
			"--timeout=2m").CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	t.Cleanup(func() {
		if t.Failed() {
			c.dump(t)
		}
	})
	return c
}

// loadImages loads images into the cluster: those that the charts name, as `make images` built
// them, and the test's broker.
func loadImages(t *testing.T, c *cluster) {
	t.Helper()
	var images []string
	for _, chart := range []string{"charts/orders", "charts/lag-operator"} {
		for _, m := range regexp.MustCompile(`(?m)^ *(?:- )?image: *"?([^"\s]+)`).FindAllStringSubmatch(
			c.run(t, "helm", "template", "release", chart), -1) {
			images = append(images, m[1])
		}
	}
	slices.Sort(images)
	images = slices.Compact(images)
	for _, image := range images {
		if out, err := exec.CommandContext(t.Context(), testenv.Docker(), "image", "inspect",
			image).CombinedOutput(); err != nil {
			testenv.CannotRun(t, "the image "+image+" is not in the local Docker daemon: run `make images` ("+
				strings.TrimSpace(string(out))+")")
		}
	}
	jars, err := localkafka.Jars(t.Context(), slog.New(slog.NewTextHandler(t.Output(), nil)))
	testenv.Require(t, err)
	build := []string{"build", "--quiet", "--tag", kafkaImage, "--file", "services/e2e/kubernetes/kafka/Dockerfile"}
	if base := os.Getenv("TEST_JAVA_BASE"); base != "" {
		build = append(build, "--build-arg", "JAVA_BASE="+base)
	}
	c.run(t, testenv.Docker(), append(build, jars)...)
	images = append(images, kafkaImage)

	begin := time.Now()
	c.run(t, "sh", append([]string{"-c", os.Getenv("TEST_IMAGE_LOAD"), "load"}, images...)...)
	t.Logf("loaded %s in %s", strings.Join(images, ", "), time.Since(begin).Round(time.Second))
}

// run runs a program in the repository's root, which must succeed, and returns its output.
func (c *cluster) run(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := c.try(t.Context(), "", program, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (c *cluster) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return c.run(t, "kubectl", append([]string{"-n", c.namespace}, args...)...)
}

func (c *cluster) helm(t *testing.T, args ...string) string {
	t.Helper()
	return c.run(t, "helm", append(args, "-n", c.namespace)...)
}

func (c *cluster) apply(t *testing.T, manifest string) {
	t.Helper()
	if _, err := c.try(t.Context(), manifest, "kubectl", "-n", c.namespace, "apply", "-f", "-"); err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) secret(t *testing.T, name string, data map[string][]byte) {
	t.Helper()
	manifest, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Secret",
		"metadata": map[string]any{"name": name}, "data": data})
	if err != nil {
		t.Fatal(err)
	}
	c.apply(t, string(manifest))
}

// try is run with an error. It adds warnings to c.warnings.
func (c *cluster) try(ctx context.Context, stdin, program string, args ...string) (string, error) {
	var stdout, stderr strings.Builder
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = root, strings.NewReader(stdin), &stdout, &stderr
	err := cmd.Run()
	for line := range strings.Lines(stderr.String()) {
		if strings.Contains(line, "PodSecurity") {
			c.mu.Lock()
			c.warnings = append(c.warnings, line)
			c.mu.Unlock()
		}
	}
	if err != nil {
		return stdout.String(),
			fmt.Errorf("%s %s: %w\n%s%s", program, strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

// forward makes ports in the cluster reachable at the addresses that it returns, until the whole
// test ends. kubectl ends with the pod that it is connected to. forward then starts it again on the
// same ports, and it finds the next pod.
func (c *cluster) forward(target string, ports ...int) (addresses []string) {
	args := []string{"-n", c.namespace, "port-forward", target}
	for _, port := range ports {
		local := child.FreePort()
		addresses = append(addresses, net.JoinHostPort("127.0.0.1", strconv.Itoa(local)))
		args = append(args, fmt.Sprintf("%d:%d", local, port))
	}
	ctx, cancel := context.WithCancel(context.Background())
	end := &atomic.Pointer[context.CancelFunc]{}
	// end does nothing until kubectl runs.
	end.Store(new(context.CancelFunc(func() {})))
	c.forwards = append(c.forwards, end)
	var forwarder sync.WaitGroup
	forwarder.Go(func() {
		for ctx.Err() == nil {
			once, cancel := context.WithCancel(ctx)
			end.Store(&cancel)
			// It is normal that there is no pod for a moment.
			_ = exec.CommandContext(once, "kubectl", args...).Run()
			cancel()
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	})
	c.t.Cleanup(func() {
		cancel()
		forwarder.Wait()
	})
	return addresses
}

// reconnect starts every forward again. kubectl sometimes hangs when a pod goes while requests are
// under way.
func (c *cluster) reconnect() {
	for _, end := range c.forwards {
		(*end.Load())()
	}
}

// event is a line that kubectl printed, with the time.
type event struct {
	at   time.Time
	line string
}

// watch sends the lines that kubectl prints about objects and their changes, until the test ends.
func (c *cluster) watch(t *testing.T, args ...string) <-chan event {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "kubectl",
		append([]string{"-n", c.namespace, "get", "--watch"}, args...)...)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	events := make(chan event, 1000)
	go func() {
		defer close(events)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			events <- event{time.Now(), lines.Text()}
		}
		// The end of the test kills kubectl.
		_ = cmd.Wait()
	}()
	return events
}

// objects returns all objects in the namespace as kind/name, except events and metrics.
func (c *cluster) objects(t *testing.T) []string {
	t.Helper()
	kinds := slices.DeleteFunc(
		strings.Fields(c.run(t, "kubectl", "api-resources", "--namespaced", "--verbs=list", "--output=name")),
		func(kind string) bool {
			return strings.HasPrefix(kind, "events") || strings.HasSuffix(kind, ".metrics.k8s.io")
		})
	names := strings.Fields(c.kubectl(t, "get", strings.Join(kinds, ","), "--output=name", "--ignore-not-found"))
	slices.Sort(names)
	return slices.Compact(names)
}

// dump logs what is in the namespace.
func (c *cluster) dump(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	show := func(args ...string) string {
		out, err := c.try(ctx, "", "kubectl", append([]string{"-n", c.namespace}, args...)...)
		if err != nil {
			out += err.Error()
		}
		return out
	}
	t.Logf("warnings of Pod Security: %q", c.warnings)
	t.Logf("objects:\n%s", show("get", "all,pvc,secrets,networkpolicies", "--output=wide"))
	t.Logf("pods:\n%s", show("describe", "pods"))
	t.Logf("events:\n%s", show("get", "events", "--sort-by=.lastTimestamp"))
	for pod := range strings.FieldsSeq(show("get", "pods", "--output=name")) {
		t.Logf("log of %s:\n%s", pod, show("logs", pod, "--all-containers", "--tail=200"))
		if previous, err := c.try(ctx, "", "kubectl", "-n", c.namespace, "logs", pod, "--previous",
			"--tail=200"); err == nil {
			t.Logf("log of %s before its restart:\n%s", pod, previous)
		}
	}
}

// reply is an HTTP response.
type reply struct {
	status int
	// version is the one in the ETag.
	version int64
	body    string
}

// The timeout is short: a connection that was forwarded to a pod which is gone may hang.
var browser = &http.Client{Timeout: 5 * time.Second}

// send sends a request. headers holds names and values in turn.
func send(ctx context.Context, method, url, body string, headers ...string) (reply, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := browser.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	version, _ := strconv.ParseInt(strings.Trim(resp.Header.Get("ETag"), `"`), 10, 64)
	return reply{resp.StatusCode, version, string(text)}, err
}

// respond repeats a request until it gets a response. kubectl notices only at a request that the
// pod behind a forward is gone.
func respond(t *testing.T, request func() (reply, error)) (got reply) {
	t.Helper()
	eventually(t, 30*time.Second, "there is a response", func() (bool, string) {
		var err error
		got, err = request()
		return err == nil, fmt.Sprint(err)
	})
	return got
}

// eventually polls until the condition holds. If it does not hold in time, the test fails and shows
// the last state.
func eventually(t *testing.T, within time.Duration, what string, holds func() (ok bool, state string)) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		ok, state := holds()
		if ok {
			return
		}
		if time.Since(begin) > within {
			t.Fatalf("not within %s: %s; last: %s", within, what, state)
		}
	}
}
