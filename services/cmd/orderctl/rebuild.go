package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"ordersystem.dev/services/internal/rebuild"
)

// rebuildOptions is a command line that compares Order's view with the topics.
type rebuildOptions struct {
	rebuild.Options
	// order is the address of Order's operations endpoints.
	order string
	json  bool
}

// parseRebuild reads what follows rebuild. The error is flag.ErrHelp or a usageError.
func parseRebuild(args []string) (*rebuildOptions, error) {
	o := &rebuildOptions{}
	err := parseOnlyFlags("rebuild", o.flags(), args)
	if err == nil && o.Drop && !o.Swap {
		err = usageError{errors.New("-drop is for -swap")}
	}
	return o, err
}

// flags returns the flags, which set o.
func (o *rebuildOptions) flags() *flag.FlagSet {
	flags := newFlags(&o.json)
	orderFlag(flags, &o.order)
	flags.BoolVar(&o.Swap, "swap", false, "make the view what the topics have; without it, nothing is changed")
	flags.BoolVar(&o.Drop, "drop", false, "with -swap, also lose orders and versions that only the view has")
	return flags
}

// run does what the command line says.
func (o *rebuildOptions) run(ctx context.Context, k *kafka, stdout io.Writer) error {
	progress := k.meter("topics", "offsets", 0)
	result, err := rebuild.Run(ctx, o.order, o.Options, func(p rebuild.Progress) {
		progress.all = p.Of
		progress.add(int(p.Read - progress.done))
	})
	if err != nil {
		return fmt.Errorf("have Order rebuild its view: %w (-order has the address of its operations port)", err)
	}
	fmt.Fprintf(k.progress, "%d orders compared, %d differ; %d records of the topics take no effect\n",
		result.Orders, result.Differ(), result.Unusable)
	if err := printRebuilt(stdout, result, o.json); err != nil {
		return err
	}
	switch {
	case result.Refused != "":
		return errors.New(result.Refused)
	case result.Swapped || result.Differ() == 0:
		return nil
	default:
		return fmt.Errorf("%d orders differ: the same command with -swap makes the view what the topics have",
			result.Differ())
	}
}

// printRebuilt prints a line for each order that is named, and how many there are of each difference.
func printRebuilt(to io.Writer, r *rebuild.Result, asJSON bool) error {
	if asJSON {
		return printJSON(to, []*rebuild.Result{r})
	}
	if r.Differ() == 0 {
		_, err := fmt.Fprintln(to, "no differences")
		return err
	}
	err := printTable(to, r.Examples, "ORDER ID\tVIEW\tTOPICS\tDIFFERENCE", func(o rebuild.Order) string {
		return fmt.Sprintf("%.40q\t%d\t%d\t%s", o.OrderID, o.View, o.Topics, o.Difference)
	})
	var counts []string
	for _, d := range slices.Sorted(maps.Keys(r.Differing)) {
		counts = append(counts, fmt.Sprintf("%d %s", r.Differing[d], d))
	}
	swapped := ""
	if r.Swapped {
		swapped = ". The view now has what the topics have"
	}
	_, more := fmt.Fprintf(to, "all: %s%s\n", strings.Join(counts, ", "), swapped)
	return errors.Join(err, more)
}
