-- PostgreSQL reads a table's CHECKs from its catalog again for every statement that writes the table, which was up to a
-- fifth of the time of a small commit. A domain's constraints it reads once per connection. So what one column may hold
-- is said by its type, and a CHECK is left only where it speaks of several columns. What is refused is the same as before;
-- service_totals.service_id has the form of a service's id now, and no longer a length only.
CREATE DOMAIN caller AS text COLLATE "C";
COMMENT ON DOMAIN caller IS 'Who used an idempotency key: tenant:<tenant> or ip:<address>.';
CREATE DOMAIN idempotency_key AS text COLLATE "C";
COMMENT ON DOMAIN idempotency_key IS 'An Idempotency-Key without quotes: 1 to 255 visible ASCII characters.';
CREATE DOMAIN write_method AS text;
COMMENT ON DOMAIN write_method IS 'Method of a request that may carry an Idempotency-Key.';
CREATE DOMAIN request_path AS text;
COMMENT ON DOMAIN request_path IS 'Path of a request as sent, without query.';
CREATE DOMAIN request_hash AS bytea;
COMMENT ON DOMAIN request_hash IS 'SHA-256 of a request in canonical form.';
CREATE DOMAIN replayable_status AS smallint;
COMMENT ON DOMAIN replayable_status IS 'HTTP status of an answer that is stored under a key.';
CREATE DOMAIN request_id AS text;
COMMENT ON DOMAIN request_id IS 'X-Request-Id of a request.';
CREATE DOMAIN service_id AS text COLLATE "C";
COMMENT ON DOMAIN service_id IS 'Id of a service, registered or not.';
CREATE DOMAIN shard AS smallint;
COMMENT ON DOMAIN shard IS 'Which of an owner''s 16 rows of totals.';
CREATE DOMAIN event_type AS text;
COMMENT ON DOMAIN event_type IS 'What happened.';
CREATE DOMAIN event_payload AS json;
COMMENT ON DOMAIN event_payload IS 'The facts of an event, at most 8 kB of JSON.';
CREATE DOMAIN record_kind AS text;
COMMENT ON DOMAIN record_kind IS 'Which capped table a change of counts is about.';
CREATE DOMAIN record_owner AS text COLLATE "C";
COMMENT ON DOMAIN record_owner IS 'The caller or tenant whose rows are counted.';

-- A view keeps its columns' types from changing.
DROP VIEW recent_replies;
DROP VIEW idempotency_overview;

-- While a domain has no constraints, taking it as the type of a column rewrites nothing.
ALTER TABLE idempotency_keys
    DROP CONSTRAINT idempotency_keys_caller_form,
    DROP CONSTRAINT idempotency_keys_key_form,
    DROP CONSTRAINT idempotency_keys_method_known,
    DROP CONSTRAINT idempotency_keys_path_length,
    DROP CONSTRAINT idempotency_keys_request_hash_length,
    DROP CONSTRAINT idempotency_keys_status_replayable,
    DROP CONSTRAINT idempotency_keys_request_id_length;
ALTER TABLE idempotency_keys
    ALTER COLUMN caller TYPE caller,
    ALTER COLUMN key TYPE idempotency_key,
    ALTER COLUMN method TYPE write_method,
    ALTER COLUMN path TYPE request_path,
    ALTER COLUMN request_hash TYPE request_hash,
    ALTER COLUMN status TYPE replayable_status,
    ALTER COLUMN request_id TYPE request_id;
-- In every table: a primary key that is joined to a column of another type is no longer one to GROUP BY.
ALTER TABLE services DROP CONSTRAINT services_service_id_form;
ALTER TABLE services ALTER COLUMN service_id TYPE service_id;
ALTER TABLE settlements ALTER COLUMN service_id TYPE service_id;
ALTER TABLE usage_counters DROP CONSTRAINT usage_counters_service_id_form;
ALTER TABLE usage_counters ALTER COLUMN service_id TYPE service_id;
ALTER TABLE service_totals DROP CONSTRAINT service_totals_service_id_length, DROP CONSTRAINT service_totals_shard_range;
ALTER TABLE service_totals ALTER COLUMN service_id TYPE service_id, ALTER COLUMN shard TYPE shard;
ALTER TABLE tenant_totals DROP CONSTRAINT tenant_totals_shard_range;
ALTER TABLE tenant_totals ALTER COLUMN shard TYPE shard;
ALTER TABLE events DROP CONSTRAINT events_type_known, DROP CONSTRAINT events_payload_length;
ALTER TABLE events ALTER COLUMN type TYPE event_type, ALTER COLUMN payload TYPE event_payload;
ALTER TABLE record_changes DROP CONSTRAINT record_changes_kind_known, DROP CONSTRAINT record_changes_owner_length;
ALTER TABLE record_changes ALTER COLUMN kind TYPE record_kind, ALTER COLUMN owner TYPE record_owner;

ALTER DOMAIN caller ADD CONSTRAINT caller_form
    CHECK ((starts_with(VALUE, 'tenant:') OR starts_with(VALUE, 'ip:')) AND length(VALUE) <= 128);
ALTER DOMAIN idempotency_key ADD CONSTRAINT idempotency_key_form
    CHECK (VALUE !~ '[^!-~]' AND octet_length(VALUE) BETWEEN 1 AND 255);
ALTER DOMAIN write_method ADD CONSTRAINT write_method_known CHECK (VALUE IN ('POST', 'PUT', 'PATCH', 'DELETE'));
ALTER DOMAIN request_path ADD CONSTRAINT request_path_length CHECK (length(VALUE) BETWEEN 1 AND 65535);
ALTER DOMAIN request_hash ADD CONSTRAINT request_hash_length CHECK (octet_length(VALUE) = 32);
ALTER DOMAIN replayable_status ADD CONSTRAINT replayable_status_known
    CHECK (VALUE BETWEEN 200 AND 299 OR VALUE IN (400, 404, 409));
ALTER DOMAIN request_id ADD CONSTRAINT request_id_length CHECK (length(VALUE) BETWEEN 1 AND 200);
ALTER DOMAIN service_id ADD CONSTRAINT service_id_form
    CHECK (VALUE !~ '[^A-Za-z0-9._-]' AND octet_length(VALUE) BETWEEN 1 AND 128);
ALTER DOMAIN shard ADD CONSTRAINT shard_range CHECK (VALUE BETWEEN 0 AND 15);
ALTER DOMAIN event_type ADD CONSTRAINT event_type_known
    CHECK (VALUE IN ('usage.recorded', 'usage.settled', 'usage.reset', 'service.disabled', 'service.enabled',
                     'service.deleted', 'webhook.test'));
ALTER DOMAIN event_payload ADD CONSTRAINT event_payload_length CHECK (octet_length(VALUE::text) <= 8192);
ALTER DOMAIN record_kind ADD CONSTRAINT record_kind_known CHECK (VALUE IN ('caller_replies', 'tenant_events'));
ALTER DOMAIN record_owner ADD CONSTRAINT record_owner_length CHECK (length(VALUE) BETWEEN 1 AND 128);

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


-- A column that changes its type loses its statistics. An empty table must not get any: plans for it would be made for ever
-- as if it stayed empty.
DO $$
DECLARE name text;
BEGIN
    FOR name IN
        SELECT relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
        WHERE nspname = current_schema() AND reltuples > 0 AND relname IN
            ('idempotency_keys', 'usage_counters', 'services', 'settlements', 'service_totals', 'tenant_totals', 'events')
    LOOP
        EXECUTE format('ANALYZE %I', name);
    END LOOP;
END $$;
