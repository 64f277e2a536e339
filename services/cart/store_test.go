package cart

import (
	"database/sql"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/outbox"
	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/internal/testenv"
)

func rows(t *testing.T, s *store, query string) (all []string) {
	t.Helper()
	err := s.db.Query(t.Context(), query, func(r *sql.Rows) error {
		var v string
		err := r.Scan(&v)
		all = append(all, v)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// events returns the topic and the key of each event in the outbox.
func events(t *testing.T, s *store) (all []string) {
	t.Helper()
	err := s.db.Query(t.Context(), "SELECT topic, record_key FROM outbox ORDER BY id", func(r *sql.Rows) error {
		var topic string
		var key []byte
		err := r.Scan(&topic, &key)
		all = append(all, topic+" "+string(key))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// backlog returns how many events are in the outbox.
func backlog(t *testing.T, s *store) int64 {
	t.Helper()
	n, _, err := s.box.Backlog(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestAnOrderAndItsEventAreStoredTogether(t *testing.T) {
	t.Parallel()
	databases(t, func(t *testing.T, open opener) {
		c, stop := open(100)
		for _, ch := range []change{creation(t, "a"), creation(t, "a"), update("a", "paid"), update("b", "paid")} {
			_, _ = c.submit(t.Context(), ch)
		}
		stop()
		c, _ = open(100)
		orders := rows(t, c.store, "SELECT order_id || ' ' || version FROM orders")
		if diff := cmp.Diff([]string{"a 2"}, orders); diff != "" {
			t.Errorf("orders after a restart (-want +got):\n%s", diff)
		}
		waiting := events(t, c.store)
		if diff := cmp.Diff([]string{"order-created-topic a", "order-updated-topic a"}, waiting); diff != "" {
			t.Errorf("outbox after a restart (-want +got):\n%s", diff)
		}
		if got := backlog(t, c.store); got != 2 {
			t.Errorf("the outbox counts %d rows after a restart, want 2", got)
		}
	})
}

// A test cannot cause a power loss. It can see the setting that makes a commit wait for the disk.
func TestACommitWaitsForTheDisk(t *testing.T) {
	t.Parallel()
	c, _ := running(t, t.TempDir(), 100)
	var synchronous int
	err := c.store.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
		return tx.Query("PRAGMA synchronous", func(r *sql.Rows) error { return r.Scan(&synchronous) })
	})
	if err != nil || synchronous != 2 {
		t.Errorf("synchronous is %d (%v), want 2, FULL", synchronous, err)
	}
}

// Pages cover every order once, at its newest version, and none is larger than what the outbox has
// room for. An empty outbox takes a page in any case.
func TestPagesOfARepublicationFitIntoTheOutbox(t *testing.T) {
	t.Parallel()
	databases(t, func(t *testing.T, open opener) {
		c, _ := open(100)
		var want []string
		for _, id := range []string{"a", "b", "c", "d", "e"} {
			if _, err := c.submit(t.Context(), creation(t, id)); err != nil {
				t.Fatal(err)
			}
			want = append(want, contract.TopicCreated+" "+id)
		}
		if _, err := c.submit(t.Context(), update("c", "paid")); err != nil {
			t.Fatal(err)
		}
		want[2] = contract.TopicUpdated + " c"
		s, page := c.store, room{events: 2, bytes: 1 << 20}
		_, end, err := s.extent(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		repeat := func(after int64, limit room) (repeated, bool) {
			t.Helper()
			done, roomy, err := s.repeat(t.Context(), after, end, page, limit, noon, "")
			if err != nil {
				t.Fatal(err)
			}
			return done, roomy
		}
		before, bytes, err := s.box.Backlog(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, limit := range []room{{events: before + 1, bytes: 1 << 30}, {events: 100, bytes: bytes + 100}} {
			if _, roomy := repeat(0, limit); roomy || backlog(t, s) != before {
				t.Errorf("with a limit of %+v, %d rows are in the outbox, want %d", limit, backlog(t, s), before)
			}
		}
		if err := s.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
			ledger, err := s.box.Lock(tx)
			if err != nil {
				return err
			}
			var waiting []int64
			err = ledger.Waiting(map[string]bool{"a": true, "b": true, "c": true, "d": true, "e": true},
				func(row outbox.Row) error { waiting = append(waiting, row.ID); return nil })
			return errors.Join(err, ledger.Discard(waiting))
		}); err != nil {
			t.Fatal(err)
		}
		if done, roomy := repeat(0, room{events: 1, bytes: 1}); !roomy || done.orders != 2 {
			t.Errorf("an empty outbox takes %d orders, want a page of 2", done.orders)
		}
		for after := int64(2); ; {
			done, _ := repeat(after, room{events: 100, bytes: 1 << 30})
			if done.orders == 0 {
				break
			}
			after = done.lastRow
		}
		got := events(t, s)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("published again (-want +got):\n%s", diff)
		}
	})
}

// PostgreSQL reads all rows to count them.
func TestALargeStoreIsCounted(t *testing.T) {
	t.Parallel()
	c, _ := runningAt(t, testenv.Postgres(t), t.TempDir(), 100)
	if _, err := c.submit(t.Context(), creation(t, "a")); err != nil {
		t.Fatal(err)
	}
	if err := c.store.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
		_, err := tx.Exec("ALTER TABLE orders RENAME TO few")
		if err == nil {
			// Longer than a query may take that is for a request.
			_, err = tx.Exec("CREATE VIEW orders AS SELECT few.* FROM few, pg_sleep(6)")
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if n, last, err := c.store.extent(t.Context()); err != nil || n != 1 || last != 1 {
		t.Errorf("%d orders up to row %d, %v, want one", n, last, err)
	}
}

// Only the orders that were asked for are published again, all of them or none.
func TestSomeOrdersGoIntoTheOutboxAgain(t *testing.T) {
	t.Parallel()
	databases(t, func(t *testing.T, open opener) {
		c, _ := open(100)
		for _, id := range []string{"a", "b", "c"} {
			if _, err := c.submit(t.Context(), creation(t, id)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.submit(t.Context(), update("c", "paid")); err != nil {
			t.Fatal(err)
		}
		s, want := c.store, events(t, c.store)
		before, limit := backlog(t, s), room{events: 100, bytes: 1 << 30}
		repeat := func(limit room, ids ...string) (repeated, bool, error) {
			return s.repeatOrders(t.Context(), ids, limit, noon, "")
		}
		_, _, err := repeat(limit, "a", "z", "y")
		unknown, ok := errors.AsType[*unknownOrdersError](err)
		if !ok || !slices.Equal(unknown.ids, []string{"y", "z"}) {
			t.Errorf("orders that are not in the store: %v", err)
		}
		if _, roomy, err := repeat(room{events: before + 1, bytes: 1 << 30}, "a", "c"); roomy || err != nil {
			t.Errorf("without room for two orders: %v, %v", roomy, err)
		}
		if got := events(t, s); !slices.Equal(got, want) {
			t.Errorf("nothing was to be written, the outbox holds %v", got)
		}
		done, roomy, err := repeat(limit, "a", "c")
		if !roomy || err != nil || done.orders != 2 || done.lastMessage != before+2 {
			t.Errorf("two orders: %+v, %v, %v", done, roomy, err)
		}
		got := events(t, s)[before:]
		slices.Sort(got)
		if diff := cmp.Diff([]string{contract.TopicCreated + " a", contract.TopicUpdated + " c"}, got); diff != "" {
			t.Errorf("published again (-want +got):\n%s", diff)
		}
	})
}

// The creation of an order and its update come in records of different topics, in any order. While one of
// them is known to be published, and the other one waits, that is no conflict. Another version is.
func TestOwnRecordsInAnyOrderAreNoConflict(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		// foreign is the status of an update that another Cart has published, at version 2; "": none.
		foreign string
		// found are the rows of the outbox that the topics have, batch by batch.
		found    []int
		conflict bool
		left     int64
	}{
		"first the creation": {"", []int{0, 1}, false, 0},
		"first the update":   {"", []int{1, 0}, false, 0},
		"the update only":    {"", []int{1}, false, 1},
		"another Cart's":     {"lost", nil, true, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			databases(t, func(t *testing.T, open opener) {
				committer, _ := open(100)
				s := committer.store
				lead(t, s)
				for _, change := range []change{creation(t, "a"), update("a", "paid")} {
					if _, err := committer.submit(t.Context(), change); err != nil {
						t.Fatal(err)
					}
				}
				var own []contract.Event
				err := s.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
					ledger, err := s.box.Lock(tx)
					if err != nil {
						return err
					}
					return ledger.Waiting(map[string]bool{"a": true}, func(row outbox.Row) error {
						e, err := contract.DecodeEvent(row.Topic, 0, row.Key, row.Value, row.Headers)
						own = append(own, e)
						return err
					})
				})
				if err != nil || len(own) != 2 {
					t.Fatalf("%d events wait, %v", len(own), err)
				}
				var batches [][]contract.Event
				for _, i := range c.found {
					batches = append(batches, own[i:i+1])
				}
				if c.foreign != "" {
					e := own[1]
					e.ID, e.Order.Status = "another", c.foreign
					batches = append(batches, []contract.Event{e})
				}
				conflict := false
				for _, batch := range batches {
					var conflicts []string
					err := whileLeading(t, s, func() (err error) {
						_, conflicts, _, err = s.adopt(t.Context(), batch)
						return err
					})
					if err != nil {
						t.Fatal(err)
					}
					conflict = conflict || len(conflicts) > 0
				}
				left := int64(len(rows(t, s, "SELECT id FROM outbox")))
				if conflict != c.conflict || left != c.left {
					t.Errorf("a conflict: %t, and %d rows wait; want %t, %d", conflict, left, c.conflict, c.left)
				}
			})
		})
	}
}

func TestARestoredVersionNeverGoesBack(t *testing.T) {
	t.Parallel()
	databases(t, func(t *testing.T, open opener) {
		c, _ := open(100)
		lead(t, c.store)
		for _, v := range []int64{2, 3, 3, 1} {
			err := whileLeading(t, c.store, func() error {
				return c.store.restore(t.Context(), map[string]orderState{"a": {v, []byte(etag(v))}})
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		got := rows(t, c.store, "SELECT version FROM orders")
		if diff := cmp.Diff([]string{"3"}, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestMigrationsAreTheOutboxSchema(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"0002_outbox.sql": outbox.Schema, "0004_ledger.sql": outbox.LedgerSchema,
	} {
		text, err := migrations.ReadFile("migrations/sqlite/" + name)
		if err != nil || strings.TrimSpace(string(text)) != strings.TrimSpace(want) {
			t.Errorf("migrations/sqlite/%s is not that of internal/outbox (%v)", name, err)
		}
	}
}

// atNoon gives changes to a commit.
func atNoon(changes ...change) func() ([]change, time.Time) {
	return func() ([]change, time.Time) { return changes, noon }
}

// A write that silently does nothing must not be acknowledged.
func TestALostWriteIsAnError(t *testing.T) {
	t.Parallel()
	create := func(s *store) error {
		limit := room{events: 100, bytes: 1 << 30}
		_, _, err := s.commit(t.Context(), atNoon(keyed(creation(t, "new"), "k", "1")), limit)
		return err
	}
	ignored := func(what, table string) string {
		return "CREATE TRIGGER x BEFORE " + what + " ON " + table + " BEGIN SELECT RAISE(IGNORE); END"
	}
	for name, c := range map[string]struct {
		// broken is run on the database before the write.
		broken string
		write  func(*store) error
		want   sqldb.CountError
	}{
		"an order": {ignored("INSERT", "orders"), create, sqldb.CountError{Changed: 0, Want: 1}},
		"the result of an idempotency key": {
			ignored("INSERT", "idempotency_keys"), create, sqldb.CountError{Changed: 0, Want: 1},
		},
		"an event": {ignored("INSERT", "outbox"), create, sqldb.CountError{Changed: 0, Want: 1}},
		"an order of the topics": {
			ignored("INSERT", "orders"),
			func(s *store) error {
				return s.restore(t.Context(),
					map[string]orderState{"old": {3, nil}, "x": {1, []byte("x")}, "y": {2, []byte("y")}})
			},
			sqldb.CountError{Changed: 0, Want: 2},
		},
		"an update that is not newer": {
			"UPDATE orders SET version = 7",
			func(s *store) error {
				return s.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
					return writeOrders(tx, map[string]orderState{"old": {7, []byte("x")}, "x": {1, []byte("x")}})
				})
			},
			sqldb.CountError{Changed: 1, Want: 2},
		},
		"the mark of a rebuild": {
			ignored("INSERT", "rebuilt"),
			func(s *store) error { return s.markRebuilt(t.Context(), noon) },
			sqldb.CountError{Changed: 0, Want: 1},
		},
		"the probe": {
			ignored("UPDATE", "rebuilt"),
			func(s *store) error {
				if err := s.markRebuilt(t.Context(), noon); err != nil {
					return err
				}
				_, err := s.deleteExpired(t.Context())
				return err
			},
			sqldb.CountError{Changed: 0, Want: 1},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			running, _ := running(t, t.TempDir(), 100)
			s := running.store
			if err := s.restore(t.Context(), map[string]orderState{"old": {3, []byte("old")}}); err != nil {
				t.Fatal(err)
			}
			if err := s.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
				_, err := tx.Exec(c.broken)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			before := rows(t, s, "SELECT order_id || version FROM orders")
			err := c.write(s)
			if got, is := errors.AsType[*sqldb.CountError](err); !is || *got != c.want {
				t.Errorf("the write returns %v, want %v", err, &c.want)
			}
			if diff := cmp.Diff(before, rows(t, s, "SELECT order_id || version FROM orders")); diff != "" {
				t.Errorf("orders after the roll-back (-want +got):\n%s", diff)
			}
			if got := backlog(t, s); got != 0 {
				t.Errorf("%d events are counted after the roll-back, want none", got)
			}
		})
	}
}

// The sizes of volumes in docs/operations.md and in the chart follow from these.
func TestBytesOfAnOrderInTheStore(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		items, orders int
		keyed         bool
		// waiting and published are bounds in bytes for an order, before and after its event is
		// deleted from the outbox.
		waiting, published int64
	}{
		{5, 5000, false, 1500, 620},
		{5, 5000, true, 2100, 1250},
		{90, 500, false, 18 << 10, 9 << 10},
		{contract.MaxItems, 50, false, 112 << 10, 56 << 10},
	} {
		c, _ := running(t, t.TempDir(), 100_000)
		used := func() int64 {
			space, err := c.store.db.Space(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return space.Used
		}
		empty := used()
		for first := 0; first < tt.orders; first += batchMost {
			var changes []change
			for n := first; n < min(first+batchMost, tt.orders); n++ {
				o := newOrder(contract.CreateOrder{OrderID: uuid.NewString(), ItemsNum: tt.items}, noon)
				m, err := newEvent(contract.TypeCreated, o, continueTrace(""), noon).Message()
				if err != nil {
					t.Fatal(err)
				}
				ch := change{orderID: o.OrderID, created: &m}
				if tt.keyed {
					ch = keyed(ch, uuid.NewString(), "f")
				}
				changes = append(changes, ch)
			}
			if _, _, err := c.store.commit(t.Context(), atNoon(changes...), c.limit); err != nil {
				t.Fatal(err)
			}
		}
		waiting := (used() - empty) / int64(tt.orders)
		if err := c.store.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
			_, err := tx.Exec("DELETE FROM outbox")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		published := (used() - empty) / int64(tt.orders)
		t.Logf("%d items, key %t: %d bytes while it waits for Kafka, then %d", tt.items, tt.keyed, waiting, published)
		if waiting > tt.waiting || published > tt.published {
			t.Errorf("%d items, key %t: %d and %d bytes for an order, want at most %d and %d",
				tt.items, tt.keyed, waiting, published, tt.waiting, tt.published)
		}
	}
}
