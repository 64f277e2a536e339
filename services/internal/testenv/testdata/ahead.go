package time

import (
	"sync/atomic"
	"syscall"
	"unsafe"
)

// ahead is how many seconds the time of day is ahead of that of the machine: the first eight bytes of the
// file CLOCK_AHEAD.
var ahead = mapAhead()

func mapAhead() *int64 {
	name, set := syscall.Getenv("CLOCK_AHEAD")
	if !set {
		return new(int64)
	}
	file, err := syscall.Open(name, syscall.O_RDONLY, 0)
	if err != nil {
		panic("open CLOCK_AHEAD: " + err.Error())
	}
	defer syscall.Close(file)
	page, err := syscall.Mmap(file, 0, 8, syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		panic("map CLOCK_AHEAD: " + err.Error())
	}
	return (*int64)(unsafe.Pointer(&page[0]))
}

// jumped moves the time of day. The monotonic clock is that of the machine.
func jumped(sec int64, nsec int32, mono int64) (int64, int32, int64) {
	return sec + atomic.LoadInt64(ahead), nsec, mono
}
