package testenv

import (
	"testing"

	"github.com/jackc/pgx/v5"
)

// Each call gets an empty database of its own, which is gone after the test even if it is in use.
func TestPostgres(t *testing.T) {
	var used string
	t.Run("used", func(t *testing.T) {
		used = Postgres(t)
		for _, url := range []string{used, Postgres(t)} {
			conn, err := pgx.Connect(t.Context(), url)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Exec(t.Context(), "CREATE TABLE same (n int)"); err != nil {
				t.Error(err)
			}
		}
	})
	if used == "" {
		t.Skip("there is no server")
	}
	if conn, err := pgx.Connect(t.Context(), used); err == nil {
		t.Error("the database exists after the test")
		conn.Close(t.Context())
	}
}
