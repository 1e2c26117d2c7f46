DELETE FROM tenant_totals WHERE tenant = '*';
ALTER TABLE tenant_totals DROP COLUMN agents, DROP COLUMN events, DROP COLUMN webhooks, DROP COLUMN api_keys;
COMMENT ON TABLE tenant_totals IS 'Kept counts, so that nothing is recounted. A tenant''s figure is the sum over its rows; a single row may be negative.';
DROP TABLE service_totals;
ALTER TABLE usage_counters DROP CONSTRAINT usage_counters_agent_fkey;
DROP TABLE agents;
DROP INDEX usage_counters_by_service;
DROP INDEX usage_counters_list;
ALTER TABLE usage_counters DROP COLUMN version;
