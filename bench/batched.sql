-- The baseline's rows for 100 requests in one statement: what PostgreSQL does if batching is free.
-- pgbench -n -M prepared -f batched.sql -D agents=10000 -c 2 -j 1 -T 8   (agents=1: the hot pair)
\set seed random(1, 1000000000000)
WITH request AS MATERIALIZED (
  SELECT n, 'agent-' || (1 + (hashint8(:seed::bigint + n)::bigint & 2147483647) % :agents) AS agent FROM generate_series(1, 100) AS n
), counter AS (
  -- Summed per pair and in one order, or two connections would deadlock.
  INSERT INTO usage_counters AS u SELECT 't', agent, 'svc', 3 * count(*) FROM request GROUP BY agent ORDER BY agent
    ON CONFLICT (tenant, agent, service_id) DO UPDATE SET total = u.total + excluded.total RETURNING agent, total
), event AS (
  INSERT INTO events (tenant, agent, service_id, requests, total)
    SELECT 't', agent, 'svc', 3, total FROM request JOIN counter USING (agent)
)
INSERT INTO idempotency_keys (caller, key, fingerprint, status, response, expires_at)
  SELECT 'tenant:0123456789abcdef0123456789abcdef', 'k-' || :seed::bigint + n || '-' || :client_id, decode(repeat('00', 32), 'hex'),
         201, '{"agent":"agent-1","serviceId":"svc","total":3}', now() + interval '1 day'
  FROM request;
