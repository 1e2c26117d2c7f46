-- Views for people who look at the database with psql. The service does not read them.

CREATE VIEW events AS
SELECT run.tenant_id, run.position + event.number - 1 AS position, run.recorded_at, run.type, event.payload::json AS payload
FROM event_runs AS run
CROSS JOIN LATERAL string_to_table(run.payloads, E'\n') WITH ORDINALITY AS event (payload, number);
COMMENT ON VIEW events IS
    'One row per event of event_runs. Filter by tenant_id, and by position where possible: other filters read all '
    'rows.';
COMMENT ON COLUMN events.tenant_id IS 'The tenant that the event belongs to.';
COMMENT ON COLUMN events.position IS 'Position of the event in the tenant''s log, ascending. Positions have gaps.';
COMMENT ON COLUMN events.recorded_at IS 'When the event happened.';
COMMENT ON COLUMN events.type IS 'Type of the event, for example usage.recorded.';
COMMENT ON COLUMN events.payload IS 'Payload of the event as the API shows it.';

CREATE VIEW billing_overview AS
SELECT tenants.tenant_id,
       coalesce(sum(totals.pairs), 0)           AS pairs,
       coalesce(sum(totals.outstanding), 0)     AS outstanding,
       coalesce(sum(totals.recorded), 0)        AS recorded,
       coalesce(sum(totals.settlements), 0)     AS settlements,
       coalesce(sum(totals.settled_stroops), 0) AS settled_stroops
FROM tenants
LEFT JOIN totals ON totals.tenant_id = tenants.tenant_id AND totals.service_id = ''
GROUP BY tenants.tenant_id;
COMMENT ON VIEW billing_overview IS 'What each tenant used and was billed, from the maintained totals.';
COMMENT ON COLUMN billing_overview.tenant_id IS 'The tenant.';
COMMENT ON COLUMN billing_overview.pairs IS 'Number of its pairs.';
COMMENT ON COLUMN billing_overview.outstanding IS 'Requests recorded and neither settled nor reset.';
COMMENT ON COLUMN billing_overview.recorded IS 'Requests ever recorded.';
COMMENT ON COLUMN billing_overview.settlements IS
    'Settlements executed, those of pairs without outstanding requests included.';
COMMENT ON COLUMN billing_overview.settled_stroops IS 'Sum of all bills in stroops.';

CREATE VIEW idempotency_overview AS
SELECT caller,
       count(*) FILTER (WHERE expires_at > now())  AS live,
       count(*) FILTER (WHERE expires_at <= now()) AS expired,
       min(created_at)                             AS oldest,
       max(created_at)                             AS newest,
       sum(pg_column_size(idempotency_keys.*))     AS bytes
FROM idempotency_keys
GROUP BY caller;
COMMENT ON VIEW idempotency_overview IS 'What each caller has in idempotency_keys. Reads the whole table.';
COMMENT ON COLUMN idempotency_overview.caller IS 'The caller: idempotency_keys.caller.';
COMMENT ON COLUMN idempotency_overview.live IS 'Records that have not expired.';
COMMENT ON COLUMN idempotency_overview.expired IS 'Records that have expired and are not deleted yet.';
COMMENT ON COLUMN idempotency_overview.oldest IS 'When the oldest of its requests was executed.';
COMMENT ON COLUMN idempotency_overview.newest IS 'When the newest of its requests was executed.';
COMMENT ON COLUMN idempotency_overview.bytes IS 'Size of the rows in bytes as they are stored, without indexes.';

CREATE VIEW recent_responses AS
SELECT created_at, caller, key, method, path, status, response, request_id, expires_at
FROM idempotency_keys
ORDER BY expires_at DESC;
COMMENT ON VIEW recent_responses IS
    'Stored responses, the last to expire first. Add a LIMIT: the view then reads only that many rows.';
COMMENT ON COLUMN recent_responses.created_at IS 'When the request was executed.';
COMMENT ON COLUMN recent_responses.caller IS 'The caller: idempotency_keys.caller.';
COMMENT ON COLUMN recent_responses.key IS 'The Idempotency-Key, without quotes.';
COMMENT ON COLUMN recent_responses.method IS 'HTTP method of the request.';
COMMENT ON COLUMN recent_responses.path IS 'Path of the request as it was sent, without the query.';
COMMENT ON COLUMN recent_responses.status IS 'HTTP status of the response.';
COMMENT ON COLUMN recent_responses.response IS 'Body of the response. NULL: it has no body (status 204).';
COMMENT ON COLUMN recent_responses.request_id IS 'X-Request-Id of the request.';
COMMENT ON COLUMN recent_responses.expires_at IS 'From then on the key counts as unused.';
