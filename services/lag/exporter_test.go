package lag_test

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"ordersystem.dev/services/internal/child"
	"ordersystem.dev/services/internal/kafkaconfig"
)

// Other tools may run beside the collector, on the same broker, at the same moments and against the
// same truth. TestScenarios then logs what each of them shows.
//
//	go test ./services/lag -run TestScenarios -v \
//		-exporter=/path/to/kafka_exporter -kminion=/path/to/kminion
var (
	kafkaExporter = flag.String("exporter", "", "a binary of danielqsj/kafka_exporter to compare with")
	kminion       = flag.String("kminion", "", "a binary of redpanda-data/kminion to compare with")
)

// exporter is another tool that is scraped repeatedly.
type exporter struct {
	name string
	url  string
	// lag returns the name of the tool's series for a partition.
	lag     func(*watch) string
	members func(group string) string

	mu      sync.Mutex
	scrapes []scrape
	// found is what the tool showed of a group's members, and what it should have shown.
	found map[string]string
}

type scrape struct {
	from, to time.Time
	series   series
}

// startExporters starts the tools that the flags name.
func startExporters(t testing.TB, kafka kafkaconfig.Client) []*exporter {
	t.Helper()
	var all []*exporter
	if *kafkaExporter != "" {
		port := child.FreePort()
		// By default it learns of new topics twice a minute, which is too rare for a test of a
		// minute.
		args := []string{
			"--kafka.version=4.0.0", "--refresh.metadata=1s", fmt.Sprintf("--web.listen-address=127.0.0.1:%d", port),
		}
		for _, addr := range kafka.Brokers {
			args = append(args, "--kafka.server="+addr)
		}
		if kafka.CA != "" {
			args = append(args, "--tls.enabled", "--tls.ca-file="+filepath.Join(kafka.CA, "ca.crt"),
				"--tls.cert-file="+kafka.Cert, "--tls.key-file="+kafka.Key)
		}
		cmd := exec.CommandContext(t.Context(), *kafkaExporter, args...)
		all = append(all, startExporter(t, cmd, &exporter{
			name: "kafka_exporter",
			url:  fmt.Sprintf("http://127.0.0.1:%d/metrics", port),
			lag: func(w *watch) string {
				return fmt.Sprintf(`kafka_consumergroup_lag{consumergroup=%q,partition="%d",topic=%q}`, w.group,
					w.partition, w.topic.name)
			},
			members: func(group string) string {
				return fmt.Sprintf(`kafka_consumergroup_members{consumergroup=%q}`, group)
			},
		}))
	}
	if *kminion != "" {
		port := child.FreePort()
		cmd := exec.CommandContext(t.Context(), *kminion)
		cmd.Env = append(os.Environ(), "KAFKA_BROKERS="+strings.Join(kafka.Brokers, ","), "EXPORTER_HOST=127.0.0.1",
			fmt.Sprintf("EXPORTER_PORT=%d", port))
		if kafka.CA != "" {
			cmd.Env = append(cmd.Env, "KAFKA_TLS_ENABLED=true",
				"KAFKA_TLS_CAFILEPATH="+filepath.Join(kafka.CA, "ca.crt"),
				"KAFKA_TLS_CERTFILEPATH="+kafka.Cert, "KAFKA_TLS_KEYFILEPATH="+kafka.Key)
		}
		all = append(all, startExporter(t, cmd, &exporter{
			name: "kminion",
			url:  fmt.Sprintf("http://127.0.0.1:%d/metrics", port),
			lag: func(w *watch) string {
				return fmt.Sprintf(
					`kminion_kafka_consumer_group_topic_partition_lag{group_id=%q,partition_id="%d",topic_name=%q}`,
					w.group,
					w.partition,
					w.topic.name,
				)
			},
			members: func(group string) string {
				return fmt.Sprintf(`kminion_kafka_consumer_group_members{group_id=%q}`, group)
			},
		}))
	}
	return all
}

func startExporter(t testing.TB, cmd *exec.Cmd, e *exporter) *exporter {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// Wait returns an error, because the process is killed.
	t.Cleanup(func() { _ = cmd.Wait() })
	e.found = make(map[string]string)
	for begin := time.Now(); e.scrape() == nil; time.Sleep(pollInterval) {
		if time.Since(begin) > patience {
			t.Fatalf("%s does not respond", e.name)
		}
	}
	return e
}

// scrape returns nil while the tool does not respond.
func (e *exporter) scrape() *scrape {
	s := scrape{from: time.Now()}
	response, err := http.Get(e.url)
	if err != nil {
		return nil
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		return nil
	}
	s.to, s.series = time.Now(), parseSeries(text)
	return &s
}

// watch scrapes as often as the collector polls, until the test ends.
func (e *exporter) watch(t *testing.T) {
	var running sync.WaitGroup
	running.Go(func() {
		for t.Context().Err() == nil {
			begin := time.Now()
			if s := e.scrape(); s != nil {
				e.mu.Lock()
				e.scrapes = append(e.scrapes, *s)
				e.mu.Unlock()
			}
			time.Sleep(max(0, pollInterval-time.Since(begin)))
		}
	})
	t.Cleanup(running.Wait)
}

// expectMembers notes what the tool shows of a group's members after it had time to see them.
func (e *exporter) expectMembers(t *testing.T, group string, want int) {
	begin := time.Now()
	for time.Since(begin) < patience {
		e.mu.Lock()
		scrapes := e.scrapes
		e.mu.Unlock()
		if i := slices.IndexFunc(scrapes, func(s scrape) bool { return s.from.After(begin) }); i >= 0 {
			got := "none"
			if n, ok := scrapes[i].series[e.members(group)]; ok {
				got = fmt.Sprint(n)
			}
			e.mu.Lock()
			defer e.mu.Unlock()
			e.found[group] += fmt.Sprintf("%s of %d, ", got, want)
			return
		}
		time.Sleep(pollInterval / 5)
	}
	t.Errorf("%s does not respond", e.name)
}

// result is what the tools showed of a scenario, compared with the truth.
type result struct {
	scenario string
	// ageOff and recordsOff are how far the collector was off at worst, beyond what moved during
	// the poll.
	ageOff     time.Duration
	recordsOff int64
	// missing is how often it did not show a partition, of all polls.
	missing, polls int
	// records and age are what the collector showed at the end, and the truth.
	records, age string
	others       []otherResult
}

// otherResult is what another tool showed of a scenario.
type otherResult struct {
	last            string
	least, off      float64
	missing, number int
	members         string
}

// addResult adds what the other tools showed of a scenario to what the collector showed.
func (s *scenario) addResult(result result, end time.Time) {
	result.scenario = s.name
	w := s.watches[0]
	var last recorded
	for _, o := range s.always.all() {
		if p := w.in(o.Snapshot); p != nil && o.Time.After(w.since) && !o.Time.Add(o.Took).After(w.until) {
			last = o
		}
	}
	if last.Snapshot != nil {
		p := w.in(last.Snapshot)
		truth := w.at(last.Time, last.Time.Add(last.Took), p.Committed)
		result.records = fmt.Sprintf("%d of %d", p.Records, truth.recordsHigh)
		result.age = fmt.Sprintf("%.2f of %.2f", p.Age.Seconds(), truth.ageHigh.Seconds())
	}
	for _, e := range s.beside {
		result.others = append(result.others, e.judge(s))
	}
	s.Lock()
	defer s.Unlock()
	s.results = append(s.results, result)
}

func (e *exporter) judge(s *scenario) otherResult {
	e.mu.Lock()
	defer e.mu.Unlock()
	result := otherResult{last: "none", least: math.Inf(1)}
	for i, w := range s.watches {
		metric, _, _ := strings.Cut(e.lag(w), "{")
		for _, c := range e.scrapes {
			if c.from.Before(w.since) || c.to.After(w.until) {
				continue
			}
			for name, value := range c.series {
				// The tool may show partitions without a commit too.
				if strings.HasPrefix(name, metric+"{") && strings.Contains(name, strconv.Quote(w.group)) {
					result.least = min(result.least, value)
				}
			}
			result.number++
			value, ok := c.series[e.lag(w)]
			if !ok {
				result.missing++
				continue
			}
			committedLow, committedHigh := w.commits.during(c.from, c.to)
			low, high := w.at(c.from, c.to, committedHigh).recordsLow, w.at(c.from, c.to, committedLow).recordsHigh
			result.off = max(result.off, float64(low)-value, value-float64(high))
			if i == 0 {
				result.last = fmt.Sprint(value)
			}
		}
	}
	for group, members := range e.found {
		if strings.HasPrefix(group, s.name+"-") {
			result.members += members
		}
	}
	return result
}

// table returns the results of some labs as a table.
func table(labs ...*lab) string {
	var b bytes.Buffer
	w := tabwriter.NewWriter(&b, 0, 0, 1, ' ', tabwriter.Debug)
	fmt.Fprint(w, "\nscenario\trecords: ours of true\toff\tseconds: ours of true\toff\tmissing")
	for _, e := range labs[0].beside {
		fmt.Fprintf(w, "\t%s's records\toff\tleast\tmissing\tmembers", e.name)
	}
	fmt.Fprintln(w)
	var results []result
	for _, l := range labs {
		results = append(results, l.results...)
	}
	slices.SortFunc(results, func(a, b result) int { return cmp.Compare(a.scenario, b.scenario) })
	for _, r := range results {
		fmt.Fprintf(w, "%s\t%s\t%d\t%s\t%.3f\t%d of %d", r.scenario, r.records, r.recordsOff, r.age,
			r.ageOff.Seconds(), r.missing, r.polls)
		for _, o := range r.others {
			fmt.Fprintf(w, "\t%s\t%v\t%v\t%d of %d\t%s", o.last, o.off, o.least, o.missing, o.number,
				strings.TrimSuffix(o.members, ", "))
		}
		fmt.Fprintln(w)
	}
	w.Flush()
	return b.String()
}
