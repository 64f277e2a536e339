package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ordersystem.dev/services/internal/testenv"
)

// smallDisk starts a program whose data directory is on a disk of its own, which is almost full.
// The test is skipped if processes may not mount file systems.
func smallDisk(t *testing.T, p *process, sizeKB, freeKB int) {
	t.Helper()
	p.command = []string{"/bin/sh", "-c", fmt.Sprintf(`mount -t tmpfs -o size=%dk tmpfs "$DATA_DIR" || exit 99
		head -c %d /dev/zero >"$DATA_DIR/filler" && exec "$0"`, sizeKB, (sizeKB-freeKB)<<10)}
	p.attributes = child()
	p.attributes.Cloneflags = syscall.CLONE_NEWNS
	if uid := os.Getuid(); uid != 0 {
		p.attributes.Cloneflags |= syscall.CLONE_NEWUSER
		p.attributes.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
	}
	p.start()
	eventually(t, 10*time.Second, "it listens", func() (bool, string) {
		if !p.running() && p.cmd.ProcessState.ExitCode() == 99 {
			testenv.CannotRun(t, "this machine does not let processes mount a file system")
		}
		got, err := send(http.MethodGet, p.ops+"/healthz", "")
		return err == nil, got.body
	})
	p.disk = fmt.Sprintf("/proc/%d/root%s", p.cmd.Process.Pid, p.dir)
}

// Cart reports a full disk. No accepted order is lost, a refused one changes nothing, and Cart goes
// on when there is room again.
func TestDiskIsFull(t *testing.T) {
	t.Parallel()
	kafka := testenv.StartKafka(t)
	declare(t, kafka.Addr)
	cart, order := newCart(t, kafka.Addr), newOrder(t, kafka.Addr)
	smallDisk(t, cart, 12<<10, 4<<10)
	cart.ready()
	order.start().ready()

	// While Kafka runs, publishing makes room.
	kafka.Stop()
	l := startLoad(t, cart, nil, 1, 4, time.Millisecond)
	defer l.end()
	eventually(t, time.Minute, "the disk is full", func() (bool, string) {
		return strings.Contains(cart.log(), "the store cannot be written"), ""
	})
	got := do(t, http.MethodPost, cart.api+"/Order/create-order", `{"OrderId": "too-much", "ItemsNum": 1000}`)
	if got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") == "" {
		t.Errorf("a creation with the disk full: %d %s, want 503 with Retry-After", got.status, got.body)
	}
	if err := kafka.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(cart.disk, "filler")); err != nil {
		t.Fatal(err)
	}
	const trace = "00000000000000000000000000000001"
	eventually(t, 30*time.Second, "orders are taken again", func() (bool, string) {
		got := do(t, http.MethodPost, cart.api+"/Order/create-order", `{"OrderId": "room", "ItemsNum": 1}`,
			"traceparent", "00-"+trace+"-00000000000000ff-01")
		return got.status == http.StatusOK, got.body
	})
	l.end()
	l.operations = append(l.operations,
		operation{order: "room", create: true, traces: []string{trace}, outcome: accepted, version: 1})
	settle(t, kafka.Addr, cart, order)
	// The disk disappears with the process.
	keep := filepath.Join(t.TempDir(), "cart")
	if err := os.CopyFS(keep, os.DirFS(cart.disk)); err != nil {
		t.Fatal(err)
	}
	cart.stop()
	cart.dir = keep
	order.stop()
	verify(t, kafka.Addr, l, cart, order, nil)
}
