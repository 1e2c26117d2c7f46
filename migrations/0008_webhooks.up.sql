CREATE TABLE webhooks (
    tenant_id     varchar(64) COLLATE "C" NOT NULL,
    webhook_id    varchar(19) COLLATE "C" NOT NULL,
    url           varchar(2048) NOT NULL,
    events        text[] NOT NULL,
    secret        bytea NOT NULL,
    created_at    timestamptz NOT NULL,
    disabled_at   timestamptz,
    from_position bigint NOT NULL,
    CONSTRAINT webhooks_pkey PRIMARY KEY (tenant_id, webhook_id),
    CONSTRAINT webhooks_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES tenants (tenant_id),
    CONSTRAINT webhooks_webhook_id_form CHECK (webhook_id ~ '^wh_[0-9a-f]{16}$'),
    CONSTRAINT webhooks_url_form CHECK (url ~ '^https?://'),
    CONSTRAINT webhooks_events_known CHECK (cardinality(events) > 0 AND events <@ ARRAY['usage.recorded', 'usage.settled',
        'usage.reset', 'service.disabled', 'service.enabled', 'service.deleted', 'webhook.test', '*']),
    CONSTRAINT webhooks_secret_length CHECK (octet_length(secret) = 32)
);
CREATE INDEX webhooks_list ON webhooks (tenant_id, created_at, webhook_id);
COMMENT ON TABLE webhooks IS 'One row per address that a tenant wants its events sent to.';
COMMENT ON COLUMN webhooks.tenant_id IS 'The tenant whose events are sent.';
COMMENT ON COLUMN webhooks.webhook_id IS 'wh_ and 16 hexadecimal digits.';
COMMENT ON COLUMN webhooks.url IS 'Where deliveries are sent.';
COMMENT ON COLUMN webhooks.events IS 'Types of the events that are sent, as the tenant listed them; * means all.';
COMMENT ON COLUMN webhooks.secret IS 'The key that deliveries are signed with. The API shows it only in the answer that creates the webhook.';
COMMENT ON COLUMN webhooks.created_at IS 'When the webhook was created.';
COMMENT ON COLUMN webhooks.disabled_at IS 'When its receiver was given up; null while it is served. A change of the webhook enables it again.';
COMMENT ON COLUMN webhooks.from_position IS 'Events from this position on are sent: it is drawn from the sequence of events when the webhook is created or enabled again.';

-- Commits append one row per event, whatever the number of webhooks. The dispatcher reads a tenant's rows in the order of the
-- primary key, writes their deliveries and deletes them in one transaction. Fixed thresholds for autovacuum: the table is
-- nearly empty all the time, and its rows live for milliseconds.
CREATE TABLE outbox (
    tenant_id   varchar(64) COLLATE "C" NOT NULL,
    position    bigint NOT NULL,
    recorded_at timestamptz NOT NULL,
    type        varchar(32) NOT NULL,
    payload     json NOT NULL,
    expanded_to varchar(19) COLLATE "C" NOT NULL DEFAULT '',
    CONSTRAINT outbox_pkey PRIMARY KEY (tenant_id, position)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
COMMENT ON TABLE outbox IS 'One row per event of a tenant with webhooks whose deliveries are not all written yet.';
COMMENT ON COLUMN outbox.tenant_id IS 'The tenant that the event happened to.';
COMMENT ON COLUMN outbox.position IS 'The event''s position in the log: events.position.';
COMMENT ON COLUMN outbox.recorded_at IS 'When the event happened.';
COMMENT ON COLUMN outbox.type IS 'The event''s type.';
COMMENT ON COLUMN outbox.payload IS 'The event''s payload, as it is sent.';
COMMENT ON COLUMN outbox.expanded_to IS 'The last webhook, in the order of ids, whose delivery is written; empty while none is.';

-- No foreign key to webhooks: each delivery would lock the row of its webhook. A delivery whose webhook is gone is deleted
-- when it is due.
CREATE TABLE webhook_deliveries (
    tenant_id       varchar(64) COLLATE "C" NOT NULL,
    webhook_id      varchar(19) COLLATE "C" NOT NULL,
    event_position  bigint NOT NULL,
    delivery_id     varchar(36) COLLATE "C" NOT NULL,
    created_at      timestamptz NOT NULL,
    type            varchar(32) NOT NULL,
    payload         json NOT NULL,
    status          varchar(9) COLLATE "C" NOT NULL DEFAULT 'pending',
    attempts        smallint NOT NULL DEFAULT 0,
    last_attempt_at timestamptz,
    next_attempt_at timestamptz,
    response_status smallint,
    error           varchar(200),
    finished_at     timestamptz,
    CONSTRAINT webhook_deliveries_pkey PRIMARY KEY (tenant_id, webhook_id, event_position),
    CONSTRAINT webhook_deliveries_delivery_id_form CHECK (delivery_id ~ '^dlv_[0-9a-f]{32}$'),
    CONSTRAINT webhook_deliveries_webhook_id_form CHECK (webhook_id ~ '^wh_[0-9a-f]{16}$'),
    CONSTRAINT webhook_deliveries_type_known CHECK (type IN ('usage.recorded', 'usage.settled', 'usage.reset',
        'service.disabled', 'service.enabled', 'service.deleted', 'webhook.test')),
    CONSTRAINT webhook_deliveries_payload_length CHECK (octet_length(payload::text) <= 8192),
    CONSTRAINT webhook_deliveries_status_known CHECK (status IN ('pending', 'delivered', 'failed', 'cancelled')),
    CONSTRAINT webhook_deliveries_attempts_range CHECK (attempts BETWEEN 0 AND 10),
    CONSTRAINT webhook_deliveries_pending_is_due CHECK ((status = 'pending') = (next_attempt_at IS NOT NULL)),
    CONSTRAINT webhook_deliveries_pending_or_finished CHECK ((status = 'pending') = (finished_at IS NULL)),
    CONSTRAINT webhook_deliveries_response_status_range CHECK (response_status BETWEEN 100 AND 999),
    CONSTRAINT webhook_deliveries_error_length CHECK (length(error) >= 1)
) WITH (fillfactor = 90);
CREATE INDEX webhook_deliveries_pending ON webhook_deliveries (tenant_id, webhook_id, next_attempt_at)
    WHERE status = 'pending';
CREATE INDEX webhook_deliveries_finished ON webhook_deliveries (finished_at) WHERE finished_at IS NOT NULL;
COMMENT ON TABLE webhook_deliveries IS 'One row per event and webhook that it is sent to. Finished rows are kept for 7 days.';
COMMENT ON COLUMN webhook_deliveries.tenant_id IS 'The tenant that the event happened to.';
COMMENT ON COLUMN webhook_deliveries.delivery_id IS 'dlv_ and 32 hexadecimal digits: the webhook-id of every attempt, by which receivers drop repeats.';
COMMENT ON COLUMN webhook_deliveries.webhook_id IS 'The webhook that it is sent to.';
COMMENT ON COLUMN webhook_deliveries.created_at IS 'When the event happened; with event_position it makes the event''s public id.';
COMMENT ON COLUMN webhook_deliveries.event_position IS 'The event''s position in the log: events.position.';
COMMENT ON COLUMN webhook_deliveries.type IS 'The event''s type. A webhook.test is attempted once, by the request that asks for it.';
COMMENT ON COLUMN webhook_deliveries.payload IS 'The event''s payload, as it is sent.';
COMMENT ON COLUMN webhook_deliveries.status IS 'pending, delivered (the receiver accepted it), failed (given up) or cancelled (its webhook was disabled first).';
COMMENT ON COLUMN webhook_deliveries.attempts IS 'Attempts whose outcome is known, at most ten.';
COMMENT ON COLUMN webhook_deliveries.last_attempt_at IS 'When the latest of them began.';
COMMENT ON COLUMN webhook_deliveries.next_attempt_at IS 'When the next one is due; null once finished.';
COMMENT ON COLUMN webhook_deliveries.response_status IS 'The receiver''s HTTP status at the latest attempt, if it answered.';
COMMENT ON COLUMN webhook_deliveries.error IS 'Why the latest attempt failed.';
COMMENT ON COLUMN webhook_deliveries.finished_at IS 'When the row stopped being pending.';

-- Dispatchers lease webhooks, not deliveries. A lease changes no indexed column.
CREATE TABLE webhook_queues (
    tenant_id    varchar(64) COLLATE "C" NOT NULL,
    webhook_id   varchar(19) COLLATE "C" NOT NULL,
    due_at       timestamptz NOT NULL,
    leased_until timestamptz,
    CONSTRAINT webhook_queues_pkey PRIMARY KEY (tenant_id, webhook_id)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
-- What is due of a tenant is at the beginning of its part of the index.
CREATE INDEX webhook_queues_due ON webhook_queues (tenant_id, due_at);
COMMENT ON TABLE webhook_queues IS 'One row per webhook with pending deliveries, which dispatchers take in turns between tenants.';
COMMENT ON COLUMN webhook_queues.tenant_id IS 'The tenant that owns the webhook.';
COMMENT ON COLUMN webhook_queues.webhook_id IS 'The webhook.';
COMMENT ON COLUMN webhook_queues.due_at IS 'When to look at it: when its first delivery is due or, after it was served, its place in the line of its tenant.';
COMMENT ON COLUMN webhook_queues.leased_until IS 'The lease: while a dispatcher works on its deliveries, when others may take it.';
