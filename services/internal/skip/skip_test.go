package skip

import (
	"strings"
	"testing"

	"ordersystem.dev/services/internal/broker"
)

// A command that is not understood is refused: a misspelt parameter must not skip another batch, nor any at all.
func TestOptionsAreReadStrictly(t *testing.T) {
	t.Parallel()
	at := broker.Place{Topic: "staging.order-created-topic", Partition: 3, Offset: 1234}
	for _, o := range []Options{{At: at}, {At: at, Confirm: true}} {
		if got, err := ParseOptions(o.query()); err != nil || got != o {
			t.Errorf("%q: %+v, %v, want %+v", o.query(), got, err, o)
		}
	}
	for query, want := range map[string]string{
		"":                         "at is missing",
		"confirm=true":             "at is missing",
		"at=orders/3":              `"orders/3" is no topic/partition/offset`,
		"at=orders/3/-1":           `"orders/3/-1" is no topic/partition/offset`,
		"at=a/1/2&at=a/1/3":        `at is ["a/1/2" "a/1/3"]`,
		"at=a/1/2&confirm=yes":     `confirm is ["yes"]`,
		"at=a/1/2&Confirm=true":    `Confirm is ["true"]`,
		"at=a/1/2;confirm=true":    "invalid semicolon",
		"at=a/1/2&dry-run=true":    `dry-run is ["true"]`,
		"at=a/1/2&confirm=true&at": `at is ["a/1/2" ""]`,
	} {
		if o, err := ParseOptions(query); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v, want %q", query, o, err, want)
		}
	}
}
