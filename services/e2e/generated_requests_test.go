package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"ordersystem.dev/services/internal/testenv"
)

// Schemathesis makes requests out of the OpenAPI documents, valid ones and invalid ones, and checks the
// responses against them: no server error, nothing undocumented, nothing valid refused, nothing invalid
// accepted. A seed makes the same requests again; SCHEMATHESIS_SEED sets another one.
func TestGeneratedRequests(t *testing.T) {
	t.Parallel()
	testenv.RequireProgram(t, "schemathesis", "pip install -r services/e2e/requirements.txt")
	seed := os.Getenv("SCHEMATHESIS_SEED")
	if seed == "" {
		seed = "1"
	}
	folder, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	_, cart, order := startSystem(t)
	t.Run("documents", func(t *testing.T) {
		for document, api := range map[string]string{"cart": cart.api, "order": order.api} {
			t.Run(document, func(t *testing.T) {
				t.Parallel()
				cmd := exec.CommandContext(t.Context(), "schemathesis",
					"--config-file", filepath.Join(folder, "schemathesis.toml"),
					"run", filepath.Join(folder, "../contract/openapi-"+document+".yaml"), "--url", api,
					"--include-path-regex", "(?i)^/order/", "--checks", "all",
					"--phases", "examples,coverage,fuzzing", "--max-examples", "20", "--seed", seed,
					"--continue-on-failure", "--no-color",
					// On a busy machine.
					"--suppress-health-check", "all", "--request-timeout", "60")
				// It leaves files where it runs.
				cmd.Dir = t.TempDir()
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("%v\n%s", err, out)
				}
			})
		}
	})
	cart.stop()
	order.stop()
}
