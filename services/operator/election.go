package operator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// The times of an election are those that controller-runtime and kube-controller-manager use.
const (
	// leaseDuration is how long other replicas wait for a leader that does not renew its lease.
	leaseDuration = 15 * time.Second
	// renewDeadline is how long a leader tries to renew its lease before it gives up.
	renewDeadline = 10 * time.Second
	retryPeriod   = 2 * time.Second
	// stopTimeout is how long the work of a leader may take to end.
	stopTimeout = 10 * time.Second
)

// leaseName is the name of the Lease. The chart's Role names it too.
const leaseName = "lag-operator"

// errLeaseLost is the end of a leader that could not renew its lease. The process has to end too:
// another replica may lead already, and two leaders would write in turns.
var errLeaseLost = errors.New("the lease is lost: it could not be renewed in time, or another replica holds it")

// elect waits until this replica holds the lease, then runs work until ctx ends. It returns what
// work returns, or errLeaseLost.
//
// The lease is released only after work has ended, or after stopTimeout; the process then ends with
// an error. Another replica can continue at once after the release. After a loss, elect does not
// wait for work.
//
// controller-runtime's manager can run an election as well. It reports each end of it with the same
// untyped error, also when the manager was asked to stop, so a loss could only be recognised by
// text.
func elect(ctx context.Context, lock resourcelock.Interface, work func(context.Context) error) error {
	leading, ended := make(chan struct{}), make(chan struct{})
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Name:            leaseName,
		Lock:            lock,
		LeaseDuration:   leaseDuration,
		RenewDeadline:   renewDeadline,
		RetryPeriod:     retryPeriod,
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(context.Context) { close(leading) },
			// Run returns right after it.
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return fmt.Errorf("prepare the election of a leader: %w", err)
	}
	holding, release := context.WithCancel(context.WithoutCancel(ctx))
	go func() {
		defer close(ended)
		elector.Run(holding)
	}()
	defer func() {
		release()
		<-ended
	}()

	select {
	case <-ctx.Done():
		return nil
	case <-leading:
	}
	working, stop := context.WithCancel(ctx)
	defer stop()
	worked := make(chan error, 1)
	go func() { worked <- work(working) }()
	select {
	case err := <-worked:
		return err
	case <-ended:
		return errLeaseLost
	case <-ctx.Done():
	}
	select {
	case err := <-worked:
		return err
	case <-ended:
		return errLeaseLost
	case <-time.After(stopTimeout):
		return fmt.Errorf("the leader's work has not ended after %s", stopTimeout)
	}
}
