package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"ordersystem.dev/services/contract"
)

// lettersOptions is a command line for dead letters.
type lettersOptions struct {
	// verb is list, show or redrive.
	verb string
	// at is the letter to show, as partition/offset.
	at string
	// reason and key select letters; empty: all.
	reason, key string
	// since and until select letters by their time; zero: all.
	since, until time.Time
	json         bool
	// cart is the address of Cart's operations endpoints.
	cart string
	// confirm: redrive has orders published.
	confirm bool
}

// parseLetters reads what follows dead-letters. The error is flag.ErrHelp or a usageError.
func parseLetters(args []string) (*lettersOptions, error) {
	o := &lettersOptions{}
	if len(args) == 0 {
		return nil, usageError{errors.New("dead-letters needs list, show or redrive")}
	}
	o.verb, args = args[0], args[1:]
	if !slices.Contains([]string{"list", "show", "redrive"}, o.verb) {
		return nil, usageError{fmt.Errorf("there is no dead-letters %s: use list, show or redrive", o.verb)}
	}
	arguments, err := parseFlags(o.flags(), args)
	if err != nil {
		return nil, err
	}
	return o, o.check(arguments)
}

// flags returns the flags, which set o.
func (o *lettersOptions) flags() *flag.FlagSet {
	flags := newFlags(&o.json)
	flags.StringVar(&o.reason, "reason", "", "only letters with this `reason`: "+reasons())
	flags.StringVar(&o.key, "key", "", "only letters whose record has this `key`, the ID of an order")
	flags.Func("since", "only letters from this `time` on: RFC 3339, or a duration such as 24h for as long ago",
		func(text string) (err error) { o.since, err = parseTime(text); return err })
	flags.Func("until", "only letters before this `time`",
		func(text string) (err error) { o.until, err = parseTime(text); return err })
	cartFlag(flags, &o.cart)
	flags.BoolVar(&o.confirm, "confirm", false,
		"redrive has Cart publish the orders; without it, it only shows what it would do")
	return flags
}

// check returns a usageError if the command line contradicts itself. arguments are what follows the flags.
func (o *lettersOptions) check(arguments []string) error {
	switch {
	case o.verb != "show" && len(arguments) > 0:
		return usageError{fmt.Errorf("%s takes no argument %q", o.verb, arguments[0])}
	case o.verb == "show" && len(arguments) != 1:
		return usageError{errors.New("show needs one PARTITION/OFFSET, the first column of list")}
	case o.confirm && o.verb != "redrive":
		return usageError{errors.New("-confirm is for redrive")}
	case o.reason != "" && !slices.Contains(contract.Reasons(), contract.Reason(o.reason)):
		return usageError{fmt.Errorf("there is no reason %q: it is %s", o.reason, reasons())}
	case o.verb != "show":
		return nil
	}
	o.at = arguments[0]
	partition, offset, ok := strings.Cut(o.at, "/")
	_, err := strconv.ParseUint(partition, 10, 31)
	_, bad := strconv.ParseUint(offset, 10, 63)
	if !ok || err != nil || bad != nil {
		return usageError{fmt.Errorf("%q is no PARTITION/OFFSET, such as 2/17", o.at)}
	}
	return nil
}

// reasons returns the reasons as a person reads them.
func reasons() string {
	var all []string
	for _, r := range contract.Reasons() {
		all = append(all, string(r))
	}
	return strings.Join(all[:len(all)-1], ", ") + " or " + all[len(all)-1]
}

// parseTime reads a time, or how long ago it was.
func parseTime(text string) (time.Time, error) {
	if ago, err := time.ParseDuration(text); err == nil {
		return time.Now().Add(-ago), nil
	}
	return time.Parse(time.RFC3339, text)
}

// run does what the command line says.
func (o *lettersOptions) run(ctx context.Context, k *kafka, stdout io.Writer) error {
	letters, err := k.letters(ctx, o.selects, o.verb == "show")
	if err != nil {
		return err
	}
	switch o.verb {
	case "list":
		return printList(stdout, letters, o.json)
	case "show":
		if len(letters) == 0 {
			return fmt.Errorf("there is no dead letter at %s", o.at)
		}
		return printWhole(stdout, letters[0], o.json)
	default:
		r := &redriver{cart: o.cart, confirm: o.confirm, progress: k.meter("redrive", "letters", int64(len(letters)))}
		decisions, err := r.redrive(ctx, letters)
		if err != nil && len(decisions) == 0 {
			return err
		}
		return errors.Join(printDecisions(stdout, decisions, o.confirm, o.json), err, anyRefused(decisions))
	}
}

// selects reports whether the command is about a letter.
func (o *lettersOptions) selects(l *letter) bool {
	if o.verb == "show" {
		return l.At == o.at
	}
	return (o.reason == "" || string(l.Reason) == o.reason) && (o.key == "" || l.Key == o.key) &&
		(o.since.IsZero() || !l.Time.Before(o.since)) && (o.until.IsZero() || l.Time.Before(o.until))
}
