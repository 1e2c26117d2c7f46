DROP TABLE full_callers, caller_totals;
DROP FUNCTION idempotency_key_bytes;
DROP TABLE idempotency_keys;
