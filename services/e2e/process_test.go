package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
)

var (
	// buildDir holds the programs.
	buildDir string
	// raceFlags has -race if the tests have it.
	raceFlags []string

	// build makes the programs once, as a user would, and with the race detector if the tests have it.
	build = sync.OnceValues(func() (dir string, err error) { return buildWith("tested", raceFlags...) })
	// buildLean makes the programs once, without the race detector.
	buildLean = sync.OnceValues(func() (dir string, err error) { return buildWith("lean") })
	// buildJumping makes the programs once, with a time of day that can jump. As that is a part of Go, all of
	// Go is compiled once more. The next test run finds it in Go's build cache.
	buildJumping = sync.OnceValues(func() (dir string, err error) {
		overlay, err := testenv.ClockOverlay(buildDir)
		if err != nil {
			return "", err
		}
		return buildWith("jumping", slices.Concat(raceFlags, []string{"-overlay", overlay})...)
	})
)

// buildWith builds the programs into a directory below buildDir.
func buildWith(name string, flags ...string) (dir string, err error) {
	// `go test` does not know that the result depends on the programs. It notices only which
	// directories a test walks and whether they changed. Without this walk it would show cached
	// results for older programs.
	if err := filepath.WalkDir("..", func(_ string, _ fs.DirEntry, err error) error { return err }); err != nil {
		return "", err
	}
	dir = filepath.Join(buildDir, name)
	args := slices.Concat([]string{"build"}, flags,
		[]string{"-o", dir + "/", "../cmd/cart", "../cmd/order", "../cmd/demo", "../cmd/lag-collector",
			"../cmd/orderctl", "../cmd/check"})
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return dir, nil
}

func TestMain(m *testing.M) {
	var err error
	if buildDir, err = os.MkdirTemp("", "e2e-"); err != nil {
		panic(err)
	}
	code := testenv.Run(m)
	os.RemoveAll(buildDir)
	os.Exit(code)
}

// process is one of the project's programs in a process of its own. It keeps its address and its
// data when it is started again.
type process struct {
	t    testing.TB
	name string
	// program is the path of the executable.
	program string
	env     []string
	// home holds the output of all starts.
	home string
	dir  string // DATA_DIR
	api  string // URL
	ops  string

	// command replaces the program, which becomes its last argument.
	command    []string
	attributes *syscall.SysProcAttr
	// disk is where the test finds DATA_DIR if the program has a disk of its own.
	disk string
	// clock is its own one, or nil.
	clock *testenv.Clock

	cmd  *exec.Cmd
	done chan struct{}
	// logged is how long its log was when it was started.
	logged int
}

// newProcess prepares a program. When the test ends, it fails if the program logged a race or a
// panic.
func newProcess(t testing.TB, name string, env ...string) *process {
	t.Helper()
	programs, err := build()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{
		t: t, name: name, program: filepath.Join(programs, name), attributes: bound(), home: t.TempDir(),
	}
	p.dir = filepath.Join(p.home, name)
	p.env = append(os.Environ(), "DATA_DIR="+p.dir, "LOG_FORMAT=json", "GORACE=halt_on_error=0")
	p.env = append(p.env, env...)
	if err := os.MkdirAll(p.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		end := len(p.log())
		if t.Failed() && p.running() {
			// A Go program then writes what each goroutine does, and ends.
			p.signal(syscall.SIGQUIT)
			select {
			case <-p.done:
			case <-time.After(10 * time.Second):
			}
		}
		p.kill()
		log := p.log()
		for _, sign := range []string{"DATA RACE", "panic: ", "\nfatal error: "} {
			if at := strings.Index(log, sign); at >= 0 {
				t.Errorf("%s logged %q: %.4000s", p.name, sign, log[at:])
			}
		}
		if t.Failed() {
			t.Logf("the end of the log of %s:\n%.66000s", p.name, log[max(0, end-6000):])
		}
	})
	return p
}

// newCart and newOrder prepare the services. The operations endpoints listen on the port after the
// API's.
func newCart(t testing.TB, kafka string, env ...string) *process {
	return newService(t, "cart", kafka, env...)
}

func newOrder(t testing.TB, kafka string, env ...string) *process {
	return newService(t, "order", kafka, env...)
}

// startSystem starts both services on a Kafka of their own, with the declared topics, and waits
// until they are ready.
func startSystem(t testing.TB) (kafka *localkafka.Broker, cart, order *process) {
	t.Helper()
	return startSystemWith(t, localkafka.Options{})
}

// startSystemWith is startSystem with options of Kafka.
func startSystemWith(t testing.TB, options localkafka.Options) (kafka *localkafka.Broker, cart, order *process) {
	t.Helper()
	kafka = testenv.StartKafkaWith(t, options)
	declare(t, kafka.Addr)
	cart, order = newCart(t, kafka.Addr), newOrder(t, kafka.Addr)
	cart.start().ready()
	order.start().ready()
	return kafka, cart, order
}

func newService(t testing.TB, name, kafka string, env ...string) *process {
	t.Helper()
	port := freePorts(2)
	p := newProcess(t, name, append([]string{"KAFKA_BROKERS=" + kafka, "HTTP_ADDR=" + local(port)}, env...)...)
	p.api, p.ops = "http://"+local(port), "http://"+local(port+1)
	return p
}

func local(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

var ports = struct {
	sync.Mutex
	next int
}{next: 30_000 + rand.IntN(2_000)}

// freePorts returns the first of n consecutive free ports. They are below the range of outgoing
// connections, one of which could otherwise take a service's port while the service is down.
func freePorts(n int) int {
	ports.Lock()
	defer ports.Unlock()
	for {
		first, free := ports.next, true
		if ports.next += n; ports.next > 32_700 {
			ports.next = 30_000
		}
		for port := first; port < first+n; port++ {
			ln, err := net.Listen("tcp", local(port))
			if free = free && err == nil; err == nil {
				ln.Close()
			}
		}
		if free {
			return first
		}
	}
}

// listen listens on a free port. One that freePorts has looked at may be taken for a moment more: a child process
// has the listener of the look too, from its fork to its exec. Then another port is.
func listen(t testing.TB) net.Listener {
	t.Helper()
	for {
		ln, err := net.Listen("tcp", local(freePorts(1)))
		if err == nil {
			return ln
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatal(err)
		}
	}
}

// file returns where the output of all starts goes: .log is stderr, .out is stdout.
func (p *process) file(kind string) string { return filepath.Join(p.home, p.name+kind) }

func (p *process) log() string {
	text, _ := os.ReadFile(p.file(".log"))
	return string(text)
}

// lean uses the program without the race detector, which needs a multiple of its memory and time.
func (p *process) lean() *process {
	p.t.Helper()
	return p.from(buildLean)
}

// jumping gives the program a clock of its own.
func (p *process) jumping() *process {
	p.t.Helper()
	p.clock = testenv.NewClock(p.t, filepath.Join(p.home, "clock"))
	p.env = append(p.env, p.clock.Env...)
	return p.from(buildJumping)
}

// from uses the program of another build.
func (p *process) from(build func() (dir string, err error)) *process {
	p.t.Helper()
	programs, err := build()
	if err != nil {
		p.t.Fatal(err)
	}
	p.program = filepath.Join(programs, p.name)
	return p
}

// start starts the program, or starts it again.
func (p *process) start() *process {
	p.t.Helper()
	if p.running() {
		p.t.Fatalf("%s runs already", p.name)
	}
	args := append(slices.Clone(p.command), p.program)
	p.cmd = exec.Command(args[0], args[1:]...)
	p.cmd.Env = p.env
	p.cmd.SysProcAttr = p.attributes
	stderr, err := os.OpenFile(p.file(".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		p.t.Fatal(err)
	}
	defer stderr.Close()
	stdout, err := os.OpenFile(p.file(".out"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		p.t.Fatal(err)
	}
	defer stdout.Close()
	p.cmd.Stderr, p.cmd.Stdout = stderr, stdout
	p.logged = len(p.log())
	done, started := make(chan struct{}), make(chan error, 1)
	go func() {
		// The parent-death signal is sent when the thread that forked ends, and Go ends idle
		// threads. So this goroutine keeps its thread.
		runtime.LockOSThread()
		defer close(done)
		err := p.cmd.Start()
		started <- err
		if err == nil {
			// The result is in ProcessState.
			_ = p.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		p.t.Fatal(err)
	}
	p.done = done
	return p
}

func (p *process) running() bool {
	if p.done == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatalf("signal %s: %v", p.name, err)
	}
}

// kill ends the process as a crash does.
func (p *process) kill() {
	if p.running() {
		p.signal(syscall.SIGKILL)
		<-p.done
	}
}

// grace is the termination grace period that Kubernetes gives a service.
const grace = 20 * time.Second

// stop asks the process to end, as Kubernetes does. The test fails if it does not end in order
// within the grace period.
func (p *process) stop() {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	p.ends(grace)
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		p.t.Errorf("%s ended with exit code %d after SIGTERM, want 0", p.name, code)
	}
}

// ends waits until the process has ended.
func (p *process) ends(within time.Duration) {
	p.t.Helper()
	begin := time.Now()
	select {
	case <-p.done:
	case <-time.After(within):
		// SIGQUIT logs the stacks, which show why it hangs.
		p.signal(syscall.SIGQUIT)
		p.t.Fatalf("%s has not ended in %s", p.name, within)
	}
	p.t.Logf("%s ended after %s", p.name, time.Since(begin).Round(time.Millisecond))
}

// patience is how long a condition may take on a machine with busy processors. Only a test that fails
// waits that long.
const patience = 2 * time.Minute

// listening reports whether the service listens. Before that, it has not opened its store.
func (p *process) listening() bool { return strings.Contains(p.log()[p.logged:], `"msg":"listening"`) }

// listens waits until the service listens.
func (p *process) listens() *process {
	p.t.Helper()
	eventually(p.t, patience, p.name+" listens", func() (bool, string) {
		return p.listening() || !p.running(), p.log()
	})
	return p
}

// ready waits until the service is ready.
func (p *process) ready() *process {
	p.t.Helper()
	p.readyIn(patience)
	return p
}

func (p *process) readyIn(within time.Duration) {
	p.t.Helper()
	begin := time.Now()
	hangs := true
	defer func() {
		if hangs && p.running() {
			// SIGQUIT logs the stacks, which show what it waits for.
			p.signal(syscall.SIGQUIT)
			<-p.done
		}
		p.t.Logf("%s was ready after %s", p.name, time.Since(begin).Round(time.Millisecond))
	}()
	eventually(p.t, within, p.name+" is ready", func() (bool, string) {
		if !p.running() {
			p.t.Fatalf("%s has ended: %v\n%s", p.name, p.cmd.ProcessState, p.log())
		}
		got, err := p.readiness()
		return err == nil && got.status == http.StatusOK, got.body
	})
	hangs = false
}

func (p *process) readiness() (reply, error) {
	return send(http.MethodGet, p.ops+"/readyz", "")
}

// notReady waits until the service reports that it is not ready, for this reason.
func (p *process) notReady(why string) {
	p.t.Helper()
	p.notReadyIn(patience, why)
}

func (p *process) notReadyIn(within time.Duration, why string) {
	p.t.Helper()
	eventually(p.t, within, p.name+" says that it is not ready: "+why, func() (bool, string) {
		got, err := p.readiness()
		return err == nil && got.status == http.StatusServiceUnavailable && strings.Contains(got.body, why), got.body
	})
}

// eventually polls until the condition holds. If it does not hold in time, the test fails and shows
// the last state.
func eventually(t testing.TB, within time.Duration, what string, holds func() (ok bool, state string)) {
	t.Helper()
	for deadline := time.Now().Add(within); ; time.Sleep(10 * time.Millisecond) {
		ok, state := holds()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s; last: %s", within, what, state)
		}
	}
}

// quickest tries something until it takes no longer than enough, tries times at most: a busy machine may be slow
// once. Each try returns how long it took, and quickest returns the shortest time.
func quickest(tries int, enough time.Duration, try func() time.Duration) time.Duration {
	best := try()
	for n := 1; n < tries && best > enough; n++ {
		best = min(best, try())
	}
	return best
}
