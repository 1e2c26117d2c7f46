-- :rows answered requests of the last 96 000 seconds, in the order of time: a tenth is older than the 24 hours of a key.
INSERT INTO idempotency_keys
    (caller, key, method, path, request_hash, status, response, request_id, created_at, expires_at)
SELECT 'tenant:tnt_' || lpad(to_hex(1 + n % :tenants), 32, '0'),
       'k-' || n * 618033989 % 1000000000000 || '-f0', 'POST', '/api/v1/usage', sha256(int8send(n)), 201,
       ('{"agent":"agent-' || 1 + n % :pairs || '","serviceId":"svc","total":3}')::json,
       md5(n::text)::uuid::text, moment, moment + interval '24 hours'
FROM (SELECT n, now() - interval '96000 seconds' + interval '96000 seconds' * n / :rows AS moment
      FROM generate_series(1, :rows::bigint) AS n) AS request;

INSERT INTO record_counts (kind, owner, records)
SELECT 'caller_replies', 'tenant:tnt_' || lpad(to_hex(n), 32, '0'), :rows / :tenants FROM generate_series(1, :tenants) AS n
UNION ALL SELECT 'all_replies', '*', :rows;
UPDATE tenant_totals SET replies = replies + :rows WHERE shard = 0 AND tenant = '*';
