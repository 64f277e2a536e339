package audit

import (
	"errors"
	"fmt"
	"math/bits"
	"os"
	"unsafe"

	"github.com/edsrzf/mmap-go"
)

const (
	// firstSlots is how many slots a new table has, and growth how many times as many one has that has grown. Both
	// are powers of two.
	firstSlots, growth = 1 << 12, 2
	slotBytes          = int64(unsafe.Sizeof(slot{}))
)

// table is a hash table, with open addressing and linear probing (Knuth, The Art of Computer Programming, volume 3,
// section 6.4). It is in a mapped file, so that the system can take its memory back. A disk that fails makes a
// fault of an access: see [catalog.put]. It has no checksum: an order that a changed bit hides is put twice.
type table struct {
	file   *os.File
	mapped mmap.MMap
	// slots is a power of two. The first bits of a hash say at which slot a search begins.
	slots []slot
}

// slot has the hash of an order's ID, and the place of its record in the log plus one: 0 is a free slot.
type slot struct{ hash, after uint64 }

// slotsFor returns how many slots a table needs for so many orders, and no fewer than it has. With six of ten in
// use, a search for what is not there passes four slots; with seven, it would be six.
func slotsFor(orders int64, slots int) int {
	for orders*10 > int64(slots)*6 {
		slots *= growth
	}
	return slots
}

// newTable makes an empty table. Its file has its whole length on the disk, so that no access needs room there,
// unless the file system copies what is written. After an error there may be a file all the same.
func newTable(path string, slots int) (t table, err error) {
	if t.file, err = os.Create(fmt.Sprintf("%s.table-%d", path, slots)); err != nil {
		return t, err
	}
	zeros := make([]byte, min(int64(slots)*slotBytes, 1<<20))
	for size := int64(slots) * slotBytes; size > 0; size -= int64(len(zeros)) {
		if _, err := t.file.Write(zeros); err != nil {
			return t, err
		}
	}
	if t.mapped, err = mmap.Map(t.file, mmap.RDWR, 0); err != nil {
		return t, err
	}
	t.slots = unsafe.Slice((*slot)(unsafe.Pointer(unsafe.SliceData(t.mapped))), slots)
	return t, nil
}

// remove removes the table from the disk.
func (t *table) remove() error {
	t.slots = nil
	var err error
	if t.mapped != nil {
		err = t.mapped.Unmap()
	}
	return errors.Join(err, remove(t.file))
}

// find returns the slot with this hash and the wanted place, or a free one if there is none. Several orders may have
// one hash.
func (t *table) find(hash uint64, wanted func(place int64) (bool, error)) (*slot, error) {
	mask := len(t.slots) - 1
	for i := int(hash >> bits.LeadingZeros64(uint64(mask))); ; i = (i + 1) & mask {
		s := &t.slots[i]
		if s.after == 0 {
			return s, nil
		}
		if s.hash != hash {
			continue
		}
		if is, err := wanted(int64(s.after - 1)); is || err != nil {
			return s, err
		}
	}
}

// copyTo puts what is in the table into a larger one.
func (t *table) copyTo(larger *table) {
	another := func(int64) (bool, error) { return false, nil }
	for _, s := range t.slots {
		if s.after != 0 {
			free, _ := larger.find(s.hash, another)
			*free = s
		}
	}
}
