CREATE TABLE webhooks (
    tenant      text COLLATE "C" NOT NULL,
    webhook     text COLLATE "C" NOT NULL,
    url         text NOT NULL,
    events      text[] NOT NULL,
    secret      bytea NOT NULL,
    created_at  timestamptz NOT NULL,
    disabled_at timestamptz,
    CONSTRAINT webhooks_pkey PRIMARY KEY (tenant, webhook),
    CONSTRAINT webhooks_tenant_fkey FOREIGN KEY (tenant) REFERENCES tenants (tenant),
    CONSTRAINT webhooks_webhook_form CHECK (webhook ~ '^wh_[0-9a-f]{16}$'),
    CONSTRAINT webhooks_url_form CHECK (url ~ '^https?://' AND length(url) <= 2048),
    CONSTRAINT webhooks_events_known CHECK (cardinality(events) > 0 AND events <@ ARRAY['usage.recorded', 'usage.settled',
        'usage.reset', 'service.disabled', 'service.enabled', 'service.deleted', 'webhook.test', '*']),
    CONSTRAINT webhooks_secret_length CHECK (octet_length(secret) = 32)
);
CREATE INDEX webhooks_list ON webhooks (tenant, created_at, webhook);
-- The write path asks for a tenant's enabled webhooks in every transaction that has events.
CREATE INDEX webhooks_enabled ON webhooks (tenant) WHERE disabled_at IS NULL;
COMMENT ON TABLE webhooks IS 'One row is one address that a tenant wants its events sent to.';
COMMENT ON COLUMN webhooks.tenant IS 'The tenant whose events are sent.';
COMMENT ON COLUMN webhooks.webhook IS 'wh_ and 16 hexadecimal digits.';
COMMENT ON COLUMN webhooks.url IS 'Where deliveries are sent.';
COMMENT ON COLUMN webhooks.events IS 'Types of the events that are sent, as the tenant listed them; * means all.';
COMMENT ON COLUMN webhooks.secret IS 'The key deliveries are signed with. It has to be stored to sign; nothing shows it after the webhook was made.';
COMMENT ON COLUMN webhooks.created_at IS 'When the webhook was made.';
COMMENT ON COLUMN webhooks.disabled_at IS 'When its receiver was given up; null while it is served. A change of the webhook enables it again.';

-- No foreign key to webhooks: each delivery would lock its webhook's row. A delivery whose webhook is gone is dropped
-- when it is due.
CREATE TABLE webhook_deliveries (
    tenant          text COLLATE "C" NOT NULL,
    delivery        text COLLATE "C" NOT NULL,
    webhook         text COLLATE "C" NOT NULL,
    created_at      timestamptz NOT NULL,
    event_position  bigint NOT NULL,
    type            text NOT NULL,
    payload         json NOT NULL,
    status          text COLLATE "C" NOT NULL DEFAULT 'pending',
    attempts        smallint NOT NULL DEFAULT 0,
    last_attempt_at timestamptz,
    next_attempt_at timestamptz,
    due_at          timestamptz,
    response_status smallint,
    error           text,
    finished_at     timestamptz,
    CONSTRAINT webhook_deliveries_pkey PRIMARY KEY (tenant, delivery),
    CONSTRAINT webhook_deliveries_delivery_form CHECK (delivery ~ '^dlv_[0-9a-f]{32}$'),
    CONSTRAINT webhook_deliveries_webhook_form CHECK (webhook ~ '^wh_[0-9a-f]{16}$'),
    CONSTRAINT webhook_deliveries_type_known CHECK (type IN ('usage.recorded', 'usage.settled', 'usage.reset',
        'service.disabled', 'service.enabled', 'service.deleted', 'webhook.test')),
    CONSTRAINT webhook_deliveries_payload_length CHECK (octet_length(payload::text) <= 8192),
    CONSTRAINT webhook_deliveries_status_known CHECK (status IN ('pending', 'delivered', 'failed', 'cancelled')),
    CONSTRAINT webhook_deliveries_attempts_range CHECK (attempts BETWEEN 0 AND 10),
    CONSTRAINT webhook_deliveries_pending_is_due CHECK ((status = 'pending') = (next_attempt_at IS NOT NULL)
        AND (next_attempt_at IS NULL) = (due_at IS NULL)),
    CONSTRAINT webhook_deliveries_pending_or_finished CHECK ((status = 'pending') = (finished_at IS NULL)),
    CONSTRAINT webhook_deliveries_response_status_range CHECK (response_status BETWEEN 100 AND 999),
    CONSTRAINT webhook_deliveries_error_length CHECK (length(error) BETWEEN 1 AND 200)
) WITH (fillfactor = 90);
CREATE INDEX webhook_deliveries_due ON webhook_deliveries (tenant, webhook, due_at) WHERE status = 'pending';
CREATE INDEX webhook_deliveries_list ON webhook_deliveries (tenant, webhook, created_at, event_position);
CREATE INDEX webhook_deliveries_finished ON webhook_deliveries (finished_at) WHERE finished_at IS NOT NULL;
COMMENT ON TABLE webhook_deliveries IS 'The outbox. One row is one event on its way to one webhook, written in the transaction of the event; finished rows are kept 7 days.';
COMMENT ON COLUMN webhook_deliveries.tenant IS 'The tenant the event happened to.';
COMMENT ON COLUMN webhook_deliveries.delivery IS 'dlv_ and 32 hexadecimal digits: the webhook-id of every attempt, by which receivers drop repeats.';
COMMENT ON COLUMN webhook_deliveries.webhook IS 'The webhook it is sent to.';
COMMENT ON COLUMN webhook_deliveries.created_at IS 'When the event happened, and this row was written; with event_position it makes the event''s public id.';
COMMENT ON COLUMN webhook_deliveries.event_position IS 'The event''s place in the log: events.position.';
COMMENT ON COLUMN webhook_deliveries.type IS 'The event''s type. A webhook.test is attempted once, by the request that asks for it.';
COMMENT ON COLUMN webhook_deliveries.payload IS 'The event''s payload, as it is sent.';
COMMENT ON COLUMN webhook_deliveries.status IS 'pending, delivered (the receiver took it), failed (given up) or cancelled (its webhook was disabled first).';
COMMENT ON COLUMN webhook_deliveries.attempts IS 'Attempts whose end is known, at most ten.';
COMMENT ON COLUMN webhook_deliveries.last_attempt_at IS 'When the latest of them began.';
COMMENT ON COLUMN webhook_deliveries.next_attempt_at IS 'When the next one is planned; null once finished.';
COMMENT ON COLUMN webhook_deliveries.due_at IS 'The lease: next_attempt_at, or, while a dispatcher works on the row, the moment others may take it.';
COMMENT ON COLUMN webhook_deliveries.response_status IS 'The receiver''s HTTP status at the latest attempt, if it answered.';
COMMENT ON COLUMN webhook_deliveries.error IS 'Why the latest attempt failed.';
COMMENT ON COLUMN webhook_deliveries.finished_at IS 'When the row stopped being pending.';
