package e2e

import (
	"os"
	"os/exec"
	"testing"

	"ordersystem.dev/services/internal/testenv"
)

// The requests that come with the reference system, and those of this one, on the real programs and
// a real Kafka.
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
	testenv.RequireProgram(t, "bash", "bash")
	testenv.RequireProgram(t, "node", "Node.js")
	if _, err := os.Stat("../../docs/postman/node_modules/.bin/newman"); err != nil {
		testenv.RequireProgram(t, "npm", "npm, which some systems package apart from Node.js")
	}
	send := exec.CommandContext(t.Context(), "../../docs/postman/run.sh", cart, order, "--color", "off")
	if out, err := send.CombinedOutput(); err != nil {
		t.Errorf("newman: %v\n%s", err, out)
	}
}
