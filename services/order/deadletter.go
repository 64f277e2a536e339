package order

import (
	"slices"
	"strconv"
	"time"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/order/fold"
)

const (
	// maxLetterBytes keeps a dead letter below the 2 MiB of its topic. A compressed batch can hold
	// a record that is far larger than its topic admits. Its letter would be refused and stop all
	// letters behind it.
	maxLetterBytes = 2_000_000
	// headerFraming is how many bytes a header takes at most beside its key and value.
	headerFraming = 10
)

// deadLetters returns the messages for the dead-letter topic. Each has the key, value and headers
// of its record, and headers that say where the record came from and what is wrong with it.
func deadLetters(rejected []fold.Rejected, now time.Time) []contract.Message {
	messages := make([]contract.Message, len(rejected))
	for i, r := range rejected {
		messages[i] = deadLetter(r, now)
	}
	return messages
}

// deadLetter returns the letter for one record. A record that is too large is cut and loses its
// headers. A header then has its full size.
func deadLetter(r fold.Rejected, now time.Time) contract.Message {
	m := contract.Message{
		Topic: contract.TopicDeadLetter, Key: r.Record.Key, Value: r.Record.Value,
		Headers: slices.Clone(r.Record.Headers),
	}
	size := len(m.Key) + len(m.Value)
	for _, h := range m.Headers {
		size += len(h.Key) + len(h.Value) + headerFraming
	}
	if size > maxLetterBytes {
		m.Key = m.Key[:min(len(m.Key), contract.MaxIDBytes)]
		m.Value = m.Value[:min(len(m.Value), maxLetterBytes)]
		m.Headers = []contract.Header{{Key: contract.HeaderLetterCut, Value: strconv.AppendInt(nil, int64(size), 10)}}
	}
	record := r.Record
	for _, h := range []struct{ key, value string }{
		{contract.HeaderLetterTopic, record.Topic},
		{contract.HeaderLetterPartition, strconv.Itoa(int(record.Partition))},
		{contract.HeaderLetterOffset, strconv.FormatInt(record.Offset, 10)},
		{contract.HeaderLetterReason, string(r.Reason)},
		{contract.HeaderLetterMessage, r.Message},
		{contract.HeaderLetterTime, now.UTC().Format(time.RFC3339Nano)},
	} {
		m.Headers = append(m.Headers, contract.Header{Key: h.key, Value: []byte(h.value)})
	}
	return m
}
