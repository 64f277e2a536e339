import static java.nio.charset.StandardCharsets.UTF_8;

import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.ObjectReader;
import com.sun.net.httpserver.HttpExchange;
import com.sun.net.httpserver.HttpHandler;
import com.sun.net.httpserver.HttpServer;
import java.io.IOException;
import java.math.BigDecimal;
import java.net.InetSocketAddress;
import java.nio.ByteBuffer;
import java.time.OffsetDateTime;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.Executors;
import java.util.concurrent.atomic.LongAdder;
import org.apache.kafka.clients.admin.Admin;
import org.apache.kafka.clients.admin.OffsetSpec;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.Headers;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.utils.Bytes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StoreQueryParameters;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.QueryableStoreTypes;
import org.apache.kafka.streams.state.ReadOnlyKeyValueStore;
import org.apache.kafka.streams.state.Stores;

/**
 * The Order service's job as a Kafka Streams application: the newest version of each order in a store of RocksDB,
 * with look-ups over HTTP.
 *
 * <p>It takes the services' variables HTTP_ADDR, OPS_ADDR, DATA_DIR and KAFKA_BROKERS, and has those of their
 * endpoints and metrics that the benchmarks use. So the same code measures both. APP_ID is the application's ID and
 * GUARANTEE is its processing.guarantee.
 */
public final class OrderView {
  private static final List<String> TOPICS = List.of("order-created-topic", "order-updated-topic");
  private static final String STORE = "orders";
  private static final LongAdder applied = new LongAdder();
  private static final ObjectReader JSON =
      new ObjectMapper()
          .configure(DeserializationFeature.FAIL_ON_UNKNOWN_PROPERTIES, false)
          .configure(DeserializationFeature.FAIL_ON_TRAILING_TOKENS, true)
          .readerFor(Order.class);

  public static final class Item {
    public String productId;
    public long quantity;
    public BigDecimal price;
  }

  public static final class Order {
    public String orderId;
    public String customerId;
    public String orderDate;
    public String currency;
    public String status;
    public List<Item> items;
    public BigDecimal totalAmount;
    public long version;

    /** Makes the checks that the Order service makes of an event, or the most of them. */
    void check(Bytes key, String type) {
      var total = BigDecimal.ZERO;
      for (var item : items) {
        if (item.quantity < 0 || item.price.signum() < 0) {
          throw new IllegalArgumentException("item");
        }
        total = total.add(item.price.multiply(BigDecimal.valueOf(item.quantity)));
      }
      OffsetDateTime.parse(orderDate);
      if (!orderId.equals(new String(key.get(), UTF_8))
          || orderId.isBlank()
          || orderId.length() > 256
          || status.isBlank()
          || items.isEmpty()
          || items.size() > 1000
          || total.compareTo(totalAmount) != 0
          || type.equals("order.created") != (version == 1)) {
        throw new IllegalArgumentException("order");
      }
    }
  }

  /** Keeps the newest version of each order. A row is the version, the event's ID and the order as it came. */
  private static final class Newest implements Processor<Bytes, byte[], Void, Void> {
    private KeyValueStore<Bytes, byte[]> store;

    @Override
    public void init(ProcessorContext<Void, Void> context) {
      store = context.getStateStore(STORE);
    }

    @Override
    public void process(Record<Bytes, byte[]> event) {
      try {
        Order order = JSON.readValue(event.value());
        order.check(event.key(), new String(header(event.headers(), "ce_type"), UTF_8));
        byte[] id = header(event.headers(), "ce_id");
        byte[] row = store.get(event.key());
        if (row == null || order.version > version(row)) {
          store.put(event.key(), row(order.version, id, event.value()));
        } else if (order.version == version(row) && !Arrays.equals(row, 9, body(row), id, 0, id.length)) {
          throw new IllegalArgumentException("another event of this version");
        }
        applied.increment();
      } catch (IOException | RuntimeException e) {
        // It is then never caught up, and the benchmark fails.
        System.err.println("refused: " + e);
      }
    }

    private static byte[] header(Headers headers, String name) {
      return headers.lastHeader(name).value();
    }
  }

  private static byte[] row(long version, byte[] id, byte[] body) {
    var row = ByteBuffer.allocate(9 + id.length + body.length);
    return row.putLong(version).put((byte) id.length).put(id).put(body).array();
  }

  private static long version(byte[] row) {
    return ByteBuffer.wrap(row).getLong();
  }

  /** Returns where the order begins in a row. */
  private static int body(byte[] row) {
    return 9 + row[8];
  }

  public static void main(String[] args) throws Exception {
    var settings = new Properties();
    settings.put(StreamsConfig.APPLICATION_ID_CONFIG, System.getenv("APP_ID"));
    settings.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, System.getenv("KAFKA_BROKERS"));
    settings.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, System.getenv("GUARANTEE"));
    settings.put(StreamsConfig.STATE_DIR_CONFIG, System.getenv("DATA_DIR"));
    settings.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, Runtime.getRuntime().availableProcessors());
    // As the services publish.
    settings.put("producer.compression.type", "lz4");
    settings.put("consumer.isolation.level", "read_committed");

    var topology = new Topology();
    topology.addSource(
        "events", Serdes.Bytes().deserializer(), Serdes.ByteArray().deserializer(), TOPICS.toArray(String[]::new));
    topology.addProcessor("newest", Newest::new, "events");
    topology.addStateStore(
        Stores.keyValueStoreBuilder(Stores.persistentKeyValueStore(STORE), Serdes.Bytes(), Serdes.ByteArray())
            .withCachingEnabled(),
        "newest");

    long left = left(settings);
    var streams = new KafkaStreams(topology, settings);
    serve("OPS_ADDR", Map.of(
        "/readyz", exchange -> {
          boolean ready = streams.state() == KafkaStreams.State.RUNNING && applied.sum() >= left;
          respond(exchange, ready ? 200 : 503, streams.state() + ": " + applied + " of " + left);
        },
        "/metrics", exchange ->
            respond(exchange, 200,
                "order_assigned_partitions " + assigned(streams) + "\norder_apply_batch_records_sum " + applied + "\n")));
    serve("HTTP_ADDR", Map.of("/order/order-details", exchange -> lookUp(streams, exchange)));
    Runtime.getRuntime().addShutdownHook(new Thread(() -> {
      streams.close();
      // A JVM that ends by a signal says that it failed.
      Runtime.getRuntime().halt(0);
    }));
    streams.start();
  }

  /**
   * Returns how many events are to be applied until this application has what the topics have now. They have no
   * transactions here, so each offset is an event.
   */
  private static long left(Properties settings) throws Exception {
    try (var admin = Admin.create(settings)) {
      var latest = new HashMap<TopicPartition, OffsetSpec>();
      for (var topic : admin.describeTopics(TOPICS).allTopicNames().get().values()) {
        topic.partitions().forEach(p -> latest.put(new TopicPartition(topic.name(), p.partition()), OffsetSpec.latest()));
      }
      long left = 0;
      for (var end : admin.listOffsets(latest).all().get().values()) {
        left += end.offset();
      }
      var group = settings.getProperty(StreamsConfig.APPLICATION_ID_CONFIG);
      for (var begin : admin.listConsumerGroupOffsets(group).partitionsToOffsetAndMetadata().get().values()) {
        left -= begin.offset();
      }
      return left;
    }
  }

  /** Returns how many partitions of the topics this application reads. */
  private static long assigned(KafkaStreams streams) {
    return streams.metadataForLocalThreads().stream()
        .flatMap(thread -> thread.activeTasks().stream())
        .mapToLong(task -> task.topicPartitions().size())
        .sum();
  }

  /** Responds with the order that the query asks for, if the store has it in the version that it asks for. */
  private static void lookUp(KafkaStreams streams, HttpExchange exchange) throws IOException {
    var query = new HashMap<String, String>();
    for (var part : exchange.getRequestURI().getQuery().split("&")) {
      var pair = part.split("=", 2);
      query.put(pair[0], pair[1]);
    }
    ReadOnlyKeyValueStore<Bytes, byte[]> store =
        streams.store(StoreQueryParameters.fromNameAndType(STORE, QueryableStoreTypes.keyValueStore()));
    byte[] row = store.get(Bytes.wrap(query.get("orderId").getBytes(UTF_8)));
    if (row == null || version(row) < Long.parseLong(query.get("minVersion"))) {
      respond(exchange, 404, "not here");
      return;
    }
    exchange.getResponseHeaders().set("Content-Type", "application/json");
    respond(exchange, 200, Arrays.copyOfRange(row, body(row), row.length));
  }

  /** Serves HTTP at the address that a variable has. */
  private static void serve(String variable, Map<String, HttpHandler> handlers) throws IOException {
    var address = System.getenv(variable).split(":");
    var server = HttpServer.create(new InetSocketAddress(address[0], Integer.parseInt(address[1])), 256);
    server.setExecutor(Executors.newFixedThreadPool(16));
    handlers.forEach(server::createContext);
    server.start();
  }

  private static void respond(HttpExchange exchange, int status, String text) throws IOException {
    respond(exchange, status, text.getBytes(UTF_8));
  }

  private static void respond(HttpExchange exchange, int status, byte[] body) throws IOException {
    exchange.sendResponseHeaders(status, body.length);
    exchange.getResponseBody().write(body);
    exchange.close();
  }
}
