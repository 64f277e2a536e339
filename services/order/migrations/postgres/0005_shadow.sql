-- A second view of the topics, beside the one in orders, while a command rebuilds that one. Otherwise it is
-- empty.
CREATE TABLE orders_shadow (
    order_id TEXT    COLLATE "C" PRIMARY KEY,
    version  BIGINT  NOT NULL,
    event_id TEXT    NOT NULL,
    total    BIGINT  NOT NULL,
    body     BYTEA   NOT NULL
);

-- The command that fills it.
CREATE TABLE rebuild (
    key        BIGINT PRIMARY KEY, -- 0
    owner      TEXT   NOT NULL,
    expires_at BIGINT NOT NULL     -- Unix time in milliseconds, by the database's clock
);
