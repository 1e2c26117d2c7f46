-- The key comes first in the primary key: keys differ early, callers do not, so that one comparison per step of the search
-- decides. The only other index serves expiry and eviction.
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
COMMENT ON TABLE idempotency_keys IS 'One row per answered request that carried an Idempotency-Key. It is written once, in the transaction of the request''s effect, and never updated.';
COMMENT ON COLUMN idempotency_keys.caller IS 'Who used the key: tenant:<tenant id> for requests with a recognised API key, else ip:<address>.';
COMMENT ON COLUMN idempotency_keys.key IS 'The Idempotency-Key, without quotes.';
COMMENT ON COLUMN idempotency_keys.method IS 'Method of the first request.';
COMMENT ON COLUMN idempotency_keys.path IS 'Path of the first request as sent, without query.';
COMMENT ON COLUMN idempotency_keys.request_hash IS 'SHA-256 of method, route, parameters and body in RFC 8785 form. Another hash under the same key is a conflict.';
COMMENT ON COLUMN idempotency_keys.status IS 'HTTP status of the first answer.';
COMMENT ON COLUMN idempotency_keys.response IS 'Body of the first answer, byte for byte, at most 1 MiB; null for 204.';
COMMENT ON COLUMN idempotency_keys.request_id IS 'X-Request-Id of the first request.';
COMMENT ON COLUMN idempotency_keys.attempt_id IS 'Drawn at random by each attempt to commit. A replica that lost its connection during a commit recognises its own rows by it.';
COMMENT ON COLUMN idempotency_keys.created_at IS 'When the request was executed.';
COMMENT ON COLUMN idempotency_keys.expires_at IS 'From then on the key counts as never seen, whether the row is pruned yet or not.';

CREATE TABLE caller_totals (
    caller  varchar(128) COLLATE "C" NOT NULL,
    shard   smallint NOT NULL,
    records bigint NOT NULL DEFAULT 0,
    bytes   bigint NOT NULL DEFAULT 0,
    CONSTRAINT caller_totals_pkey PRIMARY KEY (caller, shard)
) WITH (fillfactor = 50);
COMMENT ON TABLE caller_totals IS 'Sums per caller of idempotency_keys, by which the janitor finds callers over their caps. A figure is the sum over the rows of its shards; a single row may be negative.';
COMMENT ON COLUMN caller_totals.caller IS 'The caller.';
COMMENT ON COLUMN caller_totals.shard IS 'Writers use 16 rows per sum, 0 to 15, so that they do not wait for each other.';
COMMENT ON COLUMN caller_totals.records IS 'Rows in idempotency_keys, expired ones included.';
COMMENT ON COLUMN caller_totals.bytes IS 'Sum of idempotency_key_bytes over these rows.';

CREATE FUNCTION idempotency_key_bytes(idempotency_keys) RETURNS bigint LANGUAGE sql IMMUTABLE AS $$
    SELECT 200 + octet_length($1.caller) + octet_length($1.key) + octet_length($1.path) + octet_length($1.request_id)
        + coalesce(octet_length($1.response), 0)
$$;
COMMENT ON FUNCTION idempotency_key_bytes IS 'What a row counts towards its caller''s IDEMPOTENCY_MAX_BYTES_PER_CALLER: its texts, and 200 bytes for the rest and the indexes.';

CREATE VIEW idempotency_overview AS
SELECT caller,
       count(*) FILTER (WHERE expires_at > now())  AS live,
       count(*) FILTER (WHERE expires_at <= now()) AS expired,
       min(created_at)                             AS oldest,
       max(created_at)                             AS newest,
       sum(pg_column_size(idempotency_keys.*))     AS bytes
FROM idempotency_keys
GROUP BY caller;
COMMENT ON VIEW idempotency_overview IS 'Per caller: live and expired rows, the oldest and newest, and the bytes of the rows (without indexes). Reads the whole table.';

CREATE VIEW recent_responses AS
SELECT created_at, caller, key, method, path, status, response, request_id, expires_at
FROM idempotency_keys
ORDER BY expires_at DESC;
COMMENT ON VIEW recent_responses IS 'Stored responses, the last to expire first. Use it with LIMIT, which makes it read only that many rows.';
