// See decompress_linux.go. With the linker's option -wrap=f, librdkafka's calls of f come to
// __wrap_f, and __real_f is librdkafka's own. Each function refers to its __real_f, so that the link
// fails where the option has no effect.

#include <stddef.h>
#include <stdint.h>
#include <string.h>

// BAD_COMPRESSION is RD_KAFKA_RESP_ERR__BAD_COMPRESSION.
enum { BAD_COMPRESSION = -198 };

// MAX_LZ4 is the largest size in bytes to which librdkafka decompresses one batch. Cart's batches
// have 1 MB. MAX_GROWTH is how many times its size a batch may become. It bounds what all batches of
// a fetch become together.
enum { MAX_LZ4 = 8 << 20, MAX_GROWTH = 32 };

void *__real_rd_gz_decompress(const void *in, int len, uint64_t *out_len);
int __real_rd_kafka_zstd_decompress(void *broker, char *in, size_t len, void **out, size_t *out_len);
int __real_rd_kafka_lz4_decompress(
	void *broker, int proper_hc, int64_t offset, char *in, size_t len, void **out, size_t *out_len);

int __real_rd_slice_narrow_copy_relative(const void *from, void *to, size_t size);

// librdkafka 2.15.0 goes on in the middle of a batch whose CRC is wrong. What it finds there may say that
// a message has less than no bytes, for which it aborts the process. 0 makes it give the response up.
int __wrap_rd_slice_narrow_copy_relative(const void *from, void *to, size_t size) {
	return size <= INT32_MAX && __real_rd_slice_narrow_copy_relative(from, to, size);
}

// gzip grows up to 1,032 times. NULL makes librdkafka report BAD_COMPRESSION. No batch is empty.
void *__wrap_rd_gz_decompress(const void *in, int len, uint64_t *out_len) {
	return len == 0 ? __real_rd_gz_decompress(in, len, out_len) : NULL;
}

// zstd grows more than 10,000 times.
int __wrap_rd_kafka_zstd_decompress(void *broker, char *in, size_t len, void **out, size_t *out_len) {
	return len == 0 ? __real_rd_kafka_zstd_decompress(broker, in, len, out, out_len) : BAD_COMPRESSION;
}

// length returns a length of an lz4 sequence: its four bits, and the bytes behind them that the value
// 15 announces.
static uint64_t length(unsigned bits, const uint8_t *in, size_t len, size_t *at) {
	uint64_t n = bits;
	for (uint8_t more = 255; bits == 15 && more == 255 && *at < len; ++*at)
		n += more = in[*at];
	return n;
}

// block_size returns the size of an lz4 block when it is decompressed. A block is a list of sequences:
// literals, and a match that repeats what came before. The last one has only literals.
static uint64_t block_size(const uint8_t *in, size_t len) {
	uint64_t size = 0;
	for (size_t at = 0; at < len;) {
		uint8_t token = in[at++];
		uint64_t literals = length(token >> 4, in, len, &at);
		size += literals;
		at += literals + 2;
		if (at < len)
			size += 4 + length(token & 15, in, len, &at);
		else if (at == len)
			size += 4 + (token & 15);
	}
	return size;
}

// frame_size returns the size of an lz4 frame when it is decompressed. It returns 0 for what is no
// frame.
static uint64_t frame_size(const uint8_t *in, size_t len) {
	static const uint8_t magic[4] = {0x04, 0x22, 0x4d, 0x18};
	if (len < 7 || memcmp(in, magic, 4) != 0)
		return 0;
	uint8_t flags = in[4];
	size_t checksum = flags & 16 ? 4 : 0;
	uint64_t size = 0;
	for (size_t at = 7 + (flags & 8 ? 8 : 0) + (flags & 1 ? 4 : 0); at + 4 <= len;) {
		size_t n = in[at] | in[at + 1] << 8 | in[at + 2] << 16 | (size_t)(in[at + 3] & 0x7f) << 24;
		int stored = in[at + 3] & 0x80;
		at += 4;
		if (n == 0 || n > len - at)
			break;
		size += stored ? n : block_size(in + at, n);
		at += n + checksum;
	}
	return size;
}

int refuses_lz4(const void *in, size_t len) {
	uint64_t size = frame_size(in, len);
	return size > MAX_LZ4 || size > (uint64_t)len * MAX_GROWTH;
}

// lz4 grows up to 255 times.
int __wrap_rd_kafka_lz4_decompress(
	void *broker, int proper_hc, int64_t offset, char *in, size_t len, void **out, size_t *out_len) {
	if (refuses_lz4(in, len))
		return BAD_COMPRESSION;
	return __real_rd_kafka_lz4_decompress(broker, proper_hc, offset, in, len, out, out_len);
}
