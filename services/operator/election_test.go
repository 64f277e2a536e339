package operator

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"
)

var leases = schema.GroupResource{Group: "coordination.k8s.io", Resource: "leases"}

// memoryLock is a lease in memory, as one of the replicas sees it. As at an API server, an update
// is refused if another one came after the last Get.
type memoryLock struct {
	identity string

	mu     sync.Mutex
	record *resourcelock.LeaderElectionRecord
	// version is that of record, and seen the one that the replica has seen.
	version, seen int
	// broken is the error of each request, if any.
	broken error
}

func (l *memoryLock) Get(context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken != nil {
		return nil, nil, l.broken
	}
	if l.record == nil {
		return nil, nil, apierrors.NewNotFound(leases, leaseName)
	}
	l.seen = l.version
	record := *l.record
	return &record, []byte(record.HolderIdentity + record.RenewTime.String()), nil
}

func (l *memoryLock) Create(ctx context.Context, record resourcelock.LeaderElectionRecord) error {
	return l.Update(ctx, record)
}

func (l *memoryLock) Update(_ context.Context, record resourcelock.LeaderElectionRecord) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken != nil {
		return l.broken
	}
	if l.seen != l.version {
		return apierrors.NewConflict(leases, leaseName, errors.New("another update was first"))
	}
	l.record, l.version, l.seen = &record, l.version+1, l.version+1
	return nil
}

func (l *memoryLock) RecordEvent(string) {}
func (l *memoryLock) Identity() string   { return l.identity }
func (l *memoryLock) Describe() string   { return "orders/" + leaseName }

func (l *memoryLock) holder() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.record.HolderIdentity
}

// give makes another replica the holder.
func (l *memoryLock) give(holder string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.record = &resourcelock.LeaderElectionRecord{HolderIdentity: holder, LeaseDurationSeconds: 15}
	l.version++
}

func (l *memoryLock) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broken = err
}

// A leader whose context ends returns no error and logs no warning. It holds the lease until its
// work has ended, and releases it then.
func TestLeaderStops(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		logger := logr.FromSlogHandler(slog.NewTextHandler(&log, nil))
		ctx, cancel := context.WithCancel(klog.NewContext(t.Context(), logger))
		lock := &memoryLock{identity: "this"}
		begin := time.Now()
		time.AfterFunc(time.Minute, cancel)
		err := elect(ctx, lock, func(ctx context.Context) error {
			<-ctx.Done()
			time.Sleep(3 * time.Second)
			if holder := lock.holder(); holder != "this" {
				t.Errorf("while it still works, the lease is held by %q", holder)
			}
			return nil
		})
		if took := time.Since(begin); err != nil || took != 63*time.Second || lock.holder() != "" {
			t.Errorf("after %v: error %v, the lease is held by %q", took, err, lock.holder())
		}
		if text := log.String(); strings.Contains(text, "level=WARN") || strings.Contains(text, "level=ERROR") {
			t.Errorf("the log is alarming:\n%s", text)
		}
	})
}

// A replica whose context ends before it leads has not worked, and leaves the lease alone.
func TestStandbyStops(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		lock := &memoryLock{identity: "this"}
		lock.give("another")
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		err := elect(ctx, lock, func(context.Context) error {
			t.Error("it works although it does not lead")
			return nil
		})
		if err != nil || lock.holder() != "another" {
			t.Errorf("error %v, the lease is held by %q", err, lock.holder())
		}
	})
}

// A leader that loses the lease ends with errLeaseLost before another replica may lead, and does
// not wait for its work.
func TestLeaderLosesTheLease(t *testing.T) {
	t.Parallel()
	type end struct {
		// lose is called after a minute.
		lose func(*memoryLock)
		// stop is when the context ends, if the replica still runs.
		stop time.Duration
	}
	taken := func(l *memoryLock) { l.give("another") }
	for name, c := range map[string]end{
		"another replica took it":    {taken, time.Hour},
		"it could not be renewed":    {func(l *memoryLock) { l.fail(errors.New("connection refused")) }, time.Hour},
		"it was lost while it stops": {taken, time.Minute + 5*time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				lock := &memoryLock{identity: "this"}
				ctx, cancel := context.WithTimeout(t.Context(), c.stop)
				defer cancel()
				time.AfterFunc(time.Minute, func() { c.lose(lock) })
				lost := time.Now().Add(time.Minute)
				finish := make(chan struct{})
				cancelled := make(chan struct{})
				err := elect(ctx, lock, func(ctx context.Context) error {
					<-ctx.Done()
					close(cancelled)
					<-finish
					return nil
				})
				if took := time.Since(lost); !errors.Is(err, errLeaseLost) || took > leaseDuration {
					t.Errorf("it ends with %v after %v", err, took)
				}
				<-cancelled
				close(finish)
			})
		})
	}
}

// Work that fails ends the replica with its error. The lease is released for another one.
func TestLeaderFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		lock, want := &memoryLock{identity: "this"}, errors.New("no more")
		err := elect(t.Context(), lock, func(context.Context) error { return want })
		if !errors.Is(err, want) || lock.holder() != "" {
			t.Errorf("error %v, the lease is held by %q", err, lock.holder())
		}
	})
}

// Work that does not end when it should is given up, with an error. The lease is released all the
// same, because the process ends.
func TestLeaderDoesNotEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		lock := &memoryLock{identity: "this"}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		finish := make(chan struct{})
		begin := time.Now()
		err := elect(ctx, lock, func(context.Context) error {
			<-finish
			return nil
		})
		if took := time.Since(begin); err == nil || took != time.Minute+stopTimeout || lock.holder() != "" {
			t.Errorf("after %v: error %v, the lease is held by %q", took, err, lock.holder())
		}
		close(finish)
	})
}
