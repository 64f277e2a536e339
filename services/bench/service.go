package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	readyPatience = 3 * time.Minute // also for a million records to be applied
	stopPatience  = 20 * time.Second
	clockTick     = 10 * time.Millisecond // of /proc: USER_HZ is 100 on every Linux that Go knows
)

// service is one of the programs under test, in a process of its own, so that its CPU time and memory are its own too.
type service struct {
	name     string
	api, ops string // http://host:port
	cmd      *exec.Cmd
	logFile  string
	started  time.Time
	ended    chan struct{} // closed when the process has ended
}

// startService starts a program with its data in dir.
func startService(ctx context.Context, name, program, dir, kafka string, args ...string) (*service, error) {
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
	s := &service{name: name, api: "http://" + api, ops: "http://" + ops, logFile: filepath.Join(dir, name+".log"), ended: make(chan struct{})}
	log, err := os.Create(s.logFile)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	s.cmd = exec.CommandContext(ctx, program, args...)
	s.cmd.Env = append(os.Environ(), "HTTP_ADDR="+api, "OPS_ADDR="+ops, "DATA_DIR="+dir, "KAFKA_BROKERS="+kafka, "LOG_FORMAT=json", "LOG_LEVEL=info")
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.started = time.Now()
	if err := s.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	go func() {
		defer close(s.ended)
		_ = s.cmd.Wait() // how it ended stands in ProcessState
	}()
	return s, nil
}

// freeAddr finds an address to listen at. Another program could take it in between: then the service ends and says so.
func freeAddr() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

// ready waits until the service says that it is ready, and returns how long that took since its start.
func (s *service) ready(ctx context.Context) (time.Duration, error) {
	last := "it does not answer"
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
	return time.Since(s.started), nil
}

// awaitMetric waits until a metric of the service is what is wanted.
func (s *service) awaitMetric(ctx context.Context, every time.Duration, name string, wanted func(float64) bool) error {
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

// stop asks the service to end, and fails when it does not end well.
func (s *service) stop() error {
	_ = s.cmd.Process.Signal(syscall.SIGTERM) // an error means that it has ended
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

// metric sums a metric's series.
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

// cpu is the processor time that the process has used, user and system; 0 where there is no /proc.
func (s *service) cpu() time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:]) // the name before it may hold blanks
	user, errUser := strconv.Atoi(string(fields[11]))
	system, errSystem := strconv.Atoi(string(fields[12]))
	if errors.Join(errUser, errSystem) != nil {
		return 0
	}
	return time.Duration(user+system) * clockTick
}

// memory is the process's resident memory in MiB, now and at its peak; no numbers where there is no /proc.
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

// ownCPU is the processor time of this process, in which the raw limits run.
func ownCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// perOrder is processor time as µs for each of n orders; no number where it could not be read.
func perOrder(cpu time.Duration, n int) float64 {
	if cpu <= 0 {
		return math.NaN()
	}
	return float64(cpu.Nanoseconds()) / 1000 / float64(n)
}

// opsClient asks the operations endpoints; a wait for a service that starts makes many attempts.
var opsClient = &http.Client{Timeout: 5 * time.Second}

func fetch(ctx context.Context, url string) (status int, body string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	res, err := opsClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer res.Body.Close()
	all, err := io.ReadAll(res.Body)
	return res.StatusCode, string(all), err
}
