-- Every text column sorts by code unit (COLLATE "C"): the contract orders text that way,
-- and the program takes row locks in the same order as the database sorts.

CREATE TABLE tenants (
    tenant     text COLLATE "C" NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT tenants_pkey PRIMARY KEY (tenant),
    CONSTRAINT tenants_tenant_length CHECK (length(tenant) BETWEEN 1 AND 64)
);
COMMENT ON TABLE tenants IS 'One row is one customer account. Everything that is billed belongs to exactly one tenant.';
COMMENT ON COLUMN tenants.tenant IS 'Opaque id: tnt_ and 32 hexadecimal digits, or public for requests without a recognised key.';
COMMENT ON COLUMN tenants.created_at IS 'When the tenant was made.';
INSERT INTO tenants (tenant) VALUES ('public');

CREATE TABLE api_keys (
    tenant     text COLLATE "C" NOT NULL,
    prefix     text COLLATE "C" NOT NULL,
    key_hash   bytea NOT NULL,
    label      text NOT NULL,
    created_at timestamptz NOT NULL,
    CONSTRAINT api_keys_pkey PRIMARY KEY (tenant, prefix),
    CONSTRAINT api_keys_prefix_key UNIQUE (prefix),
    CONSTRAINT api_keys_key_hash_key UNIQUE (key_hash),
    CONSTRAINT api_keys_tenant_fkey FOREIGN KEY (tenant) REFERENCES tenants (tenant),
    CONSTRAINT api_keys_prefix_form CHECK (prefix ~ '^apk_[0-9a-f]{8}$'),
    CONSTRAINT api_keys_key_hash_length CHECK (octet_length(key_hash) = 32),
    CONSTRAINT api_keys_label_length CHECK (length(label) BETWEEN 1 AND 64)
);
CREATE INDEX api_keys_list ON api_keys (created_at, prefix);
COMMENT ON TABLE api_keys IS 'One row is one live API key. The key itself is never stored; revoking deletes the row.';
COMMENT ON COLUMN api_keys.tenant IS 'The tenant a request with this key belongs to.';
COMMENT ON COLUMN api_keys.prefix IS 'First 12 characters of the key: its public name in lists and for revocation.';
COMMENT ON COLUMN api_keys.key_hash IS 'SHA-256 of the whole key.';
COMMENT ON COLUMN api_keys.label IS 'The operator''s own description of the key.';
COMMENT ON COLUMN api_keys.created_at IS 'When the key was made.';

CREATE TABLE services (
    tenant        text COLLATE "C" NOT NULL,
    service_id    text COLLATE "C" NOT NULL,
    price_stroops bigint NOT NULL,
    disabled      boolean NOT NULL DEFAULT false,
    description   text,
    owner         text,
    created_at    timestamptz NOT NULL,
    list_position bigint GENERATED ALWAYS AS IDENTITY,
    CONSTRAINT services_pkey PRIMARY KEY (tenant, service_id),
    CONSTRAINT services_service_id_form CHECK (service_id !~ '[^A-Za-z0-9._-]' AND length(service_id) BETWEEN 1 AND 128),
    CONSTRAINT services_price_range CHECK (price_stroops BETWEEN 0 AND 9007199254),
    CONSTRAINT services_metadata_whole CHECK ((description IS NULL) = (owner IS NULL)),
    CONSTRAINT services_description_length CHECK (length(description) <= 256),
    CONSTRAINT services_owner_length CHECK (length(owner) BETWEEN 1 AND 256)
);
CREATE INDEX services_list ON services (tenant, list_position);
COMMENT ON TABLE services IS 'One row is one service a tenant has registered, with its current price.';
COMMENT ON COLUMN services.tenant IS 'The tenant that owns the service.';
COMMENT ON COLUMN services.service_id IS 'The service''s id, chosen by the tenant.';
COMMENT ON COLUMN services.price_stroops IS 'Current price of one request, in stroops; a settlement uses the price of its own moment.';
COMMENT ON COLUMN services.disabled IS 'True refuses new usage; what is outstanding can still be settled.';
COMMENT ON COLUMN services.description IS 'Optional text for people; present together with owner or not at all.';
COMMENT ON COLUMN services.owner IS 'Optional owner for people; present together with description or not at all.';
COMMENT ON COLUMN services.created_at IS 'When the service was registered; updates keep it.';
COMMENT ON COLUMN services.list_position IS 'Lists show services in this order: the order of creation.';

CREATE TABLE usage_counters (
    tenant        text COLLATE "C" NOT NULL,
    agent         text COLLATE "C" NOT NULL,
    service_id    text COLLATE "C" NOT NULL,
    outstanding   bigint NOT NULL,
    lifetime      bigint NOT NULL,
    settled       bigint NOT NULL DEFAULT 0,
    reset         bigint NOT NULL DEFAULT 0,
    list_position bigint GENERATED ALWAYS AS IDENTITY,
    CONSTRAINT usage_counters_pkey PRIMARY KEY (tenant, agent, service_id),
    CONSTRAINT usage_counters_agent_form CHECK (agent !~ '[^A-Za-z0-9._-]' AND length(agent) BETWEEN 1 AND 256),
    CONSTRAINT usage_counters_service_id_form CHECK (service_id !~ '[^A-Za-z0-9._-]' AND length(service_id) BETWEEN 1 AND 128),
    CONSTRAINT usage_counters_not_negative CHECK (outstanding >= 0 AND settled >= 0 AND reset >= 0),
    CONSTRAINT usage_counters_add_up CHECK (lifetime = outstanding + settled + reset)
) WITH (fillfactor = 70);
COMMENT ON TABLE usage_counters IS 'One row is one pair: what one agent of one tenant used of one service. lifetime = outstanding + settled + reset, always.';
COMMENT ON COLUMN usage_counters.tenant IS 'The tenant the usage belongs to.';
COMMENT ON COLUMN usage_counters.agent IS 'The agent that made the requests.';
COMMENT ON COLUMN usage_counters.service_id IS 'The service that was used; it need not be registered.';
COMMENT ON COLUMN usage_counters.outstanding IS 'Requests recorded and not yet settled or reset.';
COMMENT ON COLUMN usage_counters.lifetime IS 'Requests ever recorded.';
COMMENT ON COLUMN usage_counters.settled IS 'Requests billed: the sum of this pair''s rows in settlements.';
COMMENT ON COLUMN usage_counters.reset IS 'Requests cleared without billing.';
COMMENT ON COLUMN usage_counters.list_position IS 'Lists show pairs in this order: the order of their first record.';

CREATE TABLE settlements (
    tenant          text COLLATE "C" NOT NULL,
    settlement_id   text COLLATE "C" NOT NULL,
    agent           text COLLATE "C" NOT NULL,
    service_id      text COLLATE "C" NOT NULL,
    requests        bigint NOT NULL,
    price_stroops   bigint NOT NULL,
    billed_stroops  numeric(38, 0) NOT NULL,
    settled_at      timestamptz NOT NULL,
    idempotency_key text COLLATE "C",
    request_id      text NOT NULL,
    list_position   bigint GENERATED ALWAYS AS IDENTITY,
    CONSTRAINT settlements_pkey PRIMARY KEY (tenant, settlement_id),
    CONSTRAINT settlements_settlement_id_form CHECK (settlement_id ~ '^stl_[0-9a-f]{32}$'),
    CONSTRAINT settlements_pair_fkey FOREIGN KEY (tenant, agent, service_id)
        REFERENCES usage_counters (tenant, agent, service_id),
    CONSTRAINT settlements_requests_positive CHECK (requests > 0),
    CONSTRAINT settlements_price_range CHECK (price_stroops BETWEEN 0 AND 9007199254),
    CONSTRAINT settlements_billed_is_product CHECK (billed_stroops = requests::numeric * price_stroops),
    CONSTRAINT settlements_idempotency_key_length CHECK (length(idempotency_key) BETWEEN 1 AND 255),
    CONSTRAINT settlements_request_id_length CHECK (length(request_id) BETWEEN 1 AND 200)
);
CREATE INDEX settlements_list ON settlements (tenant, settled_at, list_position);
CREATE INDEX settlements_by_agent ON settlements (tenant, agent, settled_at, list_position);
CREATE INDEX settlements_by_service ON settlements (tenant, service_id, settled_at, list_position);
COMMENT ON TABLE settlements IS 'One row is one bill: a settlement that drained something. Rows are permanent.';
COMMENT ON COLUMN settlements.tenant IS 'The tenant that was billed.';
COMMENT ON COLUMN settlements.settlement_id IS 'stl_ and 32 hexadecimal digits.';
COMMENT ON COLUMN settlements.agent IS 'The agent whose requests were billed.';
COMMENT ON COLUMN settlements.service_id IS 'The service whose requests were billed.';
COMMENT ON COLUMN settlements.requests IS 'Requests billed.';
COMMENT ON COLUMN settlements.price_stroops IS 'Price of one request at that moment, in stroops; 0 for a service that was not registered.';
COMMENT ON COLUMN settlements.billed_stroops IS 'requests times price_stroops, exact.';
COMMENT ON COLUMN settlements.settled_at IS 'When the settlement was executed.';
COMMENT ON COLUMN settlements.idempotency_key IS 'The Idempotency-Key of the request that settled, if it had one.';
COMMENT ON COLUMN settlements.request_id IS 'The X-Request-Id of the request that settled; all rows of one bulk settlement share it.';
COMMENT ON COLUMN settlements.list_position IS 'Orders bills of one moment.';

CREATE TABLE events (
    tenant      text COLLATE "C" NOT NULL,
    position    bigint GENERATED ALWAYS AS IDENTITY,
    recorded_at timestamptz NOT NULL,
    type        text NOT NULL,
    payload     json NOT NULL,
    CONSTRAINT events_pkey PRIMARY KEY (tenant, position),
    CONSTRAINT events_type_known CHECK (type IN ('usage.recorded', 'usage.settled', 'usage.reset',
        'service.disabled', 'service.enabled', 'service.deleted', 'webhook.test')),
    CONSTRAINT events_payload_length CHECK (octet_length(payload::text) <= 8192)
);
COMMENT ON TABLE events IS 'One row is one thing that happened to a tenant. Only the newest limits.event_log_cap rows of a tenant are kept.';
COMMENT ON COLUMN events.tenant IS 'The tenant it happened to.';
COMMENT ON COLUMN events.position IS 'Order of the log; the event''s public id is made of recorded_at and position.';
COMMENT ON COLUMN events.recorded_at IS 'When it happened.';
COMMENT ON COLUMN events.type IS 'What happened, for example usage.recorded.';
COMMENT ON COLUMN events.payload IS 'The facts of the event, as clients see them.';

CREATE TABLE tenant_totals (
    tenant           text COLLATE "C" NOT NULL,
    shard            smallint NOT NULL,
    pairs            bigint NOT NULL DEFAULT 0,
    pairs_above_zero bigint NOT NULL DEFAULT 0,
    outstanding      bigint NOT NULL DEFAULT 0,
    lifetime         bigint NOT NULL DEFAULT 0,
    settlements      bigint NOT NULL DEFAULT 0,
    settled_stroops  numeric(38, 0) NOT NULL DEFAULT 0,
    services         bigint NOT NULL DEFAULT 0,
    CONSTRAINT tenant_totals_pkey PRIMARY KEY (tenant, shard),
    CONSTRAINT tenant_totals_shard_range CHECK (shard BETWEEN 0 AND 15)
) WITH (fillfactor = 50);
COMMENT ON TABLE tenant_totals IS 'Kept counts, so that nothing is recounted. A tenant''s figure is the sum over its rows; a single row may be negative.';
COMMENT ON COLUMN tenant_totals.tenant IS 'The tenant that is counted.';
COMMENT ON COLUMN tenant_totals.shard IS 'Writers spread over 16 rows per tenant, so that they do not wait for each other.';
COMMENT ON COLUMN tenant_totals.pairs IS 'Rows in usage_counters.';
COMMENT ON COLUMN tenant_totals.pairs_above_zero IS 'Rows in usage_counters with something outstanding; limits.usage_store_max_keys bounds it.';
COMMENT ON COLUMN tenant_totals.outstanding IS 'Requests recorded and not yet settled or reset.';
COMMENT ON COLUMN tenant_totals.lifetime IS 'Requests ever recorded.';
COMMENT ON COLUMN tenant_totals.settlements IS 'Settlements made, those with nothing due included.';
COMMENT ON COLUMN tenant_totals.settled_stroops IS 'Sum of all bills, in stroops.';
COMMENT ON COLUMN tenant_totals.services IS 'Rows in services; limits.services_store_max_keys bounds it.';

CREATE TABLE limits (
    only_row                boolean NOT NULL DEFAULT true,
    rate_limit_per_window   bigint NOT NULL DEFAULT 60,
    rate_limit_window_ms    bigint NOT NULL DEFAULT 60000,
    bulk_max_items          bigint NOT NULL DEFAULT 100,
    event_log_cap           bigint NOT NULL DEFAULT 10000,
    usage_store_max_keys    bigint NOT NULL DEFAULT 100000,
    services_store_max_keys bigint NOT NULL DEFAULT 10000,
    webhook_store_max_keys  bigint NOT NULL DEFAULT 10000,
    api_key_store_max_keys  bigint NOT NULL DEFAULT 10000,
    CONSTRAINT limits_pkey PRIMARY KEY (only_row),
    CONSTRAINT limits_only_row CHECK (only_row),
    CONSTRAINT limits_rate_limit_per_window_range CHECK (rate_limit_per_window BETWEEN 1 AND 1000000),
    CONSTRAINT limits_rate_limit_window_ms_range CHECK (rate_limit_window_ms BETWEEN 1 AND 86400000),
    CONSTRAINT limits_bulk_max_items_range CHECK (bulk_max_items BETWEEN 1 AND 1000),
    CONSTRAINT limits_event_log_cap_range CHECK (event_log_cap BETWEEN 1 AND 100000),
    CONSTRAINT limits_usage_store_max_keys_range CHECK (usage_store_max_keys BETWEEN 1 AND 100000),
    CONSTRAINT limits_services_store_max_keys_range CHECK (services_store_max_keys BETWEEN 1 AND 10000),
    CONSTRAINT limits_webhook_store_max_keys_range CHECK (webhook_store_max_keys BETWEEN 1 AND 10000),
    CONSTRAINT limits_api_key_store_max_keys_range CHECK (api_key_store_max_keys BETWEEN 1 AND 10000)
);
COMMENT ON TABLE limits IS 'One row: the limits of the running system. Every replica follows a change within a second.';
COMMENT ON COLUMN limits.only_row IS 'Always true: there is one row.';
COMMENT ON COLUMN limits.rate_limit_per_window IS 'Requests a caller may make per window.';
COMMENT ON COLUMN limits.rate_limit_window_ms IS 'Length of that window in milliseconds.';
COMMENT ON COLUMN limits.bulk_max_items IS 'Items one bulk request may hold.';
COMMENT ON COLUMN limits.event_log_cap IS 'Newest events of a tenant that stay visible; older ones are deleted.';
COMMENT ON COLUMN limits.usage_store_max_keys IS 'Pairs above zero a tenant may have.';
COMMENT ON COLUMN limits.services_store_max_keys IS 'Services a tenant may have.';
COMMENT ON COLUMN limits.webhook_store_max_keys IS 'Webhooks a tenant may have.';
COMMENT ON COLUMN limits.api_key_store_max_keys IS 'Live API keys of all tenants together.';
INSERT INTO limits DEFAULT VALUES;
