DROP TABLE record_counts;
DROP TABLE record_changes;
DROP TABLE idempotency_keys;
