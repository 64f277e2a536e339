package e2e

import (
	"os"
	"os/exec"
	"testing"
)

// The requests that come with the reference system, and those of this one, on the real programs and a real Kafka.
func TestPostmanRequests(t *testing.T) {
	t.Parallel()
	_, cart, order := startSystem(t)
	postman(t, cart.api, order.api)
	cart.stop()
	order.stop()
}

// postman sends the collection; every assertion in it must hold.
func postman(t *testing.T, cart, order string) {
	t.Helper()
	if _, err := exec.LookPath("npx"); err != nil {
		if os.Getenv("TEST_REQUIRE") == "1" {
			t.Fatal(err)
		}
		t.Skipf("%v: Node.js is needed (TEST_REQUIRE=1 makes this a failure)", err)
	}
	if out, err := exec.CommandContext(t.Context(), "../../docs/postman/run.sh", cart, order, "--color", "off").CombinedOutput(); err != nil {
		t.Errorf("newman: %v\n%s", err, out)
	}
}
