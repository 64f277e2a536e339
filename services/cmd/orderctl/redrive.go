package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"ordersystem.dev/services/contract"
)

// Why a letter is not redriven.
var (
	errNoKey = errors.New("it does not say of which order it is: publish all orders again (docs/operations.md)")
	errAgain = errors.New("it was published again before, and became a dead letter again")
	errClash = errors.New("its version of the order is known with other contents: correct the order through Cart")
)

// decision is what becomes of a letter.
type decision struct {
	*letter
	// Outcome is published, would be published, or refused.
	Outcome string `json:"outcome"`
	// Why is the reason of a refusal.
	Why string `json:"why,omitempty"`
}

// refuse returns why a letter cannot be redriven, or nil.
func refuse(l *letter) error {
	switch {
	case l.Reason == contract.ReasonUnreadable || l.Key == "":
		return errNoKey
	case l.Republished:
		return errAgain
	case l.Reason == contract.ReasonConflict:
		return errClash
	}
	return nil
}

// redriver has Cart publish the orders of dead letters again.
//
// The record of a letter itself is never published: its order may have a newer version by now, and
// compaction would keep the old one. Cart publishes the newest version, in turn with all other events.
type redriver struct {
	// cart is the address of Cart's operations endpoints.
	cart     string
	confirm  bool
	progress *meter
}

// redrive decides on letters, and has the orders published again if that is confirmed. Several letters of
// an order are one command. After an error the decisions are those of the letters before.
func (r *redriver) redrive(ctx context.Context, letters []*letter) ([]decision, error) {
	var decisions []decision
	asked := make(map[string]error)
	for _, l := range letters {
		d := decision{letter: l, Outcome: "would be published"}
		err := refuse(l)
		if err == nil && r.confirm {
			var known bool
			if err, known = asked[l.Key]; !known {
				err = republish(ctx, r.cart, l.Key)
				asked[l.Key] = err
			}
			d.Outcome = "published"
		}
		if _, failed := errors.AsType[*cartError](err); failed {
			return decisions, err
		}
		if err != nil {
			d.Outcome, d.Why = "refused", err.Error()
		}
		decisions = append(decisions, d)
		r.progress.add(1)
	}
	return decisions, nil
}

// printDecisions prints a line for each decision, and what to do next.
func printDecisions(to io.Writer, decisions []decision, confirmed, asJSON bool) error {
	err := printLetters(to, decisions, asJSON, "LETTER\tREASON\tKEY\tOUTCOME\tWHY", func(d decision) string {
		return fmt.Sprintf("%s\t%s\t%.40q\t%s\t%.160s", d.At, d.Reason, d.Key, d.Outcome, d.Why)
	})
	if err != nil || asJSON || confirmed || len(decisions) == 0 {
		return err
	}
	_, err = fmt.Fprintln(to, "Nothing was published. The same command with -confirm has Cart do so.")
	return err
}

// anyRefused returns an error if there is a refusal.
func anyRefused(decisions []decision) error {
	refused := len(slices.DeleteFunc(slices.Clone(decisions), func(d decision) bool { return d.Why == "" }))
	if refused > 0 {
		return fmt.Errorf("%d of %d letters are refused", refused, len(decisions))
	}
	return nil
}
