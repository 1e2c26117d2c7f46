DROP VIEW recent_replies;
DROP VIEW idempotency_overview;
ALTER TABLE record_changes ALTER COLUMN kind TYPE text, ALTER COLUMN owner TYPE text COLLATE "C";
ALTER TABLE record_changes
    ADD CONSTRAINT record_changes_kind_known CHECK (kind IN ('caller_replies', 'tenant_events')),
    ADD CONSTRAINT record_changes_owner_length CHECK (length(owner) BETWEEN 1 AND 128);
ALTER TABLE events ALTER COLUMN type TYPE text, ALTER COLUMN payload TYPE json;
ALTER TABLE events
    ADD CONSTRAINT events_type_known CHECK (type IN ('usage.recorded', 'usage.settled', 'usage.reset',
        'service.disabled', 'service.enabled', 'service.deleted', 'webhook.test')),
    ADD CONSTRAINT events_payload_length CHECK (octet_length(payload::text) <= 8192);
ALTER TABLE tenant_totals ALTER COLUMN shard TYPE smallint;
ALTER TABLE tenant_totals ADD CONSTRAINT tenant_totals_shard_range CHECK (shard BETWEEN 0 AND 15);
ALTER TABLE service_totals ALTER COLUMN service_id TYPE text COLLATE "C", ALTER COLUMN shard TYPE smallint;
ALTER TABLE service_totals
    ADD CONSTRAINT service_totals_service_id_length CHECK (length(service_id) BETWEEN 1 AND 128),
    ADD CONSTRAINT service_totals_shard_range CHECK (shard BETWEEN 0 AND 15);
ALTER TABLE usage_counters ALTER COLUMN service_id TYPE text COLLATE "C";
ALTER TABLE usage_counters ADD CONSTRAINT usage_counters_service_id_form
    CHECK (service_id !~ '[^A-Za-z0-9._-]' AND length(service_id) BETWEEN 1 AND 128);
ALTER TABLE settlements ALTER COLUMN service_id TYPE text COLLATE "C";
ALTER TABLE services ALTER COLUMN service_id TYPE text COLLATE "C";
ALTER TABLE services ADD CONSTRAINT services_service_id_form
    CHECK (service_id !~ '[^A-Za-z0-9._-]' AND length(service_id) BETWEEN 1 AND 128);
ALTER TABLE idempotency_keys
    ALTER COLUMN caller TYPE text COLLATE "C",
    ALTER COLUMN key TYPE text COLLATE "C",
    ALTER COLUMN method TYPE text,
    ALTER COLUMN path TYPE text,
    ALTER COLUMN request_hash TYPE bytea,
    ALTER COLUMN status TYPE smallint,
    ALTER COLUMN request_id TYPE text;
ALTER TABLE idempotency_keys
    ADD CONSTRAINT idempotency_keys_caller_form
        CHECK ((starts_with(caller, 'tenant:') OR starts_with(caller, 'ip:')) AND length(caller) <= 128),
    ADD CONSTRAINT idempotency_keys_key_form CHECK (key !~ '[^!-~]' AND length(key) BETWEEN 1 AND 255),
    ADD CONSTRAINT idempotency_keys_method_known CHECK (method IN ('POST', 'PUT', 'PATCH', 'DELETE')),
    ADD CONSTRAINT idempotency_keys_path_length CHECK (length(path) BETWEEN 1 AND 65535),
    ADD CONSTRAINT idempotency_keys_request_hash_length CHECK (octet_length(request_hash) = 32),
    ADD CONSTRAINT idempotency_keys_status_replayable CHECK (status BETWEEN 200 AND 299 OR status IN (400, 404, 409)),
    ADD CONSTRAINT idempotency_keys_request_id_length CHECK (length(request_id) BETWEEN 1 AND 200);
DROP DOMAIN record_owner, record_kind, event_payload, event_type, shard, service_id, request_id, replayable_status,
    request_hash, request_path, write_method, idempotency_key, caller;
CREATE VIEW idempotency_overview AS
SELECT caller,
       count(*) FILTER (WHERE expires_at > now())  AS live,
       count(*) FILTER (WHERE expires_at <= now()) AS expired,
       min(created_at)                             AS oldest,
       max(created_at)                             AS newest,
       sum(pg_column_size(idempotency_keys.*))     AS bytes
FROM idempotency_keys
GROUP BY caller;
COMMENT ON VIEW idempotency_overview IS 'Per caller: live and expired records, the oldest and newest, and the bytes of their rows (without indexes). Reads the whole table.';

CREATE VIEW recent_replies AS
SELECT created_at, caller, key, method, path, status, response, request_id, expires_at
FROM idempotency_keys
ORDER BY created_at DESC;
COMMENT ON VIEW recent_replies IS 'Stored replies, newest first: use it with LIMIT, which makes it read only that many rows.';

