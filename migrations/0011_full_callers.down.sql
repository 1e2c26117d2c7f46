COMMENT ON COLUMN caller_totals.shard IS 'Writers use 16 rows per sum, 0 to 15, so that they do not wait for each other.';
DROP TABLE full_callers;
