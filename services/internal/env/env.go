// Package env reads configuration from the environment and reports everything that is wrong with it at once.
package env

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// Env looks variables up and collects the errors, so that one start shows every mistake.
type Env struct {
	getenv func(string) string
	prefix string
	errs   []error
}

// New reads by getenv, os.Getenv outside of tests.
func New(getenv func(string) string) *Env { return &Env{getenv: getenv} }

// WithPrefix puts prefix before the name of every variable that is read from here on, so that one process can hold two services.
func (e *Env) WithPrefix(prefix string) *Env {
	e.prefix = prefix
	return e
}

// Error is a configuration that is wrong: every mistake, each with the variable, its value and what is allowed.
type Error struct{ Mistakes []error }

func (e *Error) Error() string { return errors.Join(e.Mistakes...).Error() }

// Err is nil, or an *Error with every mistake so far.
func (e *Env) Err() error {
	if len(e.errs) == 0 {
		return nil
	}
	return &Error{e.errs}
}

// Invalid records that a variable's value is not allowed, and what is.
func (e *Env) Invalid(name, value, allowed string) {
	e.errs = append(e.errs, fmt.Errorf("%s%s=%q: must be %s", e.prefix, name, value, allowed))
}

// String is the variable's value without blanks at its ends, or fallback when it is unset or empty.
func (e *Env) String(name, fallback string) string {
	if v := strings.TrimSpace(e.getenv(e.prefix + name)); v != "" {
		return v
	}
	return fallback
}

// Required is a variable that has no default; example shows what would be right.
func (e *Env) Required(name, example string) string {
	v := e.String(name, "")
	if v == "" {
		e.errs = append(e.errs, fmt.Errorf("%s%s is not set: for example %[1]s%[2]s=%[3]s", e.prefix, name, example))
	}
	return v
}

// OneOf is a variable whose first allowed value is the default.
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

// Int is a whole number from low to high.
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

// Addr is a TCP address to listen on, and the variable that moves it.
type Addr struct {
	Value    string
	Variable string
}

// Addr is an address host:port or :port.
func (e *Env) Addr(name, fallback string) Addr {
	a := Addr{Value: e.String(name, fallback), Variable: e.prefix + name}
	_, port, err := net.SplitHostPort(a.Value)
	if n, perr := strconv.Atoi(port); err != nil || perr != nil || n < 0 || n > 65535 {
		e.Invalid(name, a.Value, "host:port or :port, such as "+fallback)
		a.Value = fallback
	}
	return a
}

// Next is the address one port above, where the operations endpoints listen by default; port 0 stays 0.
func (a Addr) Next() string {
	host, port, _ := net.SplitHostPort(a.Value)
	n, _ := strconv.Atoi(port)
	if n > 0 {
		n++
	}
	return net.JoinHostPort(host, strconv.Itoa(n))
}
