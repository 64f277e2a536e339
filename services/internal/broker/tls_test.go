package broker

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/testenv"
)

func userConfig(u *testenv.User) Config {
	vars := u.Env()
	return ConfigFromEnv(env.New(func(name string) string { return vars[name] }))
}

// lines is a log that the test can search.
type lines struct {
	testenv.Lines

	t testing.TB
}

func (l *lines) Write(p []byte) (int, error) {
	_, _ = l.Lines.Write(p)
	return l.t.Output().Write(p)
}

// count returns how many lines hold text.
func (l *lines) count(text string) (n int) {
	for line := range strings.Lines(l.String()) {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func (l *lines) await(t testing.TB, text string, n int) {
	t.Helper()
	poll(t, fmt.Sprintf("%d lines with %q", n, text), func() bool { return l.count(text) == n })
}

const (
	renewed = "the TLS files have changed: all clients are recreated"
	unfit   = "the TLS files cannot be used"
	refused = "Kafka does not accept them"
)

// All clients survive what Strimzi does to their Secrets, and mistakes in them.
func TestClientsGoOnWithNewTLSFiles(t *testing.T) {
	leaks(t)
	k := testenv.StartSecureKafka(t)
	topic := testenv.NewTopic(t, k.Addr, 2)
	k.Allow(t, "u", "topic "+topic+" Read", "topic "+topic+" Write", "group g Read",
		"transactional-id cart-relay Write")
	u := k.NewUser(t, "u")
	cfg := userConfig(u)
	logged := &lines{t: t}
	log := slog.New(slog.NewTextHandler(logged, nil))
	a, err := NewAdmin(cfg, log)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	s := newStore()
	m := newMember(s)
	c := NewConsumer(cfg, ConsumerConfig{Group: "g", Topics: []string{topic}}, a, log)
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	running.Go(func() { c.Run(ctx, m) })

	var p *Producer
	replace := func() {
		t.Helper()
		if p != nil {
			p.Close()
		}
		if p, err = NewProducer(cfg, "cart-relay", log); err != nil {
			t.Fatal(err)
		}
		if err := p.Fence(inTime(t)); err != nil {
			t.Fatal(err)
		}
	}
	replace()
	defer func() { p.Close() }()
	sent := 0
	works := func(when string) {
		t.Helper()
		for range 10 {
			_, err := p.Publish(inTime(t),
				[]contract.Message{message(topic, fmt.Sprint("key", sent), fmt.Sprint(sent))})
			if err != nil {
				t.Fatalf("%s: %v", when, err)
			}
			sent++
		}
		s.await(t, when, func() bool { return s.count() == sent })
		poll(t, "a look-up "+when, func() bool {
			_, err := a.Topics(t.Context(), topic)
			return err == nil
		})
	}
	// goesOn is called after the Admin has logged its decision, so the producer would be renewed
	// already.
	goesOn := func(when string) {
		t.Helper()
		select {
		case <-p.Renewed():
			t.Fatalf("%s: the producer is renewed", when)
		default:
		}
		works(when)
	}
	follows := func(when string) {
		t.Helper()
		select {
		case <-p.Renewed():
		case <-time.After(60 * time.Second):
			t.Fatalf("%s: the producer is not renewed", when)
		}
		replace()
		works(when)
	}
	works("at first")

	u.Renew(t)
	follows("with a renewed certificate")
	if logged.count(renewed) != 1 || logged.count("joins again") != 0 || c.Err() != nil {
		t.Errorf("a renewal logs one line and is no failure; the error is %v", c.Err())
	}

	// A set that does not fit together.
	cert, key := k.Clients.Issue(t, "u")
	former, err := os.ReadFile(cfg.Key)
	if err != nil {
		t.Fatal(err)
	}
	u.Cert.Change(t, map[string][]byte{"user.crt": cert, "user.key": former})
	logged.await(t, unfit, 1)
	goesOn("with a certificate and the key of another")
	u.Cert.Change(t, map[string][]byte{"user.crt": cert})
	logged.await(t, "user.key: no such file", 1)
	goesOn("without the key")
	u.Cert.Change(t, map[string][]byte{"user.crt": cert, "user.key": key})
	follows("with the set whole again")
	u.CA.Change(t, map[string][]byte{"ca.crt": k.Cluster.PEM[:100]})
	logged.await(t, "ca.crt is not whole", 1)
	goesOn("with half an authority")
	u.CA.Change(t, map[string][]byte{"ca.crt": k.Cluster.PEM})
	logged.await(t, "again those in use", 1)

	// Both authorities are replaced step by step, with their keys. The user has a certificate
	// before the broker knows who signed it.
	oldClients, oldCluster := k.Clients, k.Cluster
	k.Clients, k.Cluster = testenv.NewAuthority(t, "clients-ca-2"), testenv.NewAuthority(t, "cluster-ca-2")
	u.CA.Change(t, map[string][]byte{"ca.crt": k.Cluster.PEM, "ca-old.crt": oldCluster.PEM})
	follows("with both authorities trusted")
	u.Renew(t)
	logged.await(t, refused, 1)
	goesOn("with a certificate that the broker does not know yet")
	k.Certify(t, oldClients, k.Clients)
	k.Restart(t)
	follows("when the broker knows it, and shows a new one itself")
	u.CA.Change(t, map[string][]byte{"ca.crt": k.Cluster.PEM})
	follows("without the former authority")
	k.Certify(t, k.Clients)
	k.Restart(t)
	works("when the former certificates are refused")

	if m.faults != 0 {
		t.Errorf("%d faults in the store", m.faults)
	}
	if got := len(testenv.ReadAll(t, k.Addr, topic)); got != sent {
		t.Errorf("%d records in the topic, want %d, each once", got, sent)
	}
}

// A read whose certificate is refused goes on where it was.
func TestReadToGoesOnWithNewTLSFiles(t *testing.T) {
	t.Parallel()
	k := testenv.StartSecureKafka(t)
	topic := testenv.NewTopic(t, k.Addr, 2)
	// This is more than the client reads ahead.
	const n, size = 600, 100 << 10
	all := messages(topic, n, 50)
	noise := make([]byte, size)
	rand.Read(noise)
	for i := range all {
		all[i].Value = append(slices.Clone(noise), all[i].Value...)
	}
	testenv.Produce(t, k.Addr, all...)
	// It needs no permission on its group.
	k.Allow(t, "u", "topic "+topic+" Read")
	u := k.NewUser(t, "u")
	cfg := userConfig(u)
	first, end, err := patientAdmin(t, cfg).Bounds(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	// The producer shows when there are new files.
	p, err := NewProducer(cfg, "id", logger(t))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()

	next := make(map[int32]int64)
	count := 0
	err = ReadTo(t.Context(), cfg, logger(t), "reader", first, end, func(_ context.Context, records []Record) error {
		if count == 0 {
			k.Clients = testenv.NewAuthority(t, "clients-ca-2")
			k.Certify(t, k.Clients)
			k.Restart(t)
			u.Renew(t)
			<-p.Renewed()
		}
		for _, r := range records {
			if r.Offset != next[r.Partition] {
				return fmt.Errorf("partition %d: offset %d, want %d", r.Partition, r.Offset, next[r.Partition])
			}
			next[r.Partition]++
		}
		count += len(records)
		return nil
	})
	if err != nil || count != n {
		t.Errorf("%d records, want %d; %v", count, n, err)
	}
}

// A client whose certificate was signed by an intermediate authority sends that one's certificate
// too.
func TestCertificateOfAnIntermediateAuthority(t *testing.T) {
	t.Parallel()
	k := testenv.StartSecureKafka(t)
	topic := testenv.NewTopic(t, k.Addr, 1)
	k.Allow(t, "u", "topic "+topic+" Describe")
	u := k.NewUser(t, "u")
	k.Clients = k.Clients.Intermediate(t, "department")
	u.Renew(t)
	if _, err := patientAdmin(t, userConfig(u)).Topics(t.Context(), topic); err != nil {
		t.Error(err)
	}
}

// Each client names an ACL that is missing, and needs no more than those it has here.
func TestMissingACLs(t *testing.T) {
	t.Parallel()
	k := testenv.StartSecureKafka(t)
	topic := testenv.NewTopic(t, k.Addr, 1)
	testenv.Produce(t, k.Addr, message(topic, "k", "v"))
	bounds := map[Partition]int64{{Topic: topic}: 1}

	describe := func(_ testing.TB, cfg Config, a *Admin) error {
		_, _, err := a.Bounds(t.Context(), topic)
		return err
	}
	write := func(t testing.TB, cfg Config, _ *Admin) error {
		p, err := NewProducer(cfg, "cart-relay", logger(t))
		if err != nil {
			return err
		}
		defer p.Close()
		if err := p.Fence(inTime(t)); err != nil {
			return err
		}
		_, err = p.Publish(inTime(t), []contract.Message{message(topic, "k", "v")})
		return err
	}
	read := func(t testing.TB, cfg Config, _ *Admin) error {
		return ReadTo(t.Context(), cfg, logger(t), "g", nil, bounds,
			func(context.Context, []Record) error { return nil })
	}
	run := func(t testing.TB, cfg Config, a *Admin, done func(c *Consumer, m *member) bool) error {
		m := newMember(newStore())
		c := NewConsumer(cfg, ConsumerConfig{Group: "g", Topics: []string{topic}}, a, logger(t))
		ctx, stop := context.WithCancel(t.Context())
		var running sync.WaitGroup
		defer running.Wait()
		defer stop()
		running.Go(func() { c.Run(ctx, m) })
		var err error
		poll(t, "a record or an error", func() bool {
			m.mu.Lock()
			defer m.mu.Unlock()
			ended := done(c, m)
			err = c.Err()
			return ended
		})
		return err
	}
	join := func(t testing.TB, cfg Config, a *Admin) error {
		return run(t, cfg, a, func(c *Consumer, m *member) bool {
			// Kafka may not respond in time before it refuses.
			code := Code(c.Err())
			return code != "" && code != "OTHER" || m.count() > 0
		})
	}
	// beRefused waits for a failure for good. Other errors end when a look-up shows that Kafka
	// responds.
	beRefused := func(t testing.TB, cfg Config, a *Admin) error {
		return run(t, cfg, a, func(c *Consumer, _ *member) bool { return c.failure.Load() != nil })
	}
	for i, test := range []struct {
		name string
		acls []string
		do   func(t testing.TB, cfg Config, a *Admin) error
		code string
		text string
	}{
		{"look-up", []string{"topic T Describe"}, describe, "", ""},
		{"look-up without Describe", nil, describe, "TOPIC_AUTHORIZATION_FAILED", "no permission on the topic"},
		{"producer", []string{"topic T Write", "transactional-id cart-relay Write"}, write, "", ""},
		{
			"producer without Write", []string{"topic T Describe", "transactional-id cart-relay Write"}, write,
			"TOPIC_AUTHORIZATION_FAILED", "a producer needs the ACL Write",
		},
		{
			"producer without its transactional ID", []string{"topic T Write", "transactional-id other Write"}, write,
			"TRANSACTIONAL_ID_AUTHORIZATION_FAILED", "no permission on the transactional ID",
		},
		{"reader", []string{"topic T Read"}, read, "", ""},
		{"reader without Read", []string{"topic T Describe"}, read, "TOPIC_AUTHORIZATION_FAILED", "a consumer Read"},
		{"member", []string{"topic T Read", "group g Read"}, join, "", ""},
		{
			"member without Read of its group", []string{"topic T Read", "group g Describe"}, beRefused,
			"GROUP_AUTHORIZATION_FAILED", "a member needs the ACL Read",
		},
		{
			"member with nothing on its group", []string{"topic T Read"}, beRefused,
			"GROUP_AUTHORIZATION_FAILED", "a member needs the ACL Read",
		},
		{
			"member without Read", []string{"topic T Describe", "group g Read"}, join,
			"TOPIC_AUTHORIZATION_FAILED", "a consumer Read",
		},
		{"member that sees no topic", []string{"group g Read"}, join, "TOPIC_AUTHORIZATION_FAILED", "a consumer Read"},
	} {
		t.Run(test.name, func(t *testing.T) {
			name := fmt.Sprint("user", i)
			for _, acl := range test.acls {
				k.Allow(t, name, strings.Replace(acl, " T ", " "+topic+" ", 1))
			}
			cfg := userConfig(k.NewUser(t, name))
			err := test.do(t, cfg, patientAdmin(t, cfg))
			if Code(err) != test.code || !strings.Contains(fmt.Sprint(err), test.text) {
				t.Errorf("%v, want %s and %q", err, test.code, test.text)
			}
		})
	}
}

func TestARefusedPartitionIsReportedUntilItCanBeRead(t *testing.T) {
	t.Parallel()
	k := testenv.StartSecureKafka(t)
	open, refused := testenv.NewTopic(t, k.Addr, 1), testenv.NewTopic(t, k.Addr, 1)
	cc := group(open, refused)
	cc.TopicCheck = 100 * time.Millisecond
	k.Allow(t, "reader", "topic "+open+" Read", "topic "+refused+" Describe", "topic "+refused+" Read",
		"group "+cc.Group+" Read")
	m := newMember(newStore())
	cfg := userConfig(k.NewUser(t, "reader"))
	var lines testenv.Lines
	c, stop := startWith(t, NewConsumer(cfg, cc, patientAdmin(t, cfg), slog.New(slog.NewTextHandler(&lines, nil))), m)
	defer stop()
	write := func(topic string, n int) {
		t.Helper()
		testenv.Produce(t, k.Addr, message(topic, "k", fmt.Sprint(n)))
	}
	read := func(topic string, n int) func() bool {
		return func() bool { return len(m.values[topicPartition{topic, 0}]) == n }
	}
	write(open, 1)
	write(refused, 1)
	m.await(t, "both topics", func() bool { return read(open, 1)() && read(refused, 1)() })

	k.Revoke(t, "reader", "topic "+refused+" Read")
	write(refused, 2)
	reported := func() bool {
		return Code(c.Err()) == "TOPIC_AUTHORIZATION_FAILED" && strings.Contains(c.Err().Error(), refused+"/0")
	}
	poll(t, "the refusal is reported", reported)
	rebalances := c.Rebalances()
	// Each of these shows that Kafka responds: a record, and a look-up of the topics.
	for n := 2; n < 12; n++ {
		write(open, n)
		m.await(t, "the other topic", read(open, n))
		if _, err := c.admin.Topics(t.Context(), open, refused); err != nil {
			t.Fatal(err)
		}
		if err := c.Err(); !reported() && c.Rebalances() == rebalances {
			t.Fatalf("after %d other records the member reports %v", n, err)
		}
		// A member that has lost its partitions, as on a slow machine, has to find out again.
		poll(t, "the refusal is still reported", reported)
	}
	once := c.Rebalances() == rebalances

	k.Allow(t, "reader", "topic "+refused+" Read")
	m.await(t, "the refused record", read(refused, 2))
	poll(t, "no trouble is left", func() bool { return c.Err() == nil })
	poll(t, "another client goes on", func() bool {
		return strings.Contains(lines.String(), `reason="a partition can be read again`)
	})
	for text, want := range map[string]int{
		"a partition cannot be read": 1, "the partition can be read again": 1,
		"trouble with Kafka": 0, "Kafka responds again": 0,
	} {
		if got := strings.Count(lines.String(), text); got != want && (once || want == 0 || got == 0) {
			t.Errorf("%d lines have %q, want %d:\n%s", got, text, want, lines.String())
		}
	}
}
