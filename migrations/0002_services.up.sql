CREATE TABLE services (
    tenant_id     varchar(64) COLLATE "C" NOT NULL,
    service_id    varchar(128) COLLATE "C" NOT NULL,
    price_stroops bigint NOT NULL,
    disabled      boolean NOT NULL DEFAULT false,
    description   varchar(256),
    owner         varchar(256),
    created_at    timestamptz NOT NULL,
    list_position bigint GENERATED ALWAYS AS IDENTITY,
    CONSTRAINT services_pkey PRIMARY KEY (tenant_id, service_id),
    CONSTRAINT services_service_id_form CHECK (service_id ~ '^[A-Za-z0-9._-]+$'),
    CONSTRAINT services_price_range CHECK (price_stroops BETWEEN 0 AND 9007199254),
    CONSTRAINT services_metadata_whole CHECK ((description IS NULL) = (owner IS NULL)),
    CONSTRAINT services_owner_length CHECK (length(owner) >= 1)
);
-- Lists alone use this index, as agents_list.
CREATE INDEX services_list ON services (tenant_id COLLATE "POSIX", list_position);
COMMENT ON TABLE services IS 'One row per service that a tenant has registered, with its current price.';
COMMENT ON COLUMN services.tenant_id IS 'The tenant that owns the service.';
COMMENT ON COLUMN services.service_id IS 'The service''s id, chosen by the tenant.';
COMMENT ON COLUMN services.price_stroops IS 'Current price of one request in stroops. A settlement uses the price at its time.';
COMMENT ON COLUMN services.disabled IS 'True refuses new usage. What is outstanding can still be settled.';
COMMENT ON COLUMN services.description IS 'Optional text for people; present together with owner or not at all.';
COMMENT ON COLUMN services.owner IS 'Optional owner for people; present together with description or not at all.';
COMMENT ON COLUMN services.created_at IS 'When the service was registered. Updates keep it.';
COMMENT ON COLUMN services.list_position IS 'Lists show services in this order, the order of creation.';
