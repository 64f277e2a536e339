package broker

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"
	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"ordersystem.dev/services/contract"
)

const (
	// maxBatch is the largest size in bytes, decompressed, of a batch that is read. The records of a
	// larger one are lost to all readers.
	maxBatch = 64 << 20
	// maxFound is the size in bytes of keys and values at which an examination ends. It has one
	// batch at least.
	maxFound = 8 << 20
	// examineAgain is the time between two examinations while a partition cannot be read.
	examineAgain = time.Second
)

// examiner reads partitions with franz-go, one stored batch at a time. It finds out which partition
// an error of librdkafka is about, because that error names none. And it reads the batches that
// librdkafka cannot.
type examiner struct {
	cfg Config
	// before has the offsets of the last examination. A partition that is still there is stuck.
	before map[topicPartition]int64
	// at is when that was.
	at time.Time
}

// finding is what an examination has found out about a partition. There is none of a partition about
// which it has found out nothing.
type finding struct {
	at topicPartition
	// err is why the partition cannot be read until something is mended: a refusal of the broker, or
	// a *DamagedError.
	err error
	// records are those that librdkafka cannot read, and next is the offset after their batches. A
	// batch that cannot be read at all is one record with a Fault, and one of an aborted transaction
	// has none. next is 0 if librdkafka can read on.
	records []Record
	next    int64
}

// readsOn reports whether librdkafka may read on behind an error. After a wrong CRC it takes what it
// finds in the middle of the batch for the next one, and may go on at any offset. After other errors
// it tries again.
func readsOn(err error) bool { return aboutBatch(err) && !is(err, kafka.ErrBadCompression) }

// aboutBatch reports whether librdkafka could not read what a broker has sent.
func aboutBatch(err error) bool {
	return is(err, kafka.ErrBadCompression, kafka.ErrBadMsg, kafka.ErrNotImplemented, kafka.ErrUnderflow,
		kafka.ErrMsgSizeTooLarge)
}

// examine looks at partitions from the given offsets on. It ends early when it has read records.
// stuck makes it read any batch at an offset at which the last examination was too, not only those
// that librdkafka never reads.
func (x *examiner) examine(ctx context.Context, offsets map[topicPartition]int64, stuck bool) ([]finding, error) {
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	defer func() { x.at = time.Now() }()
	before := x.before
	x.before = offsets
	client, err := newFranz(x.cfg, kgo.RequestRetries(1))
	if err != nil {
		return nil, err
	}
	defer client.Close()
	names := make(map[string]bool)
	for at := range offsets {
		names[at.topic] = true
	}
	topics, err := lookUp(ctx, client, slices.Collect(maps.Keys(names)))
	if err != nil {
		return nil, err
	}
	var found []finding
	for at, offset := range offsets {
		s := storedPartition{client: client, at: at, skip: x.cfg.SkipDamaged, topic: topics[at.topic]}
		last, known := before[at]
		f, err := s.examine(ctx, offset, stuck && known && last == offset)
		if passes(err) {
			continue
		}
		if err != nil {
			return found, err
		}
		found = append(found, f)
		if f.next > 0 {
			break
		}
	}
	return found, nil
}

// FindDamage returns the damaged batch that holds up a reader at an offset of a partition, whatever
// SkipDamaged says of it. It returns nil if there is none: the reader can go on.
func FindDamage(ctx context.Context, cfg Config, p Partition, offset int64) (*DamagedError, error) {
	cfg.SkipDamaged = nil
	x := examiner{cfg: cfg}
	found, err := x.examine(ctx, map[topicPartition]int64{{p.Topic, p.Number}: offset}, false)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("%s/%d has no leader at present", p.Topic, p.Number)
	}
	if damaged, ok := errors.AsType[*DamagedError](found[0].err); ok {
		return damaged, nil
	}
	return nil, found[0].err
}

// due reports whether partitions that cannot be read should be examined again.
func (x *examiner) due() bool { return time.Since(x.at) >= examineAgain }

// stays reports whether an error lasts until something is mended: a refusal or a *DamagedError.
func stays(err error) bool {
	if _, ok := errors.AsType[*DamagedError](err); ok {
		return true
	}
	_, ok := errors.AsType[kafka.Error](err)
	return ok && !passes(err)
}

// passes reports whether a broker's error is one that clients get over by themselves: leaders change,
// and the start of the log moves.
func passes(err error) bool {
	return is(err, kafka.ErrLeaderNotAvailable, kafka.ErrNotLeaderForPartition, kafka.ErrReplicaNotAvailable,
		kafka.ErrFencedLeaderEpoch, kafka.ErrUnknownLeaderEpoch, kafka.ErrOffsetNotAvailable,
		kafka.ErrOffsetOutOfRange, kafka.ErrUnknownTopicOrPart, kafka.ErrUnknownTopicID,
		kafka.ErrInconsistentTopicID)
}

// storedPartition is one partition as its leader stores it.
type storedPartition struct {
	client *kgo.Client
	at     topicPartition
	topic  kmsg.MetadataResponseTopic
	// skip reports whether a damaged batch counts as one record with a Fault. It may be nil.
	skip func(ctx context.Context, at Place) (bool, error)
}

// storedBatch is one batch as it is stored.
type storedBatch struct {
	kmsg.RecordBatch
	// all is the batch in its wire format, and behind is what the response had behind it.
	all, behind []byte
	response    *kmsg.FetchResponseTopicPartition
}

// examine reads batches from an offset on, as long as librdkafka cannot read them. anyCodec makes it
// read the first one, whatever it is.
func (s *storedPartition) examine(ctx context.Context, offset int64, anyCodec bool) (finding, error) {
	f := finding{at: s.at}
	for size := 0; size < maxFound; {
		b, err := s.fetch(ctx, offset, 1)
		if err == nil && b == nil {
			// This is the end of the partition.
			return f, nil
		}
		var records []Record
		var next int64
		if err == nil {
			records, next, err = s.decode(ctx, b, offset, anyCodec)
		}
		if f.next > 0 && err != nil {
			// What was read comes first. The next examination finds the error.
			return f, nil
		}
		if is(err, kafka.ErrOffsetOutOfRange) {
			// What could not be read is gone, so the reader has to begin elsewhere.
			return f, nil
		}
		if stays(err) {
			f.err = err
			return f, nil
		}
		if err != nil || next == 0 {
			return f, err
		}
		f.records = append(f.records, records...)
		for _, r := range records {
			size += len(r.Key) + len(r.Value)
		}
		offset = next
		if !b.isControl() {
			f.next, anyCodec = next, false
		}
	}
	return f, nil
}

// fetch returns the batch at an offset, or the first one behind it. It returns nil at the end of the
// partition, and a kafka.Error, explained, when the broker refuses. least is how many bytes are asked
// for; there is always one batch.
func (s *storedPartition) fetch(ctx context.Context, offset int64, least int32) (*storedBatch, error) {
	refused := func(code int16) error { return explain(kafka.NewError(kafka.ErrorCode(code), "", false)) }
	if s.topic.ErrorCode != 0 {
		return nil, refused(s.topic.ErrorCode)
	}
	leader := int32(-1)
	for _, p := range s.topic.Partitions {
		if p.Partition == s.at.number {
			leader = p.Leader
		}
	}
	if leader < 0 {
		return nil, refused(int16(kafka.ErrLeaderNotAvailable))
	}
	req := kmsg.NewPtrFetchRequest()
	req.MaxWaitMillis, req.MinBytes, req.MaxBytes, req.IsolationLevel = 0, 0, least, 1
	t, p := kmsg.NewFetchRequestTopic(), kmsg.NewFetchRequestTopicPartition()
	t.Topic, t.TopicID = s.at.topic, s.topic.TopicID
	p.Partition, p.FetchOffset, p.PartitionMaxBytes = s.at.number, offset, least
	t.Partitions = append(t.Partitions, p)
	req.Topics = append(req.Topics, t)
	resp, err := req.RequestWith(ctx, s.client.Broker(int(leader)))
	if err != nil {
		return nil, fmt.Errorf("fetch %s/%d: %w", s.at.topic, s.at.number, err)
	}
	if resp.ErrorCode != 0 {
		return nil, refused(resp.ErrorCode)
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return nil, fmt.Errorf("fetch %s/%d: the response lacks the partition", s.at.topic, s.at.number)
	}
	got := &resp.Topics[0].Partitions[0]
	if got.ErrorCode != 0 {
		return nil, refused(got.ErrorCode)
	}
	if len(got.RecordBatches) == 0 {
		return nil, nil
	}
	return s.split(got)
}

// split takes the first batch of a response apart. It checks no CRC.
func (s *storedPartition) split(got *kmsg.FetchResponseTopicPartition) (*storedBatch, error) {
	const prefix, header = 12, 61
	b := &storedBatch{response: got}
	in := got.RecordBatches
	if len(in) >= prefix {
		// The length comes after the offset and does not count these two.
		if size := prefix + int64(int32(binary.BigEndian.Uint32(in[8:]))); size >= header && size <= int64(len(in)) {
			b.all, b.behind = in[:size], in[size:]
			if err := b.ReadFrom(b.all); err == nil && b.Magic == 2 {
				return b, nil
			}
		}
	}
	return nil, fmt.Errorf("fetch %s/%d: the response holds no batch", s.at.topic, s.at.number)
}

// isControl reports whether the batch is the marker of a transaction. All clients read it, and it has
// no records.
func (b *storedBatch) isControl() bool {
	const control = 1 << 5
	return b.Attributes&control != 0
}

// librdkafkaReads reports whether librdkafka gets records from the batch.
func (b *storedBatch) librdkafkaReads() bool {
	switch kgo.CompressionCodecType(b.Attributes & 7) {
	case kgo.CodecGzip, kgo.CodecZstd:
		return false
	case kgo.CodecLz4:
		return len(b.Records) == 0 || !refusesLZ4(b.Records)
	}
	return !b.isControl()
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// decode returns the records of a batch from an offset on, and the offset after the batch. That is 0
// if librdkafka can read the batch, and anyCodec is not set. The error is a *DamagedError, or one of
// the connection.
func (s *storedPartition) decode(
	ctx context.Context, b *storedBatch, offset int64, anyCodec bool,
) (records []Record, next int64, err error) {
	// The CRC covers everything behind itself.
	const crcEnd = 21
	if int32(crc32.Checksum(b.all[crcEnd:], castagnoli)) != b.CRC {
		return s.decodeDamaged(ctx, b, offset)
	}
	next = b.FirstOffset + int64(b.LastOffsetDelta) + 1
	if !anyCodec && b.librdkafkaReads() {
		return nil, 0, nil
	}
	partition := *b.response
	partition.RecordBatches = b.all
	got, after := kgo.ProcessFetchPartition(kgo.ProcessFetchPartitionOpts{
		Offset: offset, IsolationLevel: kgo.ReadCommitted(), Topic: s.at.topic, Partition: s.at.number,
	}, &partition, boundedDecompressor{}, nil)
	if got.Err == nil && after < next {
		got.Err = errors.New("the batch has not the records that it should have")
	}
	if got.Err != nil {
		return s.fault(b, offset, got.Err), next, nil
	}
	for _, r := range got.Records {
		records = append(records, storedRecord(r))
	}
	return records, next, nil
}

// decodeDamaged returns a *DamagedError, or a record with that as its Fault if the batch is to be
// skipped.
func (s *storedPartition) decodeDamaged(
	ctx context.Context, b *storedBatch, offset int64,
) (records []Record, next int64, err error) {
	place := Place{s.at.topic, s.at.number, b.FirstOffset}
	damaged := &DamagedError{place, b.NumRecords, len(b.all)}
	if s.skip == nil {
		return nil, 0, damaged
	}
	skipped, err := s.skip(ctx, place)
	if err != nil {
		return nil, 0, fmt.Errorf("%w; whether it is to be skipped is not known: %w", damaged, err)
	}
	if !skipped {
		return nil, 0, damaged
	}
	if next, err = s.after(ctx, b, offset); err != nil {
		return nil, 0, err
	}
	return s.fault(b, offset, damaged), next, nil
}

// after returns the offset at which the next batch can be read. What a damaged batch says of its size
// and of its last offset may be wrong too, so the broker is asked. It has returned the batch for
// offset.
func (s *storedPartition) after(ctx context.Context, b *storedBatch, offset int64) (int64, error) {
	const more = 64 << 10
	low, high := max(offset, b.FirstOffset)+1, b.response.HighWatermark
	got, err := s.fetch(ctx, offset, int32(len(b.all)+more))
	if err != nil {
		return 0, err
	}
	if got != nil && len(got.behind) >= 8 {
		if next := int64(binary.BigEndian.Uint64(got.behind)); low <= next && next <= high {
			return next, nil
		}
	}
	// A response ends with its segment. So this is the first offset at which there is another batch, or
	// nothing yet.
	for low < high {
		middle := low + (high-low)/2
		got, err := s.fetch(ctx, middle, 1)
		switch {
		case err != nil:
			return 0, err
		case got == nil || got.FirstOffset > b.FirstOffset:
			high = middle
		default:
			low = middle + 1
		}
	}
	return low, nil
}

// fault returns the record that stands for a batch that cannot be read.
func (s *storedPartition) fault(b *storedBatch, offset int64, err error) []Record {
	return []Record{{
		Topic: s.at.topic, Partition: s.at.number, Offset: max(offset, b.FirstOffset),
		Fault: fmt.Errorf("the batch at offset %d, of %d records and %d bytes, cannot be read: %w",
			b.FirstOffset, b.NumRecords, len(b.all), err),
	}}
}

func storedRecord(r *kgo.Record) Record {
	record := Record{
		Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Time: r.Timestamp, Key: r.Key, Value: r.Value,
	}
	for _, h := range r.Headers {
		record.Headers = append(record.Headers, contract.Header(h))
	}
	return record
}

// boundedDecompressor decompresses up to maxBatch bytes. It measures first and allocates then, so
// that a batch that is too large costs no memory.
type boundedDecompressor struct{}

// decompressing is locked while a batch is decompressed. The window of zstd may be as large as the
// batch itself, so only one reader of the process has one at a time.
var decompressing sync.Mutex

// Decompress is part of kgo.Decompressor.
func (boundedDecompressor) Decompress(in []byte, codec kgo.CompressionCodecType) ([]byte, error) {
	if codec == kgo.CodecNone {
		return in, nil
	}
	if codec == kgo.CodecSnappy {
		// A frame of Java's has another format, which has no length, and grows as little.
		if n, err := s2.DecodedLen(in); err == nil && n > maxBatch {
			return nil, errTooLarge
		}
		return kgo.DefaultDecompressor().Decompress(in, codec)
	}
	decompressing.Lock()
	defer decompressing.Unlock()
	size, err := decompressedSize(in, codec)
	if err != nil {
		return nil, err
	}
	r, err := newDecompressor(in, codec)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	out := make([]byte, size)
	_, err = io.ReadFull(r, out)
	return out, err
}

// decompressedSize returns how many bytes a batch has when it is decompressed, or errTooLarge.
func decompressedSize(in []byte, codec kgo.CompressionCodecType) (int64, error) {
	r, err := newDecompressor(in, codec)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	size, err := io.Copy(io.Discard, io.LimitReader(r, maxBatch+1))
	if err == nil && size > maxBatch {
		err = errTooLarge
	}
	return size, err
}

var errTooLarge = fmt.Errorf("it has more than %d bytes when it is decompressed", maxBatch)

func newDecompressor(in []byte, codec kgo.CompressionCodecType) (io.ReadCloser, error) {
	switch codec {
	case kgo.CodecGzip:
		return gzip.NewReader(bytes.NewReader(in))
	case kgo.CodecLz4:
		return io.NopCloser(lz4.NewReader(bytes.NewReader(in))), nil
	case kgo.CodecZstd:
		r, err := zstd.NewReader(bytes.NewReader(in), zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxBatch))
		if err != nil {
			return nil, err
		}
		return r.IOReadCloser(), nil
	}
	return nil, fmt.Errorf("its compression codec %d is unknown", codec)
}
