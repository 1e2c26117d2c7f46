DROP FUNCTION idempotency_record_bytes;
DROP TABLE citus_positions;
