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
	d := startWithDatabase(t, map[string]string{"max_connections": "24", "superuser_reserved_connections": "0"})
	d.cart.start()
	d.order.start()
	d.works("started")

	var others []*pgx.Conn
	eventually(t, patience, "others have all connections", func() (bool, string) {
		d.cut()
		for {
			conn, err := pgx.Connect(t.Context(), d.server.URL("postgres"))
			if err != nil {
				break
			}
			others = append(others, conn)
		}
		// A service may have been sooner.
		return d.cart.metric("cart_database_up")+d.order.metric("order_database_up") == 0, ""
	})
	d.refuses("too many connections")
	d.stays("too many connections", 0)
	for _, conn := range others {
		conn.Close(t.Context())
	}
	d.works("there are connections again")

	password := d.admin.Config().Password
	d.exec("ALTER USER postgres PASSWORD 'another'")
	d.cut()
	d.refuses("another password")
	d.stays("another password", 0)
	d.exec("ALTER USER postgres PASSWORD '" + password + "'")
	d.works("the password again")

	thaw := d.freeze()
	d.refuses("it does not respond")
	d.stays("it does not respond", 0)
	begin := time.Now()
	d.refusesCreation("it still does not respond")
	if took := time.Since(begin); took > time.Second {
		t.Errorf("Cart refuses after %s although it knows that the database does not respond", took)
	}
	thaw()
	d.works("it responds again")

	disk := testenv.SmallDisk(t)
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

// freeze stops the server and its connections to the services, as a network that swallows packets does.
func (d *withDatabase) freeze() (thaw func()) {
	d.Helper()
	// The parent of all is the server.
	d.exec("SELECT 1")
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.admin.PgConn().PID()))
	if err != nil {
		d.Fatal(err)
	}
	// pid (name) state ppid. The name has spaces.
	after := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	parent, err := strconv.Atoi(after[1])
	if err != nil {
		d.Fatal(err)
	}
	rows, err := d.admin.Query(d.Context(),
		"SELECT pid FROM pg_stat_activity WHERE application_name IN ('cart', 'order_view')")
	if err != nil {
		d.Fatal(err)
	}
	pids, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		d.Fatal(err)
	}
	signal := func(s syscall.Signal) {
		for _, pid := range append(pids, parent) {
			if err := syscall.Kill(pid, s); err != nil && s == syscall.SIGSTOP {
				d.Fatal(err)
			}
		}
	}
	signal(syscall.SIGSTOP)
	d.Cleanup(func() { signal(syscall.SIGCONT) })
	return func() { signal(syscall.SIGCONT) }
}
