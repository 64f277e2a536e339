// Package skip is the command with which orderctl has Order pass a damaged batch of which no whole copy is left.
package skip

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"ordersystem.dev/services/internal/broker"
	"ordersystem.dev/services/internal/web"
)

// Path is where the operations endpoints of Order take the command. The parameters are those of Options.
const Path = "/skip"

// Options are the parameters of the command.
type Options struct {
	// At is where the batch is.
	At broker.Place
	// Confirm has Order skip the batch. Without it, nothing is changed.
	Confirm bool
}

// ParseOptions reads the query of a URL. Whatever it does not understand is an error: a mistake must not
// become another command.
func ParseOptions(query string) (o Options, err error) {
	const usage = "the parameters are at=topic/partition/offset, and confirm=true"
	parameters, err := url.ParseQuery(query)
	if err != nil {
		return Options{}, fmt.Errorf("%w: %s", err, usage)
	}
	for name, values := range parameters {
		switch {
		case name == "at" && len(values) == 1:
			o.At, err = broker.ParsePlace(values[0])
		case name == "confirm" && len(values) == 1 && values[0] == "true":
			o.Confirm = true
		default:
			err = fmt.Errorf("%s is %q: %s", name, values, usage)
		}
		if err != nil {
			return Options{}, err
		}
	}
	if o.At.Topic == "" {
		return Options{}, errors.New("at is missing: " + usage)
	}
	return o, nil
}

// query returns what ParseOptions reads.
func (o Options) query() string {
	parameters := url.Values{"at": {o.At.String()}}
	if o.Confirm {
		parameters.Set("confirm", "true")
	}
	return parameters.Encode()
}

// Outcome is what becomes of the batch.
type Outcome string

// The outcomes.
const (
	// Would: the command with Confirm skips the batch.
	Would Outcome = "would be skipped"
	// Skipped: Order passes the batch from now on. Its consumer has, if the batch held it up.
	Skipped Outcome = "skipped"
	// Already: an earlier command has skipped the batch.
	Already Outcome = "skipped already"
)

// Result is what the command has found and done. It is the response.
type Result struct {
	// At is the place of the batch.
	At      string  `json:"at"`
	Outcome Outcome `json:"outcome"`
	// Records and Bytes are the size of the batch, as far as it can be believed. They are 0 if it was skipped
	// already.
	Records int32 `json:"records,omitzero"`
	Bytes   int   `json:"bytes,omitzero"`
}

// Run sends the command to Order, whose operations endpoints are at addr, and returns the result.
func Run(ctx context.Context, addr string, o Options) (*Result, error) {
	resp, err := web.Ask(ctx, http.MethodPost, strings.TrimSuffix(addr, "/")+Path+"?"+o.query())
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var result Result
	if err := json.NewDecoder(resp.Body).Decode(&result); err != nil || result.At != o.At.String() {
		return nil, fmt.Errorf("the answer is none of Order's: is %s its operations port?", addr)
	}
	return &result, nil
}
