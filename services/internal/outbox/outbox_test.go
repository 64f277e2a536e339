package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/kafkaconfig"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func open(t *testing.T, path string) *Box {
	t.Helper()
	return openAt(t, sqldb.Config{Path: path, Sync: sqldb.Full})
}

// openAt opens an outbox in a database of Cart.
func openAt(t *testing.T, cfg sqldb.Config) *Box {
	t.Helper()
	cfg.Schema, cfg.Migrations = "cart", os.DirFS("../../cart/migrations")
	db, err := sqldb.Open(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	b, err := Open(t.Context(), db, log, prometheus.NewRegistry(), "test", nil)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// databases runs a test on each kind of database.
func databases(t *testing.T, test func(t *testing.T, open func() *Box)) {
	t.Run("SQLite", func(t *testing.T) {
		test(t, func() *Box { return open(t, filepath.Join(t.TempDir(), "t.db")) })
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		test(t, func() *Box { return openAt(t, sqldb.Config{URL: testenv.Postgres(t)}) })
	})
}

func add(t *testing.T, b *Box, ms ...contract.Message) {
	t.Helper()
	if err := addAt(t, b, time.Now(), ms...); err != nil {
		t.Fatal(err)
	}
}

func addAt(t *testing.T, b *Box, at time.Time, ms ...contract.Message) error {
	t.Helper()
	return b.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
		l, err := b.Lock(tx)
		if err != nil {
			return err
		}
		return l.Add(at, ms)
	})
}

// rows returns how many messages are in the outbox.
func rows(t *testing.T, b *Box) int64 {
	t.Helper()
	n, _, err := b.Backlog(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// noKafka is a Kafka that does not exist.
var noKafka = broker.Config{Client: kafkaconfig.Client{Brokers: []string{"127.0.0.1:1"}}}

// numbered returns n messages of a few keys. The value of each is its number in the whole sequence,
// which begins at from.
func numbered(topic string, from, n int) []contract.Message {
	ms := make([]contract.Message, n)
	for i := range ms {
		number := fmt.Append(nil, from+i)
		ms[i] = contract.Message{
			Topic: topic, Key: fmt.Append(nil, "key", (from+i)%7), Value: number,
			Headers: []contract.Header{{Key: "n", Value: number}},
		}
	}
	return ms
}

// ids returns the transactional IDs of the test's relays.
func ids(t *testing.T) [2]string { return [2]string{t.Name(), t.Name() + "-2"} }

// target is where the test's relays publish.
func target(t *testing.T, cfg broker.Config, topics ...string) Target {
	return Target{Kafka: cfg, TransactionalIDs: ids(t), Topics: topics}
}

// relaying runs a relay until stop is called. stop returns when the relay has ended.
func relaying(t *testing.T, b *Box, addr string, topics ...string) (stop func()) {
	t.Helper()
	return relayAs(t, b, broker.Config{Client: kafkaconfig.Client{Brokers: []string{addr}}}, topics...)
}

func relayAs(t *testing.T, b *Box, cfg broker.Config, topics ...string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.Relay(ctx, target(t, cfg, topics...), nil) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(stop)
	return stop
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !holds(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func empty(t *testing.T, b *Box) func() bool { return func() bool { return rows(t, b) == 0 } }

// published returns the numbers in a topic by key, in the order of the records.
func published(t *testing.T, addr, topic string) map[string][]string {
	t.Helper()
	got := map[string][]string{}
	for _, r := range testenv.ReadAll(t, addr, topic) {
		got[string(r.Key)] = append(got[string(r.Key)], string(r.Value))
	}
	return got
}

func byKey(ms []contract.Message) map[string][]string {
	want := map[string][]string{}
	for _, m := range ms {
		want[string(m.Key)] = append(want[string(m.Key)], string(m.Value))
	}
	return want
}

// inOrder checks that all numbers of want are in got, in the order of want for each key. Numbers
// may repeat, but only from an earlier one on: a number is followed by the next one, or by one that
// was there before.
func inOrder(want, got map[string][]string) error {
	for key, numbers := range want {
		index := make(map[string]int, len(numbers))
		for i, n := range numbers {
			index[n] = i
		}
		next := 0
		for _, n := range got[key] {
			i, known := index[n]
			if !known || i > next {
				return fmt.Errorf("%s: %s came before its predecessors, in %v", key, n, got[key])
			}
			next = max(next, i+1)
		}
		if next != len(numbers) {
			return fmt.Errorf("%s: %d of %d came", key, next, len(numbers))
		}
	}
	return nil
}

func TestWhatIsCommittedIsPublishedInOrder(t *testing.T) {
	fake := func(t *testing.T) string { return testenv.Fake(t) }
	shared := func(t *testing.T) string { return testenv.SharedKafka(t).Addr }
	file := func(t *testing.T) sqldb.Config {
		return sqldb.Config{Path: filepath.Join(t.TempDir(), "t.db"), Sync: sqldb.Full}
	}
	postgres := func(t *testing.T) sqldb.Config { return sqldb.Config{URL: testenv.Postgres(t)} }
	for _, c := range []struct {
		name     string
		start    func(*testing.T) string
		database func(*testing.T) sqldb.Config
	}{
		{"fake Kafka", fake, file},
		{"real Kafka", shared, file},
		{"real Kafka, PostgreSQL", shared, postgres},
	} {
		t.Run(c.name, func(t *testing.T) {
			addr := c.start(t)
			topic := testenv.NewTopic(t, addr, 3)
			b := openAt(t, c.database(t))
			// A relay that loses its lease publishes what it has not deleted again. Nobody else wants this one.
			b.lease.valid = time.Minute
			// More messages than are in flight at a time.
			all := numbered(topic, 0, 25_000)
			add(t, b, all[:20_000]...)
			stop := relaying(t, b, addr, topic)
			// The others come while the relay works.
			for i := 20_000; i < len(all); i += 100 {
				add(t, b, all[i:i+100]...)
			}
			refused := errors.New("refused")
			err := b.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
				never := contract.Message{Topic: topic, Key: []byte("never"), Value: []byte("never")}
				l, err := b.Lock(tx)
				return errors.Join(err, l.Add(time.Now(), []contract.Message{never}), refused)
			})
			if !errors.Is(err, refused) {
				t.Fatal(err)
			}
			eventually(t, "the outbox is empty", empty(t, b))
			if diff := cmp.Diff(byKey(all), published(t, addr, topic)); diff != "" {
				t.Errorf("published (-want +got):\n%s", diff)
			}
			if got := shown(t, b); got != "rows 0, oldest 0" {
				t.Errorf("the metrics of an empty outbox: %s", got)
			}
			stop()
		})
	}
}

func TestAnOutageIsRiddenOut(t *testing.T) {
	k := testenv.StartKafka(t)
	ctx := t.Context()
	topic := testenv.NewTopic(t, k.Addr, 3)
	b := open(t, filepath.Join(t.TempDir(), "t.db"))
	all := numbered(topic, 0, 9000)
	relaying(t, b, k.Addr, topic)
	add(t, b, all[:3000]...)
	k.Kill()
	for i := 3000; i < 9000; i += 1000 {
		add(t, b, all[i:i+1000]...)
	}
	if n := rows(t, b); n < 6000 {
		t.Errorf("%d rows while Kafka is away, want 6000 or more", n)
	}
	if got := shown(t, b); strings.HasSuffix(got, "oldest 0") || !strings.Contains(got, "oldest") {
		t.Errorf("the metrics while Kafka is away: %s", got)
	}
	if err := k.StartAgain(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the outbox is empty", empty(t, b))
	if err := inOrder(byKey(all), published(t, k.Addr, topic)); err != nil {
		t.Error(err)
	}
}

// If a certificate is renewed in time, no row is published twice. If it is renewed too late, no row
// is lost.
func TestCertificatesAreRenewedUnderTheRelay(t *testing.T) {
	k := testenv.StartSecureKafka(t)
	topic := testenv.NewTopic(t, k.Addr, 3)
	k.Allow(t, "u", "topic "+topic+" Write", "transactional-id "+ids(t)[0]+" Write",
		"transactional-id "+ids(t)[1]+" Write")
	u := k.NewUser(t, "u")
	vars := u.Env()
	cfg := broker.ConfigFromEnv(env.New(func(name string) string { return vars[name] }))
	var renewals atomic.Int64
	log := slog.New(slog.NewTextHandler(lines(func(line string) {
		if strings.Contains(line, "all clients are recreated") {
			renewals.Add(1)
		}
	}), nil))
	// The admin client watches the files.
	admin, err := broker.NewAdmin(cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	b := open(t, filepath.Join(t.TempDir(), "t.db"))
	stop := relayAs(t, b, cfg, topic)
	sent := 0
	addUntil := func(what string, holds func() bool) {
		t.Helper()
		eventually(t, what, func() bool {
			add(t, b, numbered(topic, sent, 50)...)
			sent += 50
			return holds()
		})
	}
	addUntil("some rows are published", func() bool { return rows(t, b) < int64(sent) })
	u.Renew(t)
	addUntil("the clients have the new certificate", func() bool { return renewals.Load() == 1 })
	before := int64(sent)
	addUntil("they publish with it", func() bool {
		return b.term.Load().lastAcked() > before
	})
	eventually(t, "the outbox is empty", empty(t, b))
	if diff := cmp.Diff(byKey(numbered(topic, 0, sent)), published(t, k.Addr, topic)); diff != "" {
		t.Errorf("published with a certificate renewed in time (-want +got):\n%s", diff)
	}

	k.Clients = testenv.NewAuthority(t, "clients-ca-2")
	k.Certify(t, k.Clients)
	k.Restart(t)
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		addUntil("rows are added", func() bool { return true })
	}
	if rows(t, b) == 0 {
		t.Error("the broker takes the former certificate")
	}
	u.Renew(t)
	eventually(t, "the outbox is empty", empty(t, b))
	if err := inOrder(byKey(numbered(topic, 0, sent)), published(t, k.Addr, topic)); err != nil {
		t.Error(err)
	}
	stop()
	admin.Close()
	if n := renewals.Load(); n != 2 {
		t.Errorf("%d lines of 2 renewals", n)
	}
}

// A refused row stops the rows behind it. Otherwise a later version of an order could overtake an
// earlier one.
func TestARefusedRowIsNotOvertaken(t *testing.T) {
	addr := testenv.SharedKafka(t).Addr
	present, absent := testenv.NewTopic(t, addr, 3), "made-later-"+strings.ToLower(t.Name())
	b := open(t, filepath.Join(t.TempDir(), "t.db"))
	before, behind := numbered(present, 0, 50), numbered(present, 50, 50)
	late := numbered(absent, 0, 50)
	add(t, b, slices.Concat(before, late, behind)...)
	relaying(t, b, addr, present, absent)
	eventually(t, "a failure is counted", func() bool { return failures(t, b) > 0 })
	if n := len(testenv.ReadAll(t, addr, present)); n < 50 {
		eventually(t,
			"what was before the refused rows is published",
			func() bool { return len(testenv.ReadAll(t, addr, present)) >= 50 })
	}
	declared := []contract.Topic{{Name: absent, Partitions: 3, Config: map[string]string{}}}
	if err := localkafka.CreateTopics(t.Context(), addr, declared, 1); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := localkafka.DeleteTopic(context.WithoutCancel(t.Context()), addr, absent); err != nil {
			t.Error(err)
		}
	})
	eventually(t, "the outbox is empty", empty(t, b))
	if err := inOrder(byKey(late), published(t, addr, absent)); err != nil {
		t.Error(err)
	}
	if err := inOrder(byKey(slices.Concat(before, behind)), published(t, addr, present)); err != nil {
		t.Error(err)
	}
}

func gather(t *testing.T, c prometheus.Collector) []*dto.MetricFamily {
	t.Helper()
	reg := prometheus.NewRegistry()
	reg.MustRegister(c)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return families
}

func failures(t *testing.T, b *Box) float64 {
	t.Helper()
	var sum float64
	for _, f := range gather(t, b.failures) {
		for _, m := range f.GetMetric() {
			sum += m.GetCounter().GetValue()
		}
	}
	return sum
}

// shown returns the series of the outbox, as a text, with the age in whole minutes.
func shown(t *testing.T, b *Box) string {
	t.Helper()
	got := map[string]string{}
	for _, f := range gather(t, b) {
		value := f.GetMetric()[0].GetGauge().GetValue()
		if strings.HasSuffix(f.GetName(), "_seconds") {
			value = math.Ceil(value / 60)
		}
		got[strings.TrimPrefix(f.GetName(), "test_outbox_")] = fmt.Sprintf("%.0f", value)
	}
	text := "rows " + got["rows"]
	if oldest, ok := got["oldest_seconds"]; ok {
		text += ", oldest " + oldest
	}
	return text
}

// The age is that of the first row that is not acknowledged. It is absent if it cannot be read: 0
// would mean that no row waits.
func TestTheAgeOfTheOldestRow(t *testing.T) {
	t.Parallel()
	databases(t, func(t *testing.T, open func() *Box) {
		b := open()
		addAt := func(ago time.Duration) {
			if err := addAt(t, b, time.Now().Add(-ago), numbered("topic", 0, 1)...); err != nil {
				t.Fatal(err)
			}
		}
		check := func(when, want string) {
			t.Helper()
			if got := shown(t, b); got != want {
				t.Errorf("%s: %s, want %s", when, got, want)
			}
		}
		check("empty", "rows 0, oldest 0")
		addAt(2*time.Hour - 30*time.Second)
		addAt(time.Hour - 30*time.Second)
		check("nothing published", "rows 2, oldest 120")
		published := acknowledged(t, b, 1, 1)
		check("the first one published", "rows 1, oldest 60")
		published(2, 1)
		check("all published", "rows 0, oldest 0")
		// The clock was set back.
		addAt(-time.Hour)
		check("accepted in the future", "rows 1, oldest 0")

		// A scrape does not wait for a transaction. This one ends only after the scrape, which would
		// give up after a second and show no age.
		if err := b.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
			if _, err := tx.Exec("DELETE FROM outbox"); err != nil {
				return err
			}
			check("while a transaction is under way", "rows 1, oldest 0")
			return errors.New("rolled back")
		}); err == nil {
			t.Error("the transaction was to be rolled back")
		}

		if err := b.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
			_, err := tx.Exec("DROP TABLE outbox")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		check("unreadable", "rows 1")
	})
}

// A refusal of the client counts like a refusal of Kafka.
func TestARowThatTheClientRefusesIsCounted(t *testing.T) {
	t.Parallel()
	b := open(t, filepath.Join(t.TempDir(), "t.db"))
	add(t, b, contract.Message{Topic: "topic", Key: []byte("large"), Value: make([]byte, 3<<20)})
	relaying(t, b, testenv.Fake(t))
	eventually(t, "the refusal is counted", func() bool {
		return strings.Contains(fmt.Sprint(gather(t, b.failures)), `value:"MSG_SIZE_TOO_LARGE"`)
	})
}

func TestARestartGoesOnWhereItWas(t *testing.T) {
	databases(t, func(t *testing.T, open func() *Box) {
		addr := testenv.Fake(t)
		topic := testenv.NewTopic(t, addr, 3)
		b := open()
		all := numbered(topic, 0, 3000)
		before := runtime.NumGoroutine()
		for i := 0; i < len(all); i += 300 {
			add(t, b, all[i:i+300]...)
			// Stopped at once.
			relaying(t, b, addr, topic)()
		}
		eventually(t, "no goroutine of a relay is left", func() bool { return runtime.NumGoroutine() <= before })
		stop := relaying(t, b, addr, topic)
		eventually(t, "the outbox is empty", empty(t, b))
		stop()
		if err := inOrder(byKey(all), published(t, addr, topic)); err != nil {
			t.Error(err)
		}
		add(t, b, numbered(topic, 3000, 1)...)
		var id int64
		err := b.db.Query(t.Context(), "SELECT id FROM outbox", func(r *sql.Rows) error { return r.Scan(&id) })
		if err != nil || id != 3001 {
			t.Errorf("after the table was empty the next id is %d (%v), want 3001: an id is never used again", id, err)
		}
	})
}

// A relay that has to end while Kafka is away keeps its rows. None of them has failed.
func TestAnOrderlyEndIsNoFailure(t *testing.T) {
	t.Parallel()
	b := open(t, filepath.Join(t.TempDir(), "t.db"))
	add(t, b, numbered("topic", 0, 10)...)
	relayAs(t, b, noKafka)()
	if n := rows(t, b); n != 10 {
		t.Errorf("%d rows stay, want 10", n)
	}
	if n := failures(t, b); n != 0 {
		t.Errorf("%v failures, want none", n)
	}
}

// Two relays with the same transactional IDs publish from two stores. The first one ends, and takes
// nothing back, whichever of its producers is next.
func TestARelayThatIsFencedEnds(t *testing.T) {
	fake := func(t *testing.T) string { return testenv.Fake(t) }
	shared := func(t *testing.T) string { return testenv.SharedKafka(t).Addr }
	for _, c := range []struct {
		name  string
		start func(*testing.T) string
		pages int
	}{
		{"fake Kafka", fake, 1},
		{"real Kafka, the second producer is next", shared, 1},
		{"real Kafka, the first producer is next", shared, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			addr := c.start(t)
			topic := testenv.NewTopic(t, addr, 1)
			cfg := broker.Config{Client: kafkaconfig.Client{Brokers: []string{addr}}}
			first := open(t, filepath.Join(t.TempDir(), "first.db"))
			ended := make(chan error, 1)
			go func() { ended <- first.Relay(t.Context(), target(t, cfg, topic), nil) }()
			for i := range c.pages {
				add(t, first, numbered(topic, i, 1)...)
				eventually(t, "the first relay has published", empty(t, first))
			}
			second := open(t, filepath.Join(t.TempDir(), "second.db"))
			add(t, second, numbered(topic, c.pages, 1)...)
			relaying(t, second, addr, topic)
			eventually(t, "the second relay has published", empty(t, second))
			add(t, first, numbered(topic, c.pages+1, 1)...)
			if err := <-ended; !errors.Is(err, broker.ErrProducerFenced) {
				t.Errorf("the first relay ends with %v, want ErrProducerFenced", err)
			}
			if n := rows(t, first); n != 1 {
				t.Errorf("%d rows in the first outbox, want the one that was not published", n)
			}
			if n := len(testenv.ReadAll(t, addr, topic)); n != c.pages+1 {
				t.Errorf("%d records in the topic, want %d", n, c.pages+1)
			}
		})
	}
}

// A transaction that completes another one may be aborted, and takes the records with it. What Kafka has
// committed counts as published only if that has succeeded.
func TestWhatCannotBeCompletedIsPublishedAgain(t *testing.T) {
	b := open(t, filepath.Join(t.TempDir(), "t.db"))
	add(t, b, numbered("topic", 0, 3)...)
	cfg := broker.Config{Client: kafkaconfig.Client{Brokers: []string{testenv.SharedKafka(t).Addr}}}
	// Kafka refuses to look up a topic of this name.
	r, err := newRelay(b, target(t, cfg, "no topic"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.transactions.Close()
	term := newTerm(b, 0)
	term.committed, term.completed = []committedPage{{last: 3, rows: 3}}, true
	if err := r.session(t.Context(), t.Context(), term); err == nil {
		t.Error("the session has succeeded")
	}
	if len(term.committed) > 0 || term.completed || term.lastAcked() != 0 {
		t.Errorf("committed %v, completed %t, acknowledged up to %d; want nothing",
			term.committed, term.completed, term.lastAcked())
	}
}

func TestHeadersAreKeptToTheByte(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		hs := []contract.Header{}
		for range rng.IntN(5) {
			h := contract.Header{Key: strings.Repeat("k", rng.IntN(300))}
			if n := rng.IntN(300); n > 0 {
				h.Value = make([]byte, n-1)
				for i := range h.Value {
					h.Value[i] = byte(rng.Uint32())
				}
			}
			hs = append(hs, h)
		}
		got, err := decodeHeaders(encodeHeaders(hs))
		if diff := cmp.Diff(hs, got); err != nil || diff != "" {
			t.Fatalf("%v (-want +got):\n%s", err, diff)
		}
	}
	for _, damaged := range [][]byte{{5}, {1, 'k'}, {1, 'k', 9, 'v'}, {0x80}} {
		if _, err := decodeHeaders(damaged); !errors.Is(err, errHeaders) {
			t.Errorf("decodeHeaders(%v): %v, want %v", damaged, err, errHeaders)
		}
	}
}

// acknowledged acknowledges rows up to the ID last in a new term, and deletes them. more does so with more
// rows of the same term.
func acknowledged(t *testing.T, b *Box, last, rows int64) (more func(last, rows int64)) {
	t.Helper()
	term := newTerm(b, 0)
	if err := term.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	more = func(last, rows int64) {
		t.Helper()
		term.acknowledge([]committedPage{{last: last, rows: rows}})
		if err := term.deleteAll(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	more(last, rows)
	return more
}

// exec changes the database behind the outbox's back.
func exec(t *testing.T, b *Box, query string) {
	t.Helper()
	if err := b.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
		_, err := tx.Exec(query)
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// However many keys are asked for, their rows are found in one pass through the table.
func TestRowsOfManyKeysAreFoundFast(t *testing.T) {
	t.Parallel()
	databases(t, func(t *testing.T, open func() *Box) {
		b := open()
		const rows = 20_000
		add(t, b, numbered("topic", 0, rows)...)
		find := func(unknown int, known ...string) (found []Row, took time.Duration) {
			t.Helper()
			keys := make(map[string]bool)
			for i := range unknown {
				keys[fmt.Sprint("unknown", i)] = true
			}
			for _, key := range known {
				keys[key] = true
			}
			err := b.db.Tx(t.Context(), func(tx *sqldb.Tx) (err error) {
				l, err := b.Lock(tx)
				if err != nil {
					return err
				}
				begin := time.Now()
				err = l.Waiting(keys, func(row Row) error { found = append(found, row); return nil })
				took = time.Since(begin)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			return found, took
		}
		// A busy machine may keep any one of them waiting. A search per key would show each time.
		for pairs := 1; ; pairs++ {
			_, few := find(256)
			_, many := find(256 * 64)
			if many <= 10*few {
				break
			}
			if pairs == 20 {
				t.Errorf("64 times as many keys take %v instead of %v", many, few)
				break
			}
		}
		found, _ := find(256, "key3", "key5")
		n := 0
		for i := range rows {
			if i%7 != 3 && i%7 != 5 {
				continue
			}
			if n >= len(found) || string(found[n].Value) != fmt.Sprint(i) {
				t.Fatalf("row %d of two keys is not message %d", n, i)
			}
			n++
		}
		if n != len(found) {
			t.Errorf("%d rows are found, want %d", len(found), n)
		}
	})
}

// The rows of a few keys may be the whole backlog, which need not fit into memory.
func TestRowsOfOneKeyAreNotKeptInMemory(t *testing.T) {
	databases(t, func(t *testing.T, open func() *Box) {
		b := open()
		const rows, size = 20_000, 2 << 10
		all := numbered("topic", 0, rows)
		for i := range all {
			all[i].Key, all[i].Value = []byte("key"), make([]byte, size)
		}
		for page := range slices.Chunk(all, 1000) {
			add(t, b, page...)
		}
		live := func() uint64 {
			var stats runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&stats)
			return stats.HeapAlloc
		}
		n, before, most := 0, live(), uint64(0)
		err := b.db.Tx(t.Context(), func(tx *sqldb.Tx) error {
			l, err := b.Lock(tx)
			if err != nil {
				return err
			}
			return l.Waiting(map[string]bool{"key": true}, func(Row) error {
				if n++; n%(rows/10) == 0 {
					most = max(most, live())
				}
				return nil
			})
		})
		if err != nil || n != rows {
			t.Fatalf("%d rows, %v, want %d", n, err, rows)
		}
		if most > before+rows*size/4 {
			t.Errorf("%d MiB more are in use for rows of %d MiB", (most-before)>>20, rows*size>>20)
		}
		runtime.KeepAlive(all)
	})
}

// A message that is not written, or a row that is deleted before it was published, is a lost event.
func TestALostWriteIsAnError(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		// Run on the database.
		broken string
		// last and rows are what is acknowledged.
		last, rows int64
		want       sqldb.CountError
	}{
		"a message is not written": {
			"CREATE TRIGGER x BEFORE INSERT ON outbox BEGIN SELECT RAISE(IGNORE); END", 0, 0,
			sqldb.CountError{Changed: 0, Want: 2},
		},
		"the ledger is not written": {
			"CREATE TRIGGER x BEFORE UPDATE ON ledger BEGIN SELECT RAISE(IGNORE); END", 0, 0,
			sqldb.CountError{Changed: 0, Want: 1},
		},
		"acknowledged rows stay": {
			"CREATE TRIGGER x BEFORE DELETE ON outbox BEGIN SELECT RAISE(IGNORE); END", 2, 2,
			sqldb.CountError{Changed: 0, Want: 2},
		},
		"a row before them was never published": {"", 3, 2, sqldb.CountError{Changed: 3, Want: 2}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := open(t, filepath.Join(t.TempDir(), "t.db"))
			add(t, b, numbered("topic", 0, 3)...)
			if c.broken != "" {
				exec(t, b, c.broken)
			}
			var err error
			if c.rows == 0 {
				err = addAt(t, b, time.Now(), numbered("topic", 3, 2)...)
			} else {
				term := newTerm(b, 0)
				term.acknowledge([]committedPage{{c.last, c.rows, nil}})
				err = term.deleteAll(t.Context())
			}
			if got, is := errors.AsType[*sqldb.CountError](err); !is || *got != c.want {
				t.Errorf("%v, want %v", err, &c.want)
			}
			if got := rows(t, b); got != 3 {
				t.Errorf("%d rows are counted after the roll-back, want 3", got)
			}
		})
	}
}

// A commit that reported an error may have taken effect: its acknowledged rows are gone. The relay begins
// again with what the database has.
func TestADeletionInDoubtEndsTheTerm(t *testing.T) {
	t.Parallel()
	databases(t, func(t *testing.T, open func() *Box) {
		b := open()
		add(t, b, numbered("topic", 0, 3)...)
		acknowledged(t, b, 2, 2)
		inDoubt := newTerm(b, 0)
		inDoubt.acknowledge([]committedPage{{last: 3, rows: 3}})
		if err := inDoubt.deleteAll(t.Context()); !errors.Is(err, errMoved) {
			t.Errorf("%v, want %v", err, errMoved)
		}
		if err := inDoubt.load(t.Context()); err != nil || inDoubt.lastAcked() != 2 {
			t.Errorf("the next session begins behind row %d, %v, want 2", inDoubt.lastAcked(), err)
		}
		if got := rows(t, b); got != 1 {
			t.Errorf("%d rows are counted, want 1", got)
		}
	})
}

// After a failover to a server that lacks the last commits, other messages get the IDs of messages that were
// published. They must not be taken for these: on another server the relay forgets what it knows.
func TestARelayForgetsItsTermOnAnotherServer(t *testing.T) {
	t.Parallel()
	b := open(t, filepath.Join(t.TempDir(), "t.db"))
	add(t, b, numbered("topic", 0, 3)...)
	before := newTerm(b, 0)
	before.serverChanges--
	before.acknowledge([]committedPage{{last: 3, rows: 3}})
	if err := before.deleteAll(t.Context()); !errors.Is(err, errOtherServer) {
		t.Errorf("%v, want %v", err, errOtherServer)
	}
	b.term.Store(before)
	if published, err := b.Published(t.Context(), 3); published || err != nil {
		t.Errorf("a row of the new server counts as published: %v, %v", published, err)
	}
	if got := rows(t, b); got != 3 {
		t.Errorf("%d rows are left, want 3", got)
	}
}

// While no messages are added, only the relay deletes acknowledged rows. It must not give up after
// a failure.
func TestAFailedCleanUpIsTriedAgain(t *testing.T) {
	t.Parallel()
	addr := testenv.Fake(t)
	topic := testenv.NewTopic(t, addr, 1)
	b := open(t, filepath.Join(t.TempDir(), "t.db"))
	failed := make(chan struct{})
	once := sync.OnceFunc(func() { close(failed) })
	b.log = slog.New(slog.NewTextHandler(lines(func(line string) {
		if strings.Contains(line, "acknowledged rows stay") {
			once()
		}
	}), nil))
	exec(t, b, "CREATE TRIGGER x BEFORE DELETE ON outbox BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
	add(t, b, numbered(topic, 0, 1)...)
	relaying(t, b, addr, topic)
	<-failed
	exec(t, b, "DROP TRIGGER x")
	eventually(t, "the outbox is empty", empty(t, b))
}

// lines is a writer for a log. It is called with each line.
type lines func(line string)

func (l lines) Write(line []byte) (int, error) {
	l(string(line))
	return len(line), nil
}
