-- How many idempotency records are stored is asked with every scrape of the metrics, and must not be added up then.
-- Commits wait while they are counted once, here.
ALTER TABLE tenant_totals ADD COLUMN replies bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN tenant_totals.replies IS 'Rows in idempotency_keys, expired ones included. Kept for all tenants together only: a caller is not a tenant.';
INSERT INTO tenant_totals AS total (tenant, shard, replies)
SELECT '*', 0, count(*) FROM idempotency_keys HAVING count(*) > 0
ON CONFLICT (tenant, shard) DO UPDATE SET replies = excluded.replies;

-- A reset deletes counters; one that begins anew at version 1 could be taken for its predecessor.
COMMENT ON COLUMN usage_counters.version IS 'Begins at random and grows by one with each write. A commit that decided on an older version is rolled back and decides again; add 1 whenever you change a row by hand.';
