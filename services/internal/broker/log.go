package broker

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
)

// logs carries librdkafka's own log to slog; left alone it writes to stderr.
type logs struct {
	lines chan kafka.LogEvent
	done  chan struct{}
}

func newLogs(log *slog.Logger) *logs {
	l := &logs{lines: make(chan kafka.LogEvent, 16), done: make(chan struct{})}
	go func() {
		defer close(l.done)
		for e := range l.lines {
			log.Log(context.Background(), level(e), "librdkafka", "tag", e.Tag, "text", e.Message)
		}
	}()
	return l
}

// settings makes a client log here.
func (l *logs) settings(more kafka.ConfigMap) kafka.ConfigMap {
	more["go.logs.channel.enable"] = true
	more["go.logs.channel"] = l.lines
	return more
}

// close ends the goroutine; the client is closed before.
func (l *logs) close() {
	close(l.lines)
	<-l.done
}

func level(e kafka.LogEvent) slog.Level {
	switch {
	case e.Tag == "CONFWARN": // settings are chosen with care
		return slog.LevelDebug
	case e.Tag == "FAIL" || e.Tag == "ERROR" || e.Tag == "SSL": // each failed connection to each broker, several a second in an outage: trouble says it once
		return slog.LevelDebug
	case e.Level <= 3: // syslog's numbers: 3 is an error, 4 a warning, 5 a notice
		return slog.LevelError
	case e.Level == 4:
		return slog.LevelWarn
	case e.Level == 5:
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

// trouble turns a client's stream of errors into one line per change, and one a minute while it lasts.
type trouble struct {
	log     *slog.Logger
	brokers string

	mu     sync.Mutex
	last   error
	detail error     // why the last connection failed
	at     time.Time // of the last line
}

// to says where the lines go from now on.
func (t *trouble) to(log *slog.Logger) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.log = log
}

// report takes what the client says is wrong.
func (t *trouble) report(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	down := func(err error) bool { return is(err, kafka.ErrAllBrokersDown) }
	switch {
	case is(err, kafka.ErrTransport): // connections come and go; it matters when no broker is left, of which it is the reason
		if t.detail = err; !down(t.last) {
			return
		}
		err = t.last
	case down(err) && t.last != nil: // a reason such as a refused password came first
		err = t.last
	}
	if t.last == nil || Code(t.last) != Code(err) {
		t.at = time.Time{}
	}
	t.last = err
	if down(err) && t.detail == nil || time.Since(t.at) < time.Minute { // the first failure's reason follows at once
		return
	}
	t.at = time.Now()
	t.log.Warn("trouble with Kafka", "brokers", t.brokers, "err", t.explained())
}

// over says that Kafka answers.
func (t *trouble) over() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last != nil && !t.at.IsZero() {
		t.log.Info("Kafka answers again", "brokers", t.brokers)
	}
	t.last, t.detail = nil, nil
}

// reason is what is wrong now, nil when nothing is.
func (t *trouble) reason() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.explained()
}

func (t *trouble) explained() error {
	if is(t.last, kafka.ErrAllBrokersDown) && t.detail != nil {
		return fmt.Errorf("%w: %w", explain(t.last), t.detail)
	}
	return explain(t.last)
}
