-- :rows events in the order of time: with 10 million, every tenant's log is full.
INSERT INTO events (tenant, recorded_at, type, payload)
SELECT 'tnt_' || lpad(to_hex(1 + n % :tenants), 32, '0'),
       now() - interval '96000 seconds' + interval '96000 seconds' * n / :rows, 'usage.recorded',
       ('{"agent":"agent-' || 1 + n % :pairs || '","serviceId":"svc","requests":3,"total":3}')::json
FROM generate_series(1, :rows::bigint) AS n;

INSERT INTO record_counts (kind, owner, records)
SELECT 'tenant_events', 'tnt_' || lpad(to_hex(n), 32, '0'), :rows / :tenants FROM generate_series(1, :tenants) AS n;

UPDATE tenant_totals SET events = :rows / :tenants WHERE shard = 0 AND tenant LIKE 'tnt_0%';
UPDATE tenant_totals SET events = events + :rows WHERE shard = 0 AND tenant = '*';
