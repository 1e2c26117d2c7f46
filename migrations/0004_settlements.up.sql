CREATE TABLE settlements (
    tenant_id       varchar(64) COLLATE "C" NOT NULL,
    settlement_id   varchar(36) COLLATE "C" NOT NULL,
    agent_id        varchar(256) COLLATE "C" NOT NULL,
    service_id      varchar(128) COLLATE "C" NOT NULL,
    requests        bigint NOT NULL,
    price_stroops   bigint NOT NULL,
    billed_stroops  numeric(38, 0) NOT NULL,
    settled_at      timestamptz NOT NULL,
    idempotency_key varchar(255) COLLATE "C",
    request_id      varchar(200) NOT NULL,
    list_position   bigint GENERATED ALWAYS AS IDENTITY,
    CONSTRAINT settlements_pkey PRIMARY KEY (tenant_id, settlement_id),
    CONSTRAINT settlements_pair_fkey FOREIGN KEY (tenant_id, agent_id, service_id)
        REFERENCES usage_counters (tenant_id, agent_id, service_id),
    CONSTRAINT settlements_settlement_id_form CHECK (settlement_id ~ '^stl_[0-9a-f]{32}$'),
    CONSTRAINT settlements_requests_positive CHECK (requests > 0),
    CONSTRAINT settlements_price_range CHECK (price_stroops BETWEEN 0 AND 9007199254),
    CONSTRAINT settlements_billed_is_product CHECK (billed_stroops = requests::numeric * price_stroops),
    CONSTRAINT settlements_idempotency_key_length CHECK (length(idempotency_key) >= 1),
    CONSTRAINT settlements_request_id_length CHECK (length(request_id) >= 1)
);
CREATE INDEX settlements_list ON settlements (tenant_id, settled_at, list_position);
CREATE INDEX settlements_by_agent ON settlements (tenant_id, agent_id, settled_at, list_position);
CREATE INDEX settlements_by_service ON settlements (tenant_id, service_id, settled_at, list_position);
COMMENT ON TABLE settlements IS
    'One row per bill: a settlement of a pair with outstanding requests. Rows are permanent. No foreign key to '
    'services, which can be deleted, and none to idempotency_keys, whose rows expire.';
COMMENT ON COLUMN settlements.tenant_id IS 'The tenant that was billed.';
COMMENT ON COLUMN settlements.settlement_id IS 'Id of the bill: stl_ and 32 hexadecimal digits.';
COMMENT ON COLUMN settlements.agent_id IS 'The agent whose requests were billed.';
COMMENT ON COLUMN settlements.service_id IS 'The service whose requests were billed.';
COMMENT ON COLUMN settlements.requests IS 'Requests billed.';
COMMENT ON COLUMN settlements.price_stroops IS
    'Price of one request in stroops when it was settled; 0 for a service that was not registered.';
COMMENT ON COLUMN settlements.billed_stroops IS 'Amount of the bill in stroops: requests times price_stroops, exact.';
COMMENT ON COLUMN settlements.settled_at IS 'When the settlement was executed.';
COMMENT ON COLUMN settlements.idempotency_key IS
    'Idempotency-Key of the request that settled. NULL: the request had none.';
COMMENT ON COLUMN settlements.request_id IS
    'X-Request-Id of the request that settled. All bills of one bulk settlement share it.';
COMMENT ON COLUMN settlements.list_position IS 'Ascending number that orders bills of the same moment.';
COMMENT ON INDEX settlements_pkey IS 'Finds a bill by tenant and id.';
COMMENT ON INDEX settlements_list IS 'Lists the bills of a tenant by time.';
COMMENT ON INDEX settlements_by_agent IS 'Lists the bills of an agent by time.';
COMMENT ON INDEX settlements_by_service IS 'Lists the bills of a service by time.';
