package testenv

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"

	"ordersystem.dev/services/internal/localkafka"
)

func TestRequire(t *testing.T) {
	missing := fmt.Errorf("start: %w", &localkafka.MissingError{Program: "java", Install: "a JDK"})
	for _, tt := range []struct {
		name     string
		err      error
		required string
		want     string
	}{
		{"all is there", nil, "", "runs"},
		{"something is missing", missing, "", "skipped"},
		{"something is missing and required", missing, "1", "failed"},
		{"something is broken", errors.New("broken"), "", "failed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("TEST_REQUIRE", tt.required)
			r := &recorder{TB: t, outcome: "runs"}
			var wg sync.WaitGroup // what ends a test ends its goroutine
			wg.Go(func() { Require(r, tt.err) })
			wg.Wait()
			if r.outcome != tt.want {
				t.Errorf("the test is %s, want %s", r.outcome, tt.want)
			}
		})
	}
}

// recorder notes what a real test would do.
type recorder struct {
	testing.TB
	outcome string
}

func (r *recorder) Skipf(string, ...any) { r.outcome = "skipped"; runtime.Goexit() }
func (r *recorder) Fatal(...any)         { r.outcome = "failed"; runtime.Goexit() }
