package testenv

import (
	"context"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/localpostgres"
)

// The clock of a machine jumps forwards, backwards, and back to that of this one.
func TestTheClockOfAMachineJumps(t *testing.T) {
	t.Parallel()
	m := NewMachine(t)
	for _, ahead := range []time.Duration{0, time.Hour, -time.Hour, 5 * time.Second, 0} {
		m.Clock.Jump(ahead)
		date := exec.CommandContext(t.Context(), "date", "+%s")
		date.Env = append(os.Environ(), m.Env...)
		first := time.Now().Add(ahead).Unix()
		out, err := date.Output()
		last := time.Now().Add(ahead).Unix()
		got, notANumber := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
		if err != nil || notANumber != nil || got < first || got > last {
			t.Errorf("%s ahead it is %q, want %d to %d (%v)", ahead, out, first, last, err)
		}
	}
}

// A server whose clock has jumped takes it for the time, and goes on. After a failed fsync it starts again by
// itself, with all that was committed.
func TestPostgresOnAMachine(t *testing.T) {
	t.Parallel()
	m := NewMachine(t)
	s := StartPostgres(t, localpostgres.Options{Env: m.Env})
	conn, err := pgx.Connect(t.Context(), s.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(t.Context()))
	for _, ahead := range []time.Duration{time.Hour, -time.Hour, 0} {
		m.Clock.Jump(ahead)
		var now time.Time
		if err := conn.QueryRow(t.Context(), "SELECT clock_timestamp()").Scan(&now); err != nil {
			t.Fatal(err)
		}
		if off := time.Until(now.Add(-ahead)); off.Abs() > time.Minute {
			t.Errorf("the server's clock is %s off", off)
		}
	}
	if _, err := conn.Exec(t.Context(), "CREATE TABLE kept (n int)"); err != nil {
		t.Fatal(err)
	}
	m.Disk.Fail()
	if _, err := conn.Exec(t.Context(), "INSERT INTO kept VALUES (1)"); err == nil {
		t.Error("a commit whose fsync failed was acknowledged")
	}
	for deadline := time.Now().Add(ioPatience); ; time.Sleep(20 * time.Millisecond) {
		err := execute(t.Context(), s, "SELECT n FROM kept")
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the server does not come back with what was committed before: %v", err)
		}
	}
}

// A broker whose clock has jumped stamps records with it.
func TestABrokerOnAMachine(t *testing.T) {
	t.Parallel()
	m := NewMachine(t)
	m.Clock.Jump(time.Hour)
	k := StartKafkaWith(t, localkafka.Options{Env: m.Env})
	topic := NewTopic(t, k.Addr, 1)
	for _, ahead := range []time.Duration{time.Hour, time.Hour - 10*time.Second} {
		m.Clock.Jump(ahead)
		Produce(t, k.Addr, contract.Message{Topic: topic, Key: []byte("key"), Value: []byte(ahead.String())})
	}
	records := ReadAll(t, k.Addr, topic)
	if len(records) != 2 {
		t.Fatalf("there are %d records, want 2", len(records))
	}
	for _, r := range records {
		if off := time.Until(r.Time) - time.Hour; off.Abs() > time.Minute {
			t.Errorf("the record %s has a time that is %s off", r.Value, off)
		}
	}
}
