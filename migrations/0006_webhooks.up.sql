CREATE TABLE webhooks (
    tenant_id             varchar(64) COLLATE "C" NOT NULL,
    webhook_id            varchar(19) COLLATE "C" NOT NULL,
    url                   varchar(2048) NOT NULL,
    events                text[] NOT NULL,
    secret                bytea NOT NULL,
    created_at            timestamptz NOT NULL,
    disabled_at           timestamptz,
    from_position         bigint NOT NULL,
    previous_secret       bytea,
    previous_secret_until timestamptz,
    CONSTRAINT webhooks_pkey PRIMARY KEY (tenant_id, webhook_id),
    CONSTRAINT webhooks_tenant_id_fkey FOREIGN KEY (tenant_id) REFERENCES tenants (tenant_id),
    CONSTRAINT webhooks_webhook_id_form CHECK (webhook_id ~ '^wh_[0-9a-f]{16}$'),
    CONSTRAINT webhooks_url_form CHECK (url ~ '^https?://'),
    CONSTRAINT webhooks_events_known CHECK (cardinality(events) > 0 AND events <@ ARRAY['usage.recorded', 'usage.settled',
        'usage.reset', 'service.disabled', 'service.enabled', 'service.deleted', 'webhook.test', '*']),
    CONSTRAINT webhooks_secret_length CHECK (octet_length(secret) = 32),
    CONSTRAINT webhooks_previous_secret_length CHECK (octet_length(previous_secret) = 32),
    CONSTRAINT webhooks_previous_secret_whole CHECK ((previous_secret IS NULL) = (previous_secret_until IS NULL))
);
CREATE INDEX webhooks_list ON webhooks (tenant_id, created_at, webhook_id);
COMMENT ON TABLE webhooks IS 'Addresses that tenants want their events sent to.';
COMMENT ON COLUMN webhooks.tenant_id IS 'The tenant whose events are sent.';
COMMENT ON COLUMN webhooks.webhook_id IS 'Id of the webhook: wh_ and 16 hexadecimal digits.';
COMMENT ON COLUMN webhooks.url IS 'URL that deliveries are posted to.';
COMMENT ON COLUMN webhooks.events IS
    'Types of the events that are sent, as the tenant listed them; * stands for all types.';
COMMENT ON COLUMN webhooks.secret IS
    'Key that deliveries are signed with. The API shows it once, in the response that creates the webhook.';
COMMENT ON COLUMN webhooks.created_at IS 'When the webhook was created.';
COMMENT ON COLUMN webhooks.disabled_at IS
    'When the service stopped sending to it. NULL: it is enabled. Updating the webhook enables it again.';
COMMENT ON COLUMN webhooks.from_position IS
    'Position of the first event to send, drawn from event_positions when the webhook is created or enabled again.';
COMMENT ON COLUMN webhooks.previous_secret IS
    'The secret before the latest rotation. Deliveries are also signed with it until previous_secret_until. NULL: the '
    'secret was not rotated.';
COMMENT ON COLUMN webhooks.previous_secret_until IS
    'End of the overlap of the latest rotation. NULL: the secret was not rotated.';
COMMENT ON INDEX webhooks_pkey IS 'Finds a webhook by tenant and id, and the webhooks that an event goes to.';
COMMENT ON INDEX webhooks_list IS 'Lists the webhooks of a tenant in the order of their creation.';

-- A commit appends one row per event, whatever the number of webhooks. The dispatcher reads the rows of a tenant in the
-- order of the primary key, writes their deliveries and deletes them in one transaction. The thresholds for autovacuum
-- are absolute, because the table is nearly empty at any time and its rows live for milliseconds.
CREATE TABLE outbox (
    tenant_id       varchar(64) COLLATE "C" NOT NULL,
    position        bigint NOT NULL,
    recorded_at     timestamptz NOT NULL,
    type            varchar(32) NOT NULL,
    payload         json NOT NULL,
    last_webhook_id varchar(19) COLLATE "C" NOT NULL DEFAULT '',
    traceparent     varchar(55) COLLATE "C",
    tracestate      varchar(512),
    CONSTRAINT outbox_pkey PRIMARY KEY (tenant_id, position)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
COMMENT ON TABLE outbox IS
    'Events of tenants with webhooks whose deliveries are not all written yet. No foreign keys: commits write it, '
    'and its rows must not keep events from being pruned or webhooks from being deleted.';
COMMENT ON COLUMN outbox.tenant_id IS 'The tenant that the event belongs to.';
COMMENT ON COLUMN outbox.position IS 'Position of the event in the log: events.position.';
COMMENT ON COLUMN outbox.recorded_at IS 'When the event happened.';
COMMENT ON COLUMN outbox.type IS 'Type of the event.';
COMMENT ON COLUMN outbox.payload IS 'Payload of the event, as it is sent.';
COMMENT ON COLUMN outbox.last_webhook_id IS
    'The last webhook, in the order of ids, whose delivery of this event is written; empty before the first.';
COMMENT ON COLUMN outbox.traceparent IS
    'Trace and span of the request that caused the event, as the header traceparent of W3C Trace Context. NULL: traces '
    'were off.';
COMMENT ON COLUMN outbox.tracestate IS 'The header tracestate that belongs to traceparent. NULL: there was none.';
COMMENT ON INDEX outbox_pkey IS 'Reads the events of a tenant in order.';

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
    requested       boolean NOT NULL DEFAULT false,
    last_attempt_at timestamptz,
    next_attempt_at timestamptz,
    response_status smallint,
    error           varchar(200),
    finished_at     timestamptz,
    traceparent     varchar(55) COLLATE "C",
    tracestate      varchar(512),
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
CREATE INDEX webhook_deliveries_id ON webhook_deliveries (delivery_id);
CREATE INDEX webhook_deliveries_failed ON webhook_deliveries (tenant_id, webhook_id, finished_at)
    WHERE status IN ('failed', 'cancelled');
CREATE INDEX webhook_deliveries_finished ON webhook_deliveries (finished_at) WHERE finished_at IS NOT NULL;
COMMENT ON TABLE webhook_deliveries IS
    'One row per event and webhook that it is sent to. Finished rows are kept for 7 days. No foreign key to '
    'webhooks: each delivery would lock the row of its webhook. A pending delivery whose webhook is deleted is '
    'deleted when it is due. No foreign key to event_runs: a delivery may outlive its event in the log.';
COMMENT ON COLUMN webhook_deliveries.tenant_id IS 'The tenant that the event belongs to.';
COMMENT ON COLUMN webhook_deliveries.webhook_id IS 'The webhook that the event is sent to.';
COMMENT ON COLUMN webhook_deliveries.event_position IS 'Position of the event in the log: events.position.';
COMMENT ON COLUMN webhook_deliveries.delivery_id IS
    'Id of the delivery: dlv_ and 32 hexadecimal digits. Each attempt sends it as webhook-id, by which receivers '
    'recognise repetitions.';
COMMENT ON COLUMN webhook_deliveries.created_at IS
    'When the event happened. With event_position it makes the public id of the event.';
COMMENT ON COLUMN webhook_deliveries.type IS
    'Type of the event. A webhook.test is attempted once, by the request that asks for it.';
COMMENT ON COLUMN webhook_deliveries.payload IS 'Payload of the event, as it is sent.';
COMMENT ON COLUMN webhook_deliveries.status IS
    'pending; delivered: the receiver accepted it; failed: all attempts failed; cancelled: its webhook was disabled '
    'first.';
COMMENT ON COLUMN webhook_deliveries.attempts IS
    'Attempts whose result is recorded, at most 10; since the latest request for it, if requested.';
COMMENT ON COLUMN webhook_deliveries.requested IS
    'True: somebody asked to send it again, so it is sent even if its event is before webhooks.from_position.';
COMMENT ON COLUMN webhook_deliveries.last_attempt_at IS 'When the latest of these attempts began. NULL: none was made.';
COMMENT ON COLUMN webhook_deliveries.next_attempt_at IS 'When the next attempt is due. NULL: the delivery is finished.';
COMMENT ON COLUMN webhook_deliveries.response_status IS
    'HTTP status that the receiver answered the latest attempt with. NULL: it did not answer.';
COMMENT ON COLUMN webhook_deliveries.error IS 'Why the latest attempt failed. NULL: it succeeded, or none was made.';
COMMENT ON COLUMN webhook_deliveries.finished_at IS 'When the status stopped being pending. NULL: it is pending.';
COMMENT ON COLUMN webhook_deliveries.traceparent IS
    'Trace and span of the request that caused the event: outbox.traceparent. Attempts belong to this trace.';
COMMENT ON COLUMN webhook_deliveries.tracestate IS
    'The header tracestate that belongs to traceparent. NULL: there was none.';
COMMENT ON INDEX webhook_deliveries_pkey IS 'Lists the deliveries of a webhook. An event is sent to a webhook once.';
COMMENT ON INDEX webhook_deliveries_pending IS 'Finds the deliveries of a webhook that are due.';
COMMENT ON INDEX webhook_deliveries_id IS 'Finds the deliveries whose repetition is requested by id.';
COMMENT ON INDEX webhook_deliveries_failed IS 'Finds the deliveries of a webhook that failed or were cancelled since a moment.';
COMMENT ON INDEX webhook_deliveries_finished IS 'Finds the deliveries that are old enough to be deleted.';

-- Dispatchers lease webhooks, not deliveries. A lease changes no indexed column.
CREATE TABLE webhook_queues (
    tenant_id    varchar(64) COLLATE "C" NOT NULL,
    webhook_id   varchar(19) COLLATE "C" NOT NULL,
    due_at       timestamptz NOT NULL,
    leased_until timestamptz,
    CONSTRAINT webhook_queues_pkey PRIMARY KEY (tenant_id, webhook_id)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
CREATE INDEX webhook_queues_due ON webhook_queues (tenant_id, due_at);
COMMENT ON TABLE webhook_queues IS
    'One row per webhook with pending deliveries. Dispatchers serve the tenants in turn. No foreign key to webhooks: '
    'adding a delivery would lock the row of its webhook.';
COMMENT ON COLUMN webhook_queues.tenant_id IS 'The tenant that owns the webhook.';
COMMENT ON COLUMN webhook_queues.webhook_id IS 'The webhook.';
COMMENT ON COLUMN webhook_queues.due_at IS
    'When the webhook is to be served next. A tenant''s due webhooks are served in this order.';
COMMENT ON COLUMN webhook_queues.leased_until IS
    'End of the lease of the dispatcher that serves the webhook; from then on others may take it. NULL: it is not '
    'leased.';
COMMENT ON INDEX webhook_queues_pkey IS 'Finds the queue of a webhook. Dispatchers lock queues in this order.';
COMMENT ON INDEX webhook_queues_due IS
    'Finds the due webhooks of a tenant, and the next tenant with pending deliveries.';
