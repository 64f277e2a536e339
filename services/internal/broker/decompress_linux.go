package broker

// librdkafka decompresses everything that a fetch returns before it hands the first record over. It
// bounds neither gzip nor lz4, and zstd only batch by batch. A fetch of 1 MiB can so become several
// GiB. decompress_linux.c therefore takes its place in front of librdkafka's functions, at link time:
// librdkafka reads what grows little, and reports the rest as bad compression. An examiner then reads
// that, one stored batch at a time and bounded by maxBatch.
//
// The link fails if the linker ignores the option, or if librdkafka has no such function. Other
// systems' linkers have no such option. There, librdkafka decompresses by itself, and the examiner
// reads only what librdkafka gives up on.

// #include <stddef.h>
// int refuses_lz4(const void *in, size_t len);
// #cgo LDFLAGS: -Wl,-wrap=rd_gz_decompress
// #cgo LDFLAGS: -Wl,-wrap=rd_kafka_zstd_decompress
// #cgo LDFLAGS: -Wl,-wrap=rd_kafka_lz4_decompress
// #cgo LDFLAGS: -Wl,-wrap=rd_slice_narrow_copy_relative
import "C"

import "unsafe"

// refusesLZ4 reports whether librdkafka gets no data from a frame of lz4, which is not empty.
func refusesLZ4(frame []byte) bool {
	return C.refuses_lz4(unsafe.Pointer(&frame[0]), C.size_t(len(frame))) != 0
}
