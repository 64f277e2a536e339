package broker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"ordersystem.dev/services/contract"
	"ordersystem.dev/services/internal/localkafka"
	"ordersystem.dev/services/internal/testenv"
)

// produceBatch writes values to partition 0 of a topic as one batch.
func produceBatch(t testing.TB, addr, topic, codec string, values ...[]byte) {
	t.Helper()
	var messages []contract.Message
	for _, v := range values {
		messages = append(messages, contract.Message{Topic: topic, Key: []byte("k"), Value: v})
	}
	testenv.ProduceBatch(t, addr, codec, 0, messages...)
}

// everyRead runs a test with a Consumer and with ReadTo. read returns what each of them has read of
// partition 0 of the topic, when it has got past the offset end.
func everyRead(
	t *testing.T, addr, topic string, end int64, test func(t *testing.T, read []Record),
) {
	t.Run("consumer", func(t *testing.T) {
		m := newMember(newStore())
		var read []Record
		m.apply = func(_ context.Context, b Batch) error {
			for _, r := range b.Records {
				read = append(read, r.summary())
			}
			return nil
		}
		_, stop := start(t, addr, group(topic), m)
		m.await(t, "all records", func() bool {
			for p, next := range m.next {
				if p.Topic == topic && next >= end {
					return true
				}
			}
			return false
		})
		stop()
		test(t, read)
	})
	t.Run("reader", func(t *testing.T) {
		first, to, err := patientAdmin(t, config(addr)).Bounds(t.Context(), topic)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var read []Record
		err = ReadTo(ctx, config(addr), logger(t), "g", first, to, func(_ context.Context, rs []Record) error {
			for _, r := range rs {
				read = append(read, r.summary())
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		test(t, read)
	})
}

// summary replaces the value by its length.
func (r Record) summary() Record {
	r.Value = fmt.Append(nil, len(r.Value))
	return r
}

func TestBatchesOfEveryCodecAreRead(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, addr string) {
		for _, codec := range testenv.Codecs() {
			t.Run(codec, func(t *testing.T) {
				topic := testenv.NewTopic(t, addr, 1)
				// A broker of default settings stores 1 MiB of what is left after compression.
				records, size := 80, 500_000
				switch codec {
				case testenv.None:
					size = 10_000
				case testenv.Snappy:
					size = 150_000
				case testenv.JavaZstd:
					// librdkafka guesses 102 MB, which is more than it may receive.
					records = 122
				}
				var values [][]byte
				for i := range records {
					values = append(values, bytes.Repeat([]byte{byte('a' + i%20)}, size))
				}
				produceBatch(t, addr, topic, testenv.None, []byte("before"))
				produceBatch(t, addr, topic, codec, values...)
				produceBatch(t, addr, topic, testenv.None, []byte("after!"))
				everyRead(t, addr, topic, int64(records+2), func(t *testing.T, read []Record) {
					var want, got []string
					for i := range records + 2 {
						n := size
						if i == 0 || i == records+1 {
							n = len("before")
						}
						want = append(want, fmt.Sprint(i, n))
					}
					for _, r := range read {
						if r.Fault != nil {
							t.Errorf("offset %d: %v", r.Offset, r.Fault)
						}
						got = append(got, fmt.Sprintf("%d %s", r.Offset, r.Value))
					}
					if !slices.Equal(got, want) {
						t.Errorf("read %d records, want %d: %.200v", len(got), len(want), got)
					}
				})
			})
		}
	})
}

// Without decompress_linux.go, librdkafka reads these batches, whatever memory they take.
func TestABatchThatIsTooLargeIsOneFault(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("librdkafka decompresses by itself")
	}
	each(t, func(t *testing.T, addr string) {
		for _, codec := range []string{testenv.LZ4, testenv.Zstd, testenv.JavaZstd, testenv.Gzip} {
			t.Run(codec, func(t *testing.T) {
				topic := testenv.NewTopic(t, addr, 1)
				produceBatch(t, addr, topic, testenv.None, []byte("before"))
				produceBatch(t, addr, topic, codec, make([]byte, 200<<20), []byte("the same batch"))
				produceBatch(t, addr, topic, testenv.None, []byte("after"))
				everyRead(t, addr, topic, 4, func(t *testing.T, read []Record) {
					var got []string
					for _, r := range read {
						got = append(got, fmt.Sprint(r.Offset, r.Fault != nil))
					}
					if want := []string{"0 false", "1 true", "3 false"}; !slices.Equal(got, want) {
						t.Errorf("read %v, want %v", got, want)
					}
				})
			})
		}
	})
}

func TestADamagedBatchIsWaitedForUntilItIsWholeOrToBeSkipped(t *testing.T) {
	t.Parallel()
	// librdkafka goes on in the middle of the batch. Zeros there are a message of less than no bytes.
	// Nines are a batch of an unknown version far behind the end of the log.
	for _, inside := range []byte{0, 9} {
		t.Run(fmt.Sprint(inside), func(t *testing.T) { waitsForADamagedBatch(t, bytes.Repeat([]byte{inside}, 5000)) })
	}
}

func waitsForADamagedBatch(t *testing.T, inside []byte) {
	dir := t.TempDir()
	k := testenv.StartKafkaWith(t, localkafka.Options{Dir: dir})
	const others = 12
	topic, other := testenv.NewTopic(t, k.Addr, 1), testenv.NewTopic(t, k.Addr, others)
	produceBatch(t, k.Addr, topic, testenv.None, []byte("before"))
	produceBatch(t, k.Addr, topic, testenv.None, append([]byte("damaged"), inside...), []byte("the same batch"))
	produceBatch(t, k.Addr, topic, testenv.None, []byte("after"))
	place := Place{topic, 0, 1}
	testenv.FlipBatch(t, dir, place.Topic, place.Partition, place.Offset)

	m := newMember(newStore())
	cc := group(topic, other)
	cc.TopicCheck = 100 * time.Millisecond
	// The first examinations find these batches, and not all partitions.
	for partition := range int32(others) {
		testenv.ProduceBatch(t, k.Addr, testenv.Gzip, partition, message(other, "k", "other"))
	}
	c, stop := start(t, k.Addr, cc, m)
	damaged := func() bool {
		e, ok := errors.AsType[*DamagedError](c.Err())
		return ok && e.Place == place
	}
	poll(t, "the damage is reported", damaged)
	rebalances := c.Rebalances()
	for i := range 20 {
		codec := []string{testenv.None, testenv.Gzip}[i%2]
		produceBatch(t, k.Addr, other, codec, []byte("other"))
		m.await(t, "the other topic", func() bool { return len(m.values[topicPartition{other, 0}]) == i+2 })
		if err := c.Err(); !damaged() && c.Rebalances() == rebalances {
			t.Fatalf("the damage is no longer reported: %v", err)
		}
		// A member that has lost its partitions, as on a slow machine, has to find out again.
		poll(t, "the damage is still reported", damaged)
	}
	var got []string
	m.change(func() { got = slices.Clone(m.values[topicPartition{topic, 0}]) })
	if want := []string{"before"}; !slices.Equal(got, want) {
		t.Errorf("read %q of the damaged partition, want %q", got, want)
	}

	var lines testenv.Lines
	ctx, cancel := context.WithCancel(t.Context())
	first, end, err := patientAdmin(t, config(k.Addr)).Bounds(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	var reading sync.WaitGroup
	before := make(chan struct{}, 1)
	read := func(ctx context.Context, cfg Config) (values []string, err error) {
		log := slog.New(slog.NewTextHandler(&lines, nil))
		err = ReadTo(ctx, cfg, log, "g", first, end, func(_ context.Context, rs []Record) error {
			for _, r := range rs {
				values = append(values, fmt.Sprint(string(r.Value), r.Fault != nil))
			}
			select {
			case before <- struct{}{}:
			default:
			}
			return nil
		})
		return values, err
	}
	reading.Go(func() {
		values, err := read(ctx, config(k.Addr))
		if want := []string{"beforefalse"}; !slices.Equal(values, want) || !errors.Is(err, context.Canceled) {
			t.Errorf("a reader has read %q, want %q; error %v", values, want, err)
		}
	})
	poll(t, "the reader reports the damage", func() bool {
		return strings.Contains(lines.String(), "a partition cannot be read") &&
			strings.Contains(lines.String(), "is damaged at offset 1")
	})
	<-before
	cancel()
	reading.Wait()

	// A reader that waits asks again.
	skipping, asked := config(k.Addr), 0
	skipping.SkipDamaged = func(_ context.Context, at Place) (bool, error) {
		switch asked++; asked {
		case 1:
			return false, nil
		case 2:
			return false, errors.New("the store is away")
		default:
			return at == place, nil
		}
	}
	values, err := read(t.Context(), skipping)
	if want := []string{"beforefalse", "true", "afterfalse"}; err != nil || !slices.Equal(values, want) {
		t.Errorf("a reader that skips has read %q, want %q; error %v", values, want, err)
	}
	if want := "whether it is to be skipped is not known: the store is away"; !strings.Contains(lines.String(), want) {
		t.Errorf("the log does not have %q:\n%s", want, lines.String())
	}
	for offset, want := range map[int64]*Place{0: nil, 1: &place, 2: &place, 3: nil} {
		found, err := FindDamage(t.Context(), skipping, Partition{Topic: topic}, offset)
		if err != nil || (found == nil) != (want == nil) || found != nil && found.Place != *want {
			t.Errorf("a reader at offset %d is held up by %v, want %v; error %v", offset, found, want, err)
		}
	}

	testenv.FlipBatch(t, dir, place.Topic, place.Partition, place.Offset)
	m.await(t, "all records, after the batch is whole again", func() bool { return m.count() == others+24 })
	poll(t, "no trouble is left", func() bool { return c.Err() == nil })
	stop()
	m.sameAs(t, k.Addr, topic, other)
}

// A producer may abort what it has written. librdkafka decompresses that before it drops it.
func TestAnAbortedBatchIsPassedWhateverItsCodec(t *testing.T) {
	t.Parallel()
	addr := testenv.SharedKafka(t).Addr
	for name, after := range map[string][]string{"at the end": nil, "in between": {"after"}} {
		t.Run(name, func(t *testing.T) {
			topic := testenv.NewTopic(t, addr, 1)
			produceBatch(t, addr, topic, testenv.None, []byte("before"))
			transactionWith(t, addr, kgo.GzipCompression(), topic, 0, false, strings.Repeat("aborted", 100))
			want := []string{"0 6"}
			for _, v := range after {
				produceBatch(t, addr, topic, testenv.None, []byte(v))
				want = append(want, fmt.Sprint(3, " ", len(v)))
			}
			end := testenv.HighWatermarks(t, addr, topic)[0]
			everyRead(t, addr, topic, end, func(t *testing.T, read []Record) {
				var got []string
				for _, r := range read {
					got = append(got, fmt.Sprintf("%d %s", r.Offset, r.Value))
				}
				if !slices.Equal(got, want) {
					t.Errorf("read %q, want %q", got, want)
				}
			})
		})
	}
}

// A response ends with its segment. The batches of the next segment must not be skipped with a
// damaged one.
func TestOnlyTheDamagedBatchIsSkippedAtTheEndOfItsSegment(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	k := testenv.StartKafkaWith(t, localkafka.Options{Dir: dir})
	topic := contract.Topic{Name: "segments", Partitions: 1, Config: map[string]string{"segment.bytes": "1048576"}}
	if err := localkafka.CreateTopics(t.Context(), k.Addr, []contract.Topic{topic}, 1); err != nil {
		t.Fatal(err)
	}
	large := strings.Repeat(".", 600_000)
	for _, v := range []string{"before", "damaged" + large, "after" + large, "last"} {
		produceBatch(t, k.Addr, topic.Name, testenv.None, []byte(v), []byte("the same batch"))
	}
	segments := filepath.Join(dir, "data", topic.Name+"-0")
	if _, err := os.Stat(filepath.Join(segments, "00000000000000000004.log")); err != nil {
		t.Fatalf("the damaged batch is not the last one of its segment: %v", err)
	}
	testenv.FlipBatch(t, dir, topic.Name, 0, 2)
	cfg := config(k.Addr)
	cfg.SkipDamaged = func(_ context.Context, at Place) (bool, error) { return at == Place{topic.Name, 0, 2}, nil }
	first, end, err := patientAdmin(t, config(k.Addr)).Bounds(t.Context(), topic.Name)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	err = ReadTo(t.Context(), cfg, logger(t), "g", first, end, func(_ context.Context, rs []Record) error {
		for _, r := range rs {
			got = append(got, fmt.Sprint(r.Offset, r.Fault != nil))
		}
		return nil
	})
	want := []string{"0 false", "1 false", "2 true", "4 false", "5 false", "6 false", "7 false"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("read %q, want %q; error %v", got, want, err)
	}
}

// A partition that was stopped at a batch would wait for ever for what Kafka has deleted or lost.
func TestAPartitionCanBeReadAgainOnceTheLogHasLostItsPosition(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, addr string) {
		topic := newTopic(t, addr, 2)
		testenv.ProduceBatch(t, addr, testenv.None, 0, messages(topic, 10, 1)...)
		testenv.DeleteRecords(t, addr, topic, map[int32]int64{0: 6})
		x := examiner{cfg: config(addr)}
		deleted, behind := topicPartition{topic, 0}, topicPartition{topic, 1}
		found, err := x.examine(t.Context(), map[topicPartition]int64{deleted: 2, behind: 7}, false)
		if err != nil {
			t.Fatal(err)
		}
		if len(found) != 2 {
			t.Errorf("found %+v, want both partitions", found)
		}
		for _, f := range found {
			if f.err != nil || f.next != 0 || len(f.records) > 0 {
				t.Errorf("found %+v, want nothing that librdkafka cannot read", f)
			}
		}
	})
}
