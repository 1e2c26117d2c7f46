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
-- The collation keeps this index for lists: see agents_list.
CREATE INDEX services_list ON services (tenant_id COLLATE "POSIX", list_position);
COMMENT ON TABLE services IS
    'Registered services of each tenant with their current prices. No foreign key to tenants: the tenant of a '
    'request is read from api_keys, which has one.';
COMMENT ON COLUMN services.tenant_id IS 'The tenant that owns the service.';
COMMENT ON COLUMN services.service_id IS 'Id of the service, chosen by the tenant.';
COMMENT ON COLUMN services.price_stroops IS
    'Current price of one request in stroops. A settlement uses the price at its time.';
COMMENT ON COLUMN services.disabled IS 'True: new usage is refused. Outstanding requests can still be settled.';
COMMENT ON COLUMN services.description IS
    'Description for people. NULL: the service has no metadata, so owner is NULL too.';
COMMENT ON COLUMN services.owner IS 'Owner, for people. NULL: the service has no metadata, so description is NULL too.';
COMMENT ON COLUMN services.created_at IS 'When the service was registered. Updates keep it.';
COMMENT ON COLUMN services.list_position IS
    'Ascending number. Lists show services in this order, the order of their registration.';
COMMENT ON INDEX services_pkey IS 'Finds a service by tenant and id.';
COMMENT ON INDEX services_list IS
    'Lists the services of a tenant. Used only by queries that ask for the collation "POSIX".';
