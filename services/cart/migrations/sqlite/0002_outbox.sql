-- Messages to publish, in the order in which they were accepted. AUTOINCREMENT: an ID must not be used
-- again after the table was empty, or the relay would take a new row for one that it has sent.
-- (PostgreSQL has an identity column for it.)
CREATE TABLE outbox (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    topic      TEXT    NOT NULL,
    record_key BLOB,
    value      BLOB,
    headers    BLOB    NOT NULL, -- see encodeHeaders
    created_at INTEGER NOT NULL  -- Unix time in milliseconds
);
