package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
)

// The largest batches that a broker of default settings stores are read, or become dead letters,
// within the memory limits of the chart: by Order while both topics are audited, and by a Cart that
// rebuilds its store. All partitions of both topics have them.
func TestTheLargestBatchesFitIntoTheChartsMemory(t *testing.T) {
	if passedWithoutRaceDetector(t) {
		return
	}
	// A client has a fetch under way to each broker, and each takes memory.
	brokers, err := localkafka.StartCluster(t.Context(), 3, localkafka.Options{
		Dir: t.TempDir(),
		// A broker decompresses a batch to find a time in it. This is the heap of Kafka's start script.
		JVM: localkafka.QuickJVM("-Xmx1g"),
	})
	testenv.Require(t, err)
	for _, b := range brokers {
		t.Cleanup(b.Kill)
	}
	kafka := brokers[0]
	declare(t, kafka.Addr)
	// A batch of 65 MB is nearly the largest that is read.
	const perBatch, size, smallBatches = 130, 500_000, 2000
	codecs := []string{testenv.JavaZstd, testenv.LZ4, testenv.Gzip}
	wanted := map[string]int{}
	letters := 0
	for _, topic := range []string{contract.TopicCreated, contract.TopicUpdated} {
		status, version := contract.StatusNew, int64(1)
		if topic == contract.TopicUpdated {
			status, version = "Shipped", 2
		}
		for partition := range int32(12) {
			var batch []contract.Message
			for i := range perBatch {
				id := fmt.Sprintf("%s-%d-%d", topic, partition, i)
				batch = append(batch, largeOrder(topic, id, status, version, size))
			}
			testenv.ProduceBatch(t, kafka.Addr, codecs[partition%3], partition, batch...)
			wanted[topic] += perBatch
			for _, codec := range codecs {
				// lz4 grows 255 times at most.
				zeros := map[string]int{testenv.LZ4: 220 << 20}[codec]
				if zeros == 0 {
					zeros = 300 << 20
				}
				// On two brokers.
				if partition == map[string]int32{contract.TopicCreated: 0, contract.TopicUpdated: 1}[topic] {
					m := contract.Message{Topic: topic, Key: []byte("zeros"), Value: make([]byte, zeros)}
					testenv.ProduceBatch(t, kafka.Addr, codec, partition, m)
					letters++
				}
			}
			if partition == 2 {
				// A fetch of 1 MiB has all of these batches. Together they are 200 MB.
				small := func(yield func([]contract.Message) bool) {
					for i := range smallBatches {
						id := fmt.Sprintf("%s-small-%d", topic, i)
						if !yield([]contract.Message{largeOrder(topic, id, status, version, 100_000)}) {
							return
						}
					}
				}
				testenv.ProduceBatches(t, kafka.Addr, testenv.LZ4, partition, small)
				wanted[topic] += smallBatches
			}
		}
	}

	memory := chartsMemory(t)
	order := newOrder(t, kafka.Addr, "GOMEMLIMIT="+memory["order"].goLimit).lean().start()
	eventually(t, time.Minute, "Order listens", func() (bool, string) {
		got, err := http.Get(order.ops + "/healthz")
		if err == nil {
			got.Body.Close()
		}
		return err == nil, fmt.Sprint(err)
	})
	const within = 8 * time.Minute
	var audits sync.WaitGroup
	defer audits.Wait()
	for _, topic := range []string{contract.TopicCreated, contract.TopicUpdated} {
		audits.Go(func() {
			url := order.api + "/order/getAllOrderIdsFromTopic?topicName=" + topic
			total := fmt.Sprintf("'%s': %d", topic, wanted[topic])
			for deadline := time.Now().Add(within); !t.Failed(); time.Sleep(10 * time.Millisecond) {
				got, err := send(http.MethodGet, url, "")
				if err == nil && got.status == http.StatusOK && strings.Contains(got.body, total) {
					return
				}
				if time.Now().After(deadline) {
					// Fatal, and so eventually, is not allowed here.
					t.Errorf("no audit of %s within %s; last: %v, %d %.200s", topic, within, err, got.status, got.body)
				}
			}
		})
	}
	order.readyIn(within)
	audits.Wait()
	if got := order.metric(`order_dead_letters_total\{reason="unreadable"\}`); got != float64(letters) {
		t.Errorf("%v dead letters of unreadable batches, want %d", got, letters)
	}
	order.sees(contract.TopicUpdated+"-11-129", 2, "Shipped")
	fits(t, order, memory["order"])
	order.stop()

	cart := newCart(t, kafka.Addr, "GOMEMLIMIT="+memory["cart"].goLimit).lean().start()
	cart.readyIn(within)
	fits(t, cart, memory["cart"])
	cart.stop()
}

// passedWithoutRaceDetector runs the test alone, in a process that has no race detector, if this one has. It is for
// tests that compress gigabytes here: that takes a multiple of the time with it, and the services are in processes
// of their own.
func passedWithoutRaceDetector(t *testing.T) bool {
	t.Helper()
	if len(raceFlags) == 0 {
		return false
	}
	var left time.Duration // 0: without a limit, as here
	if deadline, is := t.Deadline(); is {
		left = time.Until(deadline)
	}
	out, err := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-v", "-timeout", left.String(),
		"-run", "^"+t.Name()+"$", ".").CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
	return true
}

// largeOrder returns an order of the given size. Blanks before the last bracket make it large, and it
// stays valid.
func largeOrder(topic, id, status string, version int64, size int) contract.Message {
	value := body(id, status, version)
	padding := bytes.Repeat([]byte(" "), size-len(value))
	value = append(append(value[:len(value)-1], padding...), '}')
	return contract.Message{Topic: topic, Key: []byte(id), Value: value}
}

// memory is what the chart gives to a service.
type memory struct {
	goLimit string
	limit   int
}

// chartsMemory reads the chart's defaults, by service.
func chartsMemory(t testing.TB) map[string]memory {
	t.Helper()
	text, err := os.ReadFile("../../charts/orders/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var values map[string]struct {
		Resources struct {
			Requests, Limits struct{ Memory string }
		}
	}
	var all map[string]any
	if err := yaml.Unmarshal(text, &all); err != nil {
		t.Fatal(err)
	}
	services, err := yaml.Marshal(map[string]any{"cart": all["cart"], "order": all["order"]})
	if err == nil {
		err = yaml.Unmarshal(services, &values)
	}
	if err != nil {
		t.Fatal(err)
	}
	result := map[string]memory{}
	for name, v := range values {
		mebibytes := func(quantity string) int {
			n, err := strconv.Atoi(strings.TrimSuffix(quantity, "Mi"))
			if err != nil {
				t.Fatalf("memory of %s: %q is not in Mi", name, quantity)
			}
			return n << 20
		}
		result[name] = memory{
			goLimit: fmt.Sprint(mebibytes(v.Resources.Requests.Memory)), limit: mebibytes(v.Resources.Limits.Memory),
		}
	}
	return result
}

// fits checks that a process never had more memory than its limit.
func fits(t testing.TB, p *process, m memory) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	peak, err := strconv.Atoi(string(regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)[1]))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s had %d MiB at most, of %d MiB", p.name, peak>>10, m.limit>>20)
	if peak<<10 > m.limit {
		t.Errorf("%s had %d MiB, its limit is %d MiB", p.name, peak>>10, m.limit>>20)
	}
}
