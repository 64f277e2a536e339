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

// The steps, as the command line names them.
const (
	stepPlace  = "place"
	stepUpdate = "update"
	stepFind   = "find"
	stepAudit  = "audit"
)

const usage = `check tests a running order system from outside.

  check [flags] STEP...    any of these steps; each order takes them in this sequence:
      place    place a new order with Cart
      update   give it another status
      find     find it in Order, as Cart returned it last; waits for it until -timeout
      audit    when all orders are done: every acknowledged order must be in its topic

Flags, which come before the steps:
`

const examples = `
stdout has a line for each result and a summary at the end. stderr has what was not right. Responses
with Retry-After and broken connections are tried again until -timeout; the summary counts them as
"retried". After Ctrl-C no order is begun; those under way are finished.
Exit code: 0 everything was right, 1 something was not, 2 wrong usage.

Examples:
  check place update find audit
  check -rate 50 -for 5m place update find audit
  check -id order-17 find
`

// options is the command line.
type options struct {
	steps map[string]bool
	// cart and order are URLs without a slash at the end.
	cart, order string
	// ca is a file with the certificates that are trusted; empty: those of the system.
	ca string
	// token is a file with the bearer token; empty: none is sent.
	token string
	// prefix begins the IDs of new orders.
	prefix string
	// id is the only order of the run; empty for new orders.
	id string
	// tag distinguishes this run's orders and statuses from those of other runs.
	tag string
	// n is the number of orders, unless duration is set.
	n int
	// rate is orders per second; 0 is one after another.
	rate float64
	// duration is how long orders are begun; 0 means that n counts.
	duration time.Duration
	// timeout limits each step of an order, with all its retries.
	timeout time.Duration
}

// parse reads the command line. It returns flag.ErrHelp after it has printed the help that was
// asked for.
func parse(args []string, getenv func(string) string, stderr io.Writer) (options, error) {
	o := options{steps: map[string]bool{}, tag: strings.ToLower(rand.Text()[:8])}
	flags := flag.NewFlagSet("check", flag.ContinueOnError)
	// The flag package must print nothing: run prints the error.
	flags.SetOutput(io.Discard)
	flags.Usage = func() {}
	flags.StringVar(&o.cart, "cart", cmp.Or(getenv("CART_URL"), "http://localhost:5000"),
		"`URL` of Cart; CART_URL sets the default")
	flags.StringVar(&o.order, "order", cmp.Or(getenv("ORDER_URL"), "http://localhost:7000"),
		"`URL` of Order; ORDER_URL sets the default")
	flags.StringVar(&o.ca, "ca", getenv("CHECK_CA"),
		"`file` with the certificates to trust, instead of the system's; CHECK_CA sets the default")
	flags.StringVar(&o.token, "token", getenv("CHECK_TOKEN"),
		"`file` with a bearer token, which is read for each request; CHECK_TOKEN sets the default")
	flags.StringVar(&o.prefix, "prefix", "check-", "`text` at the beginning of the IDs of new orders")
	flags.StringVar(&o.id, "id", "", "`ID` of the one order to check, instead of new orders")
	flags.IntVar(&o.n, "n", 1, "number of orders")
	flags.Float64Var(&o.rate, "rate", 0,
		"orders per second, whether or not earlier ones are done; 0 is one after another")
	flags.DurationVar(&o.duration, "for", 0, "how long to begin orders, instead of how many")
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
		case stepPlace, stepUpdate, stepFind, stepAudit:
			o.steps[step] = true
		default:
			return o, fmt.Errorf("there is no step %q: use place, update, find or audit, after the flags", step)
		}
	}
	given := map[string]bool{}
	flags.Visit(func(f *flag.Flag) { given[f.Name] = true })
	return o, o.normalize(given)
}

// normalize brings the options into their final form. It returns an error if they contradict each
// other. given has the flags on the command line.
func (o *options) normalize(given map[string]bool) error {
	for name, address := range map[string]*string{"cart": &o.cart, "order": &o.order} {
		u, err := url.Parse(*address)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
			return fmt.Errorf("-%s %q: must be a URL such as http://localhost:5000", name, *address)
		}
		*address = strings.TrimRight(*address, "/")
	}
	// The services strip blanks around an ID too.
	o.id = strings.TrimSpace(o.id)
	switch {
	case len(o.steps) == 0:
		return errors.New("no step is given: use place, update, find or audit")
	case o.id == "" && !o.steps[stepPlace] && (o.steps[stepUpdate] || o.steps[stepFind]):
		return errors.New("update and find need an order: place one before, or name one by -id")
	case o.id != "" && (given["n"] || given["for"] || given["rate"]):
		return errors.New("-id is about one order: it excludes -n, -for and -rate")
	case given["n"] && given["for"]:
		return errors.New("-n and -for exclude each other")
	case o.n < 1 || o.rate < 0 || o.timeout <= 0 || (given["for"] && o.duration <= 0):
		return errors.New("-n, -for and -timeout must be above 0, -rate not below")
	}
	return nil
}

// newID returns the ID of this run's order number n.
func (o options) newID(n int) string { return fmt.Sprintf("%s%s-%d", o.prefix, o.tag, n) }
