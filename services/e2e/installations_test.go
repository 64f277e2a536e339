package e2e

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/testenv"
)

// Two installations use one Kafka: the names of the second begin with its prefix. Its user may touch
// nothing else there, and the first goes on as if it were alone.
func TestTwoInstallationsBesideOneKafka(t *testing.T) {
	t.Parallel()
	const prefix = "staging."
	kafka := testenv.StartSecureKafka(t)
	declare(t, kafka.Addr)
	declare(t, kafka.Addr, contract.TopicsOf(prefix)...)
	kafka.Allow(t, "staging", "topic "+prefix+"* Read", "topic "+prefix+"* Write",
		"group "+prefix+"* Read", "transactional-id "+prefix+"* Write")
	env := []string{"KAFKA_PREFIX=" + prefix}
	for name, value := range kafka.NewUser(t, "staging").Env() {
		env = append(env, name+"="+value)
	}

	cart, order := newCart(t, kafka.Addr).start().ready(), newOrder(t, kafka.Addr).start().ready()
	cart.create("both")
	staged, stagedOrder := newCart(t, kafka.TLSAddr, env...), newOrder(t, kafka.TLSAddr, env...)
	staged.start().ready()
	stagedOrder.start().ready()
	staged.create("both")
	staged.update("both", "Staged")
	staged.create("staged")
	// The relay of the first installation is not fenced by that of the second.
	cart.update("both", "Paid")
	cart.create("first")

	order.sees("both", 2, "Paid")
	order.sees("first", 1, contract.StatusNew)
	stagedOrder.sees("both", 2, "Staged")
	stagedOrder.sees("staged", 1, contract.StatusNew)
	for p, other := range map[*process]string{order: "staged", stagedOrder: "first"} {
		got := p.audit(contract.TopicCreated)
		if got.status != http.StatusOK || !strings.Contains(got.body, `"both"`) || strings.Contains(got.body, other) {
			t.Errorf("an audit lacks an order of its own installation, or has one of the other: %d %s",
				got.status, got.body)
		}
	}

	// A dead letter stays in its installation, and says where the record is in Kafka.
	bad := contract.Message{Topic: prefix + contract.TopicCreated, Key: []byte("bad"), Value: []byte("no order")}
	testenv.Produce(t, kafka.Addr, bad)
	var letters []testenv.Record
	eventually(t, patience, "the dead letter is published", func() (bool, string) {
		letters = testenv.ReadAll(t, kafka.Addr, prefix+contract.TopicDeadLetter)
		return len(letters) == 1, stagedOrder.log()
	})
	if at := letters[0].Headers; !slices.ContainsFunc(at, func(h contract.Header) bool {
		return h.Key == "dlt-topic" && string(h.Value) == bad.Topic
	}) {
		t.Errorf("the dead letter of a record in %s has the headers %s", bad.Topic, at)
	}
	if others := testenv.ReadAll(t, kafka.Addr, contract.TopicDeadLetter); len(others) != 0 {
		t.Errorf("the other installation has dead letters too: %v", others)
	}

	// A new store is filled from the topics of the installation.
	rebuilt := newCart(t, kafka.TLSAddr, env...)
	staged.stop()
	rebuilt.start().ready()
	if version := rebuilt.update("both", "Rebuilt"); version != 3 {
		t.Errorf("a rebuilt Cart gives the order version %d, want 3", version)
	}
	stagedOrder.sees("both", 3, "Rebuilt")
	order.sees("both", 2, "Paid")

	// A store belongs to the topics that it has used.
	rebuilt.stop()
	stagedOrder.stop()
	for _, p := range []*process{rebuilt, stagedOrder} {
		p.env = append(p.env, "KAFKA_PREFIX=other.")
		p.start().ends(grace)
		if code := p.cmd.ProcessState.ExitCode(); code == 0 {
			t.Errorf("%s ended without an error although its store is that of another prefix", p.name)
		}
		if last := p.log(); !strings.Contains(last, "set KAFKA_PREFIX to what it was, or use another store") {
			t.Errorf("%s does not say what to do: %s", p.name, last[max(0, len(last)-1000):])
		}
	}
}
