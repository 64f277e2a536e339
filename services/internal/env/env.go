// Package env reads configuration from the environment and reports every mistake in it at once.
package env

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// Env looks up variables and collects the mistakes in them, so that one start shows them all. It is
// not safe for concurrent use.
type Env struct {
	getenv func(string) string
	// prefix stands before the name of each variable.
	prefix string
	errs   []error
}

// New returns an Env that reads with getenv, which is os.Getenv except in tests.
func New(getenv func(string) string) *Env { return &Env{getenv: getenv} }

// WithPrefix puts prefix before the name of every variable that is read from then on, so that one
// process can run two services.
func (e *Env) WithPrefix(prefix string) *Env {
	e.prefix = prefix
	return e
}

// Error holds every mistake in a configuration, each with the variable, its value and what is
// allowed.
type Error struct{ Mistakes []error }

// Error returns one line for each mistake.
func (e *Error) Error() string { return errors.Join(e.Mistakes...).Error() }

// Err returns an *Error with every mistake so far, or nil.
func (e *Env) Err() error {
	if len(e.errs) == 0 {
		return nil
	}
	return &Error{e.errs}
}

// Invalid records a mistake: the value of the variable name is not allowed. allowed follows "must
// be".
func (e *Env) Invalid(name, value, allowed string) {
	e.errs = append(e.errs, fmt.Errorf("%s%s=%q: must be %s", e.prefix, name, value, allowed))
}

// String returns the value of a variable without blanks around it, or fallback if that is empty.
func (e *Env) String(name, fallback string) string {
	if v := strings.TrimSpace(e.getenv(e.prefix + name)); v != "" {
		return v
	}
	return fallback
}

// Required returns the value of a variable that has no default. example shows in the error what
// would be right.
func (e *Env) Required(name, example string) string {
	v := e.String(name, "")
	if v == "" {
		e.errs = append(e.errs, fmt.Errorf("%s%s is not set: for example %[1]s%[2]s=%[3]s", e.prefix, name, example))
	}
	return v
}

// OneOf returns the allowed value that equals the variable but for its case. The first one is the
// default, and what OneOf returns after a mistake.
func (e *Env) OneOf(name string, allowed ...string) string {
	v := e.String(name, allowed[0])
	for _, a := range allowed {
		if strings.EqualFold(v, a) {
			return a
		}
	}
	e.Invalid(name, v, "one of "+strings.Join(allowed, ", "))
	return allowed[0]
}

// Int returns a whole number from low to high. After a mistake it returns fallback.
func (e *Env) Int(name string, fallback, low, high int) int {
	v := e.String(name, "")
	if v == "" {
		return fallback
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < low || n > high {
		e.Invalid(name, v, fmt.Sprintf("a whole number from %d to %d", low, high))
		return fallback
	}
	return n
}

// Addr is a TCP address to listen on.
type Addr struct {
	// Value is host:port or :port.
	Value string
	// Variable is the name of the variable that changes it, for error messages.
	Variable string
}

// Addr returns an address of the form host:port or :port. After a mistake it returns fallback.
func (e *Env) Addr(name, fallback string) Addr {
	a := Addr{Value: e.String(name, fallback), Variable: e.prefix + name}
	_, port, err := net.SplitHostPort(a.Value)
	if n, perr := strconv.Atoi(port); err != nil || perr != nil || n < 0 || n > 65535 {
		e.Invalid(name, a.Value, "host:port or :port, such as "+fallback)
		a.Value = fallback
	}
	return a
}

// Next returns the address one port above, where the operations endpoints listen by default. Port
// 0, any free port, stays 0.
func (a Addr) Next() string {
	host, port, _ := net.SplitHostPort(a.Value)
	n, _ := strconv.Atoi(port)
	if n > 0 {
		n++
	}
	return net.JoinHostPort(host, strconv.Itoa(n))
}
