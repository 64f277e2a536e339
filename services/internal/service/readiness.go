package service

import (
	"errors"
	"fmt"
	"sync"
)

var (
	errStarting = errors.New("starting")
	errStopping = errors.New("stopping")
)

// Readiness is why a service cannot do its work now. The zero value is not ready, because it is
// starting. It is safe for concurrent use.
type Readiness struct {
	mu sync.Mutex
	// set is true once Set was called.
	set      bool
	stopping bool
	// reason is the last one that was set; nil: ready.
	reason error
	checks []func() error
}

// Set replaces the reason why the service is not ready. nil makes it ready, as far as the checks
// allow.
func (r *Readiness) Set(reason error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.set, r.reason = true, reason
}

// AddCheck adds another source: check returns why the service is not ready, or nil. It is called
// for each probe and must not block.
func (r *Readiness) AddCheck(check func() error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.checks = append(r.checks, check)
}

// stop makes the service not ready for good.
func (r *Readiness) stop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stopping = true
}

// Err returns why the service is not ready, with all reasons that there are, or nil when it is
// ready.
func (r *Readiness) Err() error {
	// The checks run without the lock, as they take locks of their own.
	checks, reason := r.state()
	for _, check := range checks {
		more := check()
		switch {
		case reason == nil:
			reason = more
		case more != nil:
			reason = fmt.Errorf("%w; %w", reason, more)
		}
	}
	return reason
}

// state returns the reason, and the checks that may add to it.
func (r *Readiness) state() (checks []func() error, reason error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.stopping:
		return nil, errStopping
	case !r.set:
		return r.checks, errStarting
	default:
		return r.checks, r.reason
	}
}
