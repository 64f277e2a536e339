package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"ordersystem.dev/services/contract"
)

// Why a letter is not redriven.
var (
	errNoKey   = errors.New("it does not say of which order it is: publish all orders again (docs/operations.md)")
	errAgain   = errors.New("it was published again before, and became a dead letter again")
	errClash   = errors.New("its version of the order is known with other contents: correct the order through Cart")
	errUnknown = errors.New("no order of Cart has this ID")
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
	progress io.Writer
}

// redrive decides on letters, and has the orders published again if that is confirmed. Several letters of
// an order are one command. After an error the decisions are those of the letters before.
func (r *redriver) redrive(ctx context.Context, letters []*letter) ([]decision, error) {
	var decisions []decision
	asked := make(map[string]error)
	shown := time.Now()
	for i, l := range letters {
		d := decision{letter: l, Outcome: "would be published"}
		err := refuse(l)
		if err == nil && r.confirm {
			var known bool
			if err, known = asked[l.Key]; !known {
				err = r.publish(ctx, l.Key)
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
		if time.Since(shown) > progressEvery {
			shown = time.Now()
			fmt.Fprintf(r.progress, "%d of %d letters\n", i+1, len(letters))
		}
	}
	return decisions, nil
}

// cartError is an answer of Cart, or none, after which it makes no sense to go on.
type cartError struct{ error }

func (e *cartError) Unwrap() error { return e.error }

// publish has Cart publish an order again, and waits until Kafka has it. It returns errUnknown, or a
// *cartError.
func (r *redriver) publish(ctx context.Context, orderID string) error {
	fail := func(err error) error { return &cartError{fmt.Errorf("have Cart publish %q again: %w", orderID, err)} }
	target := strings.TrimSuffix(r.cart, "/") + "/republish?" + url.Values{"orderId": {orderID}}.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target, http.NoBody)
	if err != nil {
		return fail(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fail(fmt.Errorf("%w (-cart has the address of Cart's operations port)", err))
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	text := strings.TrimSpace(string(body))
	lines := strings.Split(text, "\n")
	switch {
	case err != nil:
		return fail(err)
	case resp.StatusCode == http.StatusNotFound && strings.HasPrefix(text, "no order "):
		return errUnknown
	// The status comes before the work is done, so only the last line says that it is.
	case resp.StatusCode != http.StatusOK || !strings.HasPrefix(lines[len(lines)-1], "done: "):
		return fail(fmt.Errorf("the answer is %s: %s", resp.Status, text))
	}
	return nil
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
