-- Maintained by the commits that change what is counted, so that no read counts rows. A figure is the sum over the rows of
-- its shards; a single row may be negative. Half of each page is left free for updates.
CREATE TABLE totals (
    tenant_id        varchar(64) COLLATE "C" NOT NULL,
    service_id       varchar(128) COLLATE "C" NOT NULL,
    shard            smallint NOT NULL,
    pairs            bigint NOT NULL DEFAULT 0,
    pairs_above_zero bigint NOT NULL DEFAULT 0,
    outstanding      bigint NOT NULL DEFAULT 0,
    recorded         bigint NOT NULL DEFAULT 0,
    settlements      bigint NOT NULL DEFAULT 0,
    settled_stroops  numeric(38, 0) NOT NULL DEFAULT 0,
    agents           bigint NOT NULL DEFAULT 0,
    events           bigint NOT NULL DEFAULT 0,
    services         bigint NOT NULL DEFAULT 0,
    webhooks         bigint NOT NULL DEFAULT 0,
    api_keys         bigint NOT NULL DEFAULT 0,
    CONSTRAINT totals_pkey PRIMARY KEY (tenant_id, service_id, shard)
) WITH (fillfactor = 50);
CREATE INDEX totals_of_tenants ON totals (tenant_id, shard) WHERE service_id = '';
COMMENT ON TABLE totals IS 'Sums per tenant, and per service of a tenant. The rows of a tenant itself have the empty service_id.';
COMMENT ON COLUMN totals.tenant_id IS 'The tenant.';
COMMENT ON COLUMN totals.service_id IS 'The service, registered or not; empty in the rows of the tenant itself.';
COMMENT ON COLUMN totals.shard IS 'Writers use 16 rows per sum, 0 to 15, so that they do not wait for each other.';
COMMENT ON COLUMN totals.pairs IS 'Rows in usage_counters.';
COMMENT ON COLUMN totals.pairs_above_zero IS 'Rows in usage_counters with something outstanding; runtime_config.usage_store_max_keys bounds it per tenant.';
COMMENT ON COLUMN totals.outstanding IS 'Requests recorded and not yet settled or reset.';
COMMENT ON COLUMN totals.recorded IS 'Requests ever recorded.';
COMMENT ON COLUMN totals.settlements IS 'Settlements made, those with nothing due included. Of a tenant only, as are all columns below.';
COMMENT ON COLUMN totals.settled_stroops IS 'Sum of all bills in stroops.';
COMMENT ON COLUMN totals.agents IS 'Rows in agents.';
COMMENT ON COLUMN totals.events IS 'Events in event_runs, those beyond runtime_config.event_log_cap that are not pruned yet included.';
COMMENT ON COLUMN totals.services IS 'Rows in services; runtime_config.services_store_max_keys bounds it.';
COMMENT ON COLUMN totals.webhooks IS 'Rows in webhooks; runtime_config.webhook_store_max_keys bounds it.';
COMMENT ON COLUMN totals.api_keys IS 'Rows in api_keys.';

CREATE VIEW billing_overview AS
SELECT tenants.tenant_id,
       coalesce(sum(totals.pairs), 0)           AS pairs,
       coalesce(sum(totals.outstanding), 0)     AS outstanding,
       coalesce(sum(totals.recorded), 0)        AS recorded,
       coalesce(sum(totals.settlements), 0)     AS settlements,
       coalesce(sum(totals.settled_stroops), 0) AS settled_stroops
FROM tenants
LEFT JOIN totals ON totals.tenant_id = tenants.tenant_id AND totals.service_id = ''
GROUP BY tenants.tenant_id;
COMMENT ON VIEW billing_overview IS 'Per tenant: pairs, requests outstanding and ever recorded, settlements made and the amount settled in stroops.';
