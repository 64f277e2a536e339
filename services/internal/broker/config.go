package broker

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"ordersystem.dev/services/internal/env"
	"ordersystem.dev/services/internal/kafkaconfig"
)

// Config holds how to connect to Kafka, and what the clients of one service share. Its copies share
// the TLS files in use and the statistics. Its texts mask the password, as those of its Client do.
type Config struct {
	kafkaconfig.Client

	// Prefix is before all names of this installation in Kafka: those of its topics, groups and
	// transactional IDs. It may be empty.
	Prefix string

	// SkipDamaged reports whether readers pass a damaged batch, because no whole copy is left. The
	// reader of any other damaged batch waits, and asks again every second. nil passes none.
	SkipDamaged func(ctx context.Context, at Place) (bool, error)

	// Stats makes metrics of the clients. It is nil where they are not wanted.
	Stats *Stats

	// files follows the TLS files. It is nil without files, and in a Config that ConfigFromEnv has
	// not made: the clients of that one keep the files that they have read at first.
	files *tlsFiles
}

// variables are the names of the settings in the environment.
var variables = kafkaconfig.Names{
	kafkaconfig.FieldBrokers:   "KAFKA_BROKERS",
	kafkaconfig.FieldProtocol:  "KAFKA_SECURITY_PROTOCOL",
	kafkaconfig.FieldCA:        "KAFKA_TLS_CA",
	kafkaconfig.FieldCert:      "KAFKA_TLS_CERT",
	kafkaconfig.FieldKey:       "KAFKA_TLS_KEY",
	kafkaconfig.FieldMechanism: "KAFKA_SASL_MECHANISM",
	kafkaconfig.FieldUsername:  "KAFKA_SASL_USERNAME",
	kafkaconfig.FieldPassword:  "KAFKA_SASL_PASSWORD",
}

// examples show what would be right for a setting that is required and not set.
var examples = map[kafkaconfig.Field]string{
	kafkaconfig.FieldBrokers:  "kafka:9092",
	kafkaconfig.FieldUsername: "cart",
	kafkaconfig.FieldPassword: "...",
}

// ConfigFromEnv reads KAFKA_*. Every mistake is reported to e.
func ConfigFromEnv(e *env.Env) Config {
	setting := func(f kafkaconfig.Field) string { return e.String(variables.Of(f), "") }
	c := kafkaconfig.Client{
		Brokers:   kafkaconfig.SplitBrokers(setting(kafkaconfig.FieldBrokers)),
		Protocol:  setting(kafkaconfig.FieldProtocol),
		CA:        setting(kafkaconfig.FieldCA),
		Cert:      setting(kafkaconfig.FieldCert),
		Key:       setting(kafkaconfig.FieldKey),
		Mechanism: setting(kafkaconfig.FieldMechanism),
		Username:  setting(kafkaconfig.FieldUsername),
		Password:  setting(kafkaconfig.FieldPassword),
	}.Normal()
	for _, mistake := range c.Validate(variables) {
		name := variables.Of(mistake.Field)
		if example := examples[mistake.Field]; mistake.Value == "" && example != "" {
			e.Required(name, example)
			continue
		}
		e.Invalid(name, mistake.Value, mistake.Want)
	}
	return Config{Client: c, Prefix: prefix(e), files: newTLSFiles(c)}
}

// longestPrefix is in bytes. A topic's name may have 249.
const longestPrefix = 100

// prefix reads KAFKA_PREFIX. It must be a part of a topic's name.
func prefix(e *env.Env) string {
	const name = "KAFKA_PREFIX"
	p := e.String(name, "")
	illegal := func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-", r)
	}
	if len(p) > longestPrefix || strings.ContainsFunc(p, illegal) {
		e.Invalid(name, p, fmt.Sprintf("at most %d of a-z, A-Z, 0-9, '.', '_' and '-', such as staging.",
			longestPrefix))
	}
	return p
}

// Name returns the name in Kafka of what the contract names so.
func (c Config) Name(name string) string { return c.Prefix + name }

// Names returns the Name of each of names.
func (c Config) Names(names []string) []string {
	in := make([]string, len(names))
	for i, name := range names {
		in[i] = c.Name(name)
	}
	return in
}

// CheckStore returns an error if a store has read or written other topics than these. It is that of
// another installation, whose orders must not be mixed with those of this one.
func CheckStore(positions map[Partition]int64, topics []string) error {
	for p := range positions {
		if !slices.Contains(topics, p.Topic) {
			return fmt.Errorf("the store is that of the topic %s, and this service is to use %s: "+
				"set KAFKA_PREFIX to what it was, or use another store", p.Topic, strings.Join(topics, " and "))
		}
	}
	return nil
}

// SkipDamagedFromEnv reads KAFKA_SKIP_DAMAGED, places that are separated by commas. It returns a
// Config.SkipDamaged for programs that have nowhere else to keep them.
func SkipDamagedFromEnv(e *env.Env) func(context.Context, Place) (bool, error) {
	const name = "KAFKA_SKIP_DAMAGED"
	list := e.String(name, "")
	if list == "" {
		return nil
	}
	skip := make(map[Place]bool)
	for text := range strings.SplitSeq(list, ",") {
		at, err := ParsePlace(strings.TrimSpace(text))
		if err != nil {
			e.Invalid(name, text, placeForm)
			continue
		}
		skip[at] = true
	}
	return func(_ context.Context, at Place) (bool, error) { return skip[at], nil }
}

// ConsumerConfig is what a Consumer reads, and as a member of which group.
type ConsumerConfig struct {
	Group  string
	Topics []string
	// MaxRecords is the largest number of records in a batch. 0 is 1000.
	MaxRecords int
	// MaxBytes is the size of keys and values at which a batch is full. 0 is 8 MiB. A batch has one
	// record at least.
	MaxBytes int
	// TopicCheck is the time between look-ups of the topics, which find those that were recreated.
	// 0 is 5 s.
	TopicCheck time.Duration
	// MaxSilence is how long Apply may take before Kafka gives the partitions to other members.
	// 0 is 5 min.
	MaxSilence time.Duration
}

// Handler keeps records and positions together in one store. Its methods are called one after the other,
// never at the same time.
type Handler interface {
	// Assigned returns the offset to read next for each partition. Only this counts: the offsets
	// that are committed in Kafka are never read.
	Assigned(ctx context.Context, ps []Partition) (map[Partition]int64, error)

	// Revoked is called when partitions no longer belong to this member. Records that were read
	// from them and not applied are dropped.
	Revoked(ps []Partition)

	// Apply stores a batch with its positions, all or nothing. It must not change the batch.
	//
	// On ErrFenced the consumer gives its partitions back and joins the group again. On any other
	// error it pauses, stays a member, and calls Apply again with the same batch, without
	// partitions that were revoked meanwhile. At shutdown, ctx outlives that of Run by a few
	// seconds.
	Apply(ctx context.Context, b Batch) error
}
