package sqldb

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"time"
)

// checkLog is the pause between two log lines of a check that takes long.
const checkLog = 5 * time.Second

// DamagedError reports that a file is not a whole database. It stays as it is.
type DamagedError struct {
	Path string
	// Finding is the first fault that SQLite has found.
	Finding string
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("the database %s is damaged: %s", e.Path, e.Finding)
}

// check reads the whole database and returns a *DamagedError if it is not whole. It compares the
// indexes with their tables too: a row that its index lacks is never found, and can be inserted
// again. It cannot see a value that was changed, nor that the WAL was deleted.
func (db *sqlite) check(ctx context.Context) error {
	size, err := fileSize(db.path)
	if err != nil {
		return err
	}
	begin := time.Now()
	stop := make(chan struct{})
	var watching sync.WaitGroup
	defer watching.Wait()
	defer close(stop)
	watching.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(checkLog):
				db.log.Info("the database is being checked; this takes 3 to 15 s for each GB",
					"path", db.path, "bytes", size, "seconds", time.Since(begin).Seconds())
			}
		}
	})
	var finding string
	rows, err := db.write.QueryContext(ctx, "PRAGMA integrity_check(1)")
	if err == nil {
		err = each(rows, func(rows *sql.Rows) error { return rows.Scan(&finding) })
	}
	if err != nil {
		return fmt.Errorf("check the database: %w", err)
	}
	if finding != "ok" {
		return &DamagedError{Path: db.path, Finding: finding}
	}
	return nil
}
