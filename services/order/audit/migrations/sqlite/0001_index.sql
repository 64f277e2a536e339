-- What a topic holds: each order as its record of the highest version has it. Rows are never
-- deleted, so ids have no gaps and the highest one is the number of orders.
CREATE TABLE orders (
    id       INTEGER PRIMARY KEY,
    order_id TEXT    NOT NULL UNIQUE,
    version  INTEGER NOT NULL,
    body     BLOB    NOT NULL
);
