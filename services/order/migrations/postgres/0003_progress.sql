-- What shows whether a partition is still the log that was read: the offset of the last record, and
-- the newest time of the records up to it, as Unix time in milliseconds.
ALTER TABLE offsets ADD COLUMN last_offset BIGINT NOT NULL DEFAULT -1;
ALTER TABLE offsets ADD COLUMN newest_time BIGINT NOT NULL DEFAULT 0;
