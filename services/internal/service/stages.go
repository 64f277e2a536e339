package service

import (
	"context"
	"errors"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Task is one part of a service. It runs until its context ends, or returns nil earlier if its work
// is done. A task that returns an error stops the service.
type Task func(ctx context.Context) error

// Stage is tasks that stop at the same time. The order of the stages is written in the Run of each
// service: services/cart/run.go and services/order/run.go.
type Stage []Task

// run starts all tasks at once. When ctx ends or a task fails, it calls stopping and then stops the
// stages in their order: the context of a stage ends once all tasks of the stages before it have
// returned. run returns the first failure. At least one task must run until its context ends.
//
// The contexts of the stages are detached from ctx, else all of them would end at the same moment.
func run(ctx context.Context, stopping func(), stages []Stage) error {
	tasks, stop := errgroup.WithContext(ctx)
	// running is a stage whose tasks have not all returned.
	type running struct {
		cancel context.CancelCauseFunc
		tasks  *sync.WaitGroup
	}
	all := make([]running, len(stages))
	for i, stage := range stages {
		stageCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
		defer cancel(nil)
		all[i] = running{cancel, &sync.WaitGroup{}}
		for _, task := range stage {
			all[i].tasks.Add(1)
			tasks.Go(func() error {
				defer all[i].tasks.Done()
				return withoutEnd(stageCtx, task(stageCtx))
			})
		}
	}
	<-stop.Done()
	stopping()
	for _, stage := range all {
		stage.cancel(context.Cause(stop))
		stage.tasks.Wait()
	}
	return tasks.Wait()
}

// withoutEnd drops an error that only reports that ctx has ended: a task that stops because its
// context ended has not failed.
func withoutEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil && (errors.Is(err, ctx.Err()) || errors.Is(err, context.Cause(ctx))) {
		return nil
	}
	return err
}
