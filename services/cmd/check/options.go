package main

import (
	"cmp"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"
)

const (
	stepPlace  = "place"
	stepUpdate = "update"
	stepFind   = "find"
	stepAudit  = "audit"
	stepPoison = "poison"
)

const usage = `check tries a running order system from outside.

  check [flags] STEP...    any of these; each order goes through them in this order:
      place    place a new order with Cart
      update   give it another status
      find     find it in Order, as it was answered last; waits for it until -timeout
      audit    when all orders are through: each one answered must be in its topic
  check [flags] poison
      write a record that is no order to order-created-topic, with the KAFKA_* variables of the services (as a user who may write)

Flags, which come before the steps:
`

const examples = `
stdout has a line for each result and a summary at the end, stderr what was not right. Answers with Retry-After and broken
connections are tried again until -timeout, which shows as "retried". Ctrl-C places nothing more and finishes what is under way.
Exit code: 0 all was right, 1 something was not, 2 wrong usage.

Examples:
  check place update find audit
  check -rate 50 -for 5m place update find audit
  check -id order-17 find
  KAFKA_BROKERS=localhost:9092 check poison
`

// options is the command line.
type options struct {
	steps       map[string]bool
	cart, order string // URLs
	prefix, id  string
	tag         string // tells this run's orders and statuses from those of others
	n           int
	rate        float64
	span        time.Duration // instead of n
	timeout     time.Duration
}

// parse reads the command line; flag.ErrHelp says that help was asked for and given.
func parse(args []string, getenv func(string) string, stderr io.Writer) (options, error) {
	o := options{steps: map[string]bool{}, tag: strings.ToLower(rand.Text()[:8])}
	flags := flag.NewFlagSet("check", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // run prints the error
	flags.Usage = func() {}
	flags.StringVar(&o.cart, "cart", cmp.Or(getenv("CART_URL"), "http://localhost:5000"), "`URL` of Cart; CART_URL sets the default")
	flags.StringVar(&o.order, "order", cmp.Or(getenv("ORDER_URL"), "http://localhost:7000"), "`URL` of Order; ORDER_URL sets the default")
	flags.StringVar(&o.prefix, "prefix", "check-", "`text` that the IDs of new orders begin with")
	flags.StringVar(&o.id, "id", "", "`ID` of the one order that it is about, instead of a new one")
	flags.IntVar(&o.n, "n", 1, "how many orders")
	flags.Float64Var(&o.rate, "rate", 0, "orders a second, whether or not earlier ones are done; 0 is one after another")
	flags.DurationVar(&o.span, "for", 0, "how long to begin orders, instead of how many")
	flags.DurationVar(&o.timeout, "timeout", 30*time.Second, "limit of each step of an order, with all its retries")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprint(stderr, usage)
			flags.SetOutput(stderr)
			flags.PrintDefaults()
			fmt.Fprint(stderr, examples)
		}
		return o, err
	}
	for _, step := range flags.Args() {
		switch step {
		case stepPlace, stepUpdate, stepFind, stepAudit, stepPoison:
			o.steps[step] = true
		default:
			return o, fmt.Errorf("there is no step %q: place, update, find, audit or poison, behind the flags", step)
		}
	}
	given := map[string]bool{}
	flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	return o, o.check(given)
}

// check normalizes the options, and says what does not fit together.
func (o *options) check(given map[string]bool) error {
	for name, address := range map[string]*string{"cart": &o.cart, "order": &o.order} {
		u, err := url.Parse(*address)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			return fmt.Errorf("-%s %q: must be a URL such as http://localhost:5000", name, *address)
		}
		*address = strings.TrimRight(*address, "/")
	}
	o.id = strings.TrimSpace(o.id) // as the services do
	switch {
	case len(o.steps) == 0:
		return errors.New("no step is given: place, update, find, audit or poison")
	case o.steps[stepPoison] && len(o.steps) > 1:
		return errors.New("poison goes alone")
	case o.id == "" && !o.steps[stepPlace] && (o.steps[stepUpdate] || o.steps[stepFind]):
		return errors.New("update and find need an order: place one before, or name one by -id")
	case o.id != "" && (given["n"] || given["for"] || given["rate"]):
		return errors.New("-id is about one order: it excludes -n, -for and -rate")
	case given["n"] && given["for"]:
		return errors.New("-n and -for exclude each other")
	case o.n < 1 || o.rate < 0 || o.timeout <= 0 || (given["for"] && o.span <= 0):
		return errors.New("-n, -for and -timeout must be above 0, -rate not below")
	}
	return nil
}

// newID is the ID of this run's order number n.
func (o options) newID(n int) string { return fmt.Sprintf("%s%s-%d", o.prefix, o.tag, n) }
