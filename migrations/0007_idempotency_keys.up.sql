-- The primary key begins with the key: keys differ in their first characters and callers do not, so that one comparison
-- per step of the search decides. The only other index serves expiry and eviction.
CREATE TABLE idempotency_keys (
    caller       varchar(128) COLLATE "C" NOT NULL,
    key          varchar(255) COLLATE "C" NOT NULL,
    method       varchar(6) NOT NULL,
    path         varchar(1024) NOT NULL,
    request_hash bytea NOT NULL,
    status       smallint NOT NULL,
    response     text,
    request_id   varchar(200) NOT NULL,
    attempt_id   bigint NOT NULL,
    created_at   timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (key, caller)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05);
CREATE INDEX idempotency_keys_expiry ON idempotency_keys (expires_at);
COMMENT ON TABLE idempotency_keys IS
    'Idempotency records: one row per request with an Idempotency-Key that was executed, with its stored response. A '
    'row is written in the transaction of the request''s effect and never updated. The janitor deletes expired rows, '
    'and the oldest rows of callers over a cap. No foreign key to tenants: a caller may be an IP address.';
COMMENT ON COLUMN idempotency_keys.caller IS
    'Who used the key: tenant:<tenant_id> for a request with a recognised API key or of the operator for a tenant, '
    'otherwise ip:<address>.';
COMMENT ON COLUMN idempotency_keys.key IS 'The Idempotency-Key, without quotes.';
COMMENT ON COLUMN idempotency_keys.method IS 'HTTP method of the first request with the key.';
COMMENT ON COLUMN idempotency_keys.path IS 'Path of the first request as it was sent, without the query.';
COMMENT ON COLUMN idempotency_keys.request_hash IS
    'SHA-256 of method, route, parameters and body in RFC 8785 form. A request with the same key and another hash is '
    'a conflict.';
COMMENT ON COLUMN idempotency_keys.status IS 'HTTP status of the stored response.';
COMMENT ON COLUMN idempotency_keys.response IS
    'Body of the stored response, byte for byte, at most 1 MiB. NULL: it has no body (status 204).';
COMMENT ON COLUMN idempotency_keys.request_id IS 'X-Request-Id of the first request.';
COMMENT ON COLUMN idempotency_keys.attempt_id IS
    'Random number that each attempt to commit draws. A replica that lost its connection during COMMIT recognises '
    'its own rows by it.';
COMMENT ON COLUMN idempotency_keys.created_at IS 'When the first request was executed.';
COMMENT ON COLUMN idempotency_keys.expires_at IS
    'From then on the key counts as unused, whether the row is deleted yet or not.';
COMMENT ON INDEX idempotency_keys_pkey IS 'Finds the record of a key. A caller''s key has one record.';
COMMENT ON INDEX idempotency_keys_expiry IS 'Finds expired records, and the oldest ones to evict.';

CREATE FUNCTION idempotency_key_bytes(idempotency_keys) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT 200 + octet_length($1.caller) + octet_length($1.key) + octet_length($1.path) + octet_length($1.request_id)
        + coalesce(octet_length($1.response), 0)
$$;
COMMENT ON FUNCTION idempotency_key_bytes IS
    'Bytes that a record counts towards its caller''s IDEMPOTENCY_MAX_BYTES_PER_CALLER: its texts, and 200 for the '
    'other columns and the indexes.';

-- Half of each page is left free for updates.
CREATE TABLE caller_totals (
    caller  varchar(128) COLLATE "C" NOT NULL,
    shard   smallint NOT NULL,
    records bigint NOT NULL DEFAULT 0,
    bytes   bigint NOT NULL DEFAULT 0,
    CONSTRAINT caller_totals_pkey PRIMARY KEY (caller, shard)
) WITH (fillfactor = 50);
COMMENT ON TABLE caller_totals IS
    'Number and bytes of the idempotency records of each caller, maintained by the writers of idempotency_keys. The '
    'janitor finds callers over a cap by them. A total is the sum over the caller''s shards; one row may be negative.';
COMMENT ON COLUMN caller_totals.caller IS 'The caller: idempotency_keys.caller.';
COMMENT ON COLUMN caller_totals.shard IS
    'Commits add to one of 16 rows, 0 to 15, so that they do not wait for each other. The janitor subtracts in row '
    '16.';
COMMENT ON COLUMN caller_totals.records IS 'Number of rows in idempotency_keys, expired ones included.';
COMMENT ON COLUMN caller_totals.bytes IS 'Sum of idempotency_key_bytes over these rows.';
COMMENT ON INDEX caller_totals_pkey IS 'Finds the row to add to, and adds up the rows of a caller.';

CREATE TABLE full_callers (
    caller     varchar(128) COLLATE "C" NOT NULL,
    full_since timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT full_callers_pkey PRIMARY KEY (caller)
);
COMMENT ON TABLE full_callers IS
    'Callers whose requests with a new Idempotency-Key are refused: they are over a cap, and none of their records '
    'is old enough to be evicted. The janitor maintains the table, and every replica reads it.';
COMMENT ON COLUMN full_callers.caller IS 'The caller: idempotency_keys.caller.';
COMMENT ON COLUMN full_callers.full_since IS 'When the janitor added the caller.';
COMMENT ON INDEX full_callers_pkey IS 'A caller is listed once.';
