package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"ordersystem.dev/services/internal/testenv"
)

// A server that runs and does not serve is as bad as one that is away. It has no connection left, no room
// on its disk, no user of this password, or it does not respond at all. Clients get 503 with Retry-After,
// and the processes go on.
func TestTheDatabaseServesNobody(t *testing.T) {
	t.Parallel()
	const connections = 24
	d := startWithDatabase(t, map[string]string{
		"max_connections": strconv.Itoa(connections), "superuser_reserved_connections": "0",
	})
	d.cart.start()
	d.order.start()
	d.works("started")

	var others []*pgx.Conn
	// One is the test's own.
	eventually(t, patience, "others have all connections", func() (bool, string) {
		d.cut()
		for {
			conn, err := pgx.Connect(t.Context(), d.server.URL("postgres"))
			if err != nil {
				break
			}
			others = append(others, conn)
		}
		return len(others) == connections-1, fmt.Sprintf("%d of %d", len(others), connections-1)
	})
	d.refuses("too many connections")
	d.stays("too many connections", 0)
	for _, conn := range others {
		conn.Close(t.Context())
	}
	d.works("there are connections again")

	password := d.admin.Config().Password
	d.exec("ALTER USER postgres PASSWORD 'another'")
	eventually(t, patience, "no connection by the former password is left", func() (bool, string) {
		d.cut()
		// One that was being made meanwhile shows only when it is. A service that has none knows that.
		up := d.cart.metric("cart_database_up") + d.order.metric("order_database_up")
		var left int
		err := d.admin.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity "+
			"WHERE application_name IN ('cart', 'order_view')").Scan(&left)
		return err == nil && left == 0 && up == 0, fmt.Sprint(left, up, err)
	})
	d.refuses("another password")
	d.stays("another password", 0)
	d.exec("ALTER USER postgres PASSWORD '" + password + "'")
	d.works("the password again")

	thaw := d.freeze()
	d.refuses("it does not respond")
	d.stays("it does not respond", 0)
	took := quickest(5, time.Second, func() time.Duration {
		begin := time.Now()
		d.refusesCreation("it still does not respond")
		return time.Since(begin)
	})
	if took > time.Second {
		t.Errorf("Cart refuses after %s although it knows that the database does not respond", took)
	}
	thaw()
	d.works("it responds again")

	disk := testenv.SmallDisk(t, 20)
	d.exec("CREATE TABLESPACE small LOCATION '" + disk + "'")
	d.exec("ALTER TABLE cart.orders SET TABLESPACE small")
	filler := filepath.Join(filepath.Dir(disk), "filler")
	if err := os.WriteFile(filler, make([]byte, 20<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill the disk: %v", err)
	}
	refused := ""
	for n := range 1000 {
		got := do(t, http.MethodPost, d.cart.api+"/Order/create-order",
			fmt.Sprintf(`{"OrderId": "fill-%d", "ItemsNum": 100}`, n))
		if got.status != http.StatusOK {
			refused = fmt.Sprintf("%d, Retry-After %s", got.status, got.header.Get("Retry-After"))
			break
		}
	}
	if !strings.HasPrefix(refused, "503, Retry-After ") || strings.HasSuffix(refused, " ") {
		t.Errorf("a creation with a full disk: %q, want 503 with a Retry-After", refused)
	}
	d.order.sees("order", d.version, fmt.Sprintf("after %d", d.version))
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	d.works("the disk has room again")
	d.neverEnded()
}

// freeze stops the server and its connections, as a network that swallows packets does.
func (d *withDatabase) freeze() (thaw func()) {
	d.Helper()
	d.exec("SELECT 1")
	connection, err := procStat(int(d.admin.PgConn().PID()))
	if err != nil {
		d.Fatal(err)
	}
	// The parent of all is the server. While it stands still nobody gets a new connection.
	pids := []int{connection.parent}
	signal := func(s syscall.Signal) {
		for _, pid := range pids {
			if err := syscall.Kill(pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
				d.Fatal(err)
			}
		}
	}
	d.Cleanup(func() { signal(syscall.SIGCONT) })
	signal(syscall.SIGSTOP)
	eventually(d, patience, "the server stands still", func() (bool, string) {
		server, err := procStat(connection.parent)
		return err == nil && server.state == "T", fmt.Sprint(server.state, err)
	})
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", connection.parent))
	if err != nil {
		d.Fatal(err)
	}
	for child := range strings.FieldsSeq(string(children)) {
		pid, err := strconv.Atoi(child)
		if err != nil {
			d.Fatal(err)
		}
		pids = append(pids, pid)
	}
	signal(syscall.SIGSTOP)
	return func() { signal(syscall.SIGCONT) }
}

// processStat is a part of what proc(5) says about a process.
type processStat struct {
	state  string
	parent int
}

func procStat(pid int) (processStat, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return processStat{}, err
	}
	// pid (name) state parent. The name may have spaces.
	after := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	parent, err := strconv.Atoi(after[1])
	return processStat{state: after[0], parent: parent}, err
}
