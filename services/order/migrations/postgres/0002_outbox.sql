-- Messages to publish, in the order in which they were accepted. The ID comes from the ledger: a sequence
-- gives its numbers before the commit, so a later one may be committed first.
CREATE TABLE outbox (
    id         BIGINT  PRIMARY KEY,
    topic      TEXT    NOT NULL,
    record_key BYTEA,
    value      BYTEA,
    headers    BYTEA   NOT NULL, -- see encodeHeaders
    created_at BIGINT  NOT NULL  -- Unix time in milliseconds
);
