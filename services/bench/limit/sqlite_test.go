package limit

import (
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/bench/load"
)

// The bare limit writes into the tables of Cart, and leaves no files.
func TestCreationsAreWrittenToCartsTables(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	schema := Schema{Migrations: "../../cart/migrations/sqlite", Synchronous: "OFF"}
	rate, err := Creations(t.Context(), dir, schema, "c-", 10*time.Millisecond)
	if err != nil || rate.Value <= 0 || rate.CPU <= 0 {
		t.Errorf("rate %+v: %v", rate, err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("files are left: %v, %v", left, err)
	}
}

// The rows of an order's versions become one row with the newest, as the Order service keeps them.
func TestUpsertsKeepTheNewestVersion(t *testing.T) {
	t.Parallel()
	schema := Schema{Migrations: "../../order/migrations/sqlite", Synchronous: "OFF"}
	db, err := create(t.Context(), t.TempDir(), schema)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.close(); err != nil {
			t.Error(err)
		}
	})
	// More events than fit into one statement, and an old version last.
	const orders = RowsPerStatement
	events := slices.Collect(load.Histories("h-", 4*orders))
	events = append(events, load.Event(load.OrderID("h-", 0), 1))
	var rows []OrderRow
	for _, m := range events {
		row, err := NewOrderRow(m)
		if err != nil {
			t.Fatal(err)
		}
		rows = append(rows, row)
	}
	if err := db.write(upsert(rows)); err != nil {
		t.Fatal(err)
	}
	var got [3]int64
	query := "SELECT count(*), min(version), max(version) FROM orders"
	if err := db.conn.QueryRowContext(t.Context(), query).Scan(&got[0], &got[1], &got[2]); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([3]int64{orders, 4, 4}, got); diff != "" {
		t.Errorf("orders, least and greatest version (-want +got):\n%s", diff)
	}
}
