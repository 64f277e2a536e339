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

	"ordersystem.dev/services/internal/inventory"
)

// rowsShown is how many orders the table has at most. JSON has all.
const rowsShown = 1000

// The outcomes of a reconciliation for an order.
const (
	outcomeWould = "would be published"
	outcomeDone  = "repaired"
	outcomeLeft  = "left"
)

// reconcileOptions is a command line that compares the stores and the topics.
type reconcileOptions struct {
	// cart and order are the addresses of the operations endpoints.
	cart, order string
	// repair: Cart publishes orders again.
	repair bool
	json   bool
}

// parseReconcile reads what follows reconcile. The error is flag.ErrHelp or a usageError.
func parseReconcile(args []string) (*reconcileOptions, error) {
	o := &reconcileOptions{}
	return o, parseOnlyFlags("reconcile", o.flags(), args)
}

// flags returns the flags, which set o.
func (o *reconcileOptions) flags() *flag.FlagSet {
	flags := newFlags(&o.json)
	cartFlag(flags, &o.cart)
	orderFlag(flags, &o.order)
	flags.BoolVar(&o.repair, "repair", false, "have Cart publish the orders again for which that is enough")
	return flags
}

// reconciled is an order that differs.
type reconciled struct {
	OrderID string `json:"orderId"`
	// Cart, Topics and Order are the versions there; 0 is none.
	Cart        int64        `json:"cart"`
	Topics      int64        `json:"topics"`
	Order       int64        `json:"order"`
	Differences []difference `json:"differences"`
	Outcome     string       `json:"outcome"`
}

// run does what the command line says.
func (o *reconcileOptions) run(ctx context.Context, k *kafka, stdout io.Writer) error {
	found, err := k.compare(ctx, o.cart, o.order)
	if err != nil {
		return err
	}
	var left map[string]*state
	if o.repair {
		if left, err = o.republish(ctx, k, found); err != nil {
			return err
		}
	}
	// What came up only in the second comparison differs too.
	maps.Copy(found, left)
	rows := make([]reconciled, 0, len(found))
	open := 0
	for _, id := range slices.Sorted(maps.Keys(found)) {
		s := found[id]
		row := reconciled{id, s.cart.version, s.topics.version, s.order.version, s.differences(), outcomeLeft}
		switch {
		case o.repair && left[id] == nil:
			row.Outcome = outcomeDone
		case !o.repair && s.repairable():
			row.Outcome = outcomeWould
		}
		if row.Outcome != outcomeDone {
			open++
		}
		rows = append(rows, row)
	}
	if err := printReconciled(stdout, rows, o.json); err != nil {
		return err
	}
	if open > 0 {
		return fmt.Errorf("%d orders differ: docs/operations.md, Compare the stores with the topics", open)
	}
	return nil
}

// republish has Cart publish what that repairs, and compares everything again. It returns what is left.
func (o *reconcileOptions) republish(
	ctx context.Context, k *kafka, found map[string]*state,
) (left map[string]*state, err error) {
	var ids []string
	for _, id := range slices.Sorted(maps.Keys(found)) {
		if found[id].repairable() {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return found, nil
	}
	progress := k.meter("publishing again", "orders", int64(len(ids)))
	for page := range slices.Chunk(ids, inventory.MostOrders) {
		if err := republish(ctx, o.cart, page...); err != nil {
			return nil, fmt.Errorf("%d of %d orders were published again: %w", progress.done, len(ids), err)
		}
		progress.add(len(page))
	}
	return k.compare(ctx, o.cart, o.order)
}

// printReconciled prints a line for each order that differs.
func printReconciled(to io.Writer, rows []reconciled, asJSON bool) error {
	if asJSON {
		return printJSON(to, rows)
	}
	if len(rows) == 0 {
		_, err := fmt.Fprintln(to, "no differences")
		return err
	}
	shown := rows[:min(len(rows), rowsShown)]
	err := printTable(to, shown, "ORDER ID\tCART\tTOPICS\tORDER\tDIFFERENCES\tOUTCOME", func(r reconciled) string {
		var all []string
		for _, d := range r.Differences {
			all = append(all, string(d))
		}
		return fmt.Sprintf("%.40q\t%d\t%d\t%d\t%s\t%s",
			r.OrderID, r.Cart, r.Topics, r.Order, strings.Join(all, ", "), r.Outcome)
	})
	if len(rows) > len(shown) {
		_, more := fmt.Fprintf(to, "and %d more: -json prints all\n", len(rows)-len(shown))
		err = errors.Join(err, more)
	}
	return err
}
