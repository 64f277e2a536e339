package sqldb

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
)

// continuity shows whether a WAL continues the database file beside it. SQLite does not check that.
// Beside a file that was restored from an older copy, it takes the pages of a newer WAL, and all that
// was written between the two is missing without a word.
//
// So transactions are numbered. The number of the last one is the user_version, and application_id is
// the number of one that the file holds whole, with all before it. Both are in the first page, which
// each transaction writes. A WAL continues a file whose own number is neither lower nor higher than
// these two, as the WAL has them. Numbers wrap around.
type continuity struct {
	// last is the number of the last transaction, and whole that of the last one in the file.
	last, whole uint32
	// recorded is whole as the database has it.
	recorded uint32
}

// userVersionAt is where a database file has the user_version.
const userVersionAt = 60

// checkContinuity returns a *DamagedError if the WAL does not continue the file, which ends with the
// transaction inFile. Nothing may have been written yet.
func (db *sqlite) checkContinuity(ctx context.Context, inFile uint32) error {
	var last, whole int32
	err := db.write.QueryRowContext(ctx, "SELECT user_version, application_id FROM "+
		"pragma_user_version, pragma_application_id").Scan(&last, &whole)
	if err != nil {
		return fmt.Errorf("read the number of the last transaction: %w", err)
	}
	db.last, db.whole, db.recorded = uint32(last), uint32(whole), uint32(whole)
	if inFile-db.whole > db.last-db.whole {
		return &DamagedError{Path: db.path, Finding: fmt.Sprintf("the WAL beside it belongs to another copy of it "+
			"(the file ends with transaction %d, the WAL goes on from %d): if this file is a backup, "+
			"delete the -wal and the -shm file", inFile, db.whole)}
	}
	frames, copied, err := walCheckpoint(db.session(ctx), "NOOP")
	if err != nil {
		return fmt.Errorf("read how long the WAL is: %w", err)
	}
	if frames == copied {
		db.whole = db.last
	}
	if db.last == 0 {
		// Two databases that have nothing in common should not have the same numbers.
		db.last = rand.Uint32()
	}
	return nil
}

// numberInFile returns the number of the last transaction that the database file has, without its WAL.
// No connection may be open: to close the file ends the locks that SQLite has on it.
func numberInFile(path string) (uint32, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer file.Close()
	var number [4]byte
	if _, err := file.ReadAt(number[:], userVersionAt); err != nil && !errors.Is(err, io.EOF) {
		return 0, fmt.Errorf("read the header of the database: %w", err)
	}
	return binary.BigEndian.Uint32(number[:]), nil
}

// number writes the number of a transaction that is about to be committed.
func (c *continuity) number(s *sqliteSession) error {
	// A PRAGMA takes no parameters, and a prepared statement of each would stay in memory.
	text := fmt.Sprintf("PRAGMA user_version = %d", int32(c.last+1))
	if c.whole != c.recorded {
		text += fmt.Sprintf("; PRAGMA application_id = %d", int32(c.whole))
	}
	if _, err := s.conn.ExecContext(s.ctx, text); err != nil {
		return fmt.Errorf("number the transaction: %w", err)
	}
	return nil
}

// numbered notes that the transaction is committed.
func (c *continuity) numbered() { c.last, c.recorded = c.last+1, c.whole }
