package audit

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/maphash"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sync"
)

// catalog holds orders at their newest version, in the order in which each was first put. It has three files:
//
//   - The log has a record of each order. A newer version takes the place of the one before if it fits and no
//     view is open. If not, it goes to the end, and says where the one before is.
//   - The list says where in the log each order is, by its number. The first order has the number 0.
//   - The table finds the record of an order by its ID.
//
// Memory does not grow with the orders: what is used often is in the system's page cache. The files are those of a
// cache. They are of no use to another process, nothing waits for the disk, and after an error of put no more may
// be put. One goroutine puts; any number have views.
type catalog struct {
	path      string
	log, list *os.File
	table     table
	// hash is that of an ID, for the table.
	hash func(id string) uint64
	// buf has one record, or its head.
	buf []byte

	// mu is held while the log and the list are written.
	mu sync.RWMutex
	// orders is how many there are, and end the length of the log in bytes.
	orders, end int64
	// views is how many are open.
	views int
	// broken is true during put, and after one that has failed.
	broken bool
}

// order is what a catalog keeps of an order.
type order struct {
	id      string
	version int64
	body    []byte
}

// newCatalog makes an empty catalog. path is that of its files, which have further suffixes.
func newCatalog(path string) (*catalog, error) {
	seed := maphash.MakeSeed()
	c := &catalog{path: path, hash: func(id string) uint64 { return maphash.String(seed, id) }}
	if err := c.open(); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

func (c *catalog) open() (err error) {
	if err = os.MkdirAll(filepath.Dir(c.path), 0o755); err != nil {
		return err
	}
	if c.log, err = os.Create(c.path + ".log"); err != nil {
		return err
	}
	if c.list, err = os.Create(c.path + ".list"); err != nil {
		return err
	}
	c.table, err = newTable(c.path, firstSlots)
	return err
}

// close removes the catalog from the disk.
func (c *catalog) close() error { return errors.Join(remove(c.log), remove(c.list), c.table.remove()) }

// remove closes a file and removes it from the disk, if there is one.
func remove(file *os.File) error {
	if file == nil {
		return nil
	}
	closed, err := file.Close(), os.Remove(file.Name())
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(closed, err)
}

// cost returns how many bytes the files grow at most when these orders are put.
func (c *catalog) cost(orders []order) int64 {
	slots := len(c.table.slots)
	bytes := int64(0)
	if needed := slotsFor(c.orders+int64(len(orders)), slots); needed > slots {
		// The smaller one is there until the larger one is filled.
		bytes = int64(needed) * slotBytes
	}
	for _, o := range orders {
		bytes += o.capacity() + placeBytes
	}
	return bytes
}

// put brings orders into the catalog, unless it has the same version or a newer one. No two have the same ID.
func (c *catalog) put(orders []order) (err error) {
	// A disk that cannot read the table makes a fault of the access to it.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		switch failure := recover().(type) {
		case nil:
		case interface {
			error
			Addr() uintptr
		}:
			err = fmt.Errorf("the table cannot be read: %w", failure)
		default:
			panic(failure)
		}
	}()
	if err := c.grow(c.orders + int64(len(orders))); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.broken = true
	// appended is for the end of the log, added for the end of the list, and moved for elsewhere in the list.
	var appended, added []byte
	moved := make(map[int64]int64)
	for _, o := range orders {
		hash := c.hash(o.id)
		var known record
		s, err := c.table.find(hash, func(place int64) (same bool, err error) {
			if place >= c.end {
				// It is among those that are put now, so it is another one.
				return false, nil
			}
			known, same, err = c.compare(place, o.id)
			return same, err
		})
		if err != nil {
			return err
		}
		end := c.end + int64(len(appended))
		switch {
		case s.after == 0:
			*s = slot{hash, uint64(end + 1)}
			number := c.orders + int64(len(added))/placeBytes
			added = binary.LittleEndian.AppendUint64(added, uint64(end))
			appended = o.appendTo(appended, number, o.capacity(), 0)
		case o.version <= known.version:
		case c.views == 0 && o.size() <= known.capacity:
			c.buf = o.appendTo(c.buf[:0], known.number, known.capacity, 0)
			if _, err := c.log.WriteAt(c.buf, known.at); err != nil {
				return err
			}
		default:
			s.after = uint64(end + 1)
			moved[known.number] = end
			appended = o.appendTo(appended, known.number, o.capacity(), known.at)
		}
	}
	// A view follows the list into the log, so the log is first.
	_, err = c.log.WriteAt(appended, c.end)
	if err == nil {
		_, err = c.list.WriteAt(added, c.orders*placeBytes)
	}
	for number, at := range moved {
		if err == nil {
			_, err = c.list.WriteAt(binary.LittleEndian.AppendUint64(nil, uint64(at)), number*placeBytes)
		}
	}
	if err != nil {
		return err
	}
	c.orders += int64(len(added)) / placeBytes
	c.end += int64(len(appended))
	c.broken = false
	return nil
}

// compare returns the record at a place, and whether it is of the order with this ID.
func (c *catalog) compare(at int64, id string) (r record, same bool, err error) {
	// The last record of the log may be shorter than one with this ID.
	n := int(min(int64(headBytes+len(id)), c.end-at))
	c.buf = slices.Grow(c.buf[:0], n)[:n]
	if _, err := c.log.ReadAt(c.buf, at); err != nil {
		return r, false, err
	}
	r = parseHead(c.buf, at)
	if at+r.capacity > c.end || r.capacity < headBytes+r.idBytes+r.bodyBytes || r.number < 0 || r.number >= c.orders {
		return r, false, fmt.Errorf("at %d: %w", at, errDamaged)
	}
	return r, r.idBytes == int64(len(id)) && string(c.buf[headBytes:]) == id, nil
}

// grow makes the table large enough for so many orders.
func (c *catalog) grow(orders int64) (err error) {
	slots := slotsFor(orders, len(c.table.slots))
	if slots == len(c.table.slots) {
		return nil
	}
	other, err := newTable(c.path, slots)
	// The smaller one, unless something fails.
	defer func() { err = errors.Join(err, other.remove()) }()
	if err == nil {
		c.table.copyTo(&other)
		c.table, other = other, c.table
	}
	return err
}

// record is an order in the log. All sizes are in bytes.
type record struct {
	// at is where it begins, and capacity is what it takes until the next one begins.
	at, capacity       int64
	idBytes, bodyBytes int64
	number, version    int64
	// previous is where the version before it begins. It has none if that is not before at.
	previous int64
}

const (
	// placeBytes is the size of an entry of the list.
	placeBytes = 8
	// headBytes is the size of what a record has before the ID and the body: the CRC-32C of all that follows it,
	// the sizes, the number, the version, and the place of the previous one.
	headBytes = 40
	// spare is how much longer than an order a later version of it may be and still take its place: the status
	// and the version change.
	spare = 24
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// size is what the record of an order takes at least.
func (o order) size() int64 { return int64(headBytes + len(o.id) + len(o.body)) }

// capacity is what a new record of it takes.
func (o order) capacity() int64 { return o.size() + spare }

// appendTo appends the record of an order.
func (o order) appendTo(to []byte, number, capacity, previous int64) []byte {
	begin := len(to)
	to = slices.Grow(to, int(capacity))[:begin+int(capacity)]
	r := to[begin:]
	binary.LittleEndian.PutUint32(r[4:], uint32(capacity))
	binary.LittleEndian.PutUint32(r[8:], uint32(len(o.id)))
	binary.LittleEndian.PutUint32(r[12:], uint32(len(o.body)))
	binary.LittleEndian.PutUint64(r[16:], uint64(number))
	binary.LittleEndian.PutUint64(r[24:], uint64(o.version))
	binary.LittleEndian.PutUint64(r[32:], uint64(previous))
	copy(r[headBytes:], o.id)
	copy(r[headBytes+len(o.id):], o.body)
	clear(r[o.size():])
	binary.LittleEndian.PutUint32(r, crc32.Checksum(r[4:o.size()], castagnoli))
	return to
}

// parseHead returns the record at that place. head has its first headBytes bytes.
func parseHead(head []byte, at int64) record {
	return record{
		at:        at,
		capacity:  int64(binary.LittleEndian.Uint32(head[4:])),
		idBytes:   int64(binary.LittleEndian.Uint32(head[8:])),
		bodyBytes: int64(binary.LittleEndian.Uint32(head[12:])),
		number:    int64(binary.LittleEndian.Uint64(head[16:])),
		version:   int64(binary.LittleEndian.Uint64(head[24:])),
		previous:  int64(binary.LittleEndian.Uint64(head[32:])),
	}
}

// view is a catalog at one moment: what is put later does not change it. One goroutine at a time may use it.
type view struct {
	c *catalog
	// orders and end are those of the catalog at that moment.
	orders, end int64
	log         window
}

// errHalfPut reports that a put has failed: it may have replaced some of its orders.
var errHalfPut = errors.New("not all orders of a batch could be written")

// view returns the catalog as it is now. The view must be closed. After a put that has failed there is none.
func (c *catalog) view() (*view, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken {
		return nil, errHalfPut
	}
	c.views++
	return &view{c: c, orders: c.orders, end: c.end, log: window{file: c.log}}, nil
}

func (v *view) close() {
	v.c.mu.Lock()
	defer v.c.mu.Unlock()
	v.c.views--
}

// each calls do with the body of each order, which is valid only during the call.
func (v *view) each(do func(body []byte) error) error {
	const most = 4096
	places := make([]byte, min(most, v.orders)*placeBytes)
	for n := int64(0); n < v.orders; n += most {
		places = places[:min(most, v.orders-n)*placeBytes]
		v.c.mu.RLock()
		_, err := v.c.list.ReadAt(places, n*placeBytes)
		v.c.mu.RUnlock()
		if err != nil {
			return err
		}
		for i := range int64(len(places)) / placeBytes {
			body, err := v.body(n+i, int64(binary.LittleEndian.Uint64(places[i*placeBytes:])))
			if err == nil {
				err = do(body)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// errDamaged reports that the log has no whole record where one has to be.
var errDamaged = errors.New("the record of an order is damaged")

// body returns the body of the order with a number, of which the newest record is at that place. It is valid until
// the next call.
func (v *view) body(number, at int64) ([]byte, error) {
	for {
		head, err := v.log.read(at, headBytes)
		if err != nil {
			return nil, err
		}
		r := parseHead(head, at)
		if at >= v.end && r.number == number && r.previous < at {
			// It is newer than the view.
			at = r.previous
			continue
		}
		size := headBytes + r.idBytes + r.bodyBytes
		if r.number != number || size > r.capacity || at+r.capacity > v.end {
			return nil, fmt.Errorf("at %d: %w", at, errDamaged)
		}
		whole, err := v.log.read(at, size)
		if err != nil {
			return nil, err
		}
		if binary.LittleEndian.Uint32(whole) != crc32.Checksum(whole[4:], castagnoli) {
			return nil, fmt.Errorf("at %d: %w", at, errDamaged)
		}
		return whole[headBytes+r.idBytes:], nil
	}
}

// window reads a file through a buffer.
type window struct {
	file *os.File
	buf  []byte
	// at is the place of the buffer in the file.
	at int64
}

// read returns n bytes of the file, which are valid until the next call.
func (w *window) read(at, n int64) ([]byte, error) {
	const ahead, jump = 256 << 10, 4 << 10
	if at < w.at || at+n > w.at+int64(len(w.buf)) {
		// Most orders are where the one before ends. One that is elsewhere says nothing about the next.
		size := max(n, ahead)
		if at < w.at || at > w.at+int64(len(w.buf)) {
			size = max(n, jump)
		}
		w.buf = slices.Grow(w.buf[:0], int(size))[:size]
		got, err := w.file.ReadAt(w.buf, at)
		w.buf, w.at = w.buf[:got], at
		if int64(got) < n {
			return nil, err
		}
	}
	return w.buf[at-w.at:][:n], nil
}
