-- Types and functions of the statement that commits a batch (src/store/commit/write.rs). A list of rows is one
-- parameter of that statement: an array of one of these types.

CREATE TYPE counter_change AS (pair_id bigint, version bigint, outstanding bigint, settled bigint, reset bigint);
COMMENT ON TYPE counter_change IS
    'New values of a row of usage_counters, and the version that the row must have before the commit.';

CREATE TYPE totals_change AS (tenant_id text, service_id text, pairs_above_zero bigint, outstanding bigint,
    recorded bigint, events bigint);
COMMENT ON TYPE totals_change IS 'Numbers to add to a row of totals.';

CREATE TYPE caller_change AS (caller text, records bigint, bytes bigint);
COMMENT ON TYPE caller_change IS 'Numbers to add to a row of caller_totals.';

CREATE TYPE new_event_run AS (tenant_id text, position bigint, events smallint, type text, payloads text);
COMMENT ON TYPE new_event_run IS 'A row of event_runs. A NULL position is drawn from event_positions.';

CREATE TYPE new_idempotency_key AS (caller text, key text, method text, path text, request_hash bytea, status smallint,
    response text, request_id text);
COMMENT ON TYPE new_idempotency_key IS 'A row of idempotency_keys, without what is the same for the whole commit.';

CREATE FUNCTION refuse_commit(code text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = code, MESSAGE = 'the batch was decided on data that has changed; it is decided again';
END $$;
COMMENT ON FUNCTION refuse_commit IS
    'Rolls back a commit that was decided on data that has changed. The SQLSTATE says which: OC001 the version of a '
    'counter, OC002 a key that is stored now, OC003 the terms of a tenant. Expected under concurrency: the service '
    'decides the batch again.';

CREATE FUNCTION refuse_changed_terms(tenant_ids text[], revisions bigint[]) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT FROM unnest(tenant_ids, revisions) AS decided (tenant_id, terms_revision)
        LEFT JOIN LATERAL (
            SELECT terms_revision FROM tenants WHERE tenants.tenant_id = decided.tenant_id LIMIT 1
        ) AS tenant ON true
        WHERE tenant.terms_revision IS DISTINCT FROM decided.terms_revision
    ) THEN
        RETURN refuse_commit('OC003');
    END IF;
    RETURN false;
END $$;
COMMENT ON FUNCTION refuse_changed_terms IS
    'Rolls back a commit with OC003 if a tenant''s terms_revision differs from the one that the commit was decided '
    'on. The comparison is in a function because the calling statement may have waited for a reset: queries in a '
    'function see what is committed when they run.';
