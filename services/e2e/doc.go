// Package e2e tests the whole system from outside: the real programs as processes of their own, on
// a real Kafka, by their HTTP responses, records and stores.
package e2e
