package sqldb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

const (
	// pageBytes is the size of a page, SQLite's default.
	pageBytes = 4096
	// frameBytes is what a page takes in the WAL.
	frameBytes = pageBytes + 24
	// mostReserve is the reserve of every volume of 512 MiB or more. A deletion of 5,000 rows
	// writes 20 MiB at most.
	mostReserve = 64 << 20
	// mostDeleted is how many rows one transaction may delete.
	mostDeleted = 5000
)

// disk is the file system of the database, in bytes.
type disk struct{ free, size int64 }

func diskOf(dir string) (disk, error) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(dir, &s); err != nil {
		return disk{}, fmt.Errorf("look up the free space of %s: %w", dir, err)
	}
	// The types of these fields differ between systems.
	block := uint64(s.Bsize)
	free := uint64(s.Bavail) //nolint:unconvert // See above.
	return disk{free: int64(free * block), size: int64(s.Blocks * block)}, nil
}

// reserve is what Room leaves free. Without it a full disk would stay full: a deletion is written to
// the WAL first, and what is in the WAL is copied into the database file later.
func (d disk) reserve() int64 { return min(mostReserve, d.size/8) }

// Space is what a database uses of its file system, in bytes, and what it can still use.
type Space struct {
	// Used is what its rows and indexes take.
	Used int64
	// Left is what they can still take before Room is 0.
	Left int64
	// Reserve is what Room leaves free.
	Reserve int64
	// once is what one transaction may write.
	once int64
}

// SpaceOf returns the Space for files in dir that are beside a database.
func SpaceOf(dir string) (Space, error) {
	disk, err := diskOf(dir)
	return Space{Left: disk.free - disk.reserve(), Reserve: disk.reserve()}, err
}

// Space is part of engine.
func (db *sqlite) Space(ctx context.Context) (Space, error) {
	return db.space(func(query string, scan func(*sql.Rows) error, _ ...any) error {
		return db.Query(ctx, query, scan)
	})
}

// space computes a Space. query runs a statement.
//
// The next checkpoint makes the database file as long as the database is by then, and can give the
// space of the WAL back. So a disk has really left what is free, plus the WAL, minus that growth.
// Pages that were deleted are used again before the file grows. A transaction goes to the WAL
// before; it may use half of the reserve for that, and deletions have the other half.
func (db *sqlite) space(query func(string, func(*sql.Rows) error, ...any) error) (Space, error) {
	disk, err := diskOf(filepath.Dir(db.path))
	if err != nil {
		return Space{}, err
	}
	var pages, unused int64
	err = query("PRAGMA page_count", func(rows *sql.Rows) error { return rows.Scan(&pages) })
	if err == nil {
		err = query("PRAGMA freelist_count", func(rows *sql.Rows) error { return rows.Scan(&unused) })
	}
	if err != nil {
		return Space{}, fmt.Errorf("look up the size of %s: %w", db.path, err)
	}
	file, err := fileSize(db.path)
	if err != nil {
		return Space{}, err
	}
	wal, err := fileSize(db.path + "-wal")
	if err != nil {
		return Space{}, err
	}
	now := disk.free - max(0, pages*pageBytes-file)
	return Space{
		Used: (pages - unused) * pageBytes,
		Left: now + wal - disk.reserve() + unused*pageBytes, Reserve: disk.reserve(),
		once: (now - disk.reserve()/2) / 2,
	}, nil
}

func fileSize(path string) (int64, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// Cost returns how many bytes a transaction writes at most for a row of n bytes, in a table with an
// index.
func Cost(n int) int64 {
	const more = 3 // a page of the table, one of the index, and one when a page is split
	return int64(n/(pageBytes-4)+1+more) * frameBytes
}
