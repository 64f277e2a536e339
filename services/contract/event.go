package contract

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"
)

// Message is what is handed to Kafka.
type Message struct {
	Topic   string
	Key     []byte
	Value   []byte
	Headers []Header
}

// Header is one header of a Kafka record.
type Header struct {
	Key   string `json:"key"`
	Value []byte `json:"value"`
}

// Header keys: CloudEvents 1.0 in Kafka's binary mode, and W3C Trace Context.
const (
	HeaderID          = "ce_id"
	HeaderSource      = "ce_source"
	HeaderType        = "ce_type"
	HeaderTime        = "ce_time"
	HeaderSpecVersion = "ce_specversion"
	HeaderContentType = "content-type"
	HeaderTraceparent = "traceparent"
)

// Event types, one for each order topic.
const (
	TypeCreated = "order.created"
	TypeUpdated = "order.updated"
)

// Source is the CloudEvents source of what the Cart service publishes.
const Source = "/cart"

// Event is a fact about an order: that it was created, or what it is after an update.
type Event struct {
	ID          string // CloudEvents id, made when the order is accepted; tells a repetition from a conflict
	Type        string // TypeCreated or TypeUpdated
	Time        time.Time
	Traceparent string // W3C Trace Context, may be empty
	Order       Order
}

// ErrTooLarge says that an event would not fit into its topic.
var ErrTooLarge = errors.New("event too large")

// Message encodes the event for its topic. It also returns the order's JSON, which is the message's value.
// The error is ErrTooLarge when the broker would refuse the event.
func (e Event) Message() (Message, error) {
	value, err := e.Order.Encode()
	if err != nil {
		return Message{}, err
	}
	if len(value) > MaxEventBytes {
		return Message{}, fmt.Errorf("%w: order %q has %d bytes, the limit is %d", ErrTooLarge, e.Order.OrderID, len(value), MaxEventBytes)
	}
	m := Message{
		Topic: TopicCreated,
		Key:   []byte(e.Order.OrderID),
		Value: value,
		Headers: []Header{
			{HeaderSpecVersion, []byte("1.0")},
			{HeaderID, []byte(e.ID)},
			{HeaderSource, []byte(Source)},
			{HeaderType, []byte(e.Type)},
			{HeaderTime, []byte(e.Time.UTC().Format(time.RFC3339Nano))},
			{HeaderContentType, []byte("application/json")},
		},
	}
	if e.Type == TypeUpdated {
		m.Topic = TopicUpdated
	}
	if e.Traceparent != "" {
		m.Headers = append(m.Headers, Header{HeaderTraceparent, []byte(e.Traceparent)})
	}
	return m, nil
}

// Reason is why a record is a dead letter; the set is fixed, so it can label a metric.
type Reason string

// The reasons.
const (
	ReasonUndecodable Reason = "undecodable"
	ReasonTombstone   Reason = "tombstone"
	ReasonKeyMismatch Reason = "key_mismatch"
	ReasonConflict    Reason = "conflict"
)

// Reasons lists every reason there is.
func Reasons() []Reason {
	return []Reason{ReasonUndecodable, ReasonTombstone, ReasonKeyMismatch, ReasonConflict}
}

// DecodeError says why a record of an order topic is not an event.
type DecodeError struct {
	Reason  Reason
	Message string // for a person
}

func (e *DecodeError) Error() string { return string(e.Reason) + ": " + e.Message }

// undecodable makes a DecodeError. Its message becomes a header of the dead letter, and some errors quote the whole value: without
// a bound a record of 1 MiB would make a dead letter that its own topic refuses, for ever.
func undecodable(format string, args ...any) error {
	const most = 500
	m := fmt.Sprintf(format, args...)
	if len(m) > most {
		m = strings.ToValidUTF8(m[:most], "") + "..."
	}
	return &DecodeError{ReasonUndecodable, m}
}

// DecodeEvent reads a record of an order topic; every error is a *DecodeError.
//
// A record without CloudEvents headers comes from a plain JSON producer: its topic says its type, its version is 1 in the created
// topic and 2 + offset in the updated topic (such orders have no other writer), and its ID is a hash of its value, so that the
// same record sent twice is a duplicate and another one of the same version is a conflict.
func DecodeEvent(topic string, offset int64, key, value []byte, headers []Header) (Event, error) {
	var e Event
	switch topic {
	case TopicCreated:
		e.Type = TypeCreated
	case TopicUpdated:
		e.Type = TypeUpdated
	default:
		return Event{}, undecodable("topic %q holds no orders", topic)
	}
	if value == nil {
		return Event{}, &DecodeError{ReasonTombstone, "the record has no value"}
	}
	if err := e.readHeaders(headers); err != nil {
		return Event{}, err
	}
	if err := decodeStrict(value, &e.Order); err != nil {
		return Event{}, undecodable("%v", err)
	}
	if err := e.Order.check(); err != nil {
		return Event{}, undecodable("%v", err)
	}
	if string(key) != e.Order.OrderID {
		return Event{}, &DecodeError{ReasonKeyMismatch, fmt.Sprintf("key %.64q is not the orderId %.64q", key, e.Order.OrderID)}
	}
	e.Order.OrderDate = e.Order.OrderDate.UTC()
	if e.Order.Version == 0 { // not given
		e.Order.Version = 1
		if e.Type == TypeUpdated {
			e.Order.Version = 2 + offset
		}
	}
	if (e.Type == TypeCreated) != (e.Order.Version == 1) {
		return Event{}, undecodable("version %d cannot be that of %s", e.Order.Version, e.Type)
	}
	if e.ID == "" {
		sum := sha256.Sum256(value)
		e.ID = "sha256:" + hex.EncodeToString(sum[:])
	}
	return e, nil
}

func (e *Event) readHeaders(headers []Header) error {
	for _, h := range headers {
		v := string(h.Value)
		switch h.Key {
		case HeaderID:
			if len(v) > MaxIDBytes { // it is stored, and quoted in dead letters
				return undecodable("header %s has %d bytes, must be at most %d", h.Key, len(v), MaxIDBytes)
			}
			e.ID = v
		case HeaderTraceparent:
			e.Traceparent = v
		case HeaderType:
			if v != e.Type {
				return undecodable("header %s is %.64q, in this topic it must be %q", h.Key, v, e.Type)
			}
		case HeaderSpecVersion:
			if v != "1.0" {
				return undecodable("header %s is %.64q, must be 1.0", h.Key, v)
			}
		case HeaderTime:
			t, err := time.Parse(time.RFC3339, v)
			if err != nil || !writable(t) {
				return undecodable("header %s is %.64q, must be an RFC 3339 time", h.Key, v)
			}
			e.Time = t.UTC()
		}
	}
	return nil
}

// decodeStrict reads exactly one JSON value into v. Unknown keys are accepted, keys match without regard to case.
func decodeStrict(data []byte, v any) error {
	if !utf8.Valid(data) { // encoding/json would replace what is not UTF-8, silently
		return errors.New("not valid UTF-8")
	}
	if json.Unmarshal(data, v) == nil {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(data)) // slower, and able to tell broken JSON from something after it
	if err := d.Decode(v); err != nil {
		return jsonError(err)
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows the JSON value")
	}
	return nil
}

// jsonError says in a reader's words what encoding/json found.
func jsonError(err error) error {
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("broken JSON at byte %d: %s", syntax.Offset, strings.TrimPrefix(syntax.Error(), "json: "))
	}
	if typ, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		name := typ.Field
		if name == "" {
			name = "the JSON value"
		}
		return fmt.Errorf("%s must be %s, not %.30s", name, jsonKind(typ.Type), typ.Value)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("broken JSON: it ends too early")
	}
	return err
}

// jsonKind is what JSON calls the values that fit into t.
func jsonKind(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Int64:
		return "a whole number"
	case reflect.Slice:
		return "an array"
	default:
		return "an object"
	}
}
