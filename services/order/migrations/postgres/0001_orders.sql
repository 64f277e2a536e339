-- The newest version of each order that the topics have. The ID is compared byte by byte: the rules of a
-- language change with the operating system, and an index that was made by other rules misses rows.
CREATE TABLE orders (
    order_id TEXT    COLLATE "C" PRIMARY KEY,
    version  BIGINT  NOT NULL,
    -- Tells a repeated event from another one that claims the same version.
    event_id TEXT    NOT NULL,
    -- In minor units.
    total    BIGINT  NOT NULL,
    -- The order as JSON, as clients get it.
    body     BYTEA   NOT NULL
);

-- The offset of the next record to read, by partition. It changes in the transaction that changes the
-- orders; what is committed to Kafka is only a hint for tools. The ID of the topic is part of the key,
-- because a recreated topic counts from 0 again.
CREATE TABLE offsets (
    topic_id    TEXT    COLLATE "C" NOT NULL,
    partition   BIGINT  NOT NULL,
    topic       TEXT    NOT NULL,
    next_offset BIGINT  NOT NULL,
    PRIMARY KEY (topic_id, partition)
);
