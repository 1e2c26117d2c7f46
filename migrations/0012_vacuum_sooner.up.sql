-- By default a table of ten million rows has two million dead ones before it is vacuumed. At these, what is dead stays
-- within a few per cent, and each vacuum is short.
ALTER TABLE events SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05);
ALTER TABLE idempotency_keys SET (autovacuum_vacuum_scale_factor = 0.02);
ALTER TABLE usage_counters SET (autovacuum_vacuum_scale_factor = 0.05);
