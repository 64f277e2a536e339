-- The newest version of each order that the topics have. The integer key is SQLite's own row ID; the
-- order ID has a unique index.
CREATE TABLE orders (
    id       INTEGER PRIMARY KEY,
    order_id TEXT    NOT NULL UNIQUE,
    version  INTEGER NOT NULL,
    -- Tells a repeated event from another one that claims the same version.
    event_id TEXT    NOT NULL,
    -- In minor units.
    total    INTEGER NOT NULL,
    -- The order as JSON, as clients get it.
    body     BLOB    NOT NULL
);

-- The offset of the next record to read, by partition. It changes in the transaction that changes the
-- orders; what is committed to Kafka is only a hint for tools. The ID of the topic is part of the key,
-- because a recreated topic counts from 0 again.
CREATE TABLE offsets (
    topic_id    TEXT    NOT NULL,
    partition   INTEGER NOT NULL,
    topic       TEXT    NOT NULL,
    next_offset INTEGER NOT NULL,
    PRIMARY KEY (topic_id, partition)
);
