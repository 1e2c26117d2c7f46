-- How many idempotency records are stored is asked with every scrape of the metrics, and must not be added up then.
ALTER TABLE tenant_totals ADD COLUMN replies bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN tenant_totals.replies IS 'Rows in idempotency_keys, expired ones included. Kept for all tenants together only: a caller is not a tenant.';
INSERT INTO tenant_totals AS total (tenant, shard, replies)
SELECT '*', 0, count(*) FROM idempotency_keys HAVING count(*) > 0
ON CONFLICT (tenant, shard) DO UPDATE SET replies = excluded.replies;
