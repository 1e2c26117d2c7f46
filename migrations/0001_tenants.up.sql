-- Text that identifies something is compared by code unit (COLLATE "C"): the HTTP contract orders it that way, and the
-- service locks rows in the order in which the database sorts them. An identifier's length is part of its type.
-- Constraints that a single statement per request would check on every write are left to the service, which enforces
-- them before it writes; `agentpay-billing verify` finds rows that break them.

CREATE TABLE tenants (
    tenant_id      varchar(64) COLLATE "C" NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    terms_revision bigint NOT NULL DEFAULT 0,
    CONSTRAINT tenants_pkey PRIMARY KEY (tenant_id),
    CONSTRAINT tenants_tenant_id_length CHECK (length(tenant_id) >= 1)
);
COMMENT ON TABLE tenants IS 'One row per customer account. Everything that is billed belongs to exactly one tenant.';
COMMENT ON COLUMN tenants.tenant_id IS 'Opaque id: tnt_ and 32 hexadecimal digits, or public for requests without a recognised key.';
COMMENT ON COLUMN tenants.created_at IS 'When the tenant was created.';
COMMENT ON COLUMN tenants.terms_revision IS 'Drawn at random whenever one of the tenant''s services, its price or its flag changes, or its first webhook is created or its last deleted. A commit that was decided on another revision is rolled back and decided again. Change it whenever you change these by hand.';
INSERT INTO tenants (tenant_id) VALUES ('public');

CREATE TABLE api_keys (
    tenant_id  varchar(64) COLLATE "C" NOT NULL,
    prefix     varchar(12) COLLATE "C" NOT NULL,
    key_hash   bytea NOT NULL,
    label      varchar(64) NOT NULL,
    created_at timestamptz NOT NULL,
    CONSTRAINT api_keys_pkey PRIMARY KEY (tenant_id, prefix),
    CONSTRAINT api_keys_prefix_key UNIQUE (prefix),
    CONSTRAINT api_keys_key_hash_key UNIQUE (key_hash),
    CONSTRAINT api_keys_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES tenants (tenant_id),
    CONSTRAINT api_keys_prefix_form CHECK (prefix ~ '^apk_[0-9a-f]{8}$'),
    CONSTRAINT api_keys_key_hash_length CHECK (octet_length(key_hash) = 32),
    CONSTRAINT api_keys_label_length CHECK (length(label) >= 1)
);
CREATE INDEX api_keys_list ON api_keys (created_at, prefix);
COMMENT ON TABLE api_keys IS 'One row per live API key. The key itself is never stored; revoking it deletes the row.';
COMMENT ON COLUMN api_keys.tenant_id IS 'The tenant that requests with this key belong to.';
COMMENT ON COLUMN api_keys.prefix IS 'First 12 characters of the key: its public name in lists and for revocation.';
COMMENT ON COLUMN api_keys.key_hash IS 'SHA-256 of the whole key.';
COMMENT ON COLUMN api_keys.label IS 'The operator''s description of the key.';
COMMENT ON COLUMN api_keys.created_at IS 'When the key was created.';
