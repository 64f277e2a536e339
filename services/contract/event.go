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
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

// Message is a record to produce. Kafka chooses its partition by the key.
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
	// HeaderRepublished marks an event that is published again from Cart's store. It is an extension
	// attribute of CloudEvents.
	HeaderRepublished = "ce_republished"
)

// Event types, one for each order topic.
const (
	TypeCreated = "order.created"
	TypeUpdated = "order.updated"
)

// Source is the CloudEvents source of the events that the Cart service publishes.
const Source = "/cart"

// Event is the whole order after it was created or updated.
type Event struct {
	// ID is the CloudEvents ID. The same ID again is a repeated event; the same version with another
	// ID is a conflict. Message makes it from the value if it is empty.
	ID string
	// Type is TypeCreated or TypeUpdated.
	Type string
	Time time.Time
	// Traceparent is the W3C Trace Context. It may be empty.
	Traceparent string
	Order       Order
}

// ErrTooLarge reports that an event would not fit into its topic.
var ErrTooLarge = errors.New("event too large")

// Message encodes the event for its topic. The value is that of Order.Encode. The error is
// ErrTooLarge if the broker would refuse the event.
func (e Event) Message() (Message, error) {
	value, err := e.Order.Encode()
	if err != nil {
		return Message{}, err
	}
	if len(value) > MaxEventBytes {
		return Message{}, fmt.Errorf("%w: order %q has %d bytes, the limit is %d",
			ErrTooLarge, e.Order.OrderID, len(value), MaxEventBytes)
	}
	if e.ID == "" {
		e.ID = eventID(value)
	}
	return e.message(value), nil
}

// Republish returns the event that has brought an order to a version, to publish it again. value is
// the order as its event had it. Readers take the message for a repetition, because the ID follows
// from the value. now and traceparent are those of the repetition.
func Republish(orderID string, version int64, value []byte, now time.Time, traceparent string) Message {
	e := Event{ID: eventID(value), Type: TypeUpdated, Time: now, Traceparent: traceparent}
	e.Order.OrderID = orderID
	if version == 1 {
		e.Type = TypeCreated
	}
	m := e.message(value)
	m.Headers = append(m.Headers, Header{HeaderRepublished, []byte("true")})
	return m
}

// IsRepublished reports whether a message comes from Republish.
func (m Message) IsRepublished() bool {
	return slices.ContainsFunc(m.Headers, func(h Header) bool { return h.Key == HeaderRepublished })
}

// eventID returns the ID of the event with this value: a UUID of version 8, a hash. So a store that
// keeps only the order knows the ID of its newest event.
func eventID(value []byte) string {
	sum := sha256.Sum256(value)
	sum[6], sum[8] = sum[6]&0x0f|0x80, sum[8]&0x3f|0x80
	id := make([]byte, 0, 36)
	for rest, sizes := sum[:16], []int{4, 2, 2, 2, 6}; len(rest) > 0; sizes = sizes[1:] {
		if len(id) > 0 {
			id = append(id, '-')
		}
		id, rest = hex.AppendEncode(id, rest[:sizes[0]]), rest[sizes[0]:]
	}
	return string(id)
}

// message returns the message with this value. The event has its ID.
func (e Event) message(value []byte) Message {
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
	return m
}

// Reason is why a record is a dead letter. The set is fixed, so that it can label a metric.
type Reason string

// The reasons why a record is a dead letter.
const (
	// ReasonUndecodable: the record is not an order, or it breaks a rule of the contract.
	ReasonUndecodable Reason = "undecodable"
	// ReasonTombstone: the record has no value.
	ReasonTombstone Reason = "tombstone"
	// ReasonKeyMismatch: the key is not the order's ID.
	ReasonKeyMismatch Reason = "key_mismatch"
	// ReasonConflict: the version is known with another event ID. DecodeEvent does not return it.
	ReasonConflict Reason = "conflict"
	// ReasonUnreadable: a whole batch of records cannot be read. DecodeEvent does not return it.
	ReasonUnreadable Reason = "unreadable"
)

// Reasons returns all reasons.
func Reasons() []Reason {
	return []Reason{ReasonUndecodable, ReasonTombstone, ReasonKeyMismatch, ReasonConflict, ReasonUnreadable}
}

// DecodeError is why a record of an order topic is not an event.
type DecodeError struct {
	Reason Reason
	// Message explains the reason to a person. It has at most about 600 bytes.
	Message string
}

func (e *DecodeError) Error() string { return string(e.Reason) + ": " + e.Message }

// undecodable returns a DecodeError with a message of bounded size. The message becomes a header of
// the dead letter, and some errors quote the whole value: a record of 1 MiB could make a dead
// letter that its topic refuses for ever.
func undecodable(format string, args ...any) error {
	const most = 500
	m := fmt.Sprintf(format, args...)
	if len(m) > most {
		m = strings.ToValidUTF8(m[:most], "") + "..."
	}
	return &DecodeError{ReasonUndecodable, m}
}

// DecodeEvent decodes a record of an order topic. Every error is a *DecodeError.
//
// A record without CloudEvents headers comes from a plain JSON producer. Its topic gives its type.
// Its version is 1 in the created topic and 2 + offset in the updated topic, as such orders have no
// other writer. Its ID is a hash of its value: the same record sent twice is a duplicate, and
// another one of the same version is a conflict.
func DecodeEvent(topic string, offset int64, key, value []byte, headers []Header) (Event, error) {
	e, _, err := decodeEvent(topic, offset, key, value, headers)
	return e, err
}

// DecodeRecord is DecodeEvent that also returns the order as Order.Encode writes it. That may be the value
// itself.
func DecodeRecord(
	topic string, offset int64, key, value []byte, headers []Header,
) (e Event, encoded []byte, err error) {
	e, canonical, err := decodeEvent(topic, offset, key, value, headers)
	if err != nil || canonical {
		return e, value, err
	}
	// What cannot be stored is a fault of the record, and must not stop the transaction of a whole batch
	// later.
	if encoded, err = e.Order.Encode(); err != nil {
		return Event{}, nil, undecodable("%v", err)
	}
	return e, encoded, nil
}

// decodeEvent is DecodeEvent that also reports whether Order.Encode would write the same value.
func decodeEvent(
	topic string, offset int64, key, value []byte, headers []Header,
) (e Event, canonical bool, err error) {
	if e.Type = EventType(topic); e.Type == "" {
		return Event{}, false, undecodable("topic %q holds no orders", topic)
	}
	if value == nil {
		return Event{}, false, &DecodeError{ReasonTombstone, "the record has no value"}
	}
	if err := e.readHeaders(headers); err != nil {
		return Event{}, false, err
	}
	if canonical = e.Order.decodeCanonical(value); !canonical {
		e.Order = Order{}
		if err := decodeStrict(value, &e.Order); err != nil {
			return Event{}, false, undecodable("%v", err)
		}
	}
	if err := e.Order.check(); err != nil {
		return Event{}, false, undecodable("%v", err)
	}
	if string(key) != e.Order.OrderID {
		return Event{}, false, &DecodeError{
			ReasonKeyMismatch, fmt.Sprintf("key %.64q is not the orderId %.64q", key, e.Order.OrderID),
		}
	}
	e.Order.OrderDate = e.Order.OrderDate.UTC()
	if e.Order.Version == 0 { // not given
		e.Order.Version = 1
		if e.Type == TypeUpdated {
			e.Order.Version = 2 + offset
		}
	}
	if (e.Type == TypeCreated) != (e.Order.Version == 1) {
		return Event{}, false, undecodable("version %d cannot be that of %s", e.Order.Version, e.Type)
	}
	if e.ID == "" {
		sum := sha256.Sum256(value)
		e.ID = "sha256:" + hex.EncodeToString(sum[:])
	}
	return e, canonical, nil
}

// readHeaders takes the headers that are known and ignores all others. The type of e is set
// already.
func (e *Event) readHeaders(headers []Header) error {
	for _, h := range headers {
		v := string(h.Value)
		switch h.Key {
		case HeaderID:
			// It is stored with the order, so it must not be of any size.
			if len(v) > MaxIDBytes {
				return undecodable("header %s has %d bytes, must be at most %d", h.Key, len(v), MaxIDBytes)
			}
			// PostgreSQL cannot store a zero in a text.
			if !utf8.ValidString(v) || strings.ContainsRune(v, 0) {
				return undecodable("header %s is not valid UTF-8, or has a zero byte", h.Key)
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

// decodeStrict decodes exactly one JSON value into v. It accepts unknown keys, and keys in any
// case.
func decodeStrict(data []byte, v any) error {
	// encoding/json silently replaces what is not Unicode: two such IDs would become one.
	if !utf8.Valid(data) {
		return errors.New("not valid UTF-8")
	}
	if half := loneSurrogate(data); half != "" {
		return fmt.Errorf("not valid Unicode: %s is half of a surrogate pair", half)
	}
	if json.Unmarshal(data, v) == nil {
		return nil
	}
	// Decode again, slower, to find out whether the JSON is broken or something follows it.
	d := json.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(v); err != nil {
		return jsonError(err)
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows the JSON value")
	}
	return nil
}

// loneSurrogate returns the first escape in a JSON text that is half of a surrogate pair, such as
// \ud83d without the other half behind it, or "" if there is none.
func loneSurrogate(data []byte) string {
	for {
		i := bytes.IndexByte(data, '\\')
		if i < 0 || i+1 == len(data) {
			return ""
		}
		data = data[i:]
		first, ok := escapedRune(data)
		switch {
		case !ok:
			// It is another escape, of two bytes.
			data = data[2:]
		case !utf16.IsSurrogate(first):
			data = data[escapeBytes:]
		default:
			second, _ := escapedRune(data[escapeBytes:])
			if utf16.DecodeRune(first, second) == unicode.ReplacementChar {
				return string(data[:escapeBytes])
			}
			data = data[2*escapeBytes:]
		}
	}
}

// escapeBytes is the size of an escape such as \ud83d.
const escapeBytes = 6

// escapedRune reads an escape such as \ud83d at the start of data. ok is false if there is none.
func escapedRune(data []byte) (r rune, ok bool) {
	if len(data) < escapeBytes || data[0] != '\\' || data[1] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(data[2:escapeBytes]), 16, 16)
	return rune(n), err == nil
}

// jsonError rewrites an error of encoding/json for a client, who knows JSON and not Go.
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

// jsonKind returns what JSON calls a value that fits into t.
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
