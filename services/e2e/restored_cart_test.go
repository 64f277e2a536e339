package e2e

import (
	"net/http"
	"os"
	"strings"
	"testing"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
)

// A Cart that gets an old copy of its database back adopts what was published since. No version is
// given twice, and no order is created twice.
func TestARestoredCartAdoptsWhatWasPublishedSince(t *testing.T) {
	t.Parallel()
	kafka, cart, order := startSystem(t)
	cart.create("old")
	settle(t, kafka.Addr, cart, order)
	cart.stop()
	backup := copyOf(t, cart.dir)
	cart.start().ready()
	cart.update("old", "after the backup")
	cart.create("new")
	settle(t, kafka.Addr, cart, order)
	cart.stop()
	restore(t, backup, cart.dir)

	cart.start().ready().compares()
	if v := cart.update("old", "after the restore"); v != 3 {
		t.Errorf("the restored Cart gives version %d, want 3", v)
	}
	if got := do(t, http.MethodPost, cart.api+"/Order/create-order",
		`{"OrderId": "new", "ItemsNum": 1}`); got.status != http.StatusConflict {
		t.Errorf("creating an order that was created after the backup: %d %s, want 409", got.status, got.body)
	}
	order.sees("old", 3, "after the restore")
	noLetters(t, kafka.Addr)
	cart.stop()
	order.stop()
}

// The copy was restored while Kafka was away, and took an update whose version is in the topics
// already. Nothing can decide between the two.
func TestARestoredCartThatConflictsPublishesNothing(t *testing.T) {
	t.Parallel()
	kafka, cart, order := startSystem(t)
	cart.create("order")
	cart.create("other")
	settle(t, kafka.Addr, cart, order)
	cart.stop()
	backup := copyOf(t, cart.dir)
	cart.start().ready()
	cart.update("order", "after the backup")
	settle(t, kafka.Addr, cart, order)
	cart.stop()
	restore(t, backup, cart.dir)
	kafka.Stop()
	cart.start().ready()
	if v := cart.update("order", "after the restore"); v != 2 {
		t.Fatalf("the restored Cart gives version %d, want 2", v)
	}
	cart.update("other", "waits")
	if err := kafka.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	cart.notReady("1 orders were changed here and by another Cart since this store was copied")
	cart.notReady("Restore a backup of Cart): order")
	if got := cart.metric("cart_outbox_rows"); got != 2 {
		t.Errorf("cart_outbox_rows is %v, want both updates", got)
	}
	if got := len(testenv.ReadAll(t, kafka.Addr, contract.TopicUpdated)); got != 1 {
		t.Errorf("%d updates are published, want the one after the backup", got)
	}
	cart.stop()
	order.stop()
}

// A crash after Kafka has committed a page, and before the rows are deleted, publishes nothing twice.
func TestACommittedPageIsNotPublishedTwice(t *testing.T) {
	t.Parallel()
	kafka, cart, order := startSystem(t)
	kafka.Stop()
	cart.create("order")
	cart.update("order", "second")
	cart.kill()
	full := copyOf(t, cart.dir)
	if err := kafka.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	cart.start().ready()
	settle(t, kafka.Addr, cart, order)
	cart.stop()
	restore(t, full, cart.dir)
	cart.start().ready()
	settle(t, kafka.Addr, cart, order)
	if got := len(readTopics(t, kafka.Addr)); got != 2 {
		t.Errorf("%d records in the topics, want the creation and the update, each once", got)
	}
	if v := cart.update("order", "third"); v != 3 {
		t.Errorf("the next version is %d, want 3", v)
	}
	cart.stop()
	order.stop()
}

// What Cart has published is gone from Kafka. Cart goes on, and is loud about it.
func TestCartNoticesThatItsRecordsAreGone(t *testing.T) {
	t.Parallel()
	kafka, cart, order := startSystem(t)
	cart.create("order")
	cart.update("order", "second")
	settle(t, kafka.Addr, cart, order)
	cart.stop()
	order.stop()
	if err := localkafka.DeleteTopic(t.Context(), kafka.Addr, contract.TopicCreated); err != nil {
		t.Fatal(err)
	}
	eventually(t, patience, "the topic is recreated", func() (bool, string) {
		err := localkafka.CreateTopics(t.Context(), kafka.Addr, contract.Topics()[:1], 1)
		if err != nil {
			return false, err.Error()
		}
		return true, ""
	})
	cart.start().ready().compares()
	// Offsets do not tell the markers of transactions from the record.
	if got := cart.metric("cart_published_records_lost_total"); got < 1 {
		t.Errorf("cart_published_records_lost_total is %v, want 1 or more", got)
	}
	if !strings.Contains(cart.log(), "Kafka has lost records that were published") {
		t.Error("the log does not say so")
	}
	cart.create("next")
	eventually(t, patience, "Cart publishes", func() (bool, string) {
		return len(testenv.ReadAll(t, kafka.Addr, contract.TopicCreated)) == 1, ""
	})
	cart.stop()
}

// compares waits until Cart has compared its store with the topics. If Kafka is slow, Cart is ready before that.
func (p *process) compares() {
	p.t.Helper()
	eventually(p.t, patience, p.name+" has compared its store with the topics", func() (bool, string) {
		got, err := send(http.MethodPost, p.ops+"/republish?orderId=no-such-order", "")
		return err == nil && got.status != http.StatusServiceUnavailable, got.body
	})
}

// copyOf copies the data directory of a service that does not run.
func copyOf(t *testing.T, dir string) string {
	t.Helper()
	backup := t.TempDir()
	restore(t, dir, backup)
	return backup
}

// restore replaces a directory by its copy.
func restore(t *testing.T, backup, dir string) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(dir, os.DirFS(backup)); err != nil {
		t.Fatal(err)
	}
}

// noLetters checks that no record was made a dead letter.
func noLetters(t *testing.T, kafka string) {
	t.Helper()
	if letters := testenv.ReadAll(t, kafka, contract.TopicDeadLetter); len(letters) > 0 {
		t.Errorf("%d dead letters: %+v", len(letters), letters)
	}
}
