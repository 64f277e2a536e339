package lag

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ordersystem.dev/services/internal/kafkaconfig"
	"ordersystem.dev/services/internal/testenv"
)

// A collector gets tokens for its own credentials, and others before they expire. Each error says at
// which step authentication fails. Nothing has to be restarted after any of them.
func TestOAuthBearer(t *testing.T) {
	t.Parallel()
	right := testenv.TokenSettings{
		Client: "lag", Secret: "right", Scope: "kafka", Audience: "kafka", Lifetime: 6 * time.Second,
	}
	server := testenv.StartTokenServer(t, right)
	kafka := testenv.StartTokenKafka(t, server)
	topic := testenv.NewTopic(t, kafka.Addr, 1)
	produce(t, kafka.Addr, topic, 0, 9)
	commit(t, kafka.Addr, "readers", topic, 0, 4)

	secret := testenv.Secret{Dir: t.TempDir()}
	secret.Change(t, map[string][]byte{"id": []byte("lag\n"), "secret": []byte("wrong\n"), "ca.crt": server.CA})
	file := func(name string) string { return filepath.Join(secret.Dir, name) }
	cfg := watching(kafka.TLSAddr)
	cfg.Kafka = kafkaconfig.Client{
		Brokers: []string{kafka.TLSAddr}, Protocol: "sasl_plaintext", Mechanism: kafkaconfig.OAuthBearer,
		UsernameFile: file("id"), PasswordFile: file("secret"),
		TokenEndpoint: server.URL, TokenCA: file("ca.crt"), Scope: right.Scope,
	}
	// A failed login is repeated until the time of a request has passed.
	c := connectBriefly(t, cfg)
	// fails polls until the poll fails in this way, and is counted so.
	fails := func(code string, texts ...string) {
		t.Helper()
		eventually(t, func() error {
			c.poll(t.Context())
			for _, text := range texts {
				if err := c.Err(); err == nil || !strings.Contains(err.Error(), text) {
					return fmt.Errorf("the error is %w; want %q in it", err, text)
				}
			}
			counter := `lag_collector_errors_total{api="ListGroups",code="` + code + `",kafka_cluster="lab"}`
			if counters := scrape(t, c, counter); len(counters) == 0 || asReadError(c.Err()).Code() != code {
				return fmt.Errorf("%w has the code %s; there is no %s", c.Err(), asReadError(c.Err()).Code(), counter)
			}
			return nil
		})
	}
	succeeds := func() {
		t.Helper()
		eventually(t, func() error { c.poll(t.Context()); return c.Err() })
		if lag := c.Snapshot().Groups["readers"].Topics[topic].Partitions[0].Records; lag != 5 {
			t.Errorf("the lag is %d, want 5", lag)
		}
	}

	fails("CREDENTIALS", server.URL+" refuses with 401 invalid_client: check the URL, the client's ID and secret")
	secret.Change(t, map[string][]byte{"id": []byte("lag\n"), "secret": []byte("right\n"), "ca.crt": server.CA})
	succeeds()

	// The broker ends a session whose token has expired.
	before, begun, given := server.Given(), time.Now(), 0
	for time.Since(begun) < 2*right.Lifetime || given < 2 && time.Since(begun) < time.Minute {
		c.mustPoll(t)
		given = server.Given() - before
		time.Sleep(200 * time.Millisecond)
	}
	lifetimes := time.Since(begun).Seconds() / right.Lifetime.Seconds()
	if given < 2 || float64(given) > 4*lifetimes {
		t.Errorf("in %.1f lifetimes of a token, %d were given: want few, and not one for each poll", lifetimes, given)
	}

	other := right
	other.Audience = "another"
	server.Change(other)
	fails("SASL_AUTHENTICATION_FAILED", "kafka refuses the token (invalid_token): the broker's log says why")
	server.Change(right)
	succeeds()

	server.Close()
	fails("CREDENTIALS", "get a token: ", strings.TrimPrefix(server.URL, "https://127.0.0.1"), "connection refused",
		"check the token endpoint's address")
}

// eventually tries until there is no error.
func eventually(t *testing.T, try func() error) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		err := try()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}
