-- The service appends rows in the transaction of the change that they describe, and reads them for the operator. It
-- never updates or deletes one: who has to delete old rows does so by hand.
CREATE TABLE audit_log (
    audit_id   bigint GENERATED ALWAYS AS IDENTITY,
    changed_at timestamptz NOT NULL,
    actor      varchar(12) COLLATE "C" NOT NULL,
    address    varchar(128) COLLATE "C",
    request_id varchar(200),
    operation  varchar(32) COLLATE "C" NOT NULL,
    tenant_id  varchar(64) COLLATE "C",
    object_id  varchar(128) COLLATE "C",
    before     jsonb,
    after      jsonb,
    CONSTRAINT audit_log_pkey PRIMARY KEY (audit_id),
    CONSTRAINT audit_log_actor_form CHECK (actor ~ '^(admin|anonymous|cli|service|apk_[0-9a-f]{8})$'),
    CONSTRAINT audit_log_before_length CHECK (octet_length(before::text) <= 16384),
    CONSTRAINT audit_log_after_length CHECK (octet_length(after::text) <= 16384)
);
CREATE INDEX audit_log_list ON audit_log (changed_at, audit_id);
CREATE INDEX audit_log_by_object ON audit_log (object_id, changed_at);
COMMENT ON TABLE audit_log IS
    'One row per change that an operator made, or that was made to the configuration of a tenant. Rows are permanent: '
    'a reset keeps them. No foreign keys: a row outlives what it describes. Secrets and keys are never stored here.';
COMMENT ON COLUMN audit_log.audit_id IS 'Ascending number that orders changes of the same moment.';
COMMENT ON COLUMN audit_log.changed_at IS 'When the transaction of the change began.';
COMMENT ON COLUMN audit_log.actor IS
    'Who made the change: admin (the admin key), the prefix of an API key, anonymous (a request without a recognised '
    'key), cli (a command), or service (the service itself).';
COMMENT ON COLUMN audit_log.address IS 'Client address of the request. NULL: no request made the change.';
COMMENT ON COLUMN audit_log.request_id IS 'X-Request-Id of the request. NULL: the service made the change.';
COMMENT ON COLUMN audit_log.operation IS 'What was done, for example service.updated.';
COMMENT ON COLUMN audit_log.tenant_id IS 'The tenant whose configuration changed. NULL: that of the whole service.';
COMMENT ON COLUMN audit_log.object_id IS
    'Id of the service or webhook, or prefix of the API key, that changed. NULL: the runtime configuration, or all data.';
COMMENT ON COLUMN audit_log.before IS 'The object before the change. NULL: it did not exist.';
COMMENT ON COLUMN audit_log.after IS 'The object after the change. NULL: it was deleted.';
COMMENT ON INDEX audit_log_pkey IS 'Tells rows apart.';
COMMENT ON INDEX audit_log_list IS 'Lists the changes by time.';
COMMENT ON INDEX audit_log_by_object IS 'Finds the changes of an object.';

CREATE VIEW recent_changes AS
SELECT changed_at, actor, address, operation, tenant_id, object_id,
       (SELECT string_agg(format('%s: %s -> %s', name, coalesce(log.before ->> name, 'none'), coalesce(log.after ->> name, 'none')),
                          ', ' ORDER BY name)
        FROM (SELECT jsonb_object_keys(coalesce(log.before, '{}') || coalesce(log.after, '{}')) AS name) AS members
        WHERE log.before -> name IS DISTINCT FROM log.after -> name) AS changes,
       request_id
FROM audit_log AS log
ORDER BY log.changed_at DESC, log.audit_id DESC;
COMMENT ON VIEW recent_changes IS
    'The audit log, the latest change first. Add a LIMIT: the view then reads only that many rows.';
COMMENT ON COLUMN recent_changes.changed_at IS 'When the transaction of the change began.';
COMMENT ON COLUMN recent_changes.actor IS 'Who made the change: audit_log.actor.';
COMMENT ON COLUMN recent_changes.address IS 'Client address of the request. NULL: no request made the change.';
COMMENT ON COLUMN recent_changes.operation IS 'What was done, for example service.updated.';
COMMENT ON COLUMN recent_changes.tenant_id IS 'The tenant whose configuration changed. NULL: that of the whole service.';
COMMENT ON COLUMN recent_changes.object_id IS
    'Id of the service or webhook, or prefix of the API key, that changed. NULL: the runtime configuration, or all data.';
COMMENT ON COLUMN recent_changes.changes IS 'Each member that differs, as "name: before -> after".';
COMMENT ON COLUMN recent_changes.request_id IS 'X-Request-Id of the request. NULL: the service made the change.';
