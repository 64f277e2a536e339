package order

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/rebuild"
	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/internal/testenv"
	"ordersystem.dev/services/internal/web"
	"ordersystem.dev/services/order/audit"
	"ordersystem.dev/services/order/ordertest"
)

// rebuilding is a member that follows a Kafka, and its command to rebuild the view.
type rebuilding struct {
	*topicConsumer
	addr    string
	admin   *broker.Admin
	command *rebuilder
	url     string
}

// rebuiltOrders is how many orders a rebuilding begins with: order-0, order-1 and so on, at version 2.
const rebuiltOrders = 200

// startRebuilding starts a member on a Kafka that has orders and two records that are none.
func startRebuilding(t *testing.T, at database) *rebuilding {
	t.Helper()
	ms := []contract.Message{
		{Topic: contract.TopicCreated, Key: []byte("broken"), Value: []byte("{")},
		{Topic: contract.TopicUpdated, Key: []byte("a tombstone")},
	}
	for n := range rebuiltOrders {
		id := fmt.Sprint("order-", n)
		ms = append(ms, message(t, id, 1, id+"/1"), message(t, id, 2, id+"/2"))
	}
	r := &rebuilding{topicConsumer: memberOn(t, at), addr: testenv.Fake(t)}
	testenv.Produce(t, r.addr, ms...)
	cfg := plaintext(r.addr)
	var err error
	if r.admin, err = broker.NewAdmin(cfg, r.log); err != nil {
		t.Fatal(err)
	}
	r.kafka = logs{r.admin.Bounds, r.admin.Replaced}
	consumer := broker.NewConsumer(cfg, broker.ConsumerConfig{
		Group: contract.GroupOrder, Topics: contract.OrderTopics(),
	}, r.admin, r.log)
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	var consuming sync.WaitGroup
	consuming.Go(func() { consumer.Run(ctx, r.topicConsumer) })
	t.Cleanup(func() { stop(); consuming.Wait(); r.admin.Close() })
	r.command = newRebuilder(
		r.store, r.catchUp, r.waiters, r.admin.Bounds, audit.Kafka(cfg, r.admin, r.log).Read, r.log)
	server := httptest.NewServer(r.command)
	t.Cleanup(server.Close)
	r.url = server.URL
	return r
}

// catchesUp waits until the view has come to where the topics end now.
func (r *rebuilding) catchesUp(t *testing.T) {
	t.Helper()
	alone := &sharing{assigned: func() int { return 0 }}
	err := r.catchUp.follow(t.Context(), r.store, ends{r.admin.Bounds, r.admin.Withheld}, alone, r.log)
	if err != nil {
		t.Fatal(err)
	}
}

// keepProducing creates and updates other orders until stop is called.
func (r *rebuilding) keepProducing(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var producing sync.WaitGroup
	producing.Go(func() {
		for n := 0; ctx.Err() == nil && !t.Failed(); n++ {
			id := fmt.Sprint("busy-", n)
			testenv.Produce(t, r.addr, message(t, id, 1, id+"/1"), message(t, id, 2, id+"/2"))
		}
	})
	return func() { cancel(); producing.Wait() }
}

// run sends the command, which must have a result.
func (r *rebuilding) run(t *testing.T, o rebuild.Options) *rebuild.Result {
	t.Helper()
	result, err := rebuild.Run(t.Context(), r.url, o, func(rebuild.Progress) {})
	if err != nil {
		t.Fatal(err)
	}
	return result
}

// fails sends the command, which must fail with this text.
func (r *rebuilding) fails(t *testing.T, o rebuild.Options, want string) {
	t.Helper()
	result, err := rebuild.Run(t.Context(), r.url, o, func(rebuild.Progress) {})
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%+v: %+v, %v, want %q", o, result, err, want)
	}
}

// hold lets each read of the command wait at its end until release is called. begun receives a value for each.
func (r *rebuilding) hold() (begun <-chan struct{}, release func()) {
	read, waits, gate := r.command.read, make(chan struct{}, 100), make(chan struct{})
	r.command.read = func(
		ctx context.Context, from, to map[broker.Partition]int64, apply func(context.Context, []broker.Record) error,
	) error {
		err := read(ctx, from, to, apply)
		waits <- struct{}{}
		select {
		case <-gate:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return waits, func() { close(gate) }
}

// execute changes the store by hand.
func (s *store) execute(t testing.TB, statements ...string) {
	t.Helper()
	err := s.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
		for _, statement := range statements {
			if _, err := tx.Exec(statement); err != nil {
				return fmt.Errorf("%s: %w", statement, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// inShadow returns how many orders are in the shadow.
func (s *store) inShadow(t testing.TB) (orders int) {
	t.Helper()
	err := s.db.Query(t.Context(), "SELECT count(*) FROM "+shadowTable, func(rows *sql.Rows) error {
		return rows.Scan(&orders)
	})
	if err != nil {
		t.Fatal(err)
	}
	return orders
}

// fromTheTopics returns a store that nobody has touched, with all that the topics have.
func (r *rebuilding) fromTheTopics(t *testing.T, at database) *store {
	t.Helper()
	first, end, err := r.admin.Bounds(t.Context(), contract.OrderTopics()...)
	if err != nil {
		t.Fatal(err)
	}
	c := memberOn(t, at)
	c.mustAssign(t, slices.Collect(maps.Keys(end))...)
	err = r.command.read(t.Context(), first, end, func(ctx context.Context, records []broker.Record) error {
		b := broker.Batch{Records: records, Next: offsets{}}
		for p := range end {
			for i := range records {
				if records[i].Topic == p.Topic && records[i].Partition == p.Number {
					b.Next[p] = records[i].Offset + 1
				}
			}
		}
		return c.Apply(ctx, b)
	})
	if err != nil {
		t.Fatal(err)
	}
	return c.store
}

// Rows of the view were changed, deleted and added by hand. The command names exactly these. It puts all of
// them right at once, while orders come in and the consumer goes on.
func TestAWrongViewIsRebuiltBesideTheLiveOne(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, fresh func() database) {
		r := startRebuilding(t, fresh())
		r.catchesUp(t)
		if got := r.run(t, rebuild.Options{Swap: true}); got.Differ() != 0 || got.Orders != rebuiltOrders ||
			got.Unusable != 2 || got.Swapped || got.Refused != "" {
			t.Errorf("a view that is right: %+v", got)
		}
		r.store.execute(t,
			"UPDATE orders SET version = 1 WHERE order_id = 'order-1'",
			"UPDATE orders SET version = 9 WHERE order_id = 'order-2'",
			"UPDATE orders SET body = 'null' WHERE order_id = 'order-3'",
			"UPDATE orders SET total = total + 1 WHERE order_id = 'order-4'",
			"UPDATE orders SET event_id = 'another' WHERE order_id = 'order-5'",
			"DELETE FROM orders WHERE order_id = 'order-6'",
			"INSERT INTO orders(order_id, version, event_id, total, body) VALUES ('added', 1, 'e', 1, 'null')")
		differs := func(id string, view, topics int64, d rebuild.Difference) rebuild.Order {
			return rebuild.Order{OrderID: id, View: view, Topics: topics, Difference: d}
		}
		want := []rebuild.Order{
			differs("order-1", 1, 2, rebuild.Different), differs("order-3", 2, 2, rebuild.Different),
			differs("order-4", 2, 2, rebuild.Different),
			differs("order-2", 9, 2, rebuild.NewerInView),
			differs("order-6", 0, 2, rebuild.OnlyInTopics),
			differs("added", 1, 0, rebuild.OnlyInView),
			differs("order-5", 2, 2, rebuild.OtherEventInView),
		}
		changed, leave := r.waiters.watch("order-6", 1)
		defer leave()
		stop := r.keepProducing(t)
		before, err := r.store.offsets(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct {
			rebuild.Options
			swapped bool
			refused string
		}{
			{rebuild.Options{}, false, ""},
			{rebuild.Options{Swap: true}, false, "of 3 orders, only the view has the newest version"},
			{rebuild.Options{Swap: true, Drop: true}, true, ""},
		} {
			got := r.run(t, tt.Options)
			if diff := cmp.Diff(want, got.Examples); diff != "" {
				t.Errorf("%+v names (-want +got):\n%s", tt.Options, diff)
			}
			if got.Swapped != tt.swapped || !strings.Contains(got.Refused, tt.refused) {
				t.Errorf("%+v: swapped %t, refused because of %q", tt.Options, got.Swapped, got.Refused)
			}
			if _, stays := r.store.state(t)["added"]; stays == tt.swapped {
				t.Errorf("%+v: the order that was added is there: %t", tt.Options, stays)
			}
		}
		select {
		case <-changed:
		default:
			t.Error("a look-up that waits for an order was not woken by the swap")
		}
		stop()
		r.catchesUp(t)
		if got := r.run(t, rebuild.Options{}); got.Differ() != 0 || got.Orders <= rebuiltOrders {
			t.Errorf("after the swap: %+v", got)
		}
		if hash(t, r.store) != hash(t, r.fromTheTopics(t, fresh())) {
			t.Error("the view is not the one that a new store gets from the topics")
		}
		for p, at := range before {
			if now := r.store.at(t, p); now < at {
				t.Errorf("%s/%d went back from %d to %d", p.Topic, p.Number, at, now)
			}
		}
		if n := r.store.inShadow(t); n > 0 {
			t.Errorf("%d orders are left in the shadow", n)
		}
	})
}

// A command leaves an empty shadow to the next one, which need not wait. PostgreSQL gets the room back at once:
// to delete the rows one by one would take longer than the end of the command may, and a vacuum afterwards.
func TestARebuildLeavesNoRowOfItsShadow(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, fresh func() database) {
		r := startRebuilding(t, fresh())
		r.catchesUp(t)
		r.run(t, rebuild.Options{})
		ended := func() bool {
			var expires int64
			err := r.store.db.Query(t.Context(), "SELECT expires_at FROM rebuild", func(rows *sql.Rows) error {
				return rows.Scan(&expires)
			})
			if err != nil {
				t.Fatal(err)
			}
			return expires == 0
		}
		ordertest.Eventually(t, "the end of the claim", ended)
		if n := r.store.inShadow(t); n != 0 {
			t.Errorf("%d orders are left in the shadow", n)
		}
		if !r.store.db.Shared() {
			return
		}
		var bytes int64
		err := r.store.db.Query(t.Context(), "SELECT pg_relation_size('orders_shadow')", func(rows *sql.Rows) error {
			return rows.Scan(&bytes)
		})
		if err != nil || bytes != 0 {
			t.Errorf("the empty shadow takes %d bytes (%v)", bytes, err)
		}
	})
}

// A command that waits for Kafka says how far it is, once a second. A second one is refused meanwhile. When
// its client goes, the view is as it was.
func TestARebuildEndsWithItsClient(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, fresh func() database) {
		r := startRebuilding(t, fresh())
		r.catchesUp(t)
		r.store.execute(t, "DELETE FROM orders WHERE order_id LIKE 'order-1%'")
		before := hash(t, r.store)
		begun, release := r.hold()
		ctx, leave := context.WithCancel(t.Context())
		defer leave()
		said, ended := make(chan rebuild.Progress, 100), make(chan error, 1)
		go func() {
			_, err := rebuild.Run(ctx, r.url, rebuild.Options{Swap: true}, func(p rebuild.Progress) { said <- p })
			ended <- err
		}()
		<-begun
		p := <-said
		// A machine that stalls lets the first second pass before the command knows how much there is to read.
		for p.Of == 0 {
			p = <-said
		}
		if p.Of < 2*rebuiltOrders || p.Read > p.Of {
			t.Errorf("%d of %d offsets are read", p.Read, p.Of)
		}
		if n := r.store.inShadow(t); n != rebuiltOrders {
			t.Errorf("%d orders are in the shadow, want %d", n, rebuiltOrders)
		}
		r.fails(t, rebuild.Options{}, "409 Conflict: the view is being rebuilt already")
		leave()
		if err := <-ended; err == nil {
			t.Error("a command that was cut off has a result")
		}
		ordertest.Eventually(t, "an empty shadow", func() bool { return r.store.inShadow(t) == 0 })
		release()
		var got *rebuild.Result
		ordertest.Eventually(t, "the next command", func() bool {
			var err error
			got, err = rebuild.Run(t.Context(), r.url, rebuild.Options{}, func(rebuild.Progress) {})
			return err == nil
		})
		// order-1, order-10 to order-19, and order-100 to order-199.
		if got.Differing[rebuild.OnlyInTopics] != 111 || len(got.Examples) != mostExamples {
			t.Errorf("%d orders are missing, and %d are named", got.Differ(), len(got.Examples))
		}
		if hash(t, r.store) != before {
			t.Error("the view has changed")
		}
		if got := r.run(t, rebuild.Options{Swap: true}); !got.Swapped {
			t.Errorf("a swap that drops nothing: %+v", got)
		}
	})
}

// A process that was killed leaves its rows in the shadow, and its claim for a while if others may have the
// database. The while is over too if the database's clock has gone back meanwhile.
func TestARebuildThatWasKilledLeavesNothing(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, fresh func() database) {
		for what, over := range map[string]time.Duration{
			"it has expired":                   -time.Millisecond,
			"the clock went back by two hours": 2 * time.Hour,
		} {
			r := startRebuilding(t, fresh())
			r.catchesUp(t)
			ends := func(in time.Duration) string {
				return fmt.Sprint("UPDATE rebuild SET expires_at = ", time.Now().Add(in).UnixMilli())
			}
			r.store.execute(t,
				"INSERT INTO orders_shadow(order_id, version, event_id, total, body) "+
					"VALUES ('left', 1, 'e', 1, 'null')",
				"INSERT INTO rebuild(key, owner, expires_at) VALUES (0, 'killed', 0)", ends(claimTime-time.Second))
			if r.store.db.Shared() {
				r.fails(t, rebuild.Options{}, "409 Conflict: begin a shadow of the view: another process rebuilds")
				r.store.execute(t, ends(over))
			}
			if got := r.run(t, rebuild.Options{}); got.Differ() != 0 {
				t.Errorf("%s: what was left counts: %+v", what, got)
			}
		}
	})
}

// A command that stood still for so long that another one has begun writes nothing more, and leaves the
// shadow to that one.
func TestARebuildThatLostItsClaimEnds(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, fresh func() database) {
		for what, tt := range map[string]struct {
			statement string
			// left is how many orders are in the shadow afterwards.
			left int
		}{
			"another command has it":               {"UPDATE rebuild SET owner = 'another'", rebuiltOrders},
			"a failover has lost its last batches": {"UPDATE rebuild SET expires_at = expires_at - 1", 0},
		} {
			r := startRebuilding(t, fresh())
			r.catchesUp(t)
			r.store.execute(t, "DELETE FROM orders WHERE order_id = 'order-1'")
			begun, release := r.hold()
			go func() {
				<-begun
				defer release()
				r.store.execute(t, tt.statement)
			}()
			r.fails(t, rebuild.Options{Swap: true}, "has begun, or the database has lost")
			ordertest.Eventually(t, what+": the shadow", func() bool { return r.store.inShadow(t) == tt.left })
			if _, back := r.store.state(t)["order-1"]; back {
				t.Errorf("%s: it has changed the view", what)
			}
		}
	})
}

// Partitions that come up meanwhile have orders that the shadow lacks. The command ends.
func TestARebuildEndsWhenPartitionsChange(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, fresh func() database) {
		r := startRebuilding(t, fresh())
		r.catchesUp(t)
		begun, release := r.hold()
		go func() {
			<-begun
			defer release()
			r.store.execute(t, `INSERT INTO offsets(topic_id, partition, topic, next_offset)
				VALUES ('new', 12, 'order-created-topic', 0)`)
		}()
		r.fails(t, rebuild.Options{Swap: true}, "meanwhile a topic was recreated, or got partitions")
	})
}

// The offsets are locked for the last records only as long as Kafka responds. Otherwise the consumer goes on,
// and the command tries again, a few times.
func TestARebuildDoesNotHoldTheConsumerUp(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, fresh func() database) {
		r := startRebuilding(t, fresh())
		r.catchesUp(t)
		// late is how many of the last reads get no response.
		read, late := r.command.read, 1
		r.command.read = func(
			ctx context.Context, from, to map[broker.Partition]int64,
			apply func(context.Context, []broker.Record) error,
		) error {
			if _, last := ctx.Deadline(); last && late > 0 {
				late--
				<-ctx.Done()
				return ctx.Err()
			}
			return read(ctx, from, to, apply)
		}
		if got := r.run(t, rebuild.Options{}); got.Differ() != 0 {
			t.Errorf("at the second attempt: %+v", got)
		}
		late = mostLate
		r.fails(t, rebuild.Options{Swap: true}, "Kafka has not given the last records within 2s")
		testenv.Produce(t, r.addr, message(t, "afterwards", 1, "e"))
		r.catchesUp(t)
		if _, known := r.store.state(t)["afterwards"]; !known {
			t.Error("the consumer does not go on")
		}
	})
}

// A member that stalls in a batch has an offset locked. The command waits for it like for Kafka, and does not
// begin again.
func TestARebuildWaitsForAMemberThatStalls(t *testing.T) {
	t.Parallel()
	at := database{url: testenv.Postgres(t)}
	r, other := startRebuilding(t, at), memberOn(t, database{url: testenv.Patient(at.url)}).store
	r.catchesUp(t)
	// late is how many of the last reads a machine that stalls has made late. Each makes for one more fill.
	var fills, late int
	var commit func()
	read := r.command.read
	r.command.read = func(
		ctx context.Context, from, to map[broker.Partition]int64, apply func(context.Context, []broker.Record) error,
	) error {
		if _, last := ctx.Deadline(); last {
			err := read(ctx, from, to, apply)
			if err != nil && errors.Is(context.Cause(ctx), errKafkaLate) {
				late++
			}
			return err
		}
		switch fills++; fills {
		case 1:
			commit = other.hold(t, func(tx *sqldb.Tx) error {
				_, err := tx.Exec("UPDATE offsets SET next_offset = next_offset")
				return err
			})
		case 2:
			commit()
		}
		return read(ctx, from, to, apply)
	}
	if got := r.run(t, rebuild.Options{}); got.Differ() != 0 || fills != 2+late {
		t.Errorf("after %d reads: %+v", fills, got)
	}
}

// The service stops while the database works on the last step. That ends, and the view is as it was.
func TestAStopEndsTheLastStepOfARebuild(t *testing.T) {
	t.Parallel()
	r := startRebuilding(t, database{url: testenv.Postgres(t)})
	r.catchesUp(t)
	r.store.execute(t,
		"DELETE FROM orders WHERE order_id = 'order-1'",
		`CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
			'BEGIN PERFORM pg_sleep(600); RETURN NEW; END'`,
		"CREATE TRIGGER slow BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION slow()")
	ended := make(chan error, 1)
	go func() {
		_, err := rebuild.Run(t.Context(), r.url, rebuild.Options{Swap: true}, func(rebuild.Progress) {})
		ended <- err
	}()
	ordertest.Eventually(t, "the last step", func() (works bool) {
		err := r.store.db.Query(t.Context(), `SELECT EXISTS (SELECT 1 FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event = 'PgSleep')`, func(rows *sql.Rows) error {
			return rows.Scan(&works)
		})
		if err != nil {
			t.Fatal(err)
		}
		return works
	})
	stopping, stop := context.WithCancel(t.Context())
	stop()
	begin := time.Now()
	if err := r.command.command.Run(stopping); err != nil {
		t.Error(err)
	}
	if took := time.Since(begin); took > web.Drain {
		t.Errorf("the command ends after %s, want less than the %s that requests get", took, web.Drain)
	}
	if err := <-ended; err == nil {
		t.Error("the command has a result")
	}
	if _, back := r.store.state(t)["order-1"]; back {
		t.Error("the view has changed")
	}
}

func TestARebuildIsRefused(t *testing.T) {
	t.Parallel()
	r := startRebuilding(t, database{dir: t.TempDir()})
	post := func(query, body string, status int, want string) {
		t.Helper()
		req, err := http.NewRequestWithContext(
			t.Context(), http.MethodPost, r.url+rebuild.Path+query, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text := make([]byte, 200)
		n, _ := resp.Body.Read(text)
		if resp.StatusCode != status || !strings.Contains(string(text[:n]), want) {
			t.Errorf("POST %s: %d %q, want %d %q", query, resp.StatusCode, text[:n], status, want)
		}
	}
	post("?swap=maybe", "", 400, `swap is ["maybe"]`)
	post("?drop=true", "", 400, "drop without swap")
	post("", "swap=true", 400, "there is a body")
	post("?swap=true", "", 503, "not connected to Kafka yet")
}

// What only the view has is lost only on purpose, and a swap has to fit into memory and one transaction.
func TestASwapIsRefused(t *testing.T) {
	t.Parallel()
	type differing = map[rebuild.Difference]int64
	for name, tt := range map[string]struct {
		drop      bool
		differing differing
		bytes     int64
		want      string
	}{
		"other contents":      {false, differing{rebuild.Different: 3, rebuild.OnlyInTopics: 4}, 0, ""},
		"orders to drop":      {false, differing{rebuild.OnlyInView: 1}, 0, "of 1 orders, only the view"},
		"versions to drop":    {false, differing{rebuild.NewerInView: 2}, 0, "of 2 orders, only the view"},
		"events to drop":      {false, differing{rebuild.OtherEventInView: 3}, 0, "of 3 orders, only the view"},
		"dropped on purpose":  {true, differing{rebuild.OnlyInView: 1, rebuild.NewerInView: 2}, 0, ""},
		"as many as possible": {false, differing{rebuild.Different: mostSwapped}, 1 << 20, ""},
		"nearly everything":   {false, differing{rebuild.Different: mostSwapped + 1}, 0, "Delete the store"},
		"a full volume":       {false, differing{rebuild.Different: 1}, 2 << 20, "has room for 1 MiB more"},
	} {
		c := &comparison{Result: rebuild.Result{Differing: tt.differing}, bytes: tt.bytes}
		got := c.refusal(rebuild.Options{Swap: true, Drop: tt.drop}, 1<<20)
		if (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: refused because of %q, want %q", name, got, tt.want)
		}
	}
}

// A shadow begins where the logs begin. It is refused if the topics could not bring it to where the view is.
func TestWhereAShadowBegins(t *testing.T) {
	t.Parallel()
	p, q := ordertest.Partition(contract.TopicCreated, 0), ordertest.Partition(contract.TopicUpdated, 0)
	recreated := broker.Partition{Topic: contract.TopicCreated, TopicID: "another-id", Number: 0}
	for name, tt := range map[string]struct {
		at, first, end offsets
		want           offsets
		err            string
	}{
		"whole logs": {offsets{p: 5, q: 7}, offsets{p: 0, q: 0}, offsets{p: 9, q: 7}, offsets{p: 0, q: 0}, ""},
		"records were deleted": {
			offsets{p: 5, q: 7}, offsets{p: 3, q: 8}, offsets{p: 9, q: 9}, offsets{p: 3, q: 7}, "",
		},
		"a partition is gone":     {offsets{p: 5, q: 7}, offsets{p: 0}, offsets{p: 5}, offsets{p: 0, q: 7}, ""},
		"records were lost":       {offsets{p: 5}, offsets{p: 0}, offsets{p: 4}, nil, "Kafka has lost records"},
		"the topic was recreated": {offsets{p: 5}, offsets{recreated: 0}, offsets{recreated: 5}, nil, "was recreated"},
		"a partition was added":   {offsets{p: 5}, offsets{p: 0, q: 0}, offsets{p: 5, q: 0}, nil, "no member has had"},
	} {
		sh := &shadow{}
		err := sh.begin(tt.at, tt.first, tt.end)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: %v, want %q", name, err, tt.err)
			}
			continue
		}
		if diff := cmp.Diff(tt.want, sh.read); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
}

// Somebody reads the shadow, as pg_dump does: PostgreSQL does not empty it then. The next command begins as soon as
// the reader has ended.
func TestAReaderOfTheShadowLeavesNoClaim(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	c := memberOn(t, database{url: url})
	sh, err := newShadow(t.Context(), c.store.db)
	if err != nil {
		t.Fatal(err)
	}
	release := memberOn(t, database{url: testenv.Patient(url)}).store.hold(t, func(tx *sqldb.Tx) error {
		_, err := tx.Exec("LOCK TABLE orders_shadow IN ACCESS SHARE MODE")
		return err
	})
	if err := sh.close(t.Context()); err == nil {
		t.Error("the shadow was emptied although it is being read")
	}
	release()
	next, err := newShadow(t.Context(), c.store.db)
	if err != nil {
		t.Fatalf("the next command: %v", err)
	}
	if err := next.close(t.Context()); err != nil {
		t.Error(err)
	}
}
