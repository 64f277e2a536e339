package testenv

import (
	"strings"
	"sync"
)

// Lines is a log of several goroutines that a test reads. The zero value is empty.
type Lines struct {
	mu   sync.Mutex
	text strings.Builder
}

// Write is part of io.Writer.
func (l *Lines) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

// String returns what was written so far.
func (l *Lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Has reports whether a text was written.
func (l *Lines) Has(text string) bool { return strings.Contains(l.String(), text) }
