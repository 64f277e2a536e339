-- Integer keys and one unique index: a random text primary key is several times slower once the table outgrows the cache.
CREATE TABLE orders (
    id       INTEGER PRIMARY KEY,
    order_id TEXT    NOT NULL UNIQUE,
    version  INTEGER NOT NULL,
    body     BLOB    NOT NULL -- the order as JSON, contract.Order.Encode
);

-- Answers given to requests with an Idempotency-Key; only successes are here.
CREATE TABLE idempotency_keys (
    idempotency_key TEXT    PRIMARY KEY,
    fingerprint     BLOB    NOT NULL, -- of the request, to tell another one with the same key
    version         INTEGER NOT NULL,
    body            BLOB    NOT NULL, -- the order as it was answered
    expires_at      INTEGER NOT NULL  -- Unix time in milliseconds
);
CREATE INDEX idempotency_keys_expires_at ON idempotency_keys(expires_at);

-- One row once the store holds everything that the topics held when it was new.
CREATE TABLE rebuilt (
    at INTEGER NOT NULL -- Unix time in milliseconds
);
