-- The rights of the roles of roles.sql. `agentpay-billing migrate --grants` runs it as agentpay_owner after the migrations. It can
-- be repeated, also while the service runs, and with psql:
--     psql -v ON_ERROR_STOP=1 -f deploy/postgres/grants.sql agentpay

BEGIN;

REVOKE ALL ON ALL TABLES IN SCHEMA public FROM agentpay_app, agentpay_reset, agentpay_readonly, agentpay_auditor;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM agentpay_app, agentpay_reset, agentpay_readonly, agentpay_auditor;

-- The service. Where it locks rows that it must not change, it may update one column, because PostgreSQL asks for that.
GRANT SELECT ON ALL TABLES IN SCHEMA public TO agentpay_app;
GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO agentpay_app;
GRANT INSERT ON settlements, audit_log TO agentpay_app;
GRANT INSERT, UPDATE (list_position) ON agents TO agentpay_app;
GRANT INSERT, UPDATE (outstanding, settled, reset, version) ON usage_counters TO agentpay_app;
GRANT INSERT, UPDATE (terms_revision) ON tenants TO agentpay_app;
GRANT INSERT, UPDATE ON totals TO agentpay_app;
GRANT INSERT, DELETE, UPDATE (expires_at) ON idempotency_keys TO agentpay_app;
GRANT INSERT, DELETE, UPDATE (overlap_until, last_used_at) ON api_keys TO agentpay_app;
GRANT INSERT, DELETE ON event_runs, full_callers TO agentpay_app;
GRANT INSERT, UPDATE, DELETE ON services, webhooks, outbox, webhook_deliveries, webhook_queues, caller_totals
    TO agentpay_app;
GRANT UPDATE ON runtime_config, verification TO agentpay_app;
GRANT INSERT, DELETE ON tenant_cells TO agentpay_app;

GRANT DELETE ON settlements, agents, usage_counters, tenants, totals, tenant_moves TO agentpay_reset;

-- DBAs.
GRANT SELECT ON _sqlx_migrations, tenants, services, agents, usage_counters, settlements, totals, event_runs, outbox,
    webhook_deliveries, webhook_queues, idempotency_keys, caller_totals, full_callers, runtime_config, verification, audit_log, cells,
    cell_identity, citus_positions, tenant_cells, tenant_moves,
    events, billing_overview, idempotency_overview, recent_responses, recent_changes
    TO agentpay_readonly;
GRANT SELECT (tenant_id, prefix, label, created_at, scopes, rate_limit_per_window, expires_at, overlap_until, last_used_at)
    ON api_keys TO agentpay_readonly;
GRANT SELECT (tenant_id, webhook_id, url, events, created_at, disabled_at, from_position, previous_secret_until, secret_key_id,
        previous_secret_key_id)
    ON webhooks TO agentpay_readonly;
GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO agentpay_readonly;

-- Auditors: what `agentpay-billing verify` reads, and the audit log. Of API keys and webhooks it counts the rows.
GRANT SELECT ON _sqlx_migrations, tenants, services, agents, usage_counters, settlements, totals, event_runs,
    idempotency_keys, caller_totals, audit_log, citus_positions, events, billing_overview, recent_changes
    TO agentpay_auditor;
GRANT SELECT (tenant_id) ON api_keys, webhooks TO agentpay_auditor;
GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO agentpay_auditor;

COMMIT;
