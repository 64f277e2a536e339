package sqldb

import (
	"database/sql"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
)

// migrate applies the migrations that the database does not have yet. A migration is known by its
// name only, so a comment in it may change later.
//
// A migration only adds to the schema, so that the release before it can use the database: a rollback
// starts that release again. Migrations that come after all of this program's are therefore left
// alone. Any other unknown one shows that the database is that of another program.
func migrate(tx *Tx, migrations fs.FS, log *slog.Logger) error {
	files, err := fs.Glob(migrations, "*.sql")
	if err != nil {
		return err
	}
	if _, err := tx.Exec("CREATE TABLE IF NOT EXISTS schema_migrations(name TEXT PRIMARY KEY)"); err != nil {
		return fmt.Errorf("create schema_migrations: %w", err)
	}
	applied := map[string]bool{}
	if err := tx.Query("SELECT name FROM schema_migrations", func(rows *sql.Rows) error {
		var name string
		err := rows.Scan(&name)
		applied[name] = true
		return err
	}); err != nil {
		return fmt.Errorf("read schema_migrations: %w", err)
	}
	for _, name := range files {
		if applied[name] {
			delete(applied, name)
			continue
		}
		text, err := fs.ReadFile(migrations, name)
		if err != nil {
			return err
		}
		if _, err := tx.conn.ExecContext(tx.ctx, string(text)); err != nil {
			return fmt.Errorf("apply migration %s: %w", name, err)
		}
		if _, err := tx.Exec("INSERT INTO schema_migrations(name) VALUES (?)", name); err != nil {
			return fmt.Errorf("record migration %s: %w", name, err)
		}
	}
	newer := slices.Sorted(maps.Keys(applied))
	if len(newer) == 0 {
		return nil
	}
	if len(files) == 0 || newer[0] < files[len(files)-1] {
		return fmt.Errorf("it has migration %s, which this program does not have: "+
			"it is the database of another program", newer[0])
	}
	log.Warn("a newer release has used the database; this one does not know what that added",
		"path", tx.db.path, "migrations", newer, "next", "docs/operations.md, Roll back the services")
	return nil
}
