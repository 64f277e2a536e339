package testenv

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"ordersystem.dev/services/internal/localpostgres"
)

// sharedPostgres is the server of Postgres.
var sharedPostgres struct {
	sync.Mutex
	dir string
	s   *localpostgres.Server
	err error
}

// Postgres returns the URL of a new, empty database, which is dropped when the test ends. The tests of
// a package share one server, on which fsync is off: for tests of crashes, see [StartPostgres]. The
// package needs
//
//	func TestMain(m *testing.M) { testenv.Main(m) }
func Postgres(t testing.TB) string {
	t.Helper()
	s := postgres(t)
	name := "test_" + uuid.NewString()
	if err := execute(t.Context(), s, fmt.Sprintf("CREATE DATABASE %q", name)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// FORCE ends what still uses it.
		if err := execute(context.Background(), s, fmt.Sprintf("DROP DATABASE %q WITH (FORCE)", name)); err != nil {
			t.Error(err)
		}
	})
	return s.URL(name)
}

// Patient returns the URL of a database on which a transaction waits 9 s for a lock, instead of 2, and may do
// nothing for a minute, instead of 3 s. So a test can hold a lock for as long as a busy machine needs.
func Patient(url string) string {
	return url + "&lock_timeout=9000&idle_in_transaction_session_timeout=60000"
}

// postgres returns the server that the tests of a package share. Main ends it.
func postgres(t testing.TB) *localpostgres.Server {
	t.Helper()
	if !inMain {
		t.Fatal("Postgres: the package's TestMain does not call testenv.Main")
	}
	shared := &sharedPostgres
	shared.Lock()
	defer shared.Unlock()
	if shared.s == nil && shared.err == nil {
		if shared.dir, shared.err = postgresDir(); shared.err == nil {
			// Not the test's context: the server outlives the test.
			shared.s, shared.err = localpostgres.Start(context.Background(), localpostgres.Options{
				Dir: shared.dir,
				Settings: map[string]string{
					"fsync": "off", "full_page_writes": "off", "shared_buffers": "32MB", "max_connections": "400",
				},
			})
		}
	}
	Require(t, shared.err)
	return shared.s
}

// StartPostgres starts a server for this test alone. A missing directory is temporary, and the log
// goes to the test's output.
func StartPostgres(t testing.TB, options localpostgres.Options) *localpostgres.Server {
	t.Helper()
	return startPostgres(t, options, localpostgres.Start)
}

// StartStandby starts a synchronous standby of a server for this test alone, as [StartPostgres] does.
func StartStandby(
	t testing.TB, primary *localpostgres.Server, options localpostgres.Options,
) *localpostgres.Server {
	t.Helper()
	return startPostgres(t, options, primary.StartStandby)
}

func startPostgres(
	t testing.TB, options localpostgres.Options,
	start func(context.Context, localpostgres.Options) (*localpostgres.Server, error),
) *localpostgres.Server {
	t.Helper()
	if options.Dir == "" {
		dir, err := postgresDir()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		options.Dir = dir
	}
	options.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	s, err := start(t.Context(), options)
	Require(t, err)
	t.Cleanup(func() {
		s.Kill()
		if t.Failed() {
			t.Logf("the end of PostgreSQL's log:\n%s", s.Log())
		}
	})
	return s
}

// postgresDir makes a temporary directory. The directories of a test are closed to the user postgres,
// as whom root runs the server.
func postgresDir() (string, error) { return os.MkdirTemp("", "postgres-") }

// execute runs a statement on the server's database postgres.
func execute(ctx context.Context, s *localpostgres.Server, statement string) error {
	conn, err := pgx.Connect(ctx, s.URL("postgres"))
	if err != nil {
		return err
	}
	_, err = conn.Exec(ctx, statement)
	return errors.Join(err, conn.Close(ctx))
}
