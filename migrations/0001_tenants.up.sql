-- The files are in the order in which the schema is understood: tenants and their keys, services, usage, settlements,
-- events, webhooks, idempotency, maintained totals, configuration, the types of the commit statement, views, audit log.
--
-- Identifiers are compared by code unit (COLLATE "C"). The HTTP contract orders them that way, and the service locks
-- rows in the order in which the database sorts them. Their length is part of their type.
--
-- Times are timestamptz: moments, which psql shows in the session's time zone. The service writes whole milliseconds,
-- and its API shows milliseconds since 1970-01-01 00:00 UTC. Amounts are stroops. The comment on a column that allows
-- NULL says what NULL means.
--
-- A rule that every write would have to check is left to the service, which checks it before it writes.
-- `agentpay-billing verify` finds rows that break it.

CREATE TABLE tenants (
    tenant_id      varchar(64) COLLATE "C" NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    terms_revision bigint NOT NULL DEFAULT 0,
    CONSTRAINT tenants_pkey PRIMARY KEY (tenant_id),
    CONSTRAINT tenants_tenant_id_length CHECK (length(tenant_id) >= 1)
);
COMMENT ON TABLE tenants IS 'Customer accounts. Everything that is billed belongs to exactly one tenant.';
COMMENT ON COLUMN tenants.tenant_id IS
    'Id of the tenant: tnt_ and 32 hexadecimal digits, or public for requests without a recognised API key.';
COMMENT ON COLUMN tenants.created_at IS 'When the tenant was created.';
COMMENT ON COLUMN tenants.terms_revision IS
    'Random number that stands for the tenant''s terms: its services, their prices and flags, and whether it has '
    'webhooks. Each change of them draws a new number. A commit that was decided on another number is rolled back '
    'and decided again. Set it to another value whenever you change terms by hand.';
COMMENT ON INDEX tenants_pkey IS 'Finds a tenant by its id.';
INSERT INTO tenants (tenant_id) VALUES ('public');

CREATE TABLE api_keys (
    tenant_id             varchar(64) COLLATE "C" NOT NULL,
    prefix                varchar(12) COLLATE "C" NOT NULL,
    key_hash              bytea NOT NULL,
    label                 varchar(64) NOT NULL,
    created_at            timestamptz NOT NULL,
    scopes                text[],
    rate_limit_per_window bigint,
    expires_at            timestamptz,
    overlap_until         timestamptz,
    last_used_at          timestamptz,
    CONSTRAINT api_keys_pkey PRIMARY KEY (tenant_id, prefix),
    CONSTRAINT api_keys_prefix_key UNIQUE (prefix),
    CONSTRAINT api_keys_key_hash_key UNIQUE (key_hash),
    CONSTRAINT api_keys_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES tenants (tenant_id),
    CONSTRAINT api_keys_prefix_form CHECK (prefix ~ '^apk_[0-9a-f]{8}$'),
    CONSTRAINT api_keys_key_hash_length CHECK (octet_length(key_hash) = 32),
    CONSTRAINT api_keys_label_length CHECK (length(label) >= 1),
    CONSTRAINT api_keys_scopes_known CHECK (cardinality(scopes) > 0
        AND scopes <@ ARRAY['usage:write', 'settle:write', 'read', 'webhooks', 'admin']),
    CONSTRAINT api_keys_rate_limit_per_window_range CHECK (rate_limit_per_window BETWEEN 1 AND 1000000)
);
CREATE INDEX api_keys_list ON api_keys (created_at, prefix);
COMMENT ON TABLE api_keys IS
    'Live API keys. The key itself is never stored. Revoking a key deletes its row. A row whose expires_at or '
    'overlap_until has passed counts as deleted; the janitor deletes it.';
COMMENT ON COLUMN api_keys.tenant_id IS 'The tenant that requests with this key belong to.';
COMMENT ON COLUMN api_keys.prefix IS 'First 12 characters of the key. Lists show them, and a key is revoked by them.';
COMMENT ON COLUMN api_keys.key_hash IS 'SHA-256 of the whole key.';
COMMENT ON COLUMN api_keys.label IS 'Description of the key, given by the operator.';
COMMENT ON COLUMN api_keys.created_at IS 'When the key was created.';
COMMENT ON COLUMN api_keys.scopes IS
    'What the key may be used for; admin stands for everything. NULL: everything that its tenant may do.';
COMMENT ON COLUMN api_keys.rate_limit_per_window IS
    'Requests that the key may make in each window, beside the limit of its tenant. NULL: no limit of its own.';
COMMENT ON COLUMN api_keys.expires_at IS 'From then on the key is not recognised. NULL: it does not expire.';
COMMENT ON COLUMN api_keys.overlap_until IS
    'The key was rotated, and is not recognised from then on. NULL: it was not rotated.';
COMMENT ON COLUMN api_keys.last_used_at IS
    'About when the key was last used: written at most once a minute. NULL: it was not used yet.';
COMMENT ON INDEX api_keys_pkey IS 'Finds the keys of a tenant.';
COMMENT ON INDEX api_keys_prefix_key IS 'Finds the key to revoke. No two keys have the same prefix.';
COMMENT ON INDEX api_keys_key_hash_key IS 'Finds the tenant of a request. No two rows are the same key.';
COMMENT ON INDEX api_keys_list IS 'Lists keys in the order of their creation.';
