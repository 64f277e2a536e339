package e2e

import (
	"fmt"
	"os"
	"testing"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/testenv"
)

// These are the steps of docs/operations.md. Each service rebuilds its new store from Kafka, which has
// everything once Cart's outbox is empty. Versions go on where they were.
func TestAMoveToPostgreSQLAndBack(t *testing.T) {
	t.Parallel()
	url := testenv.Postgres(t)
	kafka, cart, order := startSystem(t)
	const orders = 20
	id := func(n int) string { return fmt.Sprint("order-", n) }
	for n := range orders {
		cart.create(id(n))
	}
	status := contract.StatusNew
	for moves, to := range []struct{ name, databaseURL string }{{"PostgreSQL", url}, {"SQLite", ""}} {
		settle(t, kafka.Addr, cart, order)
		cart.stop()
		order.stop()
		for _, p := range []*process{cart, order} {
			// SQLite begins with an empty directory.
			if err := os.RemoveAll(p.dir); err != nil {
				t.Fatal(err)
			}
			p.env = append(p.env, "DATABASE_URL="+to.databaseURL)
			p.start().ready()
		}
		for n := range orders {
			version := int64(1 + moves)
			order.sees(id(n), version, status)
			if got := cart.update(id(n), "moved to "+to.name); got != version+1 {
				t.Errorf("%s got version %d after the move to %s, want %d", id(n), got, to.name, version+1)
			}
			order.sees(id(n), version+1, "moved to "+to.name)
		}
		status = "moved to " + to.name
	}
	settle(t, kafka.Addr, cart, order)
	cart.stop()
	order.stop()
}
