-- Where the messages are that left the outbox: for each partition, the offset after the last one that
-- Kafka has acknowledged. What is behind it in the topics, someone else has published.
CREATE TABLE published (
    topic       TEXT    COLLATE "C" NOT NULL,
    partition   BIGINT  NOT NULL,
    topic_id    TEXT    NOT NULL, -- Kafka's UUID: a topic that is recreated gets another one
    next_offset BIGINT  NOT NULL,
    PRIMARY KEY (topic, partition)
);
