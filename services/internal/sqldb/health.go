package sqldb

import "sync/atomic"

// Health keeps why something cannot be used. The zero value can be used. It is safe for concurrent use.
type Health struct{ failure atomic.Pointer[error] }

// Set keeps err, which is nil for what can be used. It reports whether that has changed.
func (h *Health) Set(err error) (changed bool) {
	var failure *error
	if err != nil {
		failure = &err
	}
	before := h.failure.Swap(failure)
	return (before == nil) != (failure == nil)
}

// Err returns the last error that Set got, or nil.
func (h *Health) Err() error {
	if failure := h.failure.Load(); failure != nil {
		return *failure
	}
	return nil
}
