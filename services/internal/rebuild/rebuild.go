// Package rebuild is the command with which orderctl has Order compare its view with the topics, and rebuild
// it from them. Order fills a shadow beside the view and may swap it in.
//
// The response is a JSON object in each line: each second how far the command is, and at last its result, or
// why there is none. Without that line it was cut off.
package rebuild

import (
	"cmp"
	"fmt"
	"net/url"
	"strings"
)

// Path is where the operations endpoints of Order take the command. The parameters are those of Options.
const Path = "/rebuild"

// Options are the parameters of the command. Without any, it changes nothing.
type Options struct {
	// Swap makes the view what the topics have.
	Swap bool
	// Drop lets Swap remove what only the view has: orders, and newer versions. Otherwise there is no swap if
	// there is any.
	Drop bool
}

// ParseOptions reads the query of a URL. Whatever it does not understand is an error: a mistake must not
// become another command.
func ParseOptions(query string) (Options, error) {
	const usage = "the parameters are swap=true, and with it drop=true"
	var o Options
	parameters, err := url.ParseQuery(query)
	if err != nil {
		return Options{}, fmt.Errorf("%w: %s", err, usage)
	}
	for name, values := range parameters {
		switch {
		case len(values) != 1 || values[0] != "true":
			return Options{}, fmt.Errorf("%s is %q: %s", name, values, usage)
		case name == "swap":
			o.Swap = true
		case name == "drop":
			o.Drop = true
		default:
			return Options{}, fmt.Errorf("there is no parameter %q: %s", name, usage)
		}
	}
	if o.Drop && !o.Swap {
		return Options{}, fmt.Errorf("drop without swap: %s", usage)
	}
	return o, nil
}

// query returns what ParseOptions reads.
func (o Options) query() string {
	parameters := url.Values{}
	if o.Swap {
		parameters.Set("swap", "true")
	}
	if o.Drop {
		parameters.Set("drop", "true")
	}
	return parameters.Encode()
}

// Difference is a way in which an order of the view is not what the topics say.
type Difference string

// The differences. The topics do not have what the first three name.
const (
	// OnlyInView: the topics do not have the order.
	OnlyInView Difference = "only-in-view"
	// NewerInView: the topics have an older version.
	NewerInView Difference = "newer-in-view"
	// OtherEventInView: the topics have another event with the same version.
	OtherEventInView Difference = "other-event-in-view"
	// OnlyInTopics: the view lacks the order.
	OnlyInTopics Difference = "only-in-topics"
	// Different: the view has an older version, or other contents.
	Different Difference = "different"
)

// Order is an order that differs.
type Order struct {
	OrderID string `json:"orderId"`
	// View and Topics are the versions there; 0 is none.
	View       int64      `json:"view"`
	Topics     int64      `json:"topics"`
	Difference Difference `json:"difference"`
}

// Compare sorts orders by their differences and IDs.
func (o Order) Compare(p Order) int {
	return cmp.Or(cmp.Compare(o.Difference, p.Difference), strings.Compare(o.OrderID, p.OrderID))
}

// Result is what the command has found and done.
type Result struct {
	// Orders is how many orders the topics have.
	Orders int64 `json:"orders"`
	// Unusable is how many records of the topics take no effect, because something is wrong with them.
	Unusable int64 `json:"unusable"`
	// Differing is how many orders differ in each way. A way without any is absent.
	Differing map[Difference]int64 `json:"differing"`
	// Examples are some of these orders, of each kind.
	Examples []Order `json:"examples"`
	// Swapped means that the view was made what the topics have. Refused is why it was not, although that was
	// asked for.
	Swapped bool   `json:"swapped"`
	Refused string `json:"refused,omitempty"`
}

// Differ returns how many orders differ.
func (r *Result) Differ() (orders int64) {
	for _, n := range r.Differing {
		orders += n
	}
	return orders
}

// Progress is how far the command is: how many offsets of the topics are read, of those that are known so
// far.
type Progress struct {
	Read int64 `json:"read"`
	Of   int64 `json:"of"`
}

// Line is a line of the response. It has one of these.
type Line struct {
	Progress *Progress `json:"progress,omitempty"`
	Result   *Result   `json:"result,omitempty"`
	// Error is why there is no result.
	Error string `json:"error,omitempty"`
}
