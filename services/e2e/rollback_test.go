package e2e

import (
	"database/sql"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/internal/localpostgres"
	"ordersystem.dev/services/internal/sqldb"
	"ordersystem.dev/services/internal/testenv"
)

// The release before runs on the schema of this one, so a migration only adds tables, columns with a
// default, and indexes that refuse nothing.
func TestMigrationsOnlyAdd(t *testing.T) {
	t.Parallel()
	allowed := regexp.MustCompile(`^(CREATE TABLE|CREATE INDEX|ALTER TABLE \w+ ADD COLUMN .* DEFAULT) `)
	comment := regexp.MustCompile(`--.*`)
	files, err := filepath.Glob("../*/migrations/*/*.sql")
	if err != nil || len(files) < 6 {
		t.Fatalf("the migrations are %v, %v", files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for statement := range strings.SplitSeq(comment.ReplaceAllString(string(text), ""), ";") {
			statement = strings.Join(strings.Fields(statement), " ")
			if statement != "" && !allowed.MatchString(statement) {
				t.Errorf("%s: the release before may not run on a database after %.80q", file, statement)
			}
		}
	}
}

// Both kinds of database have the same tables and columns, so one text of SQL does for both.
func TestBothSchemasAreTheSame(t *testing.T) {
	t.Parallel()
	server := testenv.StartPostgres(t, localpostgres.Options{Settings: map[string]string{"fsync": "off"}})
	for _, service := range []string{"cart", "order"} {
		columns := func(url, query string) (all []string) {
			db, err := sqldb.Open(t.Context(), sqldb.Config{
				URL: url, Schema: service, Path: filepath.Join(t.TempDir(), "t.db"), Sync: sqldb.Normal,
				Migrations: os.DirFS("../" + service + "/migrations"),
			}, slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			if err := db.Query(t.Context(), query, func(r *sql.Rows) error {
				var table, column string
				err := r.Scan(&table, &column)
				// The row ID of SQLite, which Order does not use.
				if service != "order" || table != "orders" || column != "id" {
					all = append(all, table+"."+column)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			slices.Sort(all)
			return all
		}
		sqlite := columns("", `SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c
			WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%'`)
		postgres := columns(server.URL("postgres"), `SELECT table_name, column_name FROM information_schema.columns
			WHERE table_schema = current_schema()`)
		if diff := cmp.Diff(sqlite, postgres); diff != "" || len(sqlite) == 0 {
			t.Errorf("%s (-SQLite +PostgreSQL):\n%s", service, diff)
		}
	}
}

// A rollback starts a release that does not know the published positions. It publishes, and leaves them
// as they were, or the table was dropped for it. After the next upgrade Cart reads its own records
// behind the old positions. They are no conflict, whatever waits in the outbox.
func TestAnUpgradeAfterARollbackIsNoConflict(t *testing.T) {
	t.Parallel()
	for name, rollBack := range map[string]string{
		"the positions are old": `DELETE FROM published;
			INSERT INTO published SELECT * FROM published_before; DROP TABLE published_before`,
		"the table was dropped": `DROP TABLE published; DROP TABLE published_before;
			DELETE FROM schema_migrations WHERE name = '0003_published.sql'`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			kafka, cart, order := startSystem(t)
			cart.create("order")
			settle(t, kafka.Addr, cart, order)
			cart.stop()
			execute(t, cart, "CREATE TABLE published_before AS SELECT * FROM published")
			cart.start().ready()
			cart.update("order", "second")
			cart.create("new")
			settle(t, kafka.Addr, cart, order)
			kafka.Stop()
			cart.update("order", "third")
			cart.update("new", "second")
			cart.kill()
			execute(t, cart, rollBack)
			if err := kafka.StartAgain(t.Context()); err != nil {
				t.Fatal(err)
			}
			cart.start().ready()
			order.sees("order", 3, "third")
			order.sees("new", 2, "second")
			if v := cart.update("order", "fourth"); v != 4 {
				t.Errorf("the next version is %d, want 4", v)
			}
			settle(t, kafka.Addr, cart, order)
			if got := len(readTopics(t, kafka.Addr)); got != 6 {
				t.Errorf("%d records in the topics, want 2 creations and 4 updates, each once", got)
			}
			noLetters(t, kafka.Addr)
			cart.stop()
			order.stop()
		})
	}
}
