package inventory_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/internal/inventory"
	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

var quiet = slog.New(slog.DiscardHandler)

// open opens a database with the columns that both services have.
func open(t *testing.T, url string) *sqldb.DB {
	t.Helper()
	const table = `CREATE TABLE orders (order_id %s PRIMARY KEY, version BIGINT NOT NULL, body %s NOT NULL)`
	db, err := sqldb.Open(t.Context(), sqldb.Config{
		URL: url, Path: filepath.Join(t.TempDir(), "test.db"), Sync: sqldb.Full, Schema: "test",
		Migrations: fstest.MapFS{
			"sqlite/0001_orders.sql":   {Data: fmt.Appendf(nil, table, "TEXT", "BLOB")},
			"postgres/0001_orders.sql": {Data: fmt.Appendf(nil, table, `TEXT COLLATE "C"`, "BYTEA")},
		},
	}, quiet)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// read returns the orders of an inventory.
func read(ctx context.Context, addr string, ids ...string) (map[string]inventory.Entry, error) {
	all := make(map[string]inventory.Entry)
	err := inventory.Read(ctx, addr, ids, func(e inventory.Entry) { all[e.OrderID] = e })
	return all, err
}

func TestInventoryHasEveryOrder(t *testing.T) {
	t.Parallel()
	for name, db := range map[string]func(t *testing.T) string{
		"sqlite":   func(*testing.T) string { return "" },
		"postgres": func(t *testing.T) string { return testenv.Postgres(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := httptest.NewServer(&inventory.Server{DB: open(t, db(t)), Log: quiet})
			defer s.Close()
			if got, err := read(t.Context(), s.URL); err != nil || len(got) != 0 {
				t.Errorf("an empty store: %v, %v", got, err)
			}
		})
		t.Run(name+" with orders", func(t *testing.T) {
			t.Parallel()
			store := open(t, db(t))
			want := make(map[string]inventory.Entry)
			var args []any
			// More than two pages, and IDs that a URL and JSON have to escape.
			for n := range 2500 {
				id, body := fmt.Sprintf(`n° %d & "<%%>`, n), fmt.Sprintf(`{"n":%d}`, n)
				want[id] = inventory.Entry{OrderID: id, Version: int64(n + 1), Sum: inventory.SumOf([]byte(body))}
				args = append(args, id, int64(n+1), []byte(body))
			}
			if err := store.Tx(t.Context(), func(tx *sqldb.Tx) error {
				return tx.WriteRows("insert", "INSERT INTO orders(order_id, version, body) VALUES ", 3, "", args)
			}); err != nil {
				t.Fatal(err)
			}
			s := httptest.NewServer(&inventory.Server{DB: store, Log: quiet})
			defer s.Close()
			got, err := read(t.Context(), s.URL+"/")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("the inventory (-want +got):\n%s", diff)
			}
			ids := slices.Sorted(maps.Keys(want))[:inventory.MostOrders-1]
			some, err := read(t.Context(), s.URL, append(slices.Clone(ids), "nobody")...)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(ids, slices.Sorted(maps.Keys(some))); diff != "" {
				t.Errorf("the inventory of some orders, one of which there is not (-want +got):\n%s", diff)
			}
			if some[ids[7]] != want[ids[7]] {
				t.Errorf("an order is %v, want %v", some[ids[7]], want[ids[7]])
			}
		})
	}
}

// Reading all orders is work, and everybody who reaches the port may ask for it.
func TestOneInventoryAtATime(t *testing.T) {
	t.Parallel()
	begun, end := make(chan struct{}), make(chan struct{})
	s := httptest.NewServer(&inventory.Server{DB: open(t, ""), Log: quiet, After: func(context.Context) error {
		close(begun)
		<-end
		return nil
	}})
	defer s.Close()
	first := make(chan error)
	go func() { _, err := read(t.Context(), s.URL); first <- err }()
	<-begun
	_, err := read(t.Context(), s.URL)
	if want := "another inventory is being read"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("a second one: %v, want %s", err, want)
	}
	close(end)
	if err := <-first; err != nil {
		t.Error(err)
	}
}

// What is not known to be whole is an error for the reader, and says why.
func TestInventoryThatIsNotWholeIsAnError(t *testing.T) {
	t.Parallel()
	db := open(t, "")
	if err := db.Tx(t.Context(), func(tx *sqldb.Tx) error {
		return tx.Write("insert", 1, "INSERT INTO orders VALUES ('a', 1, '{}')")
	}); err != nil {
		t.Fatal(err)
	}
	fails := func(context.Context) error { return errors.New("the relay sleeps") }
	answer := func(status int, text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, text)
		}
	}
	const entry = `{"orderId":"a","version":1,"sum":"0102030405060708"}` + "\n"
	for name, tt := range map[string]struct {
		server http.Handler
		want   string
	}{
		"not now":          {&inventory.Server{DB: db, Before: fails, Log: quiet}, "503 Service Unavailable: "},
		"not published":    {&inventory.Server{DB: db, After: fails, Log: quiet}, "the relay sleeps"},
		"cut off":          {answer(200, entry), "ended before the inventory was whole"},
		"cut off in a row": {answer(200, entry[:20]), "ended before the inventory was whole"},
		"an order is lost": {answer(200, entry+`{"orders":2}`), "1 orders came, and the service has sent 2"},
		"another port":     {answer(404, "404 page not found\n"), "the answer is 404 Not Found: 404 page not found"},
		"another program":  {answer(200, `{"status":"ok"}`), "a line is no entry"},
		"a wrong sum":      {answer(200, strings.Replace(entry, "0102", "01", 1)), "does not have 16 digits"},
		"no version":       {answer(200, strings.Replace(entry, `n":1`, `n":0`, 1)), "a line is no entry"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := httptest.NewServer(tt.server)
			defer s.Close()
			if _, err := read(t.Context(), s.URL); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	s := httptest.NewServer(&inventory.Server{DB: db, Log: quiet})
	defer s.Close()
	for query, want := range map[string]string{
		"?orderID=a": "there is no parameter", "?orderId=": "orderId is blank",
		"?" + url.Values{"orderId": slices.Repeat([]string{"a"}, 101)}.Encode(): "101 orders are too many",
	} {
		resp, err := http.Get(s.URL + query)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(text), want) {
			t.Errorf("GET %.40s: %d %s, want 400 %s", query, resp.StatusCode, text, want)
		}
	}
}
