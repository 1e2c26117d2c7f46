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
COMMENT ON TABLE settlements IS 'One row per bill: a settlement that billed something. Rows are permanent.';
COMMENT ON COLUMN settlements.tenant_id IS 'The tenant that was billed.';
COMMENT ON COLUMN settlements.settlement_id IS 'stl_ and 32 hexadecimal digits.';
COMMENT ON COLUMN settlements.agent_id IS 'The agent whose requests were billed.';
COMMENT ON COLUMN settlements.service_id IS 'The service whose requests were billed.';
COMMENT ON COLUMN settlements.requests IS 'Requests billed.';
COMMENT ON COLUMN settlements.price_stroops IS 'Price of one request at that time in stroops; 0 for a service that was not registered.';
COMMENT ON COLUMN settlements.billed_stroops IS 'requests times price_stroops, exact.';
COMMENT ON COLUMN settlements.settled_at IS 'When the settlement was executed.';
COMMENT ON COLUMN settlements.idempotency_key IS 'The Idempotency-Key of the request that settled, if it had one.';
COMMENT ON COLUMN settlements.request_id IS 'The X-Request-Id of the request that settled. All rows of one bulk settlement share it.';
COMMENT ON COLUMN settlements.list_position IS 'Orders bills of the same moment.';
