package testenv

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/twmb/franz-go/pkg/kgo"

	"ordersystem.dev/services/contract"
)

// The codecs of ProduceBatch.
const (
	None   = "none"
	Snappy = "snappy"
	LZ4    = "lz4"
	Zstd   = "zstd"
	// JavaZstd is zstd as Java's producer writes it: the frame does not say how large it becomes.
	JavaZstd = "java-zstd"
	Gzip     = "gzip"
)

// codecs makes the options of a client. A client changes its options, so no two may share one.
var codecs = map[string]func() kgo.Opt{
	None:     compression(kgo.NoCompression()),
	Snappy:   compression(kgo.SnappyCompression()),
	LZ4:      compression(kgo.Lz4Compression()),
	Zstd:     compression(kgo.ZstdCompression()),
	JavaZstd: func() kgo.Opt { return kgo.WithCompressor(javaZstd{}) },
	Gzip:     compression(kgo.GzipCompression()),
}

func compression(codec kgo.CompressionCodec) func() kgo.Opt {
	return func() kgo.Opt { return kgo.ProducerBatchCompression(codec) }
}

// Codecs returns the names of all codecs.
func Codecs() []string { return slices.Sorted(maps.Keys(codecs)) }

// ProduceBatch writes messages to one partition as one batch. The broker decides whether it is too
// large, after compression.
func ProduceBatch(t testing.TB, addr, codec string, partition int32, messages ...contract.Message) {
	t.Helper()
	ProduceBatches(t, addr, codec, partition, slices.Values([][]contract.Message{messages}))
}

// ProduceBatches writes batches, one after the other, as ProduceBatch does.
func ProduceBatches(
	t testing.TB, addr, codec string, partition int32, batches iter.Seq[[]contract.Message],
) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), ioPatience)
	defer cancel()
	client, err := kgo.NewClient(
		kgo.SeedBrokers(addr), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ManualFlushing(),
		codecs[codec](), kgo.ProducerBatchMaxBytes(1<<30), kgo.BrokerMaxWriteBytes(1<<30),
	)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for messages := range batches {
		for _, m := range messages {
			r := &kgo.Record{Topic: m.Topic, Partition: partition, Key: m.Key, Value: m.Value}
			client.Produce(ctx, r, func(_ *kgo.Record, failed error) { err = errors.Join(err, failed) })
		}
		if err := errors.Join(client.Flush(ctx), err); err != nil {
			t.Fatalf("produce a batch of %d records with %s: %v", len(messages), codec, err)
		}
	}
}

type javaZstd struct{}

// Compress is part of kgo.Compressor.
func (javaZstd) Compress(
	dst *bytes.Buffer, src []byte, _ ...kgo.CompressFlag,
) ([]byte, kgo.CompressionCodecType) {
	w, err := zstd.NewWriter(dst)
	if err == nil {
		_, err = w.Write(src)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		panic(err)
	}
	return dst.Bytes(), kgo.CodecZstd
}
