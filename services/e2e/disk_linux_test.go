package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/e2e/faults"
	"ordersystem.dev/services/internal/testenv"
)

// smallDisk starts a program whose data directory is on a disk of its own. The test is skipped if
// processes may not mount file systems.
func smallDisk(t *testing.T, p *process, sizeKB int) {
	t.Helper()
	p.command = []string{"/bin/sh", "-c", fmt.Sprintf(`mount -t tmpfs -o size=%dk tmpfs "$DATA_DIR" || exit 99
		exec "$0"`, sizeKB)}
	p.attributes = bound()
	p.attributes.Cloneflags = syscall.CLONE_NEWNS
	if uid := os.Getuid(); uid != 0 {
		p.attributes.Cloneflags |= syscall.CLONE_NEWUSER
		p.attributes.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: 1}}
	}
	p.start()
	eventually(t, patience, "it listens", func() (bool, string) {
		if !p.running() && p.cmd.ProcessState.ExitCode() == 99 {
			testenv.CannotRun(t, "this machine does not let processes mount a file system")
		}
		got, err := send(http.MethodGet, p.ops+"/healthz", "")
		return err == nil, got.body
	})
	p.disk = fmt.Sprintf("/proc/%d/root%s", p.cmd.Process.Pid, p.dir)
}

// Kafka is away, and the backlog fills Cart's volume. Cart refuses orders while there is still room to
// delete what Kafka acknowledges later. So it heals by itself once Kafka is back. No accepted order
// is lost, and a refused one changes nothing.
func TestDiskIsFull(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ sizeMB, items int }{
		"small orders": {24, 5},
		"large orders": {60, contract.MaxItems},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kafka := testenv.StartKafka(t)
			declare(t, kafka.Addr)
			cart, order := newCart(t, kafka.Addr).lean(), newOrder(t, kafka.Addr)
			smallDisk(t, cart, c.sizeMB<<10)
			cart.ready()
			order.start().ready()

			// While Kafka runs, publishing makes room.
			kafka.Stop()
			l := startLoad(t, cart.api, "", 1, 8, time.Millisecond, func(l *load) { l.items = c.items })
			defer l.end()
			// On a machine with busy processors it takes minutes to write so much.
			cart.notReadyIn(3*patience, "storage is nearly full")
			// A checkpoint may make room again a few times before the disk is really full.
			taken := func(id, trace string) faults.Operation {
				return faults.Operation{
					Order: id, Create: true, Traces: []string{trace}, Outcome: faults.Accepted, Version: 1,
				}
			}
			var large []faults.Operation
			eventually(t, patience, "a large order is refused", func() (bool, string) {
				id, trace := fmt.Sprint("large-", len(large)), fmt.Sprintf("%032x", 2+len(large))
				got := do(t, http.MethodPost, cart.api+"/Order/create-order",
					fmt.Sprintf(`{"OrderId": %q, "ItemsNum": 1000}`, id),
					"traceparent", "00-"+trace+"-00000000000000ff-01")
				if got.status == http.StatusOK {
					large = append(large, taken(id, trace))
					return false, got.body
				}
				if got.status != http.StatusServiceUnavailable || got.header.Get("Retry-After") == "" ||
					!strings.Contains(got.body, "storage") {
					t.Errorf("a creation with the disk full: %d %s, want 503 with Retry-After and the reason",
						got.status, got.body)
				}
				left := cart.metric("cart_store_left_bytes")
				return left < 1<<20, fmt.Sprint("cart_store_left_bytes is ", left)
			})
			if err := kafka.StartAgain(t.Context()); err != nil {
				t.Fatal(err)
			}
			cart.ready()
			const trace = "00000000000000000000000000000001"
			eventually(t, patience, "orders are taken again", func() (bool, string) {
				got := do(t, http.MethodPost, cart.api+"/Order/create-order", `{"OrderId": "room", "ItemsNum": 1}`,
					"traceparent", "00-"+trace+"-00000000000000ff-01")
				return got.status == http.StatusOK, got.body
			})
			l.end()
			l.operations = append(append(l.operations, large...), taken("room", trace))
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
		})
	}
}

// The index of an audit is on the volume of Order's store. It takes no room that the store needs: an
// audit is refused, or its index is removed, before Order stops reading.
func TestAnAuditLeavesTheStoreItsRoom(t *testing.T) {
	t.Parallel()
	kafka := testenv.StartKafka(t)
	declare(t, kafka.Addr)
	cart, order := newCart(t, kafka.Addr), newOrder(t, kafka.Addr)
	cart.start().ready()
	smallDisk(t, order, 24<<10)
	order.ready()
	orders := 0
	// more creates orders of 53 KB each, and waits until Order has them.
	more := func(n int) {
		t.Helper()
		id := ""
		for range n {
			orders++
			id = fmt.Sprint("order-", orders)
			cart.accepted(do(t, http.MethodPost, cart.api+"/Order/create-order",
				fmt.Sprintf(`{"OrderId": %q, "ItemsNum": %d}`, id, contract.MaxItems)))
		}
		order.sees(id, 1, contract.StatusNew)
	}
	audit := func() reply {
		return do(t, http.MethodGet, order.api+"/order/getAllOrderIdsFromTopic?topicName="+contract.TopicCreated, "")
	}
	indexes := func() []string {
		files, err := filepath.Glob(filepath.Join(order.disk, "audit", "*.log"))
		if err != nil {
			t.Fatal(err)
		}
		return files
	}

	more(100)
	if got := audit(); got.status != http.StatusOK || len(indexes()) != 1 {
		t.Fatalf("an audit that there is room for: %d %.200s, indexes %v", got.status, got.body, indexes())
	}
	// The volume has room for about 400 orders.
	for len(indexes()) > 0 && orders < 340 && !t.Failed() {
		more(10)
	}
	if len(indexes()) > 0 {
		t.Fatalf("the index is still there, with %d orders in the store", orders)
	}
	if got := audit(); got.status != http.StatusServiceUnavailable || !strings.Contains(got.body, "no room") {
		t.Errorf("an audit without room for its index: %d %.200s, want 503 with the reason", got.status, got.body)
	}
	if got := indexes(); len(got) > 0 {
		t.Errorf("the audit that was refused leaves %v", got)
	}
	more(10)
	if left := order.metric("order_store_left_bytes"); left == 0 {
		t.Error("the store has no room left")
	}
	order.stop()
	cart.stop()
}

// A failed fsync of a checkpoint ends Cart: the next one may report success for data that is lost.
func TestAFailedFsyncEndsCart(t *testing.T) {
	t.Parallel()
	cart := newCart(t, testenv.Fake(t))
	disk := testenv.NewFaultyDisk(t, filepath.Join(cart.dir, "cart.db"))
	before := cart.env
	cart.env = append(slices.Clone(before), disk.Env...)
	cart.start().ready()
	// What is on the disk for sure.
	synced, err := os.ReadFile(filepath.Join(cart.dir, "cart.db"))
	if err != nil {
		t.Fatal(err)
	}
	disk.Fail()
	var taken []string
	for n := range 1000 {
		id := fmt.Sprint("order-", n)
		got, err := send(http.MethodPost, cart.api+"/Order/create-order",
			fmt.Sprintf(`{"OrderId": %q, "ItemsNum": 1000}`, id))
		if err != nil || got.status != http.StatusOK {
			break
		}
		taken = append(taken, id)
	}
	cart.ends(grace)
	const reason = "must not be used any more"
	if code := cart.cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(cart.log(), reason) {
		t.Errorf("Cart ended with exit code %d, want 1 and the reason in its log", code)
	}
	// Power is lost: what was written to the database after its last fsync is gone.
	if err := os.WriteFile(filepath.Join(cart.dir, "cart.db"), synced, 0o600); err != nil {
		t.Fatal(err)
	}
	cart.env = before
	cart.start().ready()
	for _, id := range taken {
		if got := do(t, http.MethodPost, cart.api+"/Order/create-order",
			fmt.Sprintf(`{"OrderId": %q, "ItemsNum": 1}`, id)); got.status != http.StatusConflict {
			t.Errorf("%s was acknowledged and is gone: %d %s", id, got.status, got.body)
		}
	}
	cart.stop()
}

// A damaged store is refused at the start, with the next step.
func TestADamagedStoreOfCartIsRefused(t *testing.T) {
	t.Parallel()
	cart := newCart(t, testenv.Fake(t))
	cart.start().ready()
	for n := range 100 {
		cart.create(fmt.Sprint("order-", n))
	}
	cart.stop()
	path := filepath.Join(cart.dir, "cart.db")
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for at := len(content) / 4; at < len(content); at += len(content) / 200 {
		content[at] ^= 1
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	cart.start().ends(patience)
	if code := cart.cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(cart.log(), "restore a backup") {
		t.Errorf("Cart ended with exit code %d, want 1 and the next step in its log", code)
	}
}

// A store that turns out to be damaged ends Order. Its next start sets it aside and rebuilds it.
func TestADamagedStoreOfOrderIsRebuilt(t *testing.T) {
	t.Parallel()
	_, cart, order := startSystem(t)
	// This order takes pages of its own.
	do(t, http.MethodPost, cart.api+"/Order/create-order", `{"OrderId": "big", "ItemsNum": 1000}`)
	order.sees("big", 1, "new")
	for _, ending := range []string{"", "-wal"} {
		name := filepath.Join(order.dir, "order.db"+ending)
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		const header = 4096
		if n := info.Size() - header; n > 0 {
			if _, err := f.WriteAt(bytes.Repeat([]byte{0xff}, int(n)), header); err != nil {
				t.Fatal(err)
			}
		}
		f.Close()
	}
	// Otherwise Order serves the order from its memory.
	cart.create("the store changes")
	eventually(t, patience, "Order ends", func() (bool, string) {
		_, _ = send(http.MethodGet, order.api+"/order/order-details?orderId=big", "")
		return !order.running(), ""
	})
	if code := order.cmd.ProcessState.ExitCode(); code != 1 {
		t.Errorf("Order ended with exit code %d, want 1", code)
	}
	order.start().ready()
	order.sees("big", 1, "new")
	order.sees("the store changes", 1, "new")
	order.stop()
	cart.stop()
}
