package broker

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
)

// logs carries the log of one librdkafka client to slog. Without it, librdkafka writes to stderr.
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

// settings returns more with the settings that make a client log here.
func (l *logs) settings(more kafka.ConfigMap) kafka.ConfigMap {
	more["go.logs.channel.enable"] = true
	more["go.logs.channel"] = l.lines
	return more
}

// close ends the goroutine. The client has to be closed before.
func (l *logs) close() {
	close(l.lines)
	<-l.done
}

// level translates syslog's levels: 3 is an error, 4 a warning, 5 a notice.
func level(e kafka.LogEvent) slog.Level {
	switch {
	case e.Tag == "CONFWARN":
		// These are warnings about settings, which are chosen with care.
		return slog.LevelDebug
	case e.Tag == "FAIL" || e.Tag == "ERROR" || e.Tag == "SSL":
		// There is one line for each failed connection to each broker, several a second in an
		// outage. trouble logs them once.
		return slog.LevelDebug
	case e.Tag == "TXNERR" || e.Tag == "FATAL" || e.Tag == "GETPID":
		// The call returns this, or repeats what failed.
		return slog.LevelDebug
	case e.Level <= 3:
		return slog.LevelError
	case e.Level == 4:
		return slog.LevelWarn
	case e.Level == 5:
		return slog.LevelInfo
	}
	return slog.LevelDebug
}

// trouble turns a client's stream of errors into one line for each change, and one a minute while
// an error lasts. It keeps what is wrong with a partition apart from what is wrong with the client:
// that Kafka responds to something else does not mean that the partition can be read. It is safe for
// concurrent use.
type trouble struct {
	log     *slog.Logger
	brokers string

	mu sync.Mutex
	// partitions are those that cannot be read.
	partitions map[topicPartition]unreadable
	// unknown is why it is not known which partition cannot be read, or nil.
	unknown unreadable
	// last is the client's present error. It is nil when there is none.
	last error
	// detail is why the last connection failed.
	detail error
	// at is the time of the last line. It is zero when the present error has no line yet.
	at time.Time
}

// unreadable is why a partition cannot be read, and when that was logged.
type unreadable struct {
	err error
	at  time.Time
}

// setLog sets where lines go from now on.
func (t *trouble) setLog(log *slog.Logger) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.log = log
}

// report takes an error of the client.
func (t *trouble) report(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	down := func(err error) bool { return is(err, kafka.ErrAllBrokersDown) }
	switch {
	case is(err, kafka.ErrTransport):
		// Connections come and go. The error matters only when no broker is left: it is the reason.
		if t.detail = err; !down(t.last) {
			return
		}
		err = t.last
	case down(err) && t.last != nil:
		// The reason came first, such as a refused password.
		err = t.last
	}
	if t.last == nil || Code(t.last) != Code(err) {
		t.at = time.Time{}
	}
	t.last = err
	if down(err) && t.detail == nil || time.Since(t.at) < time.Minute {
		// Either the reason of a first failure is about to follow, or a line was logged just now.
		return
	}
	t.at = time.Now()
	t.log.Warn("trouble with Kafka", "brokers", t.brokers, "err", t.explained())
}

// over takes the news that Kafka responds.
func (t *trouble) over() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last != nil && !t.at.IsZero() {
		t.log.Info("Kafka responds again", "brokers", t.brokers)
	}
	t.last, t.detail = nil, nil
}

// unread takes the news that a partition cannot be read.
func (t *trouble) unread(at topicPartition, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	before, known := t.partitions[at]
	if t.partitions == nil {
		t.partitions = make(map[topicPartition]unreadable)
	}
	now := time.Now()
	if known && before.err.Error() == err.Error() && now.Sub(before.at) < time.Minute {
		now = before.at
	} else {
		t.log.Error("a partition cannot be read: it is tried again every second; "+
			"see the runbook OrderConsumerFailing", "topic", at.topic, "partition", at.number, "err", err)
	}
	t.partitions[at] = unreadable{err, now}
}

// examined takes the news whether the brokers could be asked which partition cannot be read.
func (t *trouble) examined(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil && time.Since(t.unknown.at) >= time.Minute {
		t.unknown.at = time.Now()
		t.log.Warn("a partition cannot be read, and asking Kafka which one fails: it is asked again every second",
			"brokers", t.brokers, "err", err)
	}
	t.unknown.err = err
}

// read takes the news that a partition can be read.
func (t *trouble) read(at topicPartition) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, known := t.partitions[at]; known {
		t.log.Info("the partition can be read again", "topic", at.topic, "partition", at.number)
		delete(t.partitions, at)
	}
}

// forget drops what is known of partitions that are no longer read.
func (t *trouble) forget(gone ...topicPartition) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unknown.err = nil
	for _, at := range gone {
		delete(t.partitions, at)
	}
}

// reason returns the present error, or nil. Of several it is that of the client, or else that of the
// first partition.
func (t *trouble) reason() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.explained(); err != nil {
		return err
	}
	if len(t.partitions) == 0 {
		return t.unknown.err
	}
	first := slices.SortedFunc(maps.Keys(t.partitions), func(a, b topicPartition) int {
		return cmp.Or(cmp.Compare(a.topic, b.topic), cmp.Compare(a.number, b.number))
	})[0]
	return fmt.Errorf("%s/%d cannot be read: %w", first.topic, first.number, t.partitions[first].err)
}

// explained returns the present error with its meaning. The caller holds the lock.
func (t *trouble) explained() error {
	if is(t.last, kafka.ErrAllBrokersDown) && t.detail != nil {
		return fmt.Errorf("%w: %w", explain(t.last), t.detail)
	}
	return explain(t.last)
}
