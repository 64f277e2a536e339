package e2e

import (
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	// The tests read the stores without the services' code.
	_ "github.com/mattn/go-sqlite3"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/e2e/faults"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
)

// image copies a service's store, so that reading it changes nothing. For a frozen process, the
// copy is what a kill at this moment would leave.
func image(t testing.TB, p *process) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, ending := range []string{"", "-wal"} {
		data, err := os.ReadFile(filepath.Join(p.dir, p.name+".db"+ending))
		if ending != "" && errors.Is(err, os.ErrNotExist) {
			// SQLite removes the WAL when a store is closed in order.
			continue
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "copy.db"+ending), data, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func openImage(t testing.TB, dir string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite3", filepath.Join(dir, "copy.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// execute changes the store of a service that has ended.
func execute(t testing.TB, p *process, statements string) {
	t.Helper()
	if p.running() {
		t.Fatalf("%s still writes its store", p.name)
	}
	db, err := sql.Open("sqlite3", filepath.Join(p.dir, p.name+".db"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.Exec(statements)
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
}

// openStore opens an image of the store of a service that has ended.
func openStore(t testing.TB, p *process) *sql.DB {
	t.Helper()
	if p.running() {
		t.Fatalf("%s still writes its store", p.name)
	}
	return openImage(t, image(t, p))
}

// cartStore returns the orders of Cart's store, and the number of rows in its outbox.
func cartStore(t testing.TB, p *process) (orders map[string]faults.StoredOrder, outbox int) {
	t.Helper()
	db := openStore(t, p)
	if err := db.QueryRow("SELECT count(*) FROM outbox").Scan(&outbox); err != nil {
		t.Fatal(err)
	}
	return readOrders(t, db, "SELECT order_id, version, '', body FROM orders"), outbox
}

// orderStore returns the content of Order's store.
func orderStore(t testing.TB, p *process, when string) faults.State {
	t.Helper()
	return orderState(t, openStore(t, p), when)
}

func orderState(t testing.TB, db *sql.DB, when string) faults.State {
	t.Helper()
	orders := readOrders(t, db, "SELECT order_id, version, event_id, body FROM orders")
	return faults.State{When: when, Orders: orders, Offsets: readOffsets(t, db, "offsets")}
}

func readOrders(t testing.TB, db *sql.DB, query string) map[string]faults.StoredOrder {
	t.Helper()
	rows, err := db.Query(query)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	orders := map[string]faults.StoredOrder{}
	for rows.Next() {
		var id string
		var r faults.StoredOrder
		if err := rows.Scan(&id, &r.Version, &r.EventID, &r.Body); err != nil {
			t.Fatal(err)
		}
		orders[id] = r
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return orders
}

func readOffsets(t testing.TB, db *sql.DB, table string) map[faults.TopicPartition]int64 {
	t.Helper()
	rows, err := db.Query("SELECT topic, partition, next_offset FROM " + table)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	offsets := map[faults.TopicPartition]int64{}
	for rows.Next() {
		var p faults.TopicPartition
		var next int64
		if err := rows.Scan(&p.Topic, &p.Partition, &next); err != nil {
			t.Fatal(err)
		}
		if _, twice := offsets[p]; twice {
			t.Errorf("%s/%d has two offsets", p.Topic, p.Partition)
		}
		offsets[p] = next
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return offsets
}

// hash returns the same text for stores that hold the same orders.
func hash(orders map[string]faults.StoredOrder) string {
	sum := sha256.New()
	for _, id := range slices.Sorted(maps.Keys(orders)) {
		r := orders[id]
		fmt.Fprintf(sum, "%d %s %d %d %s\n", len(id), id, r.Version, len(r.Body), r.Body)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// readTopics reads both order topics.
func readTopics(t testing.TB, kafka string) []testenv.Record {
	t.Helper()
	return slices.Concat(testenv.ReadAll(t, kafka, contract.TopicCreated),
		testenv.ReadAll(t, kafka, contract.TopicUpdated))
}

// declare makes the declared topics.
func declare(t testing.TB, kafka string, topics ...contract.Topic) {
	t.Helper()
	if topics == nil {
		topics = contract.Topics()
	}
	if err := localkafka.CreateTopics(t.Context(), kafka, topics, 1); err != nil {
		t.Fatal(err)
	}
}
