package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/broker"
)

// letter is a dead letter, with the names that it has in JSON.
type letter struct {
	// At is where the letter is in the dead-letter topic, as partition/offset.
	At      string          `json:"letter"`
	Time    time.Time       `json:"time"`
	Reason  contract.Reason `json:"reason"`
	Message string          `json:"message"`
	// Topic, Partition and Offset are where the record was.
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
	Key       string `json:"key"`
	// Republished means that Cart had published the record again.
	Republished bool `json:"republished,omitempty"`

	// value and headers are those of the record. cut is true if it is not whole.
	value   []byte
	headers []contract.Header
	cut     bool
}

// newLetter reads a record of the dead-letter topic. Headers that are missing or wrong leave their field
// empty: an operator is to see such a letter too.
func newLetter(r *broker.Record) *letter {
	l := &letter{At: fmt.Sprintf("%d/%d", r.Partition, r.Offset), Time: r.Time, Key: string(r.Key), value: r.Value}
	for _, h := range r.Headers {
		v := string(h.Value)
		switch h.Key {
		case contract.HeaderLetterTopic:
			l.Topic = v
		case contract.HeaderLetterPartition:
			n, _ := strconv.ParseInt(v, 10, 32)
			l.Partition = int32(n)
		case contract.HeaderLetterOffset:
			l.Offset, _ = strconv.ParseInt(v, 10, 64)
		case contract.HeaderLetterReason:
			l.Reason = contract.Reason(v)
		case contract.HeaderLetterMessage:
			l.Message = v
		case contract.HeaderLetterTime:
			if t, err := time.Parse(time.RFC3339Nano, v); err == nil {
				l.Time = t
			}
		case contract.HeaderLetterCut:
			l.cut = true
		case contract.HeaderRepublished:
			l.Republished = true
			l.headers = append(l.headers, h)
		default:
			l.headers = append(l.headers, h)
		}
	}
	return l
}

// keep copies what is valid only while the record is read.
func (l *letter) keep() {
	l.value = bytes.Clone(l.value)
	for i := range l.headers {
		l.headers[i].Value = bytes.Clone(l.headers[i].Value)
	}
}

// letters returns the dead letters that are wanted, in the order of each partition. Only whole ones have the
// value and the headers of their record: all letters of 30 days may be much.
func (k *kafka) letters(ctx context.Context, wanted func(*letter) bool, whole bool) ([]*letter, error) {
	admin, err := broker.NewAdmin(k.cfg, k.log)
	if err != nil {
		return nil, err
	}
	defer admin.Close()
	var letters []*letter
	_, err = k.read(ctx, admin, "dead letters", nil, []string{contract.TopicDeadLetter},
		func(records []broker.Record) {
			for i := range records {
				l := newLetter(&records[i])
				if !wanted(l) {
					continue
				}
				if letters = append(letters, l); whole {
					l.keep()
				} else {
					l.value, l.headers = nil, nil
				}
			}
		})
	return letters, err
}

// printList prints a line for each letter.
func printList(to io.Writer, letters []*letter, asJSON bool) error {
	return printLetters(to, letters, asJSON, "LETTER\tTIME\tREASON\tKEY\tRECORD\tMESSAGE", func(l *letter) string {
		return fmt.Sprintf("%s\t%s\t%s\t%.40q\t%s/%d/%d\t%.80s", l.At, l.Time.UTC().Format(time.RFC3339), l.Reason,
			l.Key, l.Topic, l.Partition, l.Offset, l.Message)
	})
}

// printLetters prints a table, or each of all in a line of JSON. The columns of head and row are separated by
// tabs.
func printLetters[T any](to io.Writer, all []T, asJSON bool, head string, row func(T) string) error {
	if asJSON {
		return printJSON(to, all)
	}
	if len(all) == 0 {
		_, err := fmt.Fprintln(to, "no dead letters")
		return err
	}
	return printTable(to, all, head, row)
}

// whole is a letter with its record. What is not text is written as JSON writes bytes, in base64.
type whole struct {
	*letter
	Value  *string           `json:"value,omitempty"`
	Bytes  []byte            `json:"valueBase64,omitempty"`
	Cut    bool              `json:"cut,omitempty"`
	Header map[string]string `json:"headers"`
}

// printWhole prints one letter.
func printWhole(to io.Writer, l *letter, asJSON bool) error {
	all := whole{letter: l, Cut: l.cut, Header: make(map[string]string)}
	for _, h := range l.headers {
		all.Header[h.Key] = string(h.Value)
	}
	switch {
	case l.value == nil:
	case utf8.Valid(l.value):
		all.Value = new(string(l.value))
	default:
		all.Bytes = l.value
	}
	if asJSON {
		return printJSON(to, []whole{all})
	}
	encoder := json.NewEncoder(to)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(all)
}

// printJSON prints each of all in a line.
func printJSON[T any](to io.Writer, all []T) error {
	encoder := json.NewEncoder(to)
	encoder.SetEscapeHTML(false)
	for _, one := range all {
		if err := encoder.Encode(one); err != nil {
			return err
		}
	}
	return nil
}

// printTable prints a line for each of all. The columns of head and row are separated by tabs.
func printTable[T any](to io.Writer, all []T, head string, row func(T) string) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, head)
	for _, one := range all {
		fmt.Fprintln(w, row(one))
	}
	return w.Flush()
}
