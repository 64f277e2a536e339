package limit

/*
#cgo linux LDFLAGS: -Wl,--unresolved-symbols=ignore-all
#cgo darwin LDFLAGS: -Wl,-undefined,dynamic_lookup
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

// As much of rdkafka.h as is needed here. The library is the one that the Go binding brings, with its headers for
// itself only.
typedef struct rd_kafka_s rd_kafka_t;
typedef struct rd_kafka_conf_s rd_kafka_conf_t;
typedef struct rd_kafka_topic_s rd_kafka_topic_t;
typedef struct rd_kafka_queue_s rd_kafka_queue_t;
typedef struct rd_kafka_error_s rd_kafka_error_t;
typedef struct rd_kafka_headers_s rd_kafka_headers_t;
typedef struct rd_kafka_topic_partition_list_s rd_kafka_topic_partition_list_t;
typedef struct {
	int err;
	rd_kafka_topic_t *rkt;
	int32_t partition;
	void *payload;
	size_t len;
	void *key;
	size_t key_len;
	int64_t offset;
	void *_private;
} rd_kafka_message_t;
enum { VTYPE_TOPIC = 1, VTYPE_VALUE = 4, VTYPE_KEY = 5, VTYPE_HEADER = 9 };
typedef struct {
	int vtype;
	union {
		const char *cstr;
		struct { const void *ptr; size_t size; } mem;
		struct { const char *name; const void *val; ssize_t size; } header;
		char _pad[64];
	} u;
} rd_kafka_vu_t;
enum { PRODUCER = 0, CONSUMER = 1, CONF_OK = 0, OFFSET_BEGINNING = -2, ERR_PARTITION_EOF = -191,
	ERR_QUEUE_FULL = -184, ERR_TIMED_OUT = -185, ERR_INVALID_ARG = -186 };
extern rd_kafka_conf_t *rd_kafka_conf_new(void);
extern int rd_kafka_conf_set(rd_kafka_conf_t *, const char *name, const char *value, char *errstr, size_t size);
extern void rd_kafka_conf_destroy(rd_kafka_conf_t *);
extern void rd_kafka_conf_set_opaque(rd_kafka_conf_t *, void *);
extern void rd_kafka_conf_set_dr_msg_cb(rd_kafka_conf_t *,
	void (*)(rd_kafka_t *, const rd_kafka_message_t *, void *opaque));
extern rd_kafka_t *rd_kafka_new(int type, rd_kafka_conf_t *, char *errstr, size_t size);
extern void rd_kafka_destroy(rd_kafka_t *);
extern int rd_kafka_poll(rd_kafka_t *, int timeout_ms);
extern const char *rd_kafka_err2str(int err);
extern rd_kafka_error_t *rd_kafka_produceva(rd_kafka_t *, const rd_kafka_vu_t *, size_t);
extern int rd_kafka_error_code(const rd_kafka_error_t *);
extern void rd_kafka_error_destroy(rd_kafka_error_t *);
extern rd_kafka_topic_partition_list_t *rd_kafka_topic_partition_list_new(int size);
extern void *rd_kafka_topic_partition_list_add(rd_kafka_topic_partition_list_t *, const char *topic, int32_t p);
extern int rd_kafka_topic_partition_list_set_offset(rd_kafka_topic_partition_list_t *, const char *topic, int32_t p,
	int64_t offset);
extern void rd_kafka_topic_partition_list_destroy(rd_kafka_topic_partition_list_t *);
extern int rd_kafka_assign(rd_kafka_t *, const rd_kafka_topic_partition_list_t *);
extern rd_kafka_queue_t *rd_kafka_queue_get_consumer(rd_kafka_t *);
extern void rd_kafka_queue_destroy(rd_kafka_queue_t *);
extern rd_kafka_message_t *rd_kafka_consume_queue(rd_kafka_queue_t *, int timeout_ms);
extern ssize_t rd_kafka_consume_batch_queue(rd_kafka_queue_t *, int timeout_ms, rd_kafka_message_t **, size_t);
extern int rd_kafka_message_headers(const rd_kafka_message_t *, rd_kafka_headers_t **);
extern void rd_kafka_message_destroy(rd_kafka_message_t *);
extern int rd_kafka_consumer_close(rd_kafka_t *);

// client is a producer or a consumer.
typedef struct {
	rd_kafka_t *rk;
	// Of a producer: how many messages were acknowledged or failed, and an error of one.
	long ended;
	int err;
} client;

static void delivered(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque) {
	client *c = opaque;
	c->ended++;
	if (m->err) c->err = m->err;
}

// client_new makes a client with settings, which are names and values in turn. It returns NULL and says why.
static client *client_new(int type, char **settings, int n, char *errstr, size_t size) {
	rd_kafka_conf_t *conf = rd_kafka_conf_new();
	for (int i = 0; i < n; i += 2) {
		if (rd_kafka_conf_set(conf, settings[i], settings[i + 1], errstr, size) != CONF_OK) {
			rd_kafka_conf_destroy(conf);
			return NULL;
		}
	}
	client *c = calloc(1, sizeof *c);
	rd_kafka_conf_set_opaque(conf, c);
	if (type == PRODUCER) rd_kafka_conf_set_dr_msg_cb(conf, delivered);
	if (!(c->rk = rd_kafka_new(type, conf, errstr, size))) {
		rd_kafka_conf_destroy(conf);
		free(c);
		return NULL;
	}
	return c;
}

static void client_free(client *c) {
	rd_kafka_destroy(c->rk);
	free(c);
}

// take returns what is at *p, and moves *p behind it.
static const char *take(const char **p, size_t size) {
	const char *at = *p;
	*p += size;
	return at;
}

static int32_t take_size(const char **p) {
	int32_t size;
	memcpy(&size, take(p, sizeof size), sizeof size);
	return size;
}

enum { MOST_HEADERS = 16 };

// produce sends n messages, which stay where they are until they are acknowledged: each is the sizes of its topic,
// key and value, the number of its headers, then topic, key and value, and the sizes, the name and the value of each
// header. Topics and names end with a NUL. It sets *end to what follows.
static int produce(client *c, const char *p, long n, const char **end) {
	for (long i = 0; i < n; i++) {
		size_t topic = take_size(&p), key = take_size(&p), value = take_size(&p);
		int headers = take_size(&p), count = 3;
		rd_kafka_vu_t vus[3 + MOST_HEADERS];
		if (headers > MOST_HEADERS) return ERR_INVALID_ARG;
		vus[0].vtype = VTYPE_TOPIC;
		vus[0].u.cstr = take(&p, topic);
		vus[1].vtype = VTYPE_KEY;
		vus[1].u.mem.ptr = take(&p, key);
		vus[1].u.mem.size = key;
		vus[2].vtype = VTYPE_VALUE;
		vus[2].u.mem.ptr = take(&p, value);
		vus[2].u.mem.size = value;
		for (; count < 3 + headers; count++) {
			size_t name = take_size(&p), size = take_size(&p);
			vus[count].vtype = VTYPE_HEADER;
			vus[count].u.header.name = take(&p, name);
			vus[count].u.header.val = take(&p, size);
			vus[count].u.header.size = size;
		}
		for (rd_kafka_error_t *e; (e = rd_kafka_produceva(c->rk, vus, count));) {
			int code = rd_kafka_error_code(e);
			rd_kafka_error_destroy(e);
			// A full queue is normal for a producer that sends as fast as it can.
			if (code != ERR_QUEUE_FULL) return code;
			rd_kafka_poll(c->rk, 1);
		}
		if (i % 1000 == 0) rd_kafka_poll(c->rk, 0);
	}
	*end = p;
	return 0;
}

// await waits until n messages have ended, for some time without an end.
static int await(client *c, long n, int timeout_ms) {
	while (c->ended < n && !c->err)
		if (!rd_kafka_poll(c->rk, timeout_ms)) return ERR_TIMED_OUT;
	return c->err;
}

enum { MOST_MESSAGES = 1000 };

// consume reads all partitions of a topic from the beginning to the end, in batches. It looks at the headers and
// counts the records.
static int consume(client *c, const char *topic, int partitions, int timeout_ms, long *records) {
	rd_kafka_topic_partition_list_t *all = rd_kafka_topic_partition_list_new(partitions);
	for (int p = 0; p < partitions; p++) {
		rd_kafka_topic_partition_list_add(all, topic, p);
		rd_kafka_topic_partition_list_set_offset(all, topic, p, OFFSET_BEGINNING);
	}
	int err = rd_kafka_assign(c->rk, all);
	rd_kafka_topic_partition_list_destroy(all);
	rd_kafka_queue_t *queue = rd_kafka_queue_get_consumer(c->rk);
	while (!err && partitions > 0) {
		rd_kafka_message_t *ms[MOST_MESSAGES];
		// A batch waits until it is full. So only its first message is waited for.
		if (!(ms[0] = rd_kafka_consume_queue(queue, timeout_ms))) err = ERR_TIMED_OUT;
		else {
			ssize_t n = rd_kafka_consume_batch_queue(queue, 0, ms + 1, MOST_MESSAGES - 1);
			for (ssize_t i = 0; i <= n; i++) {
				rd_kafka_headers_t *headers;
				if (ms[i]->err == ERR_PARTITION_EOF) partitions--;
				else if (ms[i]->err) err = ms[i]->err;
				else {
					rd_kafka_message_headers(ms[i], &headers);
					++*records;
				}
				rd_kafka_message_destroy(ms[i]);
			}
		}
	}
	rd_kafka_queue_destroy(queue);
	rd_kafka_consumer_close(c->rk);
	return err;
}
*/
import "C"

import (
	"encoding/binary"
	"fmt"
	"iter"
	"strings"
	"time"
	"unsafe"

	"github.com/confluentinc/confluent-kafka-go/v2/kafka"

	"ordersystem.dev/services/bench/stats"
	"ordersystem.dev/services/contract"
)

// client is librdkafka without its Go binding.
type client struct{ c *C.client }

// newClient makes a client with the settings that are librdkafka's own.
func newClient(kind C.int, settings kafka.ConfigMap) (client, error) {
	var texts []*C.char
	defer func() {
		for _, text := range texts {
			C.free(unsafe.Pointer(text))
		}
	}()
	for name, value := range settings {
		if !strings.HasPrefix(name, "go.") {
			texts = append(texts, C.CString(name), C.CString(fmt.Sprint(value)))
		}
	}
	why := make([]byte, 512)
	c := C.client_new(kind, &texts[0], C.int(len(texts)), (*C.char)(unsafe.Pointer(&why[0])), C.size_t(len(why)))
	if c == nil {
		return client{}, fmt.Errorf("make a client: %s", strings.TrimRight(string(why), "\x00"))
	}
	return client{c}, nil
}

func (c client) close() { C.client_free(c.c) }

// failure returns what a function in C reports.
func failure(code C.int, doing string) error {
	if code == 0 {
		return nil
	}
	text := C.GoString(C.rd_kafka_err2str(code))
	return fmt.Errorf("%s: %w", doing, kafka.NewError(kafka.ErrorCode(code), text, false))
}

// ProduceFromC measures what [Produce] does, by a producer in C.
func ProduceFromC(addr, topic string, messages iter.Seq[contract.Message]) (rate stats.Sample, err error) {
	packed, n := pack(topic, messages)
	// C may keep only what it has made itself.
	memory := C.CBytes(packed)
	defer C.free(memory)
	before := stats.OwnCPU()
	c, err := newClient(C.PRODUCER, producerSettings(addr))
	if err != nil {
		return rate, err
	}
	defer c.close()
	// The first one opens the connection.
	end := (*C.char)(memory)
	send := func(some, sum int) error {
		err := failure(C.produce(c.c, end, C.long(some), &end), "produce")
		if err == nil {
			err = failure(C.await(c.c, C.long(sum), C.int(patience.Milliseconds())), "await the acknowledgements")
		}
		return err
	}
	if err := send(1, 1); err != nil {
		return rate, err
	}
	begin := time.Now()
	if err := send(n-1, n); err != nil {
		return rate, err
	}
	return stats.Rate(n, time.Since(begin), stats.OwnCPU()-before), nil
}

// pack writes messages in the form that produce in C reads.
func pack(topic string, messages iter.Seq[contract.Message]) (packed []byte, n int) {
	size := func(n int) { packed = binary.NativeEndian.AppendUint32(packed, uint32(n)) }
	for m := range messages {
		size(len(topic) + 1)
		size(len(m.Key))
		size(len(m.Value))
		size(len(m.Headers))
		packed = append(append(append(append(packed, topic...), 0), m.Key...), m.Value...)
		for _, h := range m.Headers {
			size(len(h.Key) + 1)
			size(len(h.Value))
			packed = append(append(append(packed, h.Key...), 0), h.Value...)
		}
		n++
	}
	return packed, n
}

// ConsumeFromC measures what [Consume] does, by a consumer in C that takes records in batches.
func ConsumeFromC(addr, topic string) (rate stats.Sample, records int, err error) {
	counter, err := NewCounter(addr, topic)
	if err != nil {
		return rate, 0, err
	}
	counter.Close()
	before, begin := stats.OwnCPU(), time.Now()
	c, err := newClient(C.CONSUMER, consumerSettings(addr))
	if err != nil {
		return rate, 0, err
	}
	name := C.CString(topic)
	defer C.free(unsafe.Pointer(name))
	var read C.long
	code := C.consume(c.c, name, C.int(counter.Partitions()), C.int(patience.Milliseconds()), &read)
	c.close()
	rate = stats.Rate(int(read), time.Since(begin), stats.OwnCPU()-before)
	return rate, int(read), failure(code, "consume "+topic)
}
