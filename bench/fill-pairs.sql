-- :pairs pairs of each tenant, three requests outstanding of each, and the lists and totals that say so.
INSERT INTO agents (tenant, agent)
SELECT 'tnt_' || lpad(to_hex(n), 32, '0'), 'agent-' || a
FROM generate_series(1, :pairs) AS a, generate_series(1, :tenants) AS n;

INSERT INTO usage_counters (tenant, agent, service_id, outstanding, lifetime, version)
SELECT 'tnt_' || lpad(to_hex(n), 32, '0'), 'agent-' || a, 'svc', 3, 3, 1
FROM generate_series(1, :pairs) AS a, generate_series(1, :tenants) AS n;

INSERT INTO service_totals (tenant, service_id, shard, outstanding, pairs_above_zero)
SELECT 'tnt_' || lpad(to_hex(n), 32, '0'), 'svc', 0, 3 * :pairs, :pairs FROM generate_series(1, :tenants) AS n;

UPDATE tenant_totals
SET pairs = :pairs, agents = :pairs, pairs_above_zero = :pairs, outstanding = 3 * :pairs, lifetime = 3 * :pairs
WHERE shard = 0 AND tenant LIKE 'tnt_0%';

UPDATE tenant_totals
SET pairs = pairs + :pairs * :tenants, agents = agents + :pairs * :tenants,
    pairs_above_zero = pairs_above_zero + :pairs * :tenants, outstanding = outstanding + 3 * :pairs * :tenants,
    lifetime = lifetime + 3 * :pairs * :tenants
WHERE shard = 0 AND tenant = '*';
