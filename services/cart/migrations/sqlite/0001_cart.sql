-- The newest version of each order. The order ID is unique text; id is the row ID that SQLite gives to
-- each row in any case.
CREATE TABLE orders (
    id       INTEGER PRIMARY KEY,
    order_id TEXT    NOT NULL UNIQUE,
    version  INTEGER NOT NULL,
    body     BLOB    NOT NULL -- the order as JSON, contract.Order.Encode
);

-- Results of requests with an Idempotency-Key. Only successes are kept.
CREATE TABLE idempotency_keys (
    idempotency_key TEXT    PRIMARY KEY,
    fingerprint     BLOB    NOT NULL, -- of the request, to recognise another one with the same key
    version         INTEGER NOT NULL,
    body            BLOB    NOT NULL, -- the order as it was in the response
    expires_at      INTEGER NOT NULL  -- Unix time in milliseconds
);
CREATE INDEX idempotency_keys_expires_at ON idempotency_keys(expires_at);

-- Has one row once the store holds everything that the topics held when it was new.
CREATE TABLE rebuilt (
    at INTEGER NOT NULL -- Unix time in milliseconds
);
