-- Tenants, their API keys as load.lua makes them, one priced service each, and a longer event log, so that :tenants
-- times its cap is as many events as the filled database holds.
INSERT INTO tenants (tenant)
SELECT 'tnt_' || lpad(to_hex(n), 32, '0') FROM generate_series(1, :tenants) AS n;

INSERT INTO api_keys (tenant, prefix, key_hash, label, created_at)
SELECT 'tnt_' || lpad(to_hex(n), 32, '0'), 'apk_' || lpad(to_hex(n), 8, '0'),
       sha256(convert_to('apk_' || lpad(to_hex(n), 8, '0') || repeat('0', 24), 'UTF8')), 'bench', now()
FROM generate_series(1, :tenants) AS n;

INSERT INTO services (tenant, service_id, price_stroops, created_at)
SELECT 'tnt_' || lpad(to_hex(n), 32, '0'), 'svc', 100, now() FROM generate_series(1, :tenants) AS n;

INSERT INTO tenant_totals (tenant, shard, services, api_keys)
SELECT 'tnt_' || lpad(to_hex(n), 32, '0'), 0, 1, 1 FROM generate_series(1, :tenants) AS n;

UPDATE tenant_totals SET services = services + :tenants, api_keys = api_keys + :tenants WHERE shard = 0 AND tenant = '*';

UPDATE limits SET event_log_cap = 100000;
