package env_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/internal/env"
)

func from(vars map[string]string) *env.Env {
	return env.New(func(name string) string { return vars[name] })
}

func TestValuesAndDefaults(t *testing.T) {
	t.Parallel()
	type values struct {
		S, O string
		N    int
		A    env.Addr
		Next string
	}
	read := func(e *env.Env) values {
		a := e.Addr("A", ":5000")
		return values{e.String("S", "s"), e.OneOf("O", "one", "two"), e.Int("N", 3, 1, 9), a, a.Next()}
	}
	for name, c := range map[string]struct {
		env  *env.Env
		want values
	}{
		"unset": {from(nil), values{"s", "one", 3, env.Addr{Value: ":5000", Variable: "A"}, ":5001"}},
		"set": {from(map[string]string{"S": " x ", "O": "TWO", "N": "9", "A": "127.0.0.1:0"}),
			values{"x", "two", 9, env.Addr{Value: "127.0.0.1:0", Variable: "A"}, "127.0.0.1:0"}},
		"prefixed": {from(map[string]string{"P_S": "p", "S": "not this", "P_A": ":80"}).WithPrefix("P_"),
			values{"p", "one", 3, env.Addr{Value: ":80", Variable: "P_A"}, ":81"}},
	} {
		got := read(c.env)
		if err := c.env.Err(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestEveryMistakeIsNamedAtOnce(t *testing.T) {
	t.Parallel()
	e := from(map[string]string{
		"X_N": "many", "X_BIG": "10", "X_O": "three", "X_A": "5000", "X_PORT": ":99999",
	}).WithPrefix("X_")
	e.Int("N", 3, 1, 9)
	e.Int("BIG", 3, 1, 9)
	e.OneOf("O", "one", "two")
	e.Addr("A", ":5000")
	e.Addr("PORT", ":5000")
	e.Required("BROKERS", "localhost:9092")
	want := []string{
		`X_N="many": must be a whole number from 1 to 9`,
		`X_BIG="10": must be a whole number from 1 to 9`,
		`X_O="three": must be one of one, two`,
		`X_A="5000": must be host:port or :port, such as :5000`,
		`X_PORT=":99999": must be host:port or :port, such as :5000`,
		`X_BROKERS is not set: for example X_BROKERS=localhost:9092`,
	}
	if diff := cmp.Diff(want, strings.Split(e.Err().Error(), "\n")); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
