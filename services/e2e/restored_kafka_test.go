package e2e

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
)

// A broker whose disk is replaced by an old copy has lost records, and gives their offsets again.
// Order's offsets are then in the middle of other records. It finds all orders that are in the
// topics all the same, whether it was away or goes on with the connection that comes back. It logs
// and counts what happened.
func TestKafkaIsRestoredFromAnOldCopy(t *testing.T) {
	t.Parallel()
	for name, away := range map[string]bool{"Order is away": true, "Order runs on": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			kafka := testenv.StartKafkaWith(t, localkafka.Options{Dir: dir})
			declare(t, kafka.Addr)
			order := newOrder(t, kafka.Addr).start().ready()
			id := func(kind string, n int) string { return fmt.Sprint(kind, "-", n) }
			create := func(kind string, count int) {
				t.Helper()
				var ms []contract.Message
				for n := range count {
					ms = append(ms, message(id(kind, n), id(kind, n), contract.StatusNew, 1))
				}
				testenv.Produce(t, kafka.Addr, ms...)
			}
			sees := func(kind string, count int) {
				t.Helper()
				eventually(t, patience, "Order knows all orders "+kind, func() (bool, string) {
					found := 0
					for n := range count {
						target := order.api + "/order/order-details?orderId=" + id(kind, n)
						if do(t, http.MethodGet, target, "").status == http.StatusOK {
							found++
						}
					}
					return found == count, fmt.Sprintf("%d of %d", found, count)
				})
			}
			audit := func(want int) {
				t.Helper()
				got := order.audit(contract.TopicCreated)
				if !strings.Contains(got.body, fmt.Sprintf("'%s': %d", contract.TopicCreated, want)) {
					t.Errorf("audit: %.200s, want %d orders", got.body, want)
				}
			}
			data, old := dir+"/data", t.TempDir()+"/data"

			create("old", 100)
			sees("old", 100)
			kafka.Stop()
			if err := os.CopyFS(old, os.DirFS(data)); err != nil {
				t.Fatal(err)
			}
			if err := kafka.StartAgain(t.Context()); err != nil {
				t.Fatal(err)
			}
			create("lost", 100)
			sees("lost", 100)
			audit(200)
			if away {
				order.stop()
			}
			kafka.Stop()
			if err := os.RemoveAll(data); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(old, data); err != nil {
				t.Fatal(err)
			}
			if err := kafka.StartAgain(t.Context()); err != nil {
				t.Fatal(err)
			}
			// At once, so that the log grows past Order's offsets before Order reads.
			create("new", 300)
			if away {
				order.start().ready()
			}
			sees("new", 300)
			sees("old", 100)
			if n := order.metric("order_logs_replaced_total"); n == 0 {
				t.Error("the loss is not counted")
			}
			if !strings.Contains(order.log(), "Kafka has lost records") {
				t.Error("the loss is not logged")
			}
			audit(400)
			order.stop()
		})
	}
}
