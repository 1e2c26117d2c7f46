CREATE TABLE idempotency_keys (
    caller       text COLLATE "C" NOT NULL,
    key          text COLLATE "C" NOT NULL,
    method       text NOT NULL,
    path         text NOT NULL,
    request_hash bytea NOT NULL,
    status       smallint NOT NULL,
    response     json,
    request_id   text NOT NULL,
    created_at   timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (caller, key),
    CONSTRAINT idempotency_keys_caller_form CHECK (caller ~ '^(tenant|ip):' AND length(caller) <= 128),
    CONSTRAINT idempotency_keys_key_form CHECK (key !~ '[^!-~]' AND length(key) BETWEEN 1 AND 255),
    CONSTRAINT idempotency_keys_method_known CHECK (method IN ('POST', 'PUT', 'PATCH', 'DELETE')),
    CONSTRAINT idempotency_keys_path_length CHECK (length(path) BETWEEN 1 AND 65535),
    CONSTRAINT idempotency_keys_request_hash_length CHECK (octet_length(request_hash) = 32),
    CONSTRAINT idempotency_keys_status_replayable CHECK (status BETWEEN 200 AND 299 OR status IN (400, 404, 409)),
    CONSTRAINT idempotency_keys_response_present CHECK ((response IS NULL) = (status = 204)),
    CONSTRAINT idempotency_keys_request_id_length CHECK (length(request_id) BETWEEN 1 AND 200),
    CONSTRAINT idempotency_keys_lifetime CHECK (expires_at > created_at)
) WITH (autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX idempotency_keys_expiry ON idempotency_keys (expires_at);
CREATE INDEX idempotency_keys_age ON idempotency_keys (created_at);
CREATE INDEX idempotency_keys_age_of_caller ON idempotency_keys (caller, created_at);
COMMENT ON TABLE idempotency_keys IS 'One row is one answered request that carried an Idempotency-Key. It is written once, in the transaction of the request''s effect, and never updated.';
COMMENT ON COLUMN idempotency_keys.caller IS 'Who used the key: tenant:<tenant> for requests with a recognised API key, else ip:<address>.';
COMMENT ON COLUMN idempotency_keys.key IS 'The Idempotency-Key, without quotes.';
COMMENT ON COLUMN idempotency_keys.method IS 'Method of the first request.';
COMMENT ON COLUMN idempotency_keys.path IS 'Path of the first request as sent, without query.';
COMMENT ON COLUMN idempotency_keys.request_hash IS 'SHA-256 of method, route, parameters and body in RFC 8785 form; another hash under the same key is a conflict.';
COMMENT ON COLUMN idempotency_keys.status IS 'HTTP status of the first answer.';
COMMENT ON COLUMN idempotency_keys.response IS 'Body of the first answer, byte for byte (json keeps the text, jsonb would not); null for 204.';
COMMENT ON COLUMN idempotency_keys.request_id IS 'X-Request-Id of the first request.';
COMMENT ON COLUMN idempotency_keys.created_at IS 'When the request was executed.';
COMMENT ON COLUMN idempotency_keys.expires_at IS 'From then on the key counts as never seen, whether the row is pruned yet or not.';

CREATE TABLE record_changes (
    kind   text NOT NULL,
    owner  text COLLATE "C" NOT NULL,
    change bigint NOT NULL,
    CONSTRAINT record_changes_kind_known CHECK (kind IN ('caller_replies', 'tenant_events')),
    CONSTRAINT record_changes_owner_length CHECK (length(owner) BETWEEN 1 AND 128)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000, vacuum_truncate = off);
COMMENT ON TABLE record_changes IS 'What commits added to and prunings removed from capped tables, not yet folded into record_counts. Appended without waiting for anyone, emptied by the janitor.';
COMMENT ON COLUMN record_changes.kind IS 'caller_replies: rows of idempotency_keys per caller; tenant_events: rows of events per tenant.';
COMMENT ON COLUMN record_changes.owner IS 'The caller or tenant.';
COMMENT ON COLUMN record_changes.change IS 'Rows added (positive) or removed (negative).';

CREATE TABLE record_counts (
    kind    text NOT NULL,
    owner   text COLLATE "C" NOT NULL,
    records bigint NOT NULL,
    CONSTRAINT record_counts_pkey PRIMARY KEY (kind, owner),
    CONSTRAINT record_counts_kind_known CHECK (kind IN ('caller_replies', 'all_replies', 'tenant_events')),
    CONSTRAINT record_counts_owner_length CHECK (length(owner) BETWEEN 1 AND 128)
) WITH (fillfactor = 70);
CREATE INDEX record_counts_largest ON record_counts (kind, records);
COMMENT ON TABLE record_counts IS 'How many rows each owner has in a capped table as of the janitor''s last run; exact together with record_changes. The janitor finds owners over their cap here instead of counting.';
COMMENT ON COLUMN record_counts.kind IS 'caller_replies: idempotency_keys per caller; all_replies: all of idempotency_keys (owner *); tenant_events: events per tenant.';
COMMENT ON COLUMN record_counts.owner IS 'The caller or tenant, or * for all.';
COMMENT ON COLUMN record_counts.records IS 'Number of rows.';
