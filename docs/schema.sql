CREATE TYPE public.caller_change AS (
	caller text,
	records bigint,
	bytes bigint
);

COMMENT ON TYPE public.caller_change IS 'Numbers to add to a row of caller_totals.';

CREATE TYPE public.counter_change AS (
	pair_id bigint,
	version bigint,
	outstanding bigint,
	settled bigint,
	reset bigint
);

COMMENT ON TYPE public.counter_change IS 'New values of a row of usage_counters, and the version that the row must have before the commit.';

CREATE TYPE public.new_event_run AS (
	tenant_id text,
	"position" bigint,
	events smallint,
	type text,
	payloads text
);

COMMENT ON TYPE public.new_event_run IS 'A row of event_runs. A NULL position is drawn from event_positions.';

CREATE TYPE public.new_idempotency_key AS (
	caller text,
	key text,
	method text,
	path text,
	request_hash bytea,
	status smallint,
	response text,
	request_id text
);

COMMENT ON TYPE public.new_idempotency_key IS 'A row of idempotency_keys, without what is the same for the whole commit.';

CREATE TYPE public.totals_change AS (
	tenant_id text,
	service_id text,
	pairs_above_zero bigint,
	outstanding bigint,
	recorded bigint,
	events bigint
);

COMMENT ON TYPE public.totals_change IS 'Numbers to add to a row of totals.';

CREATE TABLE public.idempotency_keys (
    caller character varying(128) NOT NULL COLLATE pg_catalog."C",
    key character varying(255) NOT NULL COLLATE pg_catalog."C",
    method character varying(6) NOT NULL,
    path character varying(1024) NOT NULL,
    request_hash bytea NOT NULL,
    status smallint NOT NULL,
    response text,
    request_id character varying(200) NOT NULL,
    attempt_id bigint NOT NULL,
    created_at timestamp with time zone NOT NULL,
    expires_at timestamp with time zone NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_insert_scale_factor='0.05');

COMMENT ON TABLE public.idempotency_keys IS 'Idempotency records: one row per request with an Idempotency-Key that was executed, with its stored response. A row is written in the transaction of the request''s effect and never updated. The janitor deletes expired rows, and the oldest rows of callers over a cap. No foreign key to tenants: a caller may be an IP address.';

COMMENT ON COLUMN public.idempotency_keys.caller IS 'Who used the key: tenant:<tenant_id> for a request with a recognised API key or of the operator for a tenant, otherwise ip:<address>.';

COMMENT ON COLUMN public.idempotency_keys.key IS 'The Idempotency-Key, without quotes.';

COMMENT ON COLUMN public.idempotency_keys.method IS 'HTTP method of the first request with the key.';

COMMENT ON COLUMN public.idempotency_keys.path IS 'Path of the first request as it was sent, without the query.';

COMMENT ON COLUMN public.idempotency_keys.request_hash IS 'SHA-256 of method, route, parameters and body in RFC 8785 form. A request with the same key and another hash is a conflict.';

COMMENT ON COLUMN public.idempotency_keys.status IS 'HTTP status of the stored response.';

COMMENT ON COLUMN public.idempotency_keys.response IS 'Body of the stored response, byte for byte, at most 1 MiB. NULL: it has no body (status 204).';

COMMENT ON COLUMN public.idempotency_keys.request_id IS 'X-Request-Id of the first request.';

COMMENT ON COLUMN public.idempotency_keys.attempt_id IS 'Random number that each attempt to commit draws. A replica that lost its connection during COMMIT recognises its own rows by it.';

COMMENT ON COLUMN public.idempotency_keys.created_at IS 'When the first request was executed.';

COMMENT ON COLUMN public.idempotency_keys.expires_at IS 'From then on the key counts as unused, whether the row is deleted yet or not.';

CREATE FUNCTION public.idempotency_key_bytes(public.idempotency_keys) RETURNS bigint
    LANGUAGE sql IMMUTABLE
    AS $_$
    SELECT 200 + octet_length($1.caller) + octet_length($1.key) + octet_length($1.path) + octet_length($1.request_id)
        + coalesce(octet_length($1.response), 0)
$_$;

COMMENT ON FUNCTION public.idempotency_key_bytes(public.idempotency_keys) IS 'Bytes that a record counts towards its caller''s IDEMPOTENCY_MAX_BYTES_PER_CALLER: its texts, and 200 for the other columns and the indexes.';

CREATE FUNCTION public.idempotency_record_bytes(caller text, key text, path text, request_id text, response text) RETURNS bigint
    LANGUAGE sql IMMUTABLE
    AS $_$
    SELECT 200 + octet_length($1) + octet_length($2) + octet_length($3) + octet_length($4) + coalesce(octet_length($5), 0)
$_$;

COMMENT ON FUNCTION public.idempotency_record_bytes(caller text, key text, path text, request_id text, response text) IS 'Bytes that a record counts towards its caller''s cap; the same as idempotency_key_bytes.';

CREATE FUNCTION public.refuse_changed_terms(tenant_ids text[], revisions bigint[]) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
BEGIN
    IF EXISTS (
        SELECT FROM unnest(tenant_ids, revisions) AS decided (tenant_id, terms_revision)
        LEFT JOIN LATERAL (
            SELECT terms_revision, residence FROM tenants WHERE tenants.tenant_id = decided.tenant_id LIMIT 1
        ) AS tenant ON true
        WHERE tenant.terms_revision IS DISTINCT FROM decided.terms_revision
           OR tenant.residence NOT IN ('here', 'departing')
    ) THEN
        RETURN refuse_commit('OC003');
    END IF;
    RETURN false;
END $$;

COMMENT ON FUNCTION public.refuse_changed_terms(tenant_ids text[], revisions bigint[]) IS 'Rolls back a commit with OC003 if a tenant''s terms_revision differs from the one that the commit was decided on, or if the tenant does not live in this cell. The comparison is in a function because the calling statement may have waited for a reset or a move: queries in a function see what is committed when they run.';

CREATE FUNCTION public.refuse_commit(code text) RETURNS boolean
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = code, MESSAGE = 'the batch was decided on data that has changed; it is decided again';
END $$;

COMMENT ON FUNCTION public.refuse_commit(code text) IS 'Rolls back a commit that was decided on data that has changed. The SQLSTATE says which: OC001 the version of a counter, OC002 a key that is stored now, OC003 the terms of a tenant. Expected under concurrency: the service decides the batch again.';

CREATE TABLE public.agents (
    tenant_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    agent_id character varying(256) NOT NULL COLLATE pg_catalog."C",
    list_position bigint NOT NULL,
    CONSTRAINT agents_agent_id_form CHECK (((agent_id)::text ~ '^[A-Za-z0-9._-]+$'::text))
);

COMMENT ON TABLE public.agents IS 'Agents of each tenant that have used at least one service. No foreign key to tenants: it would lock the tenant''s row in every commit that adds an agent.';

COMMENT ON COLUMN public.agents.tenant_id IS 'The tenant that the agent belongs to.';

COMMENT ON COLUMN public.agents.agent_id IS 'Id of the agent, chosen by the tenant.';

COMMENT ON COLUMN public.agents.list_position IS 'Ascending number. Lists show agents in this order, the order of their first usage.';

ALTER TABLE public.agents ALTER COLUMN list_position ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.agents_list_position_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.api_keys (
    tenant_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    prefix character varying(12) NOT NULL COLLATE pg_catalog."C",
    key_hash bytea NOT NULL,
    label character varying(64) NOT NULL,
    created_at timestamp with time zone NOT NULL,
    scopes text[],
    rate_limit_per_window bigint,
    expires_at timestamp with time zone,
    overlap_until timestamp with time zone,
    last_used_at timestamp with time zone,
    CONSTRAINT api_keys_key_hash_length CHECK ((octet_length(key_hash) = 32)),
    CONSTRAINT api_keys_label_length CHECK ((length((label)::text) >= 1)),
    CONSTRAINT api_keys_prefix_form CHECK (((prefix)::text ~ '^apk_[0-9a-f]{8}$'::text)),
    CONSTRAINT api_keys_rate_limit_per_window_range CHECK (((rate_limit_per_window >= 1) AND (rate_limit_per_window <= 1000000))),
    CONSTRAINT api_keys_scopes_known CHECK (((cardinality(scopes) > 0) AND (scopes <@ ARRAY['usage:write'::text, 'settle:write'::text, 'read'::text, 'webhooks'::text, 'admin'::text])))
);

COMMENT ON TABLE public.api_keys IS 'Live API keys. The key itself is never stored. Revoking a key deletes its row. A row whose expires_at or overlap_until has passed counts as deleted; the janitor deletes it.';

COMMENT ON COLUMN public.api_keys.tenant_id IS 'The tenant that requests with this key belong to.';

COMMENT ON COLUMN public.api_keys.prefix IS 'First 12 characters of the key. Lists show them, and a key is revoked by them.';

COMMENT ON COLUMN public.api_keys.key_hash IS 'SHA-256 of the whole key.';

COMMENT ON COLUMN public.api_keys.label IS 'Description of the key, given by the operator.';

COMMENT ON COLUMN public.api_keys.created_at IS 'When the key was created.';

COMMENT ON COLUMN public.api_keys.scopes IS 'What the key may be used for; admin stands for everything. NULL: everything that its tenant may do.';

COMMENT ON COLUMN public.api_keys.rate_limit_per_window IS 'Requests that the key may make in each window, beside the limit of its tenant. NULL: no limit of its own.';

COMMENT ON COLUMN public.api_keys.expires_at IS 'From then on the key is not recognised. NULL: it does not expire.';

COMMENT ON COLUMN public.api_keys.overlap_until IS 'The key was rotated, and is not recognised from then on. NULL: it was not rotated.';

COMMENT ON COLUMN public.api_keys.last_used_at IS 'About when the key was last used: written at most once a minute. NULL: it was not used yet.';

CREATE TABLE public.audit_log (
    audit_id bigint NOT NULL,
    changed_at timestamp with time zone NOT NULL,
    actor character varying(12) NOT NULL COLLATE pg_catalog."C",
    address character varying(128) COLLATE pg_catalog."C",
    request_id character varying(200),
    operation character varying(32) NOT NULL COLLATE pg_catalog."C",
    tenant_id character varying(64) COLLATE pg_catalog."C",
    object_id character varying(128) COLLATE pg_catalog."C",
    before jsonb,
    after jsonb,
    CONSTRAINT audit_log_actor_form CHECK (((actor)::text ~ '^(admin|anonymous|cli|service|apk_[0-9a-f]{8})$'::text)),
    CONSTRAINT audit_log_after_length CHECK ((octet_length((after)::text) <= 16384)),
    CONSTRAINT audit_log_before_length CHECK ((octet_length((before)::text) <= 16384))
);

COMMENT ON TABLE public.audit_log IS 'One row per change that an operator made, or that was made to the configuration of a tenant. Rows are permanent: a reset keeps them. No foreign keys: a row outlives what it describes. Secrets and keys are never stored here.';

COMMENT ON COLUMN public.audit_log.audit_id IS 'Ascending number that orders changes of the same moment.';

COMMENT ON COLUMN public.audit_log.changed_at IS 'When the transaction of the change began.';

COMMENT ON COLUMN public.audit_log.actor IS 'Who made the change: admin (the admin key), the prefix of an API key, anonymous (a request without a recognised key), cli (a command), or service (the service itself).';

COMMENT ON COLUMN public.audit_log.address IS 'Client address of the request. NULL: no request made the change.';

COMMENT ON COLUMN public.audit_log.request_id IS 'X-Request-Id of the request. NULL: the service made the change.';

COMMENT ON COLUMN public.audit_log.operation IS 'What was done, for example service.updated.';

COMMENT ON COLUMN public.audit_log.tenant_id IS 'The tenant whose configuration changed. NULL: that of the whole service.';

COMMENT ON COLUMN public.audit_log.object_id IS 'Id of the service or webhook, or prefix of the API key, that changed. NULL: the runtime configuration, or all data.';

COMMENT ON COLUMN public.audit_log.before IS 'The object before the change. NULL: it did not exist.';

COMMENT ON COLUMN public.audit_log.after IS 'The object after the change. NULL: it was deleted.';

ALTER TABLE public.audit_log ALTER COLUMN audit_id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.audit_log_audit_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.tenants (
    tenant_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    terms_revision bigint DEFAULT 0 NOT NULL,
    residence character varying(9) DEFAULT 'here'::character varying NOT NULL COLLATE pg_catalog."C",
    CONSTRAINT tenants_residence_known CHECK (((residence)::text = ANY ((ARRAY['here'::character varying, 'departing'::character varying, 'leaving'::character varying, 'elsewhere'::character varying])::text[]))),
    CONSTRAINT tenants_tenant_id_length CHECK ((length((tenant_id)::text) >= 1))
);

COMMENT ON TABLE public.tenants IS 'Customer accounts. Everything that is billed belongs to exactly one tenant.';

COMMENT ON COLUMN public.tenants.tenant_id IS 'Id of the tenant: tnt_ and 32 hexadecimal digits, or public for requests without a recognised API key.';

COMMENT ON COLUMN public.tenants.created_at IS 'When the tenant was created.';

COMMENT ON COLUMN public.tenants.terms_revision IS 'Random number that stands for the tenant''s terms: its services, their prices and flags, and whether it has webhooks. Each change of them draws a new number. A commit that was decided on another number is rolled back and decided again. Set it to another value whenever you change terms by hand.';

COMMENT ON COLUMN public.tenants.residence IS 'Whether this cell has the tenant''s data. here: yes; departing: the same, but no deliveries are begun, because the tenant is about to be moved; leaving: it is being moved to another cell, and writes are refused; elsewhere: another cell has its data. Draw a new terms_revision with each change.';

CREATE TABLE public.totals (
    tenant_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    service_id character varying(128) NOT NULL COLLATE pg_catalog."C",
    shard smallint NOT NULL,
    pairs bigint DEFAULT 0 NOT NULL,
    pairs_above_zero bigint DEFAULT 0 NOT NULL,
    outstanding bigint DEFAULT 0 NOT NULL,
    recorded bigint DEFAULT 0 NOT NULL,
    settlements bigint DEFAULT 0 NOT NULL,
    settled_stroops numeric(38,0) DEFAULT 0 NOT NULL,
    agents bigint DEFAULT 0 NOT NULL,
    events bigint DEFAULT 0 NOT NULL,
    services bigint DEFAULT 0 NOT NULL,
    webhooks bigint DEFAULT 0 NOT NULL,
    api_keys bigint DEFAULT 0 NOT NULL
)
WITH (fillfactor='50');

COMMENT ON TABLE public.totals IS 'Maintained sums of each tenant (rows with an empty service_id) and of each of its services. A total is the sum over the shards; one row may be negative. No row sums up all tenants: such totals are added up when they are read. No foreign keys: they would lock the tenant''s row in every commit, and a service need not be registered.';

COMMENT ON COLUMN public.totals.tenant_id IS 'The tenant.';

COMMENT ON COLUMN public.totals.service_id IS 'The service, registered or not. Empty: the row belongs to the tenant as a whole. The rows of a tenant and those of its services overlap, so never add them up together.';

COMMENT ON COLUMN public.totals.shard IS 'Each sum is spread over 16 rows, 0 to 15, so that writers do not wait for each other.';

COMMENT ON COLUMN public.totals.pairs IS 'Rows in usage_counters.';

COMMENT ON COLUMN public.totals.pairs_above_zero IS 'Rows in usage_counters with outstanding requests. runtime_config.usage_store_max_keys limits it per tenant.';

COMMENT ON COLUMN public.totals.outstanding IS 'Requests recorded and neither settled nor reset.';

COMMENT ON COLUMN public.totals.recorded IS 'Requests ever recorded.';

COMMENT ON COLUMN public.totals.settlements IS 'Settlements executed, those of pairs without outstanding requests included. Only in the rows of tenants.';

COMMENT ON COLUMN public.totals.settled_stroops IS 'Sum of all bills in stroops. Only in the rows of tenants.';

COMMENT ON COLUMN public.totals.agents IS 'Rows in agents. Only in the rows of tenants.';

COMMENT ON COLUMN public.totals.events IS 'Events in event_runs, including those over runtime_config.event_log_cap that are not pruned yet. Only in the rows of tenants.';

COMMENT ON COLUMN public.totals.services IS 'Rows in services. runtime_config.services_store_max_keys limits it. Only in the rows of tenants.';

COMMENT ON COLUMN public.totals.webhooks IS 'Rows in webhooks. runtime_config.webhook_store_max_keys limits it. Only in the rows of tenants.';

COMMENT ON COLUMN public.totals.api_keys IS 'Rows in api_keys. Only in the rows of tenants.';

CREATE VIEW public.billing_overview AS
 SELECT tenants.tenant_id,
    COALESCE(sum(totals.pairs), (0)::numeric) AS pairs,
    COALESCE(sum(totals.outstanding), (0)::numeric) AS outstanding,
    COALESCE(sum(totals.recorded), (0)::numeric) AS recorded,
    COALESCE(sum(totals.settlements), (0)::numeric) AS settlements,
    COALESCE(sum(totals.settled_stroops), (0)::numeric) AS settled_stroops
   FROM (public.tenants
     LEFT JOIN public.totals ON ((((totals.tenant_id)::text = (tenants.tenant_id)::text) AND ((totals.service_id)::text = ''::text))))
  GROUP BY tenants.tenant_id;

COMMENT ON VIEW public.billing_overview IS 'What each tenant used and was billed, from the maintained totals.';

COMMENT ON COLUMN public.billing_overview.tenant_id IS 'The tenant.';

COMMENT ON COLUMN public.billing_overview.pairs IS 'Number of its pairs.';

COMMENT ON COLUMN public.billing_overview.outstanding IS 'Requests recorded and neither settled nor reset.';

COMMENT ON COLUMN public.billing_overview.recorded IS 'Requests ever recorded.';

COMMENT ON COLUMN public.billing_overview.settlements IS 'Settlements executed, those of pairs without outstanding requests included.';

COMMENT ON COLUMN public.billing_overview.settled_stroops IS 'Sum of all bills in stroops.';

CREATE TABLE public.caller_totals (
    caller character varying(128) NOT NULL COLLATE pg_catalog."C",
    shard smallint NOT NULL,
    records bigint DEFAULT 0 NOT NULL,
    bytes bigint DEFAULT 0 NOT NULL
)
WITH (fillfactor='50');

COMMENT ON TABLE public.caller_totals IS 'Number and bytes of the idempotency records of each caller, maintained by the writers of idempotency_keys. The janitor finds callers over a cap by them. A total is the sum over the caller''s shards; one row may be negative.';

COMMENT ON COLUMN public.caller_totals.caller IS 'The caller: idempotency_keys.caller.';

COMMENT ON COLUMN public.caller_totals.shard IS 'Commits add to one of 16 rows, 0 to 15, so that they do not wait for each other. The janitor subtracts in row 16.';

COMMENT ON COLUMN public.caller_totals.records IS 'Number of rows in idempotency_keys, expired ones included.';

COMMENT ON COLUMN public.caller_totals.bytes IS 'Sum of idempotency_key_bytes over these rows.';

CREATE TABLE public.cell_identity (
    only_row boolean DEFAULT true NOT NULL,
    cell_id character varying(32) NOT NULL COLLATE pg_catalog."C",
    deployment_id character varying(36) NOT NULL COLLATE pg_catalog."C",
    CONSTRAINT cell_identity_only_row CHECK (only_row)
);

COMMENT ON TABLE public.cell_identity IS 'One row: which cell this is. A service whose CELLS_FILE has another id for this database does not use it, nor does one whose home cell has another deployment_id. Empty while there is one cell.';

COMMENT ON COLUMN public.cell_identity.only_row IS 'Always true. The primary key allows no second row.';

COMMENT ON COLUMN public.cell_identity.cell_id IS 'Id of the cell: cells.cell_id in the home cell.';

COMMENT ON COLUMN public.cell_identity.deployment_id IS 'Random id, drawn when the home cell is founded. All cells of a home cell have it, so that a cell of another home cell with the same cell_id is not used.';

CREATE TABLE public.cells (
    cell_id character varying(32) NOT NULL COLLATE pg_catalog."C",
    number smallint NOT NULL,
    accepts_tenants boolean DEFAULT true NOT NULL,
    added_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT cells_cell_id_form CHECK (((cell_id)::text ~ '^[a-z0-9][a-z0-9-]*$'::text)),
    CONSTRAINT cells_number_range CHECK (((number >= 0) AND (number <= 1023)))
);

COMMENT ON TABLE public.cells IS 'The cells, in the home cell. Empty while there is one.';

COMMENT ON COLUMN public.cells.cell_id IS 'Id of the cell, as in CELLS_FILE.';

COMMENT ON COLUMN public.cells.number IS 'Number of the cell; 0 is the home cell. Each pair_id that a cell draws has this remainder when divided by 1024, so that no two cells draw the same one.';

COMMENT ON COLUMN public.cells.accepts_tenants IS 'Whether new tenants may be created in the cell.';

COMMENT ON COLUMN public.cells.added_at IS 'When the cell was added.';

CREATE TABLE public.citus_positions (
    only_row boolean DEFAULT true NOT NULL,
    cell_number smallint NOT NULL,
    last_position bigint NOT NULL,
    CONSTRAINT citus_positions_cell_number_range CHECK (((cell_number >= 0) AND (cell_number <= 1023))),
    CONSTRAINT citus_positions_last_position_range CHECK (((last_position >= 0) AND (last_position <= '8796093022207'::bigint))),
    CONSTRAINT citus_positions_only_row CHECK (only_row)
)
WITH (fillfactor='10', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='2000');

COMMENT ON TABLE public.citus_positions IS 'One row in a cell on Citus, whose schema is distributed: it takes the place of the sequences of events, agents, services and pairs. Empty in any other cell.';

COMMENT ON COLUMN public.citus_positions.only_row IS 'Always true. The primary key allows no second row.';

COMMENT ON COLUMN public.citus_positions.cell_number IS 'Number of the cell: cells.number in the home cell.';

COMMENT ON COLUMN public.citus_positions.last_position IS 'The last number that was drawn. A list position is the number, the position of an event run is the number times 256, and a pair_id is the number times 1024 plus the number of the cell.';

CREATE SEQUENCE public.event_positions
    START WITH 1
    INCREMENT BY 256
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

COMMENT ON SEQUENCE public.event_positions IS 'Draws the position of the first event of a run. A run has at most 256 events, whose positions follow it.';

CREATE TABLE public.event_runs (
    tenant_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    "position" bigint NOT NULL,
    events smallint NOT NULL,
    recorded_at timestamp with time zone NOT NULL,
    type character varying(32) NOT NULL,
    payloads text NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0.02', autovacuum_vacuum_insert_scale_factor='0.05');

COMMENT ON TABLE public.event_runs IS 'The event log. One row per run: consecutive events of one tenant and type that one commit recorded. The janitor deletes the oldest runs of a tenant with more than runtime_config.event_log_cap events. No foreign key to tenants: it would lock the tenant''s row in every commit.';

COMMENT ON COLUMN public.event_runs.tenant_id IS 'The tenant that the events belong to.';

COMMENT ON COLUMN public.event_runs."position" IS 'Position of the first event in the tenant''s log. Each further event of the run has the next number.';

COMMENT ON COLUMN public.event_runs.events IS 'Number of events in the run, 1 to 256.';

COMMENT ON COLUMN public.event_runs.recorded_at IS 'When the events happened. With its position it makes the public id of an event.';

COMMENT ON COLUMN public.event_runs.type IS 'Type of the events, for example usage.recorded.';

COMMENT ON COLUMN public.event_runs.payloads IS 'Payload of each event as the API shows it: one JSON document per line, in order.';

CREATE VIEW public.events AS
 SELECT run.tenant_id,
    ((run."position" + event.number) - 1) AS "position",
    run.recorded_at,
    run.type,
    (event.payload)::json AS payload
   FROM (public.event_runs run
     CROSS JOIN LATERAL string_to_table(run.payloads, '
'::text) WITH ORDINALITY event(payload, number));

COMMENT ON VIEW public.events IS 'One row per event of event_runs. Filter by tenant_id, and by position where possible: other filters read all rows.';

COMMENT ON COLUMN public.events.tenant_id IS 'The tenant that the event belongs to.';

COMMENT ON COLUMN public.events."position" IS 'Position of the event in the tenant''s log, ascending. Positions have gaps.';

COMMENT ON COLUMN public.events.recorded_at IS 'When the event happened.';

COMMENT ON COLUMN public.events.type IS 'Type of the event, for example usage.recorded.';

COMMENT ON COLUMN public.events.payload IS 'Payload of the event as the API shows it.';

CREATE TABLE public.full_callers (
    caller character varying(128) NOT NULL COLLATE pg_catalog."C",
    full_since timestamp with time zone DEFAULT now() NOT NULL
);

COMMENT ON TABLE public.full_callers IS 'Callers whose requests with a new Idempotency-Key are refused: they are over a cap, and none of their records is old enough to be evicted. The janitor maintains the table, and every replica reads it.';

COMMENT ON COLUMN public.full_callers.caller IS 'The caller: idempotency_keys.caller.';

COMMENT ON COLUMN public.full_callers.full_since IS 'When the janitor added the caller.';

CREATE VIEW public.idempotency_overview AS
 SELECT caller,
    count(*) FILTER (WHERE (expires_at > now())) AS live,
    count(*) FILTER (WHERE (expires_at <= now())) AS expired,
    min(created_at) AS oldest,
    max(created_at) AS newest,
    sum(pg_column_size(idempotency_keys.*)) AS bytes
   FROM public.idempotency_keys
  GROUP BY caller;

COMMENT ON VIEW public.idempotency_overview IS 'What each caller has in idempotency_keys. Reads the whole table.';

COMMENT ON COLUMN public.idempotency_overview.caller IS 'The caller: idempotency_keys.caller.';

COMMENT ON COLUMN public.idempotency_overview.live IS 'Records that have not expired.';

COMMENT ON COLUMN public.idempotency_overview.expired IS 'Records that have expired and are not deleted yet.';

COMMENT ON COLUMN public.idempotency_overview.oldest IS 'When the oldest of its requests was executed.';

COMMENT ON COLUMN public.idempotency_overview.newest IS 'When the newest of its requests was executed.';

COMMENT ON COLUMN public.idempotency_overview.bytes IS 'Size of the rows in bytes as they are stored, without indexes.';

CREATE TABLE public.outbox (
    tenant_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    "position" bigint NOT NULL,
    recorded_at timestamp with time zone NOT NULL,
    type character varying(32) NOT NULL,
    payload json NOT NULL,
    last_webhook_id character varying(19) DEFAULT ''::character varying NOT NULL COLLATE pg_catalog."C",
    traceparent character varying(55) COLLATE pg_catalog."C",
    tracestate character varying(512)
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='2000');

COMMENT ON TABLE public.outbox IS 'Events of tenants with webhooks whose deliveries are not all written yet. No foreign keys: commits write it, and its rows must not keep events from being pruned or webhooks from being deleted.';

COMMENT ON COLUMN public.outbox.tenant_id IS 'The tenant that the event belongs to.';

COMMENT ON COLUMN public.outbox."position" IS 'Position of the event in the log: events.position.';

COMMENT ON COLUMN public.outbox.recorded_at IS 'When the event happened.';

COMMENT ON COLUMN public.outbox.type IS 'Type of the event.';

COMMENT ON COLUMN public.outbox.payload IS 'Payload of the event, as it is sent.';

COMMENT ON COLUMN public.outbox.last_webhook_id IS 'The last webhook, in the order of ids, whose delivery of this event is written; empty before the first.';

COMMENT ON COLUMN public.outbox.traceparent IS 'Trace and span of the request that caused the event, as the header traceparent of W3C Trace Context. NULL: traces were off.';

COMMENT ON COLUMN public.outbox.tracestate IS 'The header tracestate that belongs to traceparent. NULL: there was none.';

CREATE VIEW public.recent_changes AS
 SELECT changed_at,
    actor,
    address,
    operation,
    tenant_id,
    object_id,
    ( SELECT string_agg(format('%s: %s -> %s'::text, members.name, COALESCE((before ->> members.name), 'none'::text), COALESCE((after ->> members.name), 'none'::text)), ', '::text ORDER BY members.name) AS string_agg
           FROM ( SELECT jsonb_object_keys((COALESCE(before, '{}'::jsonb) || COALESCE(after, '{}'::jsonb))) AS name) members
          WHERE ((before -> members.name) IS DISTINCT FROM (after -> members.name))) AS changes,
    request_id
   FROM public.audit_log log
  ORDER BY changed_at DESC, audit_id DESC;

COMMENT ON VIEW public.recent_changes IS 'The audit log, the latest change first. Add a LIMIT: the view then reads only that many rows.';

COMMENT ON COLUMN public.recent_changes.changed_at IS 'When the transaction of the change began.';

COMMENT ON COLUMN public.recent_changes.actor IS 'Who made the change: audit_log.actor.';

COMMENT ON COLUMN public.recent_changes.address IS 'Client address of the request. NULL: no request made the change.';

COMMENT ON COLUMN public.recent_changes.operation IS 'What was done, for example service.updated.';

COMMENT ON COLUMN public.recent_changes.tenant_id IS 'The tenant whose configuration changed. NULL: that of the whole service.';

COMMENT ON COLUMN public.recent_changes.object_id IS 'Id of the service or webhook, or prefix of the API key, that changed. NULL: the runtime configuration, or all data.';

COMMENT ON COLUMN public.recent_changes.changes IS 'Each member that differs, as "name: before -> after".';

COMMENT ON COLUMN public.recent_changes.request_id IS 'X-Request-Id of the request. NULL: the service made the change.';

CREATE VIEW public.recent_responses AS
 SELECT created_at,
    caller,
    key,
    method,
    path,
    status,
    response,
    request_id,
    expires_at
   FROM public.idempotency_keys
  ORDER BY expires_at DESC;

COMMENT ON VIEW public.recent_responses IS 'Stored responses, the last to expire first. Add a LIMIT: the view then reads only that many rows.';

COMMENT ON COLUMN public.recent_responses.created_at IS 'When the request was executed.';

COMMENT ON COLUMN public.recent_responses.caller IS 'The caller: idempotency_keys.caller.';

COMMENT ON COLUMN public.recent_responses.key IS 'The Idempotency-Key, without quotes.';

COMMENT ON COLUMN public.recent_responses.method IS 'HTTP method of the request.';

COMMENT ON COLUMN public.recent_responses.path IS 'Path of the request as it was sent, without the query.';

COMMENT ON COLUMN public.recent_responses.status IS 'HTTP status of the response.';

COMMENT ON COLUMN public.recent_responses.response IS 'Body of the response. NULL: it has no body (status 204).';

COMMENT ON COLUMN public.recent_responses.request_id IS 'X-Request-Id of the request.';

COMMENT ON COLUMN public.recent_responses.expires_at IS 'From then on the key counts as unused.';

CREATE TABLE public.runtime_config (
    only_row boolean DEFAULT true NOT NULL,
    rate_limit_per_window bigint DEFAULT 60 NOT NULL,
    rate_limit_window_ms bigint DEFAULT 60000 NOT NULL,
    bulk_max_items bigint DEFAULT 100 NOT NULL,
    event_log_cap bigint DEFAULT 10000 NOT NULL,
    usage_store_max_keys bigint DEFAULT 100000 NOT NULL,
    services_store_max_keys bigint DEFAULT 10000 NOT NULL,
    webhook_store_max_keys bigint DEFAULT 10000 NOT NULL,
    api_key_store_max_keys bigint DEFAULT 10000 NOT NULL,
    paused boolean DEFAULT false NOT NULL,
    revision bigint DEFAULT 0 NOT NULL,
    keys_revision bigint DEFAULT 0 NOT NULL,
    CONSTRAINT runtime_config_api_key_store_max_keys_range CHECK (((api_key_store_max_keys >= 1) AND (api_key_store_max_keys <= 10000))),
    CONSTRAINT runtime_config_bulk_max_items_range CHECK (((bulk_max_items >= 1) AND (bulk_max_items <= 1000))),
    CONSTRAINT runtime_config_event_log_cap_range CHECK (((event_log_cap >= 1) AND (event_log_cap <= 100000))),
    CONSTRAINT runtime_config_only_row CHECK (only_row),
    CONSTRAINT runtime_config_rate_limit_per_window_range CHECK (((rate_limit_per_window >= 1) AND (rate_limit_per_window <= 1000000))),
    CONSTRAINT runtime_config_rate_limit_window_ms_range CHECK (((rate_limit_window_ms >= 1) AND (rate_limit_window_ms <= 86400000))),
    CONSTRAINT runtime_config_services_store_max_keys_range CHECK (((services_store_max_keys >= 1) AND (services_store_max_keys <= 10000))),
    CONSTRAINT runtime_config_usage_store_max_keys_range CHECK (((usage_store_max_keys >= 1) AND (usage_store_max_keys <= 100000))),
    CONSTRAINT runtime_config_webhook_store_max_keys_range CHECK (((webhook_store_max_keys >= 1) AND (webhook_store_max_keys <= 10000)))
);

COMMENT ON TABLE public.runtime_config IS 'One row: the limits of the running system and the pause flag. Every replica applies a change within a second.';

COMMENT ON COLUMN public.runtime_config.only_row IS 'Always true. The primary key allows no second row.';

COMMENT ON COLUMN public.runtime_config.rate_limit_per_window IS 'Requests that a caller may make in each window.';

COMMENT ON COLUMN public.runtime_config.rate_limit_window_ms IS 'Length of the window in milliseconds.';

COMMENT ON COLUMN public.runtime_config.bulk_max_items IS 'Maximum number of items in a bulk request.';

COMMENT ON COLUMN public.runtime_config.event_log_cap IS 'Number of events that a tenant can read. The newest are kept, and the janitor deletes older ones.';

COMMENT ON COLUMN public.runtime_config.usage_store_max_keys IS 'Maximum number of pairs of a tenant with outstanding requests.';

COMMENT ON COLUMN public.runtime_config.services_store_max_keys IS 'Maximum number of services of a tenant.';

COMMENT ON COLUMN public.runtime_config.webhook_store_max_keys IS 'Maximum number of webhooks of a tenant.';

COMMENT ON COLUMN public.runtime_config.api_key_store_max_keys IS 'Maximum number of live API keys of all tenants together.';

COMMENT ON COLUMN public.runtime_config.paused IS 'True: writes are refused.';

COMMENT ON COLUMN public.runtime_config.revision IS 'Increases with each change of this row.';

COMMENT ON COLUMN public.runtime_config.keys_revision IS 'Increases when an API key is created or revoked. Replicas then look up all keys again.';

CREATE TABLE public.services (
    tenant_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    service_id character varying(128) NOT NULL COLLATE pg_catalog."C",
    price_stroops bigint NOT NULL,
    disabled boolean DEFAULT false NOT NULL,
    description character varying(256),
    owner character varying(256),
    created_at timestamp with time zone NOT NULL,
    list_position bigint NOT NULL,
    CONSTRAINT services_metadata_whole CHECK (((description IS NULL) = (owner IS NULL))),
    CONSTRAINT services_owner_length CHECK ((length((owner)::text) >= 1)),
    CONSTRAINT services_price_range CHECK (((price_stroops >= 0) AND (price_stroops <= '9007199254'::bigint))),
    CONSTRAINT services_service_id_form CHECK (((service_id)::text ~ '^[A-Za-z0-9._-]+$'::text))
);

COMMENT ON TABLE public.services IS 'Registered services of each tenant with their current prices. No foreign key to tenants: the tenant of a request is read from api_keys, which has one.';

COMMENT ON COLUMN public.services.tenant_id IS 'The tenant that owns the service.';

COMMENT ON COLUMN public.services.service_id IS 'Id of the service, chosen by the tenant.';

COMMENT ON COLUMN public.services.price_stroops IS 'Current price of one request in stroops. A settlement uses the price at its time.';

COMMENT ON COLUMN public.services.disabled IS 'True: new usage is refused. Outstanding requests can still be settled.';

COMMENT ON COLUMN public.services.description IS 'Description for people. NULL: the service has no metadata, so owner is NULL too.';

COMMENT ON COLUMN public.services.owner IS 'Owner, for people. NULL: the service has no metadata, so description is NULL too.';

COMMENT ON COLUMN public.services.created_at IS 'When the service was registered. Updates keep it.';

COMMENT ON COLUMN public.services.list_position IS 'Ascending number. Lists show services in this order, the order of their registration.';

ALTER TABLE public.services ALTER COLUMN list_position ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.services_list_position_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.settlements (
    tenant_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    settlement_id character varying(36) NOT NULL COLLATE pg_catalog."C",
    agent_id character varying(256) NOT NULL COLLATE pg_catalog."C",
    service_id character varying(128) NOT NULL COLLATE pg_catalog."C",
    requests bigint NOT NULL,
    price_stroops bigint NOT NULL,
    billed_stroops numeric(38,0) NOT NULL,
    settled_at timestamp with time zone NOT NULL,
    idempotency_key character varying(255) COLLATE pg_catalog."C",
    request_id character varying(200) NOT NULL,
    list_position bigint NOT NULL,
    CONSTRAINT settlements_billed_is_product CHECK ((billed_stroops = ((requests)::numeric * (price_stroops)::numeric))),
    CONSTRAINT settlements_idempotency_key_length CHECK ((length((idempotency_key)::text) >= 1)),
    CONSTRAINT settlements_price_range CHECK (((price_stroops >= 0) AND (price_stroops <= '9007199254'::bigint))),
    CONSTRAINT settlements_request_id_length CHECK ((length((request_id)::text) >= 1)),
    CONSTRAINT settlements_requests_positive CHECK ((requests > 0)),
    CONSTRAINT settlements_settlement_id_form CHECK (((settlement_id)::text ~ '^stl_[0-9a-f]{32}$'::text))
);

COMMENT ON TABLE public.settlements IS 'One row per bill: a settlement of a pair with outstanding requests. Rows are permanent. No foreign key to services, which can be deleted, and none to idempotency_keys, whose rows expire.';

COMMENT ON COLUMN public.settlements.tenant_id IS 'The tenant that was billed.';

COMMENT ON COLUMN public.settlements.settlement_id IS 'Id of the bill: stl_ and 32 hexadecimal digits.';

COMMENT ON COLUMN public.settlements.agent_id IS 'The agent whose requests were billed.';

COMMENT ON COLUMN public.settlements.service_id IS 'The service whose requests were billed.';

COMMENT ON COLUMN public.settlements.requests IS 'Requests billed.';

COMMENT ON COLUMN public.settlements.price_stroops IS 'Price of one request in stroops when it was settled; 0 for a service that was not registered.';

COMMENT ON COLUMN public.settlements.billed_stroops IS 'Amount of the bill in stroops: requests times price_stroops, exact.';

COMMENT ON COLUMN public.settlements.settled_at IS 'When the settlement was executed.';

COMMENT ON COLUMN public.settlements.idempotency_key IS 'Idempotency-Key of the request that settled. NULL: the request had none.';

COMMENT ON COLUMN public.settlements.request_id IS 'X-Request-Id of the request that settled. All bills of one bulk settlement share it.';

COMMENT ON COLUMN public.settlements.list_position IS 'Ascending number that orders bills of the same moment.';

ALTER TABLE public.settlements ALTER COLUMN list_position ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.settlements_list_position_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.tenant_cells (
    tenant_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    cell_id character varying(32) NOT NULL COLLATE pg_catalog."C"
);

COMMENT ON TABLE public.tenant_cells IS 'In the home cell: where each tenant lives that does not live in the home cell. Increase runtime_config.keys_revision with each change, so that replicas look up the keys of the tenant again.';

COMMENT ON COLUMN public.tenant_cells.tenant_id IS 'The tenant.';

COMMENT ON COLUMN public.tenant_cells.cell_id IS 'The cell that has its data.';

CREATE TABLE public.tenant_moves (
    tenant_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    from_cell character varying(32) NOT NULL COLLATE pg_catalog."C",
    to_cell character varying(32) NOT NULL COLLATE pg_catalog."C",
    step character varying(16) NOT NULL COLLATE pg_catalog."C",
    started_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT tenant_moves_cells_differ CHECK (((from_cell)::text <> (to_cell)::text)),
    CONSTRAINT tenant_moves_step_known CHECK (((step)::text = ANY ((ARRAY['copying'::character varying, 'fenced'::character varying, 'copied'::character varying, 'switched'::character varying])::text[])))
);

COMMENT ON TABLE public.tenant_moves IS 'In the home cell: the moves of tenants that are not complete. The same command continues a move that was interrupted.';

COMMENT ON COLUMN public.tenant_moves.tenant_id IS 'The tenant that is moved.';

COMMENT ON COLUMN public.tenant_moves.from_cell IS 'The cell that it leaves.';

COMMENT ON COLUMN public.tenant_moves.to_cell IS 'The cell that it is moved to.';

COMMENT ON COLUMN public.tenant_moves.step IS 'How far the move got. copying: writes go on in from_cell; fenced: writes are refused; copied: to_cell has the data; switched: tenant_cells names to_cell, and what is left in from_cell is deleted.';

COMMENT ON COLUMN public.tenant_moves.started_at IS 'When the move began.';

CREATE TABLE public.usage_counters (
    tenant_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    agent_id character varying(256) NOT NULL COLLATE pg_catalog."C",
    service_id character varying(128) NOT NULL COLLATE pg_catalog."C",
    pair_id bigint NOT NULL,
    outstanding bigint NOT NULL,
    settled bigint DEFAULT 0 NOT NULL,
    reset bigint DEFAULT 0 NOT NULL,
    version bigint NOT NULL
)
WITH (fillfactor='50', autovacuum_vacuum_scale_factor='0.05');

COMMENT ON TABLE public.usage_counters IS 'One row per pair: the requests of one agent to one service. Requests ever recorded = outstanding + settled + reset. No foreign key to services: a service need not be registered to be used, and its usage outlives it.';

COMMENT ON COLUMN public.usage_counters.tenant_id IS 'The tenant that the usage belongs to.';

COMMENT ON COLUMN public.usage_counters.agent_id IS 'The agent that made the requests.';

COMMENT ON COLUMN public.usage_counters.service_id IS 'The service that was used. It need not be registered.';

COMMENT ON COLUMN public.usage_counters.pair_id IS 'Number of the pair, ascending. Lists show pairs in this order, the order of their first usage.';

COMMENT ON COLUMN public.usage_counters.outstanding IS 'Requests recorded and neither settled nor reset.';

COMMENT ON COLUMN public.usage_counters.settled IS 'Requests billed: the sum of settlements.requests of this pair.';

COMMENT ON COLUMN public.usage_counters.reset IS 'Requests cleared without a bill.';

COMMENT ON COLUMN public.usage_counters.version IS 'Random number that each write draws. A commit that was decided on another version is rolled back and decided again. Set it to another value whenever you change a row by hand.';

ALTER TABLE public.usage_counters ALTER COLUMN pair_id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.usage_counters_pair_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.verification (
    only_row boolean DEFAULT true NOT NULL,
    not_before timestamp with time zone,
    finished_at timestamp with time zone,
    duration_ms bigint,
    findings jsonb DEFAULT '{}'::jsonb NOT NULL,
    cancelled_steps jsonb DEFAULT '{}'::jsonb NOT NULL,
    CONSTRAINT verification_cancelled_steps_object CHECK ((jsonb_typeof(cancelled_steps) = 'object'::text)),
    CONSTRAINT verification_findings_object CHECK ((jsonb_typeof(findings) = 'object'::text)),
    CONSTRAINT verification_only_row CHECK (only_row)
);

COMMENT ON TABLE public.verification IS 'One row: the last background run of verify, and which replica may begin the next one.';

COMMENT ON COLUMN public.verification.only_row IS 'Always true. The primary key allows no second row.';

COMMENT ON COLUMN public.verification.not_before IS 'No replica begins a run before: the lease of the replica that runs it now, renewed at every step, or the pause after a run that failed. NULL: none.';

COMMENT ON COLUMN public.verification.finished_at IS 'When the last run ended. The next one begins VERIFY_INTERVAL_MS later. NULL: there was none.';

COMMENT ON COLUMN public.verification.duration_ms IS 'Duration of that run in milliseconds, with its pauses.';

COMMENT ON COLUMN public.verification.findings IS 'What that run found: the number of inconsistencies for each check, for example {"pairs": 0, "totals": 1}.';

COMMENT ON COLUMN public.verification.cancelled_steps IS 'What that run left out: for each check the number of steps that were cancelled, because they took longer than five minutes or a person ended them.';

CREATE TABLE public.webhook_deliveries (
    tenant_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    webhook_id character varying(19) NOT NULL COLLATE pg_catalog."C",
    event_position bigint NOT NULL,
    delivery_id character varying(36) NOT NULL COLLATE pg_catalog."C",
    created_at timestamp with time zone NOT NULL,
    type character varying(32) NOT NULL,
    payload json NOT NULL,
    status character varying(9) DEFAULT 'pending'::character varying NOT NULL COLLATE pg_catalog."C",
    attempts smallint DEFAULT 0 NOT NULL,
    requested boolean DEFAULT false NOT NULL,
    last_attempt_at timestamp with time zone,
    next_attempt_at timestamp with time zone,
    response_status smallint,
    error character varying(200),
    finished_at timestamp with time zone,
    traceparent character varying(55) COLLATE pg_catalog."C",
    tracestate character varying(512),
    CONSTRAINT webhook_deliveries_attempts_range CHECK (((attempts >= 0) AND (attempts <= 10))),
    CONSTRAINT webhook_deliveries_delivery_id_form CHECK (((delivery_id)::text ~ '^dlv_[0-9a-f]{32}$'::text)),
    CONSTRAINT webhook_deliveries_error_length CHECK ((length((error)::text) >= 1)),
    CONSTRAINT webhook_deliveries_payload_length CHECK ((octet_length((payload)::text) <= 8192)),
    CONSTRAINT webhook_deliveries_pending_is_due CHECK ((((status)::text = 'pending'::text) = (next_attempt_at IS NOT NULL))),
    CONSTRAINT webhook_deliveries_pending_or_finished CHECK ((((status)::text = 'pending'::text) = (finished_at IS NULL))),
    CONSTRAINT webhook_deliveries_response_status_range CHECK (((response_status >= 100) AND (response_status <= 999))),
    CONSTRAINT webhook_deliveries_status_known CHECK (((status)::text = ANY ((ARRAY['pending'::character varying, 'delivered'::character varying, 'failed'::character varying, 'cancelled'::character varying])::text[]))),
    CONSTRAINT webhook_deliveries_type_known CHECK (((type)::text = ANY ((ARRAY['usage.recorded'::character varying, 'usage.settled'::character varying, 'usage.reset'::character varying, 'service.disabled'::character varying, 'service.enabled'::character varying, 'service.deleted'::character varying, 'webhook.test'::character varying])::text[]))),
    CONSTRAINT webhook_deliveries_webhook_id_form CHECK (((webhook_id)::text ~ '^wh_[0-9a-f]{16}$'::text))
)
WITH (fillfactor='90');

COMMENT ON TABLE public.webhook_deliveries IS 'One row per event and webhook that it is sent to. Finished rows are kept for 7 days. No foreign key to webhooks: each delivery would lock the row of its webhook. A pending delivery whose webhook is deleted is deleted when it is due. No foreign key to event_runs: a delivery may outlive its event in the log.';

COMMENT ON COLUMN public.webhook_deliveries.tenant_id IS 'The tenant that the event belongs to.';

COMMENT ON COLUMN public.webhook_deliveries.webhook_id IS 'The webhook that the event is sent to.';

COMMENT ON COLUMN public.webhook_deliveries.event_position IS 'Position of the event in the log: events.position.';

COMMENT ON COLUMN public.webhook_deliveries.delivery_id IS 'Id of the delivery: dlv_ and 32 hexadecimal digits. Each attempt sends it as webhook-id, by which receivers recognise repetitions.';

COMMENT ON COLUMN public.webhook_deliveries.created_at IS 'When the event happened. With event_position it makes the public id of the event.';

COMMENT ON COLUMN public.webhook_deliveries.type IS 'Type of the event. A webhook.test is attempted once, by the request that asks for it.';

COMMENT ON COLUMN public.webhook_deliveries.payload IS 'Payload of the event, as it is sent.';

COMMENT ON COLUMN public.webhook_deliveries.status IS 'pending; delivered: the receiver accepted it; failed: all attempts failed; cancelled: its webhook was disabled first.';

COMMENT ON COLUMN public.webhook_deliveries.attempts IS 'Attempts whose result is recorded, at most 10; since the latest request for it, if requested.';

COMMENT ON COLUMN public.webhook_deliveries.requested IS 'True: somebody asked to send it again, so it is sent even if its event is before webhooks.from_position.';

COMMENT ON COLUMN public.webhook_deliveries.last_attempt_at IS 'When the latest of these attempts began. NULL: none was made.';

COMMENT ON COLUMN public.webhook_deliveries.next_attempt_at IS 'When the next attempt is due. NULL: the delivery is finished.';

COMMENT ON COLUMN public.webhook_deliveries.response_status IS 'HTTP status that the receiver answered the latest attempt with. NULL: it did not answer.';

COMMENT ON COLUMN public.webhook_deliveries.error IS 'Why the latest attempt failed. NULL: it succeeded, or none was made.';

COMMENT ON COLUMN public.webhook_deliveries.finished_at IS 'When the status stopped being pending. NULL: it is pending.';

COMMENT ON COLUMN public.webhook_deliveries.traceparent IS 'Trace and span of the request that caused the event: outbox.traceparent. Attempts belong to this trace.';

COMMENT ON COLUMN public.webhook_deliveries.tracestate IS 'The header tracestate that belongs to traceparent. NULL: there was none.';

CREATE TABLE public.webhook_queues (
    tenant_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    webhook_id character varying(19) NOT NULL COLLATE pg_catalog."C",
    due_at timestamp with time zone NOT NULL,
    leased_until timestamp with time zone
)
WITH (fillfactor='70', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='2000');

COMMENT ON TABLE public.webhook_queues IS 'One row per webhook with pending deliveries. Dispatchers serve the tenants in turn. No foreign key to webhooks: adding a delivery would lock the row of its webhook.';

COMMENT ON COLUMN public.webhook_queues.tenant_id IS 'The tenant that owns the webhook.';

COMMENT ON COLUMN public.webhook_queues.webhook_id IS 'The webhook.';

COMMENT ON COLUMN public.webhook_queues.due_at IS 'When the webhook is to be served next. A tenant''s due webhooks are served in this order.';

COMMENT ON COLUMN public.webhook_queues.leased_until IS 'End of the lease of the dispatcher that serves the webhook; from then on others may take it. NULL: it is not leased.';

CREATE TABLE public.webhooks (
    tenant_id character varying(64) NOT NULL COLLATE pg_catalog."C",
    webhook_id character varying(19) NOT NULL COLLATE pg_catalog."C",
    url character varying(2048) NOT NULL,
    events text[] NOT NULL,
    secret bytea NOT NULL,
    created_at timestamp with time zone NOT NULL,
    disabled_at timestamp with time zone,
    from_position bigint NOT NULL,
    previous_secret bytea,
    previous_secret_until timestamp with time zone,
    secret_key_id character varying(32) COLLATE pg_catalog."C",
    previous_secret_key_id character varying(32) COLLATE pg_catalog."C",
    CONSTRAINT webhooks_events_known CHECK (((cardinality(events) > 0) AND (events <@ ARRAY['usage.recorded'::text, 'usage.settled'::text, 'usage.reset'::text, 'service.disabled'::text, 'service.enabled'::text, 'service.deleted'::text, 'webhook.test'::text, '*'::text]))),
    CONSTRAINT webhooks_previous_secret_length CHECK ((octet_length(previous_secret) =
CASE
    WHEN (previous_secret_key_id IS NULL) THEN 32
    ELSE 60
END)),
    CONSTRAINT webhooks_previous_secret_whole CHECK (((previous_secret IS NULL) = (previous_secret_until IS NULL))),
    CONSTRAINT webhooks_secret_length CHECK ((octet_length(secret) =
CASE
    WHEN (secret_key_id IS NULL) THEN 32
    ELSE 60
END)),
    CONSTRAINT webhooks_url_form CHECK (((url)::text ~ '^https?://'::text)),
    CONSTRAINT webhooks_webhook_id_form CHECK (((webhook_id)::text ~ '^wh_[0-9a-f]{16}$'::text))
);

COMMENT ON TABLE public.webhooks IS 'Addresses that tenants want their events sent to.';

COMMENT ON COLUMN public.webhooks.tenant_id IS 'The tenant whose events are sent.';

COMMENT ON COLUMN public.webhooks.webhook_id IS 'Id of the webhook: wh_ and 16 hexadecimal digits.';

COMMENT ON COLUMN public.webhooks.url IS 'URL that deliveries are posted to.';

COMMENT ON COLUMN public.webhooks.events IS 'Types of the events that are sent, as the tenant listed them; * stands for all types.';

COMMENT ON COLUMN public.webhooks.secret IS 'Key that deliveries are signed with, encrypted with the key secret_key_id. The API shows it once, in the response that creates the webhook.';

COMMENT ON COLUMN public.webhooks.created_at IS 'When the webhook was created.';

COMMENT ON COLUMN public.webhooks.disabled_at IS 'When the service stopped sending to it. NULL: it is enabled. Updating the webhook enables it again.';

COMMENT ON COLUMN public.webhooks.from_position IS 'Position of the first event to send, drawn from event_positions when the webhook is created or enabled again.';

COMMENT ON COLUMN public.webhooks.previous_secret IS 'The secret before the latest rotation. Deliveries are also signed with it until previous_secret_until. NULL: the secret was not rotated.';

COMMENT ON COLUMN public.webhooks.previous_secret_until IS 'End of the overlap of the latest rotation. NULL: the secret was not rotated.';

COMMENT ON COLUMN public.webhooks.secret_key_id IS 'Id of the key in ENCRYPTION_KEYS that secret is encrypted with (AES-256-GCM). NULL: it is plain text.';

COMMENT ON COLUMN public.webhooks.previous_secret_key_id IS 'Id of the key in ENCRYPTION_KEYS that previous_secret is encrypted with. NULL: it is plain text, or there is none.';

ALTER TABLE ONLY public.agents
    ADD CONSTRAINT agents_pkey PRIMARY KEY (tenant_id, agent_id);

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_key_hash_key UNIQUE (key_hash);

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_pkey PRIMARY KEY (tenant_id, prefix);

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_prefix_key UNIQUE (prefix);

ALTER TABLE ONLY public.audit_log
    ADD CONSTRAINT audit_log_pkey PRIMARY KEY (audit_id);

ALTER TABLE ONLY public.caller_totals
    ADD CONSTRAINT caller_totals_pkey PRIMARY KEY (caller, shard);

ALTER TABLE ONLY public.cell_identity
    ADD CONSTRAINT cell_identity_pkey PRIMARY KEY (only_row);

ALTER TABLE ONLY public.cells
    ADD CONSTRAINT cells_number_key UNIQUE (number);

ALTER TABLE ONLY public.cells
    ADD CONSTRAINT cells_pkey PRIMARY KEY (cell_id);

ALTER TABLE ONLY public.citus_positions
    ADD CONSTRAINT citus_positions_pkey PRIMARY KEY (only_row);

ALTER TABLE ONLY public.event_runs
    ADD CONSTRAINT event_runs_pkey PRIMARY KEY (tenant_id, "position") INCLUDE (events);

ALTER TABLE ONLY public.full_callers
    ADD CONSTRAINT full_callers_pkey PRIMARY KEY (caller);

ALTER TABLE ONLY public.idempotency_keys
    ADD CONSTRAINT idempotency_keys_pkey PRIMARY KEY (key, caller);

ALTER TABLE ONLY public.outbox
    ADD CONSTRAINT outbox_pkey PRIMARY KEY (tenant_id, "position");

ALTER TABLE ONLY public.runtime_config
    ADD CONSTRAINT runtime_config_pkey PRIMARY KEY (only_row);

ALTER TABLE ONLY public.services
    ADD CONSTRAINT services_pkey PRIMARY KEY (tenant_id, service_id);

ALTER TABLE ONLY public.settlements
    ADD CONSTRAINT settlements_pkey PRIMARY KEY (tenant_id, settlement_id);

ALTER TABLE ONLY public.tenant_cells
    ADD CONSTRAINT tenant_cells_pkey PRIMARY KEY (tenant_id);

ALTER TABLE ONLY public.tenant_moves
    ADD CONSTRAINT tenant_moves_pkey PRIMARY KEY (tenant_id);

ALTER TABLE ONLY public.tenants
    ADD CONSTRAINT tenants_pkey PRIMARY KEY (tenant_id);

ALTER TABLE ONLY public.totals
    ADD CONSTRAINT totals_pkey PRIMARY KEY (tenant_id, service_id, shard);

ALTER TABLE ONLY public.usage_counters
    ADD CONSTRAINT usage_counters_pair_id_key UNIQUE (pair_id);

ALTER TABLE ONLY public.usage_counters
    ADD CONSTRAINT usage_counters_pkey PRIMARY KEY (tenant_id, agent_id, service_id);

ALTER TABLE ONLY public.verification
    ADD CONSTRAINT verification_pkey PRIMARY KEY (only_row);

ALTER TABLE ONLY public.webhook_deliveries
    ADD CONSTRAINT webhook_deliveries_pkey PRIMARY KEY (tenant_id, webhook_id, event_position);

ALTER TABLE ONLY public.webhook_queues
    ADD CONSTRAINT webhook_queues_pkey PRIMARY KEY (tenant_id, webhook_id);

ALTER TABLE ONLY public.webhooks
    ADD CONSTRAINT webhooks_pkey PRIMARY KEY (tenant_id, webhook_id);

CREATE INDEX agents_list ON public.agents USING btree (tenant_id COLLATE "POSIX", list_position);

COMMENT ON INDEX public.agents_list IS 'Lists the agents of a tenant. Used only by queries that ask for the collation "POSIX".';

COMMENT ON INDEX public.agents_pkey IS 'Finds an agent by tenant and id.';

COMMENT ON INDEX public.api_keys_key_hash_key IS 'Finds the tenant of a request. No two rows are the same key.';

CREATE INDEX api_keys_list ON public.api_keys USING btree (created_at, prefix);

COMMENT ON INDEX public.api_keys_list IS 'Lists keys in the order of their creation.';

COMMENT ON INDEX public.api_keys_pkey IS 'Finds the keys of a tenant.';

COMMENT ON INDEX public.api_keys_prefix_key IS 'Finds the key to revoke. No two keys have the same prefix.';

CREATE INDEX audit_log_by_object ON public.audit_log USING btree (object_id, changed_at);

COMMENT ON INDEX public.audit_log_by_object IS 'Finds the changes of an object.';

CREATE INDEX audit_log_list ON public.audit_log USING btree (changed_at, audit_id);

COMMENT ON INDEX public.audit_log_list IS 'Lists the changes by time.';

COMMENT ON INDEX public.audit_log_pkey IS 'Tells rows apart.';

COMMENT ON INDEX public.caller_totals_pkey IS 'Finds the row to add to, and adds up the rows of a caller.';

COMMENT ON INDEX public.cell_identity_pkey IS 'Allows one row.';

COMMENT ON INDEX public.cells_number_key IS 'No two cells have the same number.';

COMMENT ON INDEX public.cells_pkey IS 'Finds a cell by its id.';

COMMENT ON INDEX public.citus_positions_pkey IS 'Allows one row.';

COMMENT ON INDEX public.event_runs_pkey IS 'Reads the log of a tenant in order. Includes the number of events, so that they are counted without reading rows.';

COMMENT ON INDEX public.full_callers_pkey IS 'A caller is listed once.';

CREATE INDEX idempotency_keys_expiry ON public.idempotency_keys USING btree (expires_at);

COMMENT ON INDEX public.idempotency_keys_expiry IS 'Finds expired records, and the oldest ones to evict.';

COMMENT ON INDEX public.idempotency_keys_pkey IS 'Finds the record of a key. A caller''s key has one record.';

COMMENT ON INDEX public.outbox_pkey IS 'Reads the events of a tenant in order.';

COMMENT ON INDEX public.runtime_config_pkey IS 'Allows one row.';

CREATE INDEX services_list ON public.services USING btree (tenant_id COLLATE "POSIX", list_position);

COMMENT ON INDEX public.services_list IS 'Lists the services of a tenant. Used only by queries that ask for the collation "POSIX".';

COMMENT ON INDEX public.services_pkey IS 'Finds a service by tenant and id.';

CREATE INDEX settlements_by_agent ON public.settlements USING btree (tenant_id, agent_id, settled_at, list_position);

COMMENT ON INDEX public.settlements_by_agent IS 'Lists the bills of an agent by time.';

CREATE INDEX settlements_by_service ON public.settlements USING btree (tenant_id, service_id, settled_at, list_position);

COMMENT ON INDEX public.settlements_by_service IS 'Lists the bills of a service by time.';

CREATE INDEX settlements_list ON public.settlements USING btree (tenant_id, settled_at, list_position);

COMMENT ON INDEX public.settlements_list IS 'Lists the bills of a tenant by time.';

COMMENT ON INDEX public.settlements_pkey IS 'Finds a bill by tenant and id.';

CREATE INDEX tenant_cells_by_cell ON public.tenant_cells USING btree (cell_id, tenant_id);

COMMENT ON INDEX public.tenant_cells_by_cell IS 'Lists the tenants of a cell.';

COMMENT ON INDEX public.tenant_cells_pkey IS 'Finds the cell of a tenant.';

COMMENT ON INDEX public.tenant_moves_pkey IS 'A tenant has at most one move.';

COMMENT ON INDEX public.tenants_pkey IS 'Finds a tenant by its id.';

CREATE INDEX totals_of_tenants ON public.totals USING btree (tenant_id, shard) WHERE ((service_id)::text = ''::text);

COMMENT ON INDEX public.totals_of_tenants IS 'Adds up the rows of a tenant, or of all tenants, without those of services.';

COMMENT ON INDEX public.totals_pkey IS 'Finds the row to add to, and adds up the rows of a service.';

CREATE INDEX usage_counters_by_service ON public.usage_counters USING btree (tenant_id COLLATE "POSIX", service_id COLLATE "POSIX", pair_id);

COMMENT ON INDEX public.usage_counters_by_service IS 'Lists the pairs of a service. Used only by queries that ask for the collation "POSIX".';

CREATE INDEX usage_counters_list ON public.usage_counters USING btree (tenant_id COLLATE "POSIX", pair_id);

COMMENT ON INDEX public.usage_counters_list IS 'Exports the pairs of a tenant. Used only by queries that ask for the collation "POSIX".';

COMMENT ON INDEX public.usage_counters_pair_id_key IS 'Finds the row to update or lock. Commits lock pairs in this order.';

COMMENT ON INDEX public.usage_counters_pkey IS 'Finds a pair by name, and the pairs of an agent.';

COMMENT ON INDEX public.verification_pkey IS 'Allows one row.';

CREATE INDEX webhook_deliveries_failed ON public.webhook_deliveries USING btree (tenant_id, webhook_id, finished_at) WHERE ((status)::text = ANY ((ARRAY['failed'::character varying, 'cancelled'::character varying])::text[]));

COMMENT ON INDEX public.webhook_deliveries_failed IS 'Finds the deliveries of a webhook that failed or were cancelled since a moment.';

CREATE INDEX webhook_deliveries_finished ON public.webhook_deliveries USING btree (finished_at) WHERE (finished_at IS NOT NULL);

COMMENT ON INDEX public.webhook_deliveries_finished IS 'Finds the deliveries that are old enough to be deleted.';

CREATE INDEX webhook_deliveries_id ON public.webhook_deliveries USING btree (delivery_id);

COMMENT ON INDEX public.webhook_deliveries_id IS 'Finds the deliveries whose repetition is requested by id.';

CREATE INDEX webhook_deliveries_pending ON public.webhook_deliveries USING btree (tenant_id, webhook_id, next_attempt_at) WHERE ((status)::text = 'pending'::text);

COMMENT ON INDEX public.webhook_deliveries_pending IS 'Finds the deliveries of a webhook that are due.';

COMMENT ON INDEX public.webhook_deliveries_pkey IS 'Lists the deliveries of a webhook. An event is sent to a webhook once.';

CREATE INDEX webhook_queues_due ON public.webhook_queues USING btree (tenant_id, due_at);

COMMENT ON INDEX public.webhook_queues_due IS 'Finds the due webhooks of a tenant, and the next tenant with pending deliveries.';

COMMENT ON INDEX public.webhook_queues_pkey IS 'Finds the queue of a webhook. Dispatchers lock queues in this order.';

CREATE INDEX webhooks_list ON public.webhooks USING btree (tenant_id, created_at, webhook_id);

COMMENT ON INDEX public.webhooks_list IS 'Lists the webhooks of a tenant in the order of their creation.';

COMMENT ON INDEX public.webhooks_pkey IS 'Finds a webhook by tenant and id, and the webhooks that an event goes to.';

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES public.tenants(tenant_id);

ALTER TABLE ONLY public.settlements
    ADD CONSTRAINT settlements_pair_fkey FOREIGN KEY (tenant_id, agent_id, service_id) REFERENCES public.usage_counters(tenant_id, agent_id, service_id);

ALTER TABLE ONLY public.tenant_cells
    ADD CONSTRAINT tenant_cells_cell_id_fkey FOREIGN KEY (cell_id) REFERENCES public.cells(cell_id);

ALTER TABLE ONLY public.tenant_moves
    ADD CONSTRAINT tenant_moves_from_cell_fkey FOREIGN KEY (from_cell) REFERENCES public.cells(cell_id);

ALTER TABLE ONLY public.tenant_moves
    ADD CONSTRAINT tenant_moves_to_cell_fkey FOREIGN KEY (to_cell) REFERENCES public.cells(cell_id);

ALTER TABLE ONLY public.usage_counters
    ADD CONSTRAINT usage_counters_agent_id_fkey FOREIGN KEY (tenant_id, agent_id) REFERENCES public.agents(tenant_id, agent_id);

ALTER TABLE ONLY public.webhooks
    ADD CONSTRAINT webhooks_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES public.tenants(tenant_id);
