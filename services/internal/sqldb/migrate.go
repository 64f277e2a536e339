package sqldb

import (
	"database/sql"
	"fmt"
	"io/fs"
	"log/slog"
	"path"
	"slices"
)

// migration changes the schema. It is known by its name only, so a comment in it may change later.
type migration struct{ name, text string }

// migrationsTable makes the table of the migrations that the database has.
const migrationsTable = "CREATE TABLE IF NOT EXISTS schema_migrations(name TEXT PRIMARY KEY)"

// readMigrations returns the migrations for a kind of database, in their order.
func readMigrations(files fs.FS, kind string) ([]migration, error) {
	names, err := fs.Glob(files, kind+"/*.sql")
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("there are no migrations for %s", kind)
	}
	all := make([]migration, 0, len(names))
	for _, name := range names {
		text, err := fs.ReadFile(files, name)
		if err != nil {
			return nil, err
		}
		all = append(all, migration{path.Base(name), string(text)})
	}
	return all, nil
}

// migrate applies the migrations that the database does not have yet.
//
// A migration only adds to the schema, so that the release before it can use the database: a rollback
// starts that release again. Migrations that come after all of this program's are therefore left
// alone. Any other unknown one shows that the database is that of another program.
//
// Processes that share the database may migrate at the same time. The row of a migration is its lock:
// whoever inserts it applies the migration, and the others wait for that transaction to end.
func migrate(tx *Tx, files []migration, log *slog.Logger) error {
	if err := refuseForeign(tx, files); err != nil {
		return err
	}
	for _, m := range files {
		added, err := tx.Exec("INSERT INTO schema_migrations(name) VALUES (?) ON CONFLICT DO NOTHING", m.name)
		if err != nil {
			return fmt.Errorf("record migration %s: %w", m.name, err)
		}
		if added == 0 {
			continue
		}
		if err := tx.script(m.text); err != nil {
			return fmt.Errorf("apply migration %s: %w", m.name, err)
		}
	}
	var newer []string
	err := tx.Query("SELECT name FROM schema_migrations WHERE name > ? ORDER BY name",
		func(rows *sql.Rows) error {
			var name string
			err := rows.Scan(&name)
			newer = append(newer, name)
			return err
		}, files[len(files)-1].name)
	if err != nil {
		return fmt.Errorf("read schema_migrations: %w", err)
	}
	if len(newer) > 0 {
		log.Warn("a newer release has used the database; this one does not know what that added",
			"migrations", newer, "next", "docs/operations.md, Roll back the services")
	}
	return nil
}

// refuseForeign returns an error if the database has a migration that this program does not have, and
// that does not come after all of its own.
func refuseForeign(tx *Tx, files []migration) error {
	known := func(name string) bool {
		return slices.ContainsFunc(files, func(m migration) bool { return m.name == name })
	}
	foreign := ""
	if err := tx.Query("SELECT name FROM schema_migrations", func(rows *sql.Rows) error {
		var name string
		err := rows.Scan(&name)
		if !known(name) && name < files[len(files)-1].name {
			foreign = name
		}
		return err
	}); err != nil {
		return fmt.Errorf("read schema_migrations: %w", err)
	}
	if foreign != "" {
		return fmt.Errorf("it has migration %s, which this program does not have: "+
			"it is the database of another program", foreign)
	}
	return nil
}
