package sqldb

import (
	"context"
	"database/sql"
	"fmt"
	"path/filepath"
)

// checkpointFrames is how many pages the WAL holds before they are copied into the database. 4,000
// instead of SQLite's 1,000 costs less.
const checkpointFrames = 4000

// checkpoint copies the WAL into the database file once it is long. The caller holds db.mu, and no
// transaction is under way.
func (db *sqlite) checkpoint(s *sqliteSession) {
	frames, copied, err := walCheckpoint(s, "NOOP")
	if err != nil {
		db.noteCheckpoint(err)
		return
	}
	disk, err := diskOf(filepath.Dir(db.path))
	if err != nil {
		db.noteCheckpoint(err)
		return
	}
	if frames < min(checkpointFrames, disk.reserve()/4/frameBytes) {
		return
	}
	// After a passive checkpoint the next transaction writes the WAL from its start again, and the
	// file stays as long as it is: that is cheap. On a disk that is almost full its space is needed.
	mode := "PASSIVE"
	if disk.free-(frames-copied)*pageBytes < 2*disk.reserve() {
		mode = "TRUNCATE"
	}
	frames, copied, err = walCheckpoint(s, mode)
	if err == nil && frames == copied {
		db.whole = db.last
	}
	db.noteCheckpoint(err)
}

// lastCheckpoint copies what is left in the WAL, unless the database has failed: the WAL stays then.
// The caller holds db.mu, and no transaction is under way.
func (db *sqlite) lastCheckpoint() error {
	if db.Err() == nil {
		_, _, err := walCheckpoint(db.session(context.Background()), "TRUNCATE")
		db.noteCheckpoint(err)
	}
	return db.Err()
}

// noteCheckpoint takes the result of a checkpoint. On a full disk the WAL stays as it is, and the
// next transaction tries again. It logs only when that changes.
func (db *sqlite) noteCheckpoint(err error) {
	if err != nil {
		err = fmt.Errorf("copy the WAL into the database: %w", err)
	}
	if refused := err != nil; refused != db.checkpointRefused {
		db.checkpointRefused = refused
		db.log.Warn("the WAL could be copied into the database", "possible", !refused, "path", db.path, "err", err)
	}
	_ = db.noted(err)
}

// walCheckpoint makes a checkpoint. It returns how many frames the WAL has, and how many of them are
// in the database file.
func walCheckpoint(s *sqliteSession, mode string) (frames, copied int64, err error) {
	err = s.Query("PRAGMA wal_checkpoint("+mode+")", func(rows *sql.Rows) error {
		// busy is 1 if a reader kept it from copying or truncating all. A later one does that.
		var busy int
		return rows.Scan(&busy, &frames, &copied)
	})
	return frames, copied, err
}
