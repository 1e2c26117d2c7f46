-- :pairs pairs of each tenant, three requests outstanding of each, and the totals that say so.
INSERT INTO usage_counters (tenant, agent, service_id, outstanding, lifetime)
SELECT 'tnt_' || lpad(to_hex(n), 32, '0'), 'agent-' || a, 'svc', 3, 3
FROM generate_series(1, :pairs) AS a, generate_series(1, :tenants) AS n;

UPDATE tenant_totals SET pairs = :pairs, pairs_above_zero = :pairs, outstanding = 3 * :pairs, lifetime = 3 * :pairs
WHERE shard = 0 AND tenant LIKE 'tnt_0%';
