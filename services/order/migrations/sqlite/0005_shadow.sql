-- A second view of the topics, beside the one in orders, while a command rebuilds that one. Otherwise it is
-- empty.
CREATE TABLE orders_shadow (
    order_id TEXT    NOT NULL PRIMARY KEY,
    version  INTEGER NOT NULL,
    event_id TEXT    NOT NULL,
    total    INTEGER NOT NULL,
    body     BLOB    NOT NULL
);

-- The command that fills it.
CREATE TABLE rebuild (
    key        INTEGER PRIMARY KEY, -- 0
    owner      TEXT    NOT NULL,
    expires_at INTEGER NOT NULL     -- Unix time in milliseconds, by the database's clock
);
