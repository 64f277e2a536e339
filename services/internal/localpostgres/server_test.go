package localpostgres_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"ordersystem.dev/services/internal/localpostgres"
	"ordersystem.dev/services/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// A server that was stopped or killed starts again at the same address with all that was committed.
func TestPostgresStartAgain(t *testing.T) {
	t.Parallel()
	s := testenv.StartPostgres(t, localpostgres.Options{})
	exec(t, s, "CREATE TABLE kept (n int)")
	for rows, end := range []struct {
		name string
		end  func()
	}{{"stopped", s.Stop}, {"killed", s.Kill}} {
		t.Run(end.name, func(t *testing.T) {
			if err := s.StartAgain(t.Context()); err == nil {
				t.Error("a running server was started again")
			}
			exec(t, s, "INSERT INTO kept VALUES (1)")
			// A client that is in the middle of something does not keep the server.
			open := connect(t, s)
			if _, err := open.Exec(t.Context(), "BEGIN; INSERT INTO kept VALUES (2)"); err != nil {
				t.Fatal(err)
			}
			url := s.URL("postgres")
			end.end()
			if conn, err := pgx.Connect(t.Context(), url); err == nil {
				conn.Close(t.Context())
				t.Error("something still accepts connections")
			}
			if err := s.StartAgain(t.Context()); err != nil {
				t.Fatal(err)
			}
			if s.URL("postgres") != url {
				t.Errorf("the URL was %s and is %s", url, s.URL("postgres"))
			}
			if got, want := count(t, s), rows+1; got != want {
				t.Errorf("there are %d rows, want those that were committed: %d", got, want)
			}
		})
	}
}

// What a primary acknowledged is on its synchronous standby, which takes over when it is promoted.
// Without the standby, the primary acknowledges nothing.
func TestPostgresStandby(t *testing.T) {
	t.Parallel()
	primary := testenv.StartPostgres(t, localpostgres.Options{})
	exec(t, primary, "CREATE TABLE kept (n int)")
	standby := testenv.StartStandby(t, primary, localpostgres.Options{})

	exec(t, primary, "INSERT INTO kept VALUES (1)")
	standby.Kill()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := connect(t, primary).Exec(ctx, "INSERT INTO kept VALUES (2)"); err == nil {
		t.Error("the primary acknowledged what its standby does not have")
	}
	if err := standby.StartAgain(t.Context()); err != nil {
		t.Fatal(err)
	}
	exec(t, primary, "INSERT INTO kept VALUES (3)")
	primary.Kill()

	_, err := connect(t, standby).Exec(t.Context(), "INSERT INTO kept VALUES (4)")
	const readOnly = "25006"
	if refused, ok := errors.AsType[*pgconn.PgError](err); !ok || refused.Code != readOnly {
		t.Errorf("a standby was written to: %v", err)
	}
	if err := standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
	exec(t, standby, "INSERT INTO kept VALUES (5)")
	// The row whose commit was not acknowledged may be there or not. Here the standby got it later.
	if got := count(t, standby); got < 3 {
		t.Errorf("the promoted standby has %d rows, want those that were acknowledged: 3", got)
	}
}

func connect(t *testing.T, s *localpostgres.Server) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func exec(t *testing.T, s *localpostgres.Server, statement string) {
	t.Helper()
	if _, err := connect(t, s).Exec(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

func count(t *testing.T, s *localpostgres.Server) int {
	t.Helper()
	var n int
	if err := connect(t, s).QueryRow(t.Context(), "SELECT count(*) FROM kept").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
