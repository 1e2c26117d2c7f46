-- What operators change while the service runs. The two revisions tell replicas, which read this row several times a
-- second, what to take over and what to forget.
CREATE TABLE runtime_config (
    only_row                boolean NOT NULL DEFAULT true,
    rate_limit_per_window   bigint NOT NULL DEFAULT 60,
    rate_limit_window_ms    bigint NOT NULL DEFAULT 60000,
    bulk_max_items          bigint NOT NULL DEFAULT 100,
    event_log_cap           bigint NOT NULL DEFAULT 10000,
    usage_store_max_keys    bigint NOT NULL DEFAULT 100000,
    services_store_max_keys bigint NOT NULL DEFAULT 10000,
    webhook_store_max_keys  bigint NOT NULL DEFAULT 10000,
    api_key_store_max_keys  bigint NOT NULL DEFAULT 10000,
    paused                  boolean NOT NULL DEFAULT false,
    revision                bigint NOT NULL DEFAULT 0,
    keys_revision           bigint NOT NULL DEFAULT 0,
    CONSTRAINT runtime_config_pkey PRIMARY KEY (only_row),
    CONSTRAINT runtime_config_only_row CHECK (only_row),
    CONSTRAINT runtime_config_rate_limit_per_window_range CHECK (rate_limit_per_window BETWEEN 1 AND 1000000),
    CONSTRAINT runtime_config_rate_limit_window_ms_range CHECK (rate_limit_window_ms BETWEEN 1 AND 86400000),
    CONSTRAINT runtime_config_bulk_max_items_range CHECK (bulk_max_items BETWEEN 1 AND 1000),
    CONSTRAINT runtime_config_event_log_cap_range CHECK (event_log_cap BETWEEN 1 AND 100000),
    CONSTRAINT runtime_config_usage_store_max_keys_range CHECK (usage_store_max_keys BETWEEN 1 AND 100000),
    CONSTRAINT runtime_config_services_store_max_keys_range CHECK (services_store_max_keys BETWEEN 1 AND 10000),
    CONSTRAINT runtime_config_webhook_store_max_keys_range CHECK (webhook_store_max_keys BETWEEN 1 AND 10000),
    CONSTRAINT runtime_config_api_key_store_max_keys_range CHECK (api_key_store_max_keys BETWEEN 1 AND 10000)
);
COMMENT ON TABLE runtime_config IS 'One row: the limits of the running system and whether it is paused. Every replica applies a change within a second.';
COMMENT ON COLUMN runtime_config.only_row IS 'Always true: there is one row.';
COMMENT ON COLUMN runtime_config.rate_limit_per_window IS 'Requests that a caller may make per window.';
COMMENT ON COLUMN runtime_config.rate_limit_window_ms IS 'Length of that window in milliseconds.';
COMMENT ON COLUMN runtime_config.bulk_max_items IS 'Most items of one bulk request.';
COMMENT ON COLUMN runtime_config.event_log_cap IS 'Newest events of a tenant that stay visible; older ones are deleted.';
COMMENT ON COLUMN runtime_config.usage_store_max_keys IS 'Most pairs above zero of a tenant.';
COMMENT ON COLUMN runtime_config.services_store_max_keys IS 'Most services of a tenant.';
COMMENT ON COLUMN runtime_config.webhook_store_max_keys IS 'Most webhooks of a tenant.';
COMMENT ON COLUMN runtime_config.api_key_store_max_keys IS 'Most live API keys, over all tenants.';
COMMENT ON COLUMN runtime_config.paused IS 'True while writes are refused.';
COMMENT ON COLUMN runtime_config.revision IS 'Grows with every change of this row, so that a replica never goes back to an older state.';
COMMENT ON COLUMN runtime_config.keys_revision IS 'Grows with every API key created or revoked. Replicas then look all keys up again.';
INSERT INTO runtime_config DEFAULT VALUES;
