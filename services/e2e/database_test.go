package e2e

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"ordersystem.dev/services/internal/localpostgres"
	"ordersystem.dev/services/internal/testenv"
)

// refusedIn is how long a client may wait for a refusal: for the lock of another transaction and its own.
const refusedIn = 10 * time.Second

// refuses checks that a request is refused in time, with the time at which to try again.
func (p *process) refuses(when, method, path, body string) {
	p.t.Helper()
	begin := time.Now()
	got, err := send(method, p.api+path, body)
	after, _ := strconv.Atoi(got.header.Get("Retry-After"))
	took := time.Since(begin)
	if err != nil || got.status != http.StatusServiceUnavailable || after < 1 || took > refusedIn {
		p.t.Errorf("%s: %s responds with %d %q, Retry-After %d, after %s (%v), want 503 with a Retry-After within %s",
			when, p.name, got.status, got.body, after, took, err, refusedIn)
	}
}

// Whatever the database does, clients get 503 with Retry-After, a metric says that it is away, and the
// processes go on: no restart could mend the database.
func TestTheDatabaseFails(t *testing.T) {
	t.Parallel()
	s := testenv.StartPostgres(t, localpostgres.Options{Settings: map[string]string{"fsync": "off"}})
	url := s.URL("postgres")
	kafka := testenv.StartKafka(t)
	declare(t, kafka.Addr)
	cart, order := newCart(t, kafka.Addr, "DATABASE_URL="+url), newOrder(t, kafka.Addr, "DATABASE_URL="+url)
	both := []*process{cart, order}
	create := func(when string) {
		t.Helper()
		cart.refuses(when, http.MethodPost, "/Order/create-order", `{"OrderId": "refused", "ItemsNum": 2}`)
	}
	find := func(when string) {
		t.Helper()
		order.refuses(when, http.MethodGet, "/order/order-details?orderId=order", "")
	}
	// If all replicas left their Service, clients would see refused connections.
	stays := func(when string, up float64) {
		t.Helper()
		for metric, p := range map[string]*process{"cart_database_up": cart, "order_database_up": order} {
			eventually(t, patience, fmt.Sprintf("%s: %s is %v", when, metric, up), func() (bool, string) {
				got := p.metric(metric)
				return got == up, fmt.Sprint(got)
			})
			if got := do(t, http.MethodGet, p.ops+"/readyz", ""); got.status != http.StatusOK {
				t.Errorf("%s: /readyz of %s is %d %q, want 200", when, p.name, got.status, got.body)
			}
		}
	}
	version := int64(0)
	works := func(when string) {
		t.Helper()
		begin := time.Now()
		cart.ready()
		order.ready()
		stays(when, 1)
		t.Logf("%s: back after %s", when, time.Since(begin).Round(time.Millisecond))
		if version++; version == 1 {
			cart.create("order")
			order.sees("order", 1, "new")
			return
		}
		status := fmt.Sprintf("after %d", version)
		if got := cart.update("order", status); got != version {
			t.Errorf("%s: version %d, want %d", when, got, version)
		}
		order.sees("order", version, status)
	}

	s.Kill()
	for _, p := range both {
		p.start().notReady("connection refused")
		if got := do(t, http.MethodGet, p.ops+"/healthz", ""); got.status != http.StatusOK {
			t.Errorf("%s: /healthz is %d while the database is away, want 200", p.name, got.status)
		}
	}
	create("started without the database")
	find("started without the database")
	if err := s.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	works("the database has come")

	for name, end := range map[string]func(){"killed": s.Kill, "stopped": s.Stop} {
		end()
		create(name)
		find(name)
		stays(name, 0)
		create(name + " for longer")
		find(name + " for longer")
		if err := s.StartAgain(t.Context()); err != nil {
			t.Fatal(err)
		}
		works(name + " and started again")
	}

	admin, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(t.Context())
	exec := func(text string) {
		t.Helper()
		if _, err := admin.Exec(t.Context(), text); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
	}
	exec("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name IN ('cart', 'order_view')")
	works("connections cut")

	exec("BEGIN")
	exec("SELECT * FROM cart.ledger FOR UPDATE")
	create("somebody holds the ledger's row")
	order.sees("order", version, fmt.Sprintf("after %d", version))
	exec("ROLLBACK")
	works("the row is free")

	exec("ALTER SYSTEM SET default_transaction_read_only = on")
	exec("SELECT pg_reload_conf()")
	stays("a standby by now", 0)
	create("a standby by now")
	exec("SET default_transaction_read_only = off")
	exec("ALTER SYSTEM RESET default_transaction_read_only")
	exec("SELECT pg_reload_conf()")
	works("a primary again")

	for _, p := range both {
		if got := strings.Count(p.log(), `"msg":"listening"`); got != 1 || !p.running() {
			t.Errorf("%s was started %d times", p.name, got)
		}
		p.stop()
	}
}
