package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Limits of the processes under test.
const (
	// readyPatience is long enough for a million records to be applied.
	readyPatience = 3 * time.Minute
	stopPatience  = 20 * time.Second
)

// appliedRecords is Order's metric of all records that it has applied.
const appliedRecords = "order_apply_batch_records_sum"

// program is a program under test.
type program struct {
	// name is for messages and files; path is the executable.
	name, path string
	args       []string
}

// service is a program under test that runs. It is a process of its own, and so are its CPU time
// and its memory.
type service struct {
	name string
	// api and ops are URLs without a path.
	api, ops string
	cmd      *exec.Cmd
	// logFile has stdout and stderr of the process.
	logFile string
	started time.Time
	// readyAfter is the time from the start until the service was ready; 0 until ready has
	// returned.
	readyAfter time.Duration
	// ended is closed when the process has ended.
	ended chan struct{}
}

// startService starts a program with its data in dir. env is added to its environment.
func startService(ctx context.Context, p program, dir, kafka string, env ...string) (*service, error) {
	api, err := freeAddr()
	if err != nil {
		return nil, err
	}
	ops, err := freeAddr()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	// The log is beside the data, for an error message if the service ends.
	s := &service{
		name: p.name, api: "http://" + api, ops: "http://" + ops,
		logFile: filepath.Join(dir, p.name+".log"), ended: make(chan struct{}),
	}
	log, err := os.Create(s.logFile)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	s.cmd = exec.CommandContext(ctx, p.path, p.args...)
	s.cmd.Env = slices.Concat(os.Environ(), []string{
		"HTTP_ADDR=" + api, "OPS_ADDR=" + ops, "DATA_DIR=" + dir,
		"KAFKA_BROKERS=" + kafka, "LOG_FORMAT=json", "LOG_LEVEL=info",
	}, env)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.started = time.Now()
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	go func() {
		defer close(s.ended)
		// ProcessState has the result.
		_ = s.cmd.Wait()
	}()
	return s, nil
}

// freeAddr finds an address to listen at. If another program takes it in between, the service ends
// with an error.
func freeAddr() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

// ready waits until the service reports that it is ready, and returns the time since its start.
func (s *service) ready(ctx context.Context) (time.Duration, error) {
	last := "it does not respond"
	err := s.await(ctx, 2*time.Millisecond, func() (bool, error) {
		status, body, err := fetch(ctx, s.ops+"/readyz")
		if err == nil {
			last = body
		}
		return status == http.StatusOK, nil
	})
	if err != nil {
		return 0, fmt.Errorf("await that %s is ready (%s): %w", s.name, strings.TrimSpace(last), err)
	}
	s.readyAfter = time.Since(s.started)
	return s.readyAfter, nil
}

// awaitPublished waits until the outbox of a Cart is empty.
func (s *service) awaitPublished(ctx context.Context) error {
	return s.awaitMetric(ctx, 20*time.Millisecond, "cart_outbox_rows", func(rows float64) bool { return rows == 0 })
}

// awaitMetric waits until a metric of the service has a wanted value.
func (s *service) awaitMetric(
	ctx context.Context, every time.Duration, name string, wanted func(float64) bool,
) error {
	var value float64
	err := s.await(ctx, every, func() (done bool, err error) {
		value, err = s.metric(ctx, name)
		return err == nil && wanted(value), err
	})
	if err != nil {
		return fmt.Errorf("await metric %s of %s, now %v: %w", name, s.name, value, err)
	}
	return nil
}

// await calls done at an interval until it returns true or an error, or the service ends.
func (s *service) await(ctx context.Context, every time.Duration, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, readyPatience)
	defer cancel()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ended:
			log, _ := os.ReadFile(s.logFile)
			return fmt.Errorf("%s ended: %v\n%s", s.name, s.cmd.ProcessState, log[max(0, len(log)-2000):])
		}
	}
}

// stop asks the service to end, and fails if it does not end well.
func (s *service) stop() error {
	// An error means that it has ended already.
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.ended:
	case <-time.After(stopPatience):
		_ = s.cmd.Process.Kill()
		<-s.ended
		return fmt.Errorf("%s did not end within %s", s.name, stopPatience)
	}
	if !s.cmd.ProcessState.Success() {
		return fmt.Errorf("%s ended: %v", s.name, s.cmd.ProcessState)
	}
	return nil
}

// metric returns the sum of a metric's series.
func (s *service) metric(ctx context.Context, name string) (float64, error) {
	_, body, err := fetch(ctx, s.ops+"/metrics")
	if err != nil {
		return 0, err
	}
	var sum float64
	found := false
	for line := range strings.Lines(body) {
		rest, ok := strings.CutPrefix(line, name)
		if !ok || (rest[0] != ' ' && rest[0] != '{') {
			continue
		}
		value, err := strconv.ParseFloat(strings.TrimSpace(rest[strings.LastIndexByte(rest, ' ')+1:]), 64)
		if err != nil {
			return 0, err
		}
		sum, found = sum+value, true
	}
	if !found {
		return 0, fmt.Errorf("%s has no metric %s", s.name, name)
	}
	return sum, nil
}

// cpu returns the processor time that the process has used.
func (s *service) cpu() time.Duration { return cpuOf(s.cmd.Process.Pid) }

// memory returns the process's resident memory in MiB, now and at its peak. It returns NaN without
// /proc.
func (s *service) memory() (now, peak float64) {
	now, peak = math.NaN(), math.NaN()
	status, err := os.Open(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		return now, peak
	}
	defer status.Close()
	for lines := bufio.NewScanner(status); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		kib, _ := strconv.ParseFloat(fields[1], 64)
		switch fields[0] {
		case "VmRSS:":
			now = kib / 1024
		case "VmHWM:":
			peak = kib / 1024
		}
	}
	return now, peak
}

// opsClient is for the operations endpoints. A wait for a service that starts makes many attempts.
var opsClient = &http.Client{Timeout: 5 * time.Second}

// fetch returns the response to a GET.
func fetch(ctx context.Context, url string) (status int, body string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return 0, "", err
	}
	resp, err := opsClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	all, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(all), err
}
