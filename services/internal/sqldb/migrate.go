package sqldb

import (
	"database/sql"
	"fmt"
	"io/fs"
)

// migrate applies the migrations that the database does not have yet. A migration is known by its
// name only, so a comment in it may change later.
func migrate(tx *Tx, migrations fs.FS) error {
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
	for name := range applied {
		return fmt.Errorf("it has migration %s, which this program does not know: "+
			"it was written by a newer version", name)
	}
	return nil
}
