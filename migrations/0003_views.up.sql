CREATE VIEW idempotency_overview AS
SELECT caller,
       count(*) FILTER (WHERE expires_at > now())  AS live,
       count(*) FILTER (WHERE expires_at <= now()) AS expired,
       min(created_at)                             AS oldest,
       max(created_at)                             AS newest,
       sum(pg_column_size(idempotency_keys.*))     AS bytes
FROM idempotency_keys
GROUP BY caller;
COMMENT ON VIEW idempotency_overview IS 'Per caller: live and expired records, the oldest and newest, and the bytes of their rows (without indexes). Reads the whole table.';

CREATE VIEW recent_replies AS
SELECT created_at, caller, key, method, path, status, response, request_id, expires_at
FROM idempotency_keys
ORDER BY created_at DESC;
COMMENT ON VIEW recent_replies IS 'Stored replies, newest first: use it with LIMIT, which makes it read only that many rows.';

CREATE VIEW billing_overview AS
SELECT tenants.tenant,
       coalesce(sum(totals.pairs), 0)           AS pairs,
       coalesce(sum(totals.outstanding), 0)     AS outstanding,
       coalesce(sum(totals.lifetime), 0)        AS lifetime,
       coalesce(sum(totals.settlements), 0)     AS settlements,
       coalesce(sum(totals.settled_stroops), 0) AS settled_stroops
FROM tenants
LEFT JOIN tenant_totals AS totals USING (tenant)
GROUP BY tenants.tenant;
COMMENT ON VIEW billing_overview IS 'Per tenant: pairs, outstanding and lifetime requests, settlements made and the amount settled in stroops, from the kept totals.';
