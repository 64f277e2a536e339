-- The newest version of each order that the topics told. The key is an integer and the order ID a second index, because random
-- texts as primary keys cost 5-17 times as much per insert once there are many.
CREATE TABLE orders (
    id       INTEGER PRIMARY KEY,
    order_id TEXT    NOT NULL UNIQUE,
    version  INTEGER NOT NULL,
    event_id TEXT    NOT NULL, -- tells a repeated event from another one that claims the same version
    total    INTEGER NOT NULL, -- minor units
    body     BLOB    NOT NULL  -- the order's JSON, as it is answered
);

-- Where to go on reading. These offsets change in the transaction that changes the orders; what is committed to Kafka is a hint
-- for tools. The topic's ID is part of the key, as a topic made anew counts from 0 again.
CREATE TABLE offsets (
    topic_id    TEXT    NOT NULL,
    partition   INTEGER NOT NULL,
    topic       TEXT    NOT NULL,
    next_offset INTEGER NOT NULL,
    PRIMARY KEY (topic_id, partition)
);
