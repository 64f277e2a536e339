package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
	"github.com/google/go-cmp/cmp"

	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/kafkaconfig"
	"ordersystem.dev/services/internal/testenv"
)

func TestConfigFromEnv(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	former, current := testenv.NewAuthority(t, "former"), testenv.NewAuthority(t, "current")
	certText, keyText := current.Issue(t, "cart")
	cert, key := file("tls.crt", string(certText)), file("tls.key", string(keyText))
	_, otherText := current.Issue(t, "cart")
	other := file("other.key", string(otherText))
	file("cas/old.crt", string(former.PEM))
	file("cas/new.crt", string(current.PEM))
	file("cas/ca.p12", "not PEM")
	file("none/readme", "")
	cas, none := filepath.Join(dir, "cas"), filepath.Join(dir, "none")
	half := file("half.crt", string(former.PEM)+string(current.PEM[:len(current.PEM)/2]))

	for _, test := range []struct {
		name string
		env  map[string]string
		want kafkaconfig.Client
		// errs are the beginnings of the lines of the error.
		errs []string
	}{
		{name: "nothing", errs: []string{"KAFKA_BROKERS is not set"}},
		{
			name: "plain",
			env:  map[string]string{"KAFKA_BROKERS": "a:9092,b:9093"},
			want: kafkaconfig.Client{Brokers: []string{"a:9092", "b:9093"}, Protocol: "plaintext"},
		},
		{
			name: "client certificate",
			env: map[string]string{
				"KAFKA_BROKERS": "a:9093", "KAFKA_SECURITY_PROTOCOL": "SSL",
				"KAFKA_TLS_CA": cas, "KAFKA_TLS_CERT": cert, "KAFKA_TLS_KEY": key,
			},
			want: kafkaconfig.Client{Brokers: []string{"a:9093"}, Protocol: "ssl", CA: cas, Cert: cert, Key: key},
		},
		{
			name: "password",
			env: map[string]string{
				"KAFKA_BROKERS": "a:9093", "KAFKA_SECURITY_PROTOCOL": "sasl_ssl",
				"KAFKA_SASL_MECHANISM": "scram-sha-512", "KAFKA_SASL_USERNAME": "cart", "KAFKA_SASL_PASSWORD": "secret",
			},
			want: kafkaconfig.Client{
				Brokers: []string{"a:9093"}, Protocol: "sasl_ssl",
				Mechanism: "SCRAM-SHA-512", Username: "cart", Password: "secret",
			},
		},
		{
			name: "every mistake at once",
			env: map[string]string{
				"KAFKA_BROKERS": "a", "KAFKA_SECURITY_PROTOCOL": "sasl_plaintext", "KAFKA_TLS_CA": none,
				"KAFKA_TLS_CERT": "/no/such/file", "KAFKA_SASL_PASSWORD": "secret",
			},
			errs: []string{
				`KAFKA_BROKERS="a"`,
				`KAFKA_TLS_CA=`,
				`KAFKA_TLS_CERT="/no/such/file": must be a file`,
				`KAFKA_TLS_CERT="/no/such/file": must be set`,
				`KAFKA_SECURITY_PROTOCOL="sasl_plaintext": must be ssl`,
				`KAFKA_SASL_MECHANISM=""`,
				"KAFKA_SASL_USERNAME is not set",
			},
		},
		{
			name: "ports that are none",
			env:  map[string]string{"KAFKA_BROKERS": "kafka:abc,kafka:99999"},
			errs: []string{`KAFKA_BROKERS="kafka:abc,kafka:99999": must be host:port with a port from 1 to 65535`},
		},
		{
			name: "an unknown protocol",
			env:  map[string]string{"KAFKA_BROKERS": "a:1", "KAFKA_SECURITY_PROTOCOL": "TLS"},
			errs: []string{`KAFKA_SECURITY_PROTOCOL="TLS": must be one of plaintext, ssl, sasl_plaintext, sasl_ssl`},
		},
		{
			name: "a key of another certificate",
			env: map[string]string{
				"KAFKA_BROKERS": "a:1", "KAFKA_SECURITY_PROTOCOL": "ssl",
				"KAFKA_TLS_CERT": cert, "KAFKA_TLS_KEY": other,
			},
			errs: []string{`KAFKA_TLS_CERT="` + cert + `": must be the PEM certificate of KAFKA_TLS_KEY`},
		},
		{
			name: "half a CA file",
			env:  map[string]string{"KAFKA_BROKERS": "a:1", "KAFKA_SECURITY_PROTOCOL": "ssl", "KAFKA_TLS_CA": half},
			errs: []string{`KAFKA_TLS_CA="` + half + `": must be a file of PEM certificates`},
		},
		{
			name: "a password that would not be used",
			env: map[string]string{
				"KAFKA_BROKERS": "a:1", "KAFKA_SASL_USERNAME": "cart", "KAFKA_SASL_PASSWORD": "secret",
			},
			errs: []string{`KAFKA_SECURITY_PROTOCOL="plaintext": must be sasl_plaintext or sasl_ssl`},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := env.New(func(name string) string { return test.env[name] })
			got := ConfigFromEnv(e)
			var lines []string
			if err := e.Err(); err != nil {
				lines = strings.Split(err.Error(), "\n")
				if strings.Contains(err.Error(), "secret") {
					t.Errorf("the password shows: %v", err)
				}
			}
			if len(lines) != len(test.errs) {
				t.Fatalf("errors:\n%s\nwant:\n%s", strings.Join(lines, "\n"), strings.Join(test.errs, "\n"))
			}
			for i, want := range test.errs {
				if !strings.HasPrefix(lines[i], want) {
					t.Errorf("error %q, want %q", lines[i], want)
				}
			}
			if diff := cmp.Diff(test.want, got.Client); test.errs == nil && diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestConfigMasksThePassword(t *testing.T) {
	c := Config{Client: kafkaconfig.Client{Brokers: []string{"a:1"}, Username: "cart", Password: "secret"}}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("start", "kafka", c)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("start", "config", struct{ Kafka Config }{c})
	for _, text := range []string{
		log.String(), c.String(), fmt.Sprintf("%v %+v %#v", c, struct{ Kafka Config }{c}, c),
	} {
		if strings.Contains(text, "secret") || !strings.Contains(text, "cart") {
			t.Error(text)
		}
	}
}

func TestClientsThatCannotBeMade(t *testing.T) {
	leaks(t)
	cfg := Config{Client: kafkaconfig.Client{Brokers: []string{"a:1"}, CA: "/no/such/file"}}
	if _, err := NewProducer(cfg, "id", quiet); err == nil {
		t.Error("producer: no error")
	}
	if _, err := NewAdmin(cfg, quiet); err == nil {
		t.Error("admin: no error")
	}
	if err := ReadTo(t.Context(), cfg, quiet, "g", nil, map[Partition]int64{{"t", "", 0}: 1}, nil); err == nil {
		t.Error("reader: no error")
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	c := NewConsumer(cfg, ConsumerConfig{}, nil, quiet)
	var running sync.WaitGroup
	running.Go(func() { c.Run(ctx, nil) })
	poll(t, "the consumer's error names the file", func() bool {
		return c.Err() != nil && strings.Contains(c.Err().Error(), "/no/such/file")
	})
	stop()
	running.Wait()
	cfg = Config{Client: kafkaconfig.Client{Brokers: []string{"a:1"}, Protocol: "no-such"}}
	if _, err := NewProducer(cfg, "id", quiet); err == nil {
		t.Error("producer with a wrong setting: no error")
	}
}

func TestErrors(t *testing.T) {
	wrap := func(code kafka.ErrorCode, fatal bool) error {
		return fmt.Errorf("produce: %w", explain(kafka.NewError(code, "text", fatal)))
	}
	for _, test := range []struct {
		err        error
		code, text string
	}{
		{nil, "", ""},
		{errors.New("x"), "OTHER", "x"},
		{
			wrap(kafka.ErrClusterAuthorizationFailed, true),
			"CLUSTER_AUTHORIZATION_FAILED", "text",
		},
		{
			wrap(kafka.ErrGroupAuthorizationFailed, false),
			"GROUP_AUTHORIZATION_FAILED", "on the consumer group: a member needs the ACL Read",
		},
		{wrap(kafka.ErrorCode(1234), false), "CODE_1234", "text"},
	} {
		if got := Code(test.err); got != test.code {
			t.Errorf("Code(%v) = %s, want %s", test.err, got, test.code)
		}
		if got := fmt.Sprint(test.err); test.err != nil && !strings.Contains(got, test.text) {
			t.Errorf("%q does not contain %q", got, test.text)
		}
	}
}

func TestTroubleIsLoggedOnce(t *testing.T) {
	var text strings.Builder
	trouble := &trouble{log: slog.New(slog.NewTextHandler(&text, nil)), brokers: "a:1"}
	refused := kafka.NewError(kafka.ErrTransport, "connection refused", false)
	down := kafka.NewError(kafka.ErrAllBrokersDown, "1/1 brokers are down", false)
	for _, step := range []struct {
		what  string
		do    func()
		lines int
		text  string
	}{
		{"one connection of several", func() { trouble.report(refused) }, 0, ""},
		{"all brokers down", func() { trouble.report(down) }, 1, "connection refused"},
		{
			"the same again",
			func() { trouble.report(down); trouble.report(refused); trouble.report(refused) }, 1, "",
		},
		{"over", func() { trouble.over(); trouble.over() }, 2, "Kafka responds again"},
		{"down before the reason is known", func() { trouble.report(down) }, 2, ""},
		{"the reason follows", func() { trouble.report(refused) }, 3, "connection refused"},
		{
			"another reason",
			func() { trouble.report(kafka.NewError(kafka.ErrAuthentication, "", false)) }, 4, "refuses the user",
		},
		{"which stays", func() { trouble.report(down); trouble.report(refused) }, 4, ""},
	} {
		before := text.Len()
		step.do()
		got := strings.Count(text.String(), "\n")
		if got != step.lines || !strings.Contains(text.String()[before:], step.text) {
			t.Errorf("%s: %d lines, want %d, the last with %q:\n%s",
				step.what, got, step.lines, step.text, text.String())
		}
	}
}

func TestDamagedBatchesToSkip(t *testing.T) {
	for _, test := range []struct {
		list string
		want []Place
		err  string
	}{
		{"", nil, ""},
		{"orders/3/17", []Place{{"orders", 3, 17}}, ""},
		{" orders/3/17, b/0/0 ", []Place{{"orders", 3, 17}, {"b", 0, 0}}, ""},
		{"orders/3", nil, `KAFKA_SKIP_DAMAGED="orders/3": must be topic/partition/offset`},
		{"orders/-1/17", nil, "must be topic/partition/offset"},
		{"orders/3/9223372036854775808", nil, "must be topic/partition/offset"},
		{"/3/17", nil, "must be topic/partition/offset"},
	} {
		e := env.New(func(name string) string {
			return map[string]string{"KAFKA_BROKERS": "a:1", "KAFKA_SKIP_DAMAGED": test.list}[name]
		})
		skip := SkipDamagedFromEnv(e)
		if err := e.Err(); test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%q: error %v, want %q", test.list, err, test.err)
			}
			continue
		}
		if err := e.Err(); err != nil || (skip == nil) != (test.want == nil) {
			t.Errorf("%q: something is to be skipped: %t, error %v", test.list, skip != nil, err)
		}
		for _, at := range test.want {
			behind := at
			behind.Offset++
			for place, want := range map[Place]bool{at: true, behind: false} {
				if got, err := skip(t.Context(), place); got != want || err != nil {
					t.Errorf("%q: %s is skipped: %t, want %t; error %v", test.list, place, got, want, err)
				}
			}
		}
	}
}

func TestPrefix(t *testing.T) {
	for _, test := range []struct{ prefix, topic, err string }{
		{"", "orders", ""},
		{"staging.", "staging.orders", ""},
		{"Team_B-", "Team_B-orders", ""},
		{"staging/", "", `KAFKA_PREFIX="staging/": must be at most 100 of a-z, A-Z, 0-9, '.', '_' and '-'`},
		{strings.Repeat("x", 101), "", "must be at most 100"},
	} {
		e := env.New(func(name string) string {
			return map[string]string{"KAFKA_BROKERS": "a:1", "KAFKA_PREFIX": test.prefix}[name]
		})
		cfg := ConfigFromEnv(e)
		if err := e.Err(); test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%q: error %v, want %q", test.prefix, err, test.err)
			}
		} else if err != nil || cfg.Name("orders") != test.topic {
			t.Errorf("%q: the topic is %q, want %q; error %v", test.prefix, cfg.Name("orders"), test.topic, err)
		}
	}
}
