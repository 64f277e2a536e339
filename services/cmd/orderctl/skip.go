package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"

	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/skip"
)

// skipOptions is a command line that has Order pass a damaged batch.
type skipOptions struct {
	skip.Options
	// order is the address of Order's operations endpoints.
	order string
	json  bool
}

// parseSkip reads what follows skip. The error is flag.ErrHelp or a usageError.
func parseSkip(args []string) (*skipOptions, error) {
	o := &skipOptions{}
	arguments, err := parseFlags(o.flags(), args)
	if err != nil {
		return nil, err
	}
	if len(arguments) != 1 {
		return nil, usageError{errors.New("skip needs one TOPIC/PARTITION/OFFSET, as the log of Order names it")}
	}
	if o.At, err = broker.ParsePlace(arguments[0]); err != nil {
		return nil, usageError{err}
	}
	return o, nil
}

// flags returns the flags, which set o.
func (o *skipOptions) flags() *flag.FlagSet {
	flags := newFlags(&o.json)
	orderFlag(flags, &o.order)
	flags.BoolVar(&o.Confirm, "confirm", false, "have Order skip the batch; without it, nothing is changed")
	return flags
}

// run does what the command line says.
func (o *skipOptions) run(ctx context.Context, _ *kafka, stdout io.Writer) error {
	result, err := skip.Run(ctx, o.order, o.Options)
	if err != nil {
		return fmt.Errorf("have Order skip %s: %w (-order has the address of its operations port)", o.At, err)
	}
	return printSkipped(stdout, result, o.json)
}

// printSkipped prints what has become of the batch, and what to do next.
func printSkipped(to io.Writer, r *skip.Result, asJSON bool) error {
	if asJSON {
		return printJSON(to, []*skip.Result{r})
	}
	size := ""
	if r.Bytes > 0 {
		size = fmt.Sprintf(", %d records and %d bytes", r.Records, r.Bytes)
	}
	_, err := fmt.Fprintf(to, "%s: %s%s\n", r.At, r.Outcome, size)
	if err == nil && r.Outcome == skip.Would {
		_, err = fmt.Fprintln(to, "Nothing was skipped. The same command with -confirm has Order do so.")
	}
	return err
}
