-- One row per tenant, type and commit, not one per event: a commit of thirty records of one tenant writes one row, and
-- pruning deletes one. The view `events` below has one row per event.
CREATE SEQUENCE event_positions INCREMENT BY 256;
COMMENT ON SEQUENCE event_positions IS 'Position of the first event of a run. A run has at most 256 events, so the positions of its other events follow without being drawn.';

CREATE TABLE event_runs (
    tenant_id   varchar(64) COLLATE "C" NOT NULL,
    position    bigint NOT NULL,
    events      smallint NOT NULL,
    recorded_at timestamptz NOT NULL,
    type        varchar(32) NOT NULL,
    payloads    text NOT NULL,
    CONSTRAINT event_runs_pkey PRIMARY KEY (tenant_id, position) INCLUDE (events)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05);
COMMENT ON TABLE event_runs IS 'One row per run: consecutive events of one tenant and type that one commit recorded. The newest runtime_config.event_log_cap events of a tenant are kept.';
COMMENT ON COLUMN event_runs.tenant_id IS 'The tenant that the events happened to.';
COMMENT ON COLUMN event_runs.position IS 'Position of the first event in the tenant''s log; the others follow by one.';
COMMENT ON COLUMN event_runs.events IS 'Number of events, 1 to 256.';
COMMENT ON COLUMN event_runs.recorded_at IS 'When they happened. An event''s public id is made of this and its position.';
COMMENT ON COLUMN event_runs.type IS 'What happened, for example usage.recorded.';
COMMENT ON COLUMN event_runs.payloads IS 'The facts of each event as clients see them: one JSON document per line, in order.';

CREATE VIEW events AS
SELECT run.tenant_id, run.position + event.number - 1 AS position, run.recorded_at, run.type, event.payload::json AS payload
FROM event_runs AS run
CROSS JOIN LATERAL string_to_table(run.payloads, E'\n') WITH ORDINALITY AS event (payload, number);
COMMENT ON VIEW events IS 'One row per event of event_runs. Filter by tenant_id, and by position where possible.';
