package sqldb_test

import (
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"ordersystem.dev/services/internal/localpostgres"
	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/internal/testenv"
)

// Whoever runs the server renews its certificate, and the CA of that. A process that has the database open
// trusts the new CA as soon as its file has it. One that read the file at its start would lose the database
// when the old CA is no longer used.
func TestPostgresTrustsARenewedCA(t *testing.T) {
	t.Parallel()
	server := testenv.StartPostgres(t, localpostgres.Options{Settings: map[string]string{"fsync": "off"}})
	admin, err := pgx.Connect(t.Context(), server.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { admin.Close(t.Context()) })
	run := func(statement string) {
		t.Helper()
		if _, err := admin.Exec(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	trusted := filepath.Join(t.TempDir(), "ca.crt")
	certify := func(name string) {
		t.Helper()
		authority := testenv.NewAuthority(t, name)
		if err := os.WriteFile(trusted, authority.PEM, 0o600); err != nil {
			t.Fatal(err)
		}
		cert, key := authority.Issue(t, "postgres")
		for file, text := range map[string][]byte{"server.crt": cert, "server.key": key} {
			// The server writes the files, so that they belong to its user.
			run("COPY (SELECT unnest(string_to_array('" + strings.TrimSpace(string(text)) + "', E'\\n'))) " +
				"TO PROGRAM 'umask 077; cat > " + file + "'")
		}
		run("ALTER SYSTEM SET ssl = on")
		run("SELECT pg_reload_conf()")
	}
	certify("first")
	url := strings.Replace(server.URL("postgres"), "sslmode=disable", "sslmode=verify-full&sslrootcert="+trusted, 1)
	db := openConfig(t, sqldb.Config{URL: url, Schema: "tls", Sync: sqldb.Full, Migrations: schema})
	encrypted := func() (is bool, err error) {
		err = db.Query(t.Context(), "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
			func(r *sql.Rows) error { return r.Scan(&is) })
		return is, err
	}
	if is, err := encrypted(); err != nil || !is {
		t.Fatalf("the connection is encrypted: %t, %v", is, err)
	}
	certify("second")
	run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tls'")
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		is, err := encrypted()
		if err == nil && is {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("after the renewal the connection is encrypted: %t, %v", is, err)
		}
	}
}
