package e2e

import (
	"context"
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

// refusedIn is how long a client may wait for a refusal: a transaction gets 10 s.
const refusedIn = 13 * time.Second

// refuses checks that a request is refused in time, with the time at which to try again.
func (p *process) refuses(when, method, path, body string) {
	p.t.Helper()
	took := quickest(3, refusedIn, func() time.Duration {
		begin := time.Now()
		got, err := send(method, p.api+path, body)
		took := time.Since(begin)
		after, _ := strconv.Atoi(got.header.Get("Retry-After"))
		if err != nil || got.status != http.StatusServiceUnavailable || after < 1 {
			p.t.Errorf("%s: %s responds with %d %q, Retry-After %d, after %s (%v), want 503 with a Retry-After",
				when, p.name, got.status, got.body, after, took, err)
		}
		return took
	})
	if took > refusedIn {
		p.t.Errorf("%s: %s refuses after %s, want within %s", when, p.name, took, refusedIn)
	}
}

// withDatabase is both services on one PostgreSQL, as a test of its failures sees them.
type withDatabase struct {
	*testing.T
	server      *localpostgres.Server
	kafka       string
	cart, order *process
	admin       *pgx.Conn
	// version is that of the order that works changes.
	version int64
}

// startWithDatabase prepares both services. They do not run yet.
func startWithDatabase(t *testing.T, settings map[string]string) *withDatabase {
	t.Helper()
	settings["fsync"] = "off"
	s := testenv.StartPostgres(t, localpostgres.Options{Settings: settings})
	url := "DATABASE_URL=" + s.URL("postgres")
	kafka := testenv.StartKafka(t)
	declare(t, kafka.Addr)
	return &withDatabase{
		T: t, server: s, kafka: kafka.Addr, cart: newCart(t, kafka.Addr, url), order: newOrder(t, kafka.Addr, url),
	}
}

// exec runs a statement on a connection of the test's own.
func (d *withDatabase) exec(text string) {
	d.Helper()
	if d.admin == nil || d.admin.IsClosed() {
		var err error
		if d.admin, err = pgx.Connect(d.Context(), d.server.URL("postgres")); err != nil {
			d.Fatal(err)
		}
		d.Cleanup(func() { d.admin.Close(context.WithoutCancel(d.Context())) })
	}
	if _, err := d.admin.Exec(d.Context(), text); err != nil {
		d.Fatalf("%s: %v", text, err)
	}
}

// cutConnections ends the connections of both services.
const cutConnections = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity " +
	"WHERE application_name IN ('cart', 'order_view')"

// cut ends the connections of both services.
func (d *withDatabase) cut() {
	d.Helper()
	d.exec(cutConnections)
}

// refuses checks that both services refuse what needs the database.
func (d *withDatabase) refuses(when string) {
	d.Helper()
	d.refusesCreation(when)
	d.order.refuses(when, http.MethodGet, "/order/order-details?orderId=order", "")
}

func (d *withDatabase) refusesCreation(when string) {
	d.Helper()
	d.cart.refuses(when, http.MethodPost, "/Order/create-order", `{"OrderId": "refused", "ItemsNum": 2}`)
}

// stays checks that the services say whether the database is up, and stay ready: if all replicas left
// their Service, clients would see refused connections.
func (d *withDatabase) stays(when string, up float64) {
	d.Helper()
	for metric, p := range map[string]*process{"cart_database_up": d.cart, "order_database_up": d.order} {
		eventually(d, patience, fmt.Sprintf("%s: %s is %v", when, metric, up), func() (bool, string) {
			got := p.metric(metric)
			return got == up, fmt.Sprint(got)
		})
		if got := do(d, http.MethodGet, p.ops+"/readyz", ""); got.status != http.StatusOK {
			d.Errorf("%s: /readyz of %s is %d %q, want 200", when, p.name, got.status, got.body)
		}
	}
}

// works checks that everything works again.
func (d *withDatabase) works(when string) {
	d.Helper()
	begin := time.Now()
	d.cart.ready()
	d.order.ready()
	d.stays(when, 1)
	d.Logf("%s: back after %s", when, time.Since(begin).Round(time.Millisecond))
	if d.version++; d.version == 1 {
		d.cart.create("order")
		d.order.sees("order", 1, "new")
		return
	}
	status := fmt.Sprintf("after %d", d.version)
	if got := d.cart.update("order", status); got != d.version {
		d.Errorf("%s: version %d, want %d", when, got, d.version)
	}
	d.order.sees("order", d.version, status)
}

// neverEnded checks that both processes have run all the time, and stops them.
func (d *withDatabase) neverEnded() {
	d.Helper()
	for _, p := range []*process{d.cart, d.order} {
		if got := strings.Count(p.log(), `"msg":"listening"`); got != 1 || !p.running() {
			d.Errorf("%s was started %d times", p.name, got)
		}
		p.stop()
	}
}

// Whatever the database does, clients get 503 with Retry-After, a metric says that it is away, and the
// processes go on: no restart could mend the database.
func TestTheDatabaseFails(t *testing.T) {
	t.Parallel()
	d := startWithDatabase(t, map[string]string{})
	d.server.Kill()
	for _, p := range []*process{d.cart, d.order} {
		p.start().notReady("connection refused")
		if got := do(t, http.MethodGet, p.ops+"/healthz", ""); got.status != http.StatusOK {
			t.Errorf("%s: /healthz is %d while the database is away, want 200", p.name, got.status)
		}
	}
	d.refuses("started without the database")
	if err := d.server.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	d.works("the database has come")

	for name, end := range map[string]func(){"killed": d.server.Kill, "stopped": d.server.Stop} {
		end()
		d.refuses(name)
		d.stays(name, 0)
		d.refuses(name + " for longer")
		if err := d.server.StartAgain(t.Context()); err != nil {
			t.Fatal(err)
		}
		d.works(name + " and started again")
	}
	d.cut()
	d.works("connections cut")

	d.exec("BEGIN")
	d.exec("SELECT * FROM cart.ledger FOR UPDATE")
	d.refusesCreation("somebody holds the ledger's row")
	d.order.sees("order", d.version, fmt.Sprintf("after %d", d.version))
	d.exec("ROLLBACK")
	d.works("the row is free")

	d.exec("ALTER SYSTEM SET default_transaction_read_only = on")
	d.exec("SELECT pg_reload_conf()")
	d.stays("a standby by now", 0)
	d.refusesCreation("a standby by now")
	d.exec("SET default_transaction_read_only = off")
	d.exec("ALTER SYSTEM RESET default_transaction_read_only")
	d.exec("SELECT pg_reload_conf()")
	d.works("a primary again")
	d.neverEnded()
}
