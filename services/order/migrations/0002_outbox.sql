-- What is to be published, in the order in which it was accepted. AUTOINCREMENT: an emptied table must not use an id again, or the
-- relay would take a new row for one that it has sent. (Another database says this with an identity column.)
CREATE TABLE outbox (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    topic      TEXT    NOT NULL,
    record_key BLOB,
    value      BLOB,
    headers    BLOB    NOT NULL, -- see encodeHeaders
    created_at INTEGER NOT NULL  -- Unix time in milliseconds
);
