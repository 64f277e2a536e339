package sqldb_test

import (
	"strings"
	"testing"

	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/sqldb"
)

// A mistake in DATABASE_URL is named at the start. No text shows its password.
func TestDatabaseURL(t *testing.T) {
	t.Parallel()
	for url, wrong := range map[string]string{
		"":                                      "",
		"postgres://cart:secret@db:5432/orders": "",
		"postgresql://db/orders?user=cart&password=secret&sslmode=require": "",
		"postgres://cart:secret@a:5432,b:5432/orders":                      "",
		"sqlite:///data/cart.db":                                           "must be postgres://",
		"file:cart.db":                                                     "must be postgres://",
		"mysql://cart:secret@db/orders":                                    "must be postgres://",
		"cart.db":                                                          "must be postgres://",
		"postgres://cart:secret@db:port/orders":                            "must be postgres://",
		"postgres://cart:secret@db/orders?sslmode=maybe":                   "sslmode",
		"postgres://cart:secret@db/orders?sslrootcert=/no/such/file&sslmode=verify-full": "/no/such/file",
	} {
		e := env.New(func(string) string { return url })
		got := sqldb.URLFromEnv(e)
		err := ""
		if e.Err() != nil {
			err = e.Err().Error()
		}
		if wrong == "" && (got != url || err != "") {
			t.Errorf("%s: %q, %s", url, got, err)
		}
		if wrong != "" && (got != "" || !strings.Contains(err, "DATABASE_URL") || !strings.Contains(err, wrong)) {
			t.Errorf("%s: %q, %q does not say %q", url, got, err, wrong)
		}
		if shown := err + sqldb.Redacted(url); strings.Contains(shown, "secret") {
			t.Errorf("%s: the password is shown: %s", url, shown)
		}
	}
}
