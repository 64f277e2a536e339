package contract

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math/big"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// CreateOrder is the body of POST /Order/create-order. ItemsNum is from 1 to MaxItems.
type CreateOrder struct {
	OrderID  string
	ItemsNum int
}

// UpdateOrder is the body of PUT /Order/update-order.
type UpdateOrder struct {
	OrderID string
	Status  string
}

// DecodeCreateOrder decodes and checks a request body. The error names all mistakes, for the text
// of the response.
func DecodeCreateOrder(body []byte) (CreateOrder, error) {
	var raw struct{ OrderID, ItemsNum json.RawMessage }
	if err := decodeBody(body, &raw); err != nil {
		return CreateOrder{}, err
	}
	var req CreateOrder
	var idErr, numErr error
	req.OrderID, idErr = textField("orderId", raw.OrderID, ParseOrderID)
	req.ItemsNum, numErr = itemsNum(raw.ItemsNum)
	return req, joinSentence(idErr, numErr)
}

// DecodeUpdateOrder decodes and checks a request body. The error names all mistakes, for the text
// of the response.
func DecodeUpdateOrder(body []byte) (UpdateOrder, error) {
	var raw struct{ OrderID, Status json.RawMessage }
	if err := decodeBody(body, &raw); err != nil {
		return UpdateOrder{}, err
	}
	var req UpdateOrder
	var idErr, statusErr error
	req.OrderID, idErr = textField("orderId", raw.OrderID, ParseOrderID)
	req.Status, statusErr = textField("status", raw.Status, ParseStatus)
	return req, joinSentence(idErr, statusErr)
}

// ParseOrderIDs reads the query of a URL that has the parameter orderId once for each of some orders. It
// returns no IDs if there is no parameter. Whatever it does not understand is an error: a mistake must not
// become a command for all orders.
func ParseOrderIDs(query string, most int) ([]string, error) {
	const usage = "the parameter orderId is given once for each order"
	parameters, err := url.ParseQuery(query)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, usage)
	}
	ids := parameters["orderId"]
	delete(parameters, "orderId")
	for name := range parameters {
		return nil, fmt.Errorf("there is no parameter %q: %s", name, usage)
	}
	if len(ids) > most {
		return nil, fmt.Errorf("%d orders are too many for one command: it takes %d", len(ids), most)
	}
	for i := range ids {
		if ids[i], err = ParseOrderID(ids[i]); err != nil {
			return nil, fmt.Errorf("%w: %s", err, usage)
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// decodeBody decodes a JSON object into v. It refuses a key that is given twice, in whatever case:
// which of the two counts would be a guess.
func decodeBody(body []byte, v any) error {
	if err := decodeStrict(body, v); err != nil {
		return err
	}
	seen := make(map[string]bool)
	for key := range topLevelKeys(body) {
		folded := foldCase(key)
		if seen[folded] {
			return fmt.Errorf("%.40s is given more than once", key)
		}
		seen[folded] = true
	}
	return nil
}

// foldCase returns s with each character in one of its cases, the same for all of them. Two keys are
// the same to encoding/json exactly if their foldCase is the same.
func foldCase(s string) string {
	return strings.Map(func(r rune) rune {
		// The cases of a character form a circle, and the least one follows the greatest.
		for next := unicode.SimpleFold(r); ; r, next = next, unicode.SimpleFold(next) {
			if next <= r {
				return next
			}
		}
	}, s)
}

// topLevelKeys yields the keys of a JSON object. The JSON must be valid.
func topLevelKeys(body []byte) iter.Seq[string] {
	return func(yield func(string) bool) {
		depth := 0
		// key is true where a string would be a key.
		key := false
		for i := 0; i < len(body); i++ {
			switch body[i] {
			case '{', '[':
				depth++
				key = body[i] == '{'
			case '}', ']':
				depth--
			case ',':
				key = true
			case ':':
				key = false
			case '"':
				start := i
				for i++; body[i] != '"'; i++ {
					if body[i] == '\\' {
						i++
					}
				}
				var name string
				if depth == 1 && key && (json.Unmarshal(body[start:i+1], &name) != nil || !yield(name)) {
					return
				}
			}
		}
	}
}

// textField decodes a string and checks it with parse.
func textField(name string, raw json.RawMessage, parse func(string) (string, error)) (string, error) {
	if missing(raw) {
		return "", fmt.Errorf("%s is missing, must be a string that is not blank", name)
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", fmt.Errorf("%s must be a string, not %.20s", name, raw)
	}
	return parse(s)
}

// itemsNum decodes a whole number, however it is written: 3.0 and 3e0 are integers too (JSON Schema
// validation, section 6.1.1), and some clients write them so.
func itemsNum(raw json.RawMessage) (int, error) {
	if missing(raw) {
		return 0, fmt.Errorf("itemsNum is missing, must be a whole number from 1 to %d", MaxItems)
	}
	near, err := strconv.ParseFloat(string(raw), 64)
	switch {
	case err != nil && !errors.Is(err, strconv.ErrRange):
		return 0, fmt.Errorf("itemsNum must be a whole number from 1 to %d, not %.20s", MaxItems, raw)
	case near < 1 || near > MaxItems:
		return 0, fmt.Errorf("itemsNum is %.20s, must be from 1 to %d", raw, MaxItems)
	}
	// near may be rounded. An exact number could take any time and memory, but for the limits above and one
	// on the digits.
	const mostDigits = 64
	exact, ok := new(big.Rat), len(raw) <= mostDigits
	if ok {
		_, ok = exact.SetString(string(raw))
	}
	if !ok || !exact.IsInt() {
		return 0, fmt.Errorf("itemsNum must be a whole number from 1 to %d, not %.20s", MaxItems, raw)
	}
	return int(exact.Num().Int64()), nil
}

// missing reports whether a field is absent or null.
func missing(raw json.RawMessage) bool { return len(raw) == 0 || bytes.Equal(raw, []byte("null")) }

// joinSentence joins the errors that are not nil into one line. It returns nil if there are none.
func joinSentence(errs ...error) error {
	var all []string
	for _, err := range errs {
		if err != nil {
			all = append(all, err.Error())
		}
	}
	if len(all) == 0 {
		return nil
	}
	return errors.New(strings.Join(all, "; "))
}
