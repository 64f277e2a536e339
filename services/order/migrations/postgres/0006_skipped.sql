-- The damaged batches that no reader of this service waits for, because no whole copy of them is left. Each is
-- named by the offset of its first record. The ID of the topic is part of the key, because a recreated topic
-- counts from 0 again.
CREATE TABLE skipped (
    topic_id     TEXT   COLLATE "C" NOT NULL,
    partition    BIGINT NOT NULL,
    first_offset BIGINT NOT NULL,
    PRIMARY KEY (topic_id, partition, first_offset)
);
