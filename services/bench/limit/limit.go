// Package limit measures the bare limits of this machine: the same bytes through a bare HTTP
// server, into a bare SQLite and through bare librdkafka by its Go binding. The benchmarks compare
// the services with them.
package limit

import (
	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
	"github.com/mattn/go-sqlite3"
)

// Versions returns the versions of the C libraries.
func Versions() (librdkafka, sqlite string) {
	_, librdkafka = kafka.LibraryVersion()
	sqlite, _, _ = sqlite3.Version()
	return librdkafka, sqlite
}
