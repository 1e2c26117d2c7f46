-- What operators change while the service runs. Replicas read this row several times a second, and see by the two
-- revisions what has changed.
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
COMMENT ON TABLE runtime_config IS
    'One row: the limits of the running system and the pause flag. Every replica applies a change within a second.';
COMMENT ON COLUMN runtime_config.only_row IS 'Always true. The primary key allows no second row.';
COMMENT ON COLUMN runtime_config.rate_limit_per_window IS 'Requests that a caller may make in each window.';
COMMENT ON COLUMN runtime_config.rate_limit_window_ms IS 'Length of the window in milliseconds.';
COMMENT ON COLUMN runtime_config.bulk_max_items IS 'Maximum number of items in a bulk request.';
COMMENT ON COLUMN runtime_config.event_log_cap IS
    'Number of events that a tenant can read. The newest are kept, and the janitor deletes older ones.';
COMMENT ON COLUMN runtime_config.usage_store_max_keys IS
    'Maximum number of pairs of a tenant with outstanding requests.';
COMMENT ON COLUMN runtime_config.services_store_max_keys IS 'Maximum number of services of a tenant.';
COMMENT ON COLUMN runtime_config.webhook_store_max_keys IS 'Maximum number of webhooks of a tenant.';
COMMENT ON COLUMN runtime_config.api_key_store_max_keys IS 'Maximum number of live API keys of all tenants together.';
COMMENT ON COLUMN runtime_config.paused IS 'True: writes are refused.';
COMMENT ON COLUMN runtime_config.revision IS 'Increases with each change of this row.';
COMMENT ON COLUMN runtime_config.keys_revision IS
    'Increases when an API key is created or revoked. Replicas then look up all keys again.';
COMMENT ON INDEX runtime_config_pkey IS 'Allows one row.';
INSERT INTO runtime_config DEFAULT VALUES;
