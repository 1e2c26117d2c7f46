-- Commits maintain these sums together with the rows that they count, so that no read counts rows. Half of each page is
-- left free for updates.
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
COMMENT ON TABLE totals IS
    'Maintained sums of each tenant (rows with an empty service_id) and of each of its services. A total is the sum '
    'over the shards; one row may be negative. No row sums up all tenants: such totals are added up when they are '
    'read. No foreign keys: they would lock the tenant''s row in every commit, and a service need not be registered.';
COMMENT ON COLUMN totals.tenant_id IS 'The tenant.';
COMMENT ON COLUMN totals.service_id IS
    'The service, registered or not. Empty: the row belongs to the tenant as a whole. The rows of a tenant and those '
    'of its services overlap, so never add them up together.';
COMMENT ON COLUMN totals.shard IS
    'Each sum is spread over 16 rows, 0 to 15, so that writers do not wait for each other.';
COMMENT ON COLUMN totals.pairs IS 'Rows in usage_counters.';
COMMENT ON COLUMN totals.pairs_above_zero IS
    'Rows in usage_counters with outstanding requests. runtime_config.usage_store_max_keys limits it per tenant.';
COMMENT ON COLUMN totals.outstanding IS 'Requests recorded and neither settled nor reset.';
COMMENT ON COLUMN totals.recorded IS 'Requests ever recorded.';
COMMENT ON COLUMN totals.settlements IS
    'Settlements executed, those of pairs without outstanding requests included. Only in the rows of tenants.';
COMMENT ON COLUMN totals.settled_stroops IS 'Sum of all bills in stroops. Only in the rows of tenants.';
COMMENT ON COLUMN totals.agents IS 'Rows in agents. Only in the rows of tenants.';
COMMENT ON COLUMN totals.events IS
    'Events in event_runs, including those over runtime_config.event_log_cap that are not pruned yet. Only in the '
    'rows of tenants.';
COMMENT ON COLUMN totals.services IS
    'Rows in services. runtime_config.services_store_max_keys limits it. Only in the rows of tenants.';
COMMENT ON COLUMN totals.webhooks IS
    'Rows in webhooks. runtime_config.webhook_store_max_keys limits it. Only in the rows of tenants.';
COMMENT ON COLUMN totals.api_keys IS 'Rows in api_keys. Only in the rows of tenants.';
COMMENT ON INDEX totals_pkey IS 'Finds the row to add to, and adds up the rows of a service.';
COMMENT ON INDEX totals_of_tenants IS 'Adds up the rows of a tenant, or of all tenants, without those of services.';
