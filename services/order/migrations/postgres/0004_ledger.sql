-- How many messages were ever added to the outbox. The ID of the next one is head + 1. Each transaction
-- that adds locks this row first, so IDs are in the order of the commits and without gaps, also if
-- several processes add. A sequence is not: its numbers are given before the commit. The key is there
-- so that there can be several ledgers one day, each for some of the orders.
CREATE TABLE ledger (
    key        BIGINT PRIMARY KEY, -- 0
    head       BIGINT NOT NULL,
    head_bytes BIGINT NOT NULL     -- their size
);

-- Who publishes the outbox, and how far that has come.
CREATE TABLE relay (
    key        BIGINT PRIMARY KEY, -- that of the ledger
    owner      TEXT    NOT NULL,    -- the process that holds the lease; empty: none
    epoch      BIGINT NOT NULL,    -- grows when the lease is taken
    expires_at BIGINT NOT NULL,    -- Unix time in milliseconds, by the database's clock
    begun      BIGINT NOT NULL,    -- the last epoch in which Kafka refused all earlier holders
    agreed     BIGINT NOT NULL,    -- the last epoch in which the store agreed with the topics
    done       BIGINT NOT NULL,    -- no row up to this ID is left
    done_bytes BIGINT NOT NULL     -- the size of the messages that are gone
);
