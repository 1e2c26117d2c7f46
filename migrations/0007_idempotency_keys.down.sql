DROP VIEW recent_responses, idempotency_overview;
DROP FUNCTION idempotency_key_bytes;
DROP TABLE caller_totals, idempotency_keys;
