CREATE SEQUENCE event_positions INCREMENT BY 256;
COMMENT ON SEQUENCE event_positions IS
    'Draws the position of the first event of a run. A run has at most 256 events, whose positions follow it.';

-- One row per tenant, type and commit, not one per event: thirty usage events of one commit are one row to write and
-- one row to prune. The view `events` has one row per event.
CREATE TABLE event_runs (
    tenant_id   varchar(64) COLLATE "C" NOT NULL,
    position    bigint NOT NULL,
    events      smallint NOT NULL,
    recorded_at timestamptz NOT NULL,
    type        varchar(32) NOT NULL,
    payloads    text NOT NULL,
    CONSTRAINT event_runs_pkey PRIMARY KEY (tenant_id, position) INCLUDE (events)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05);
COMMENT ON TABLE event_runs IS
    'The event log. One row per run: consecutive events of one tenant and type that one commit recorded. The janitor '
    'deletes the oldest runs of a tenant with more than runtime_config.event_log_cap events. No foreign key to '
    'tenants: it would lock the tenant''s row in every commit.';
COMMENT ON COLUMN event_runs.tenant_id IS 'The tenant that the events belong to.';
COMMENT ON COLUMN event_runs.position IS
    'Position of the first event in the tenant''s log. Each further event of the run has the next number.';
COMMENT ON COLUMN event_runs.events IS 'Number of events in the run, 1 to 256.';
COMMENT ON COLUMN event_runs.recorded_at IS
    'When the events happened. With its position it makes the public id of an event.';
COMMENT ON COLUMN event_runs.type IS 'Type of the events, for example usage.recorded.';
COMMENT ON COLUMN event_runs.payloads IS
    'Payload of each event as the API shows it: one JSON document per line, in order.';
COMMENT ON INDEX event_runs_pkey IS
    'Reads the log of a tenant in order. Includes the number of events, so that they are counted without reading '
    'rows.';
