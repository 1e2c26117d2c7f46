//! The database refuses bad rows by itself, each for a reason with a name: this list has a case for every constraint
//! of the schema, and fails when one is missing.

use std::collections::BTreeSet;

use sqlx::{AssertSqlSafe, Executor};

use crate::support::{new_database, pool};

/// One good row of each table, to be spoilt.
const GOOD: &str = "
    INSERT INTO tenants (tenant_id) VALUES ('tnt_1');
    INSERT INTO api_keys VALUES ('tnt_1', 'apk_00000001', sha256('1'), 'label', now());
    INSERT INTO services (tenant_id, service_id, price_stroops, description, owner, created_at)
        VALUES ('tnt_1', 's', 1, '', 'o', now());
    INSERT INTO agents (tenant_id, agent_id) VALUES ('tnt_1', 'a'), ('tnt_1', 'idle');
    INSERT INTO usage_counters (tenant_id, agent_id, service_id, outstanding, settled, version)
        VALUES ('tnt_1', 'a', 's', 1, 2, 1);
    INSERT INTO settlements (tenant_id, settlement_id, agent_id, service_id, requests, price_stroops, billed_stroops,
                             settled_at, idempotency_key, request_id)
        VALUES ('tnt_1', 'stl_' || repeat('0', 32), 'a', 's', 2, 5, 10, now(), 'k', 'r');
    INSERT INTO event_runs VALUES ('tnt_1', 1, 1, now(), 'usage.recorded', '{}');
    INSERT INTO totals (tenant_id, service_id, shard) VALUES ('tnt_1', 's', 0);
    INSERT INTO idempotency_keys VALUES
        ('ip:192.0.2.1', 'k', 'POST', '/', sha256('1'), 201, '{}', 'r', 1, now(), now() + interval '1 s');
    INSERT INTO webhooks (tenant_id, webhook_id, url, events, secret, created_at, from_position)
        VALUES ('tnt_1', 'wh_0000000000000001', 'https://example.com', '{*}', sha256('1'), now(), 1);
    INSERT INTO outbox (tenant_id, position, recorded_at, type, payload)
        VALUES ('tnt_1', 1, now(), 'usage.recorded', '{}');
    INSERT INTO webhook_deliveries (tenant_id, delivery_id, webhook_id, created_at, event_position, type, payload,
                                    next_attempt_at)
        VALUES ('tnt_1', 'dlv_' || repeat('0', 32), 'wh_0000000000000001', now(), 1, 'usage.recorded', '{}', now());
    INSERT INTO webhook_queues (tenant_id, webhook_id, due_at) VALUES ('tnt_1', 'wh_0000000000000001', now());
    INSERT INTO audit_log (changed_at, actor, address, request_id, operation, tenant_id, object_id, before, after)
        VALUES (now(), 'admin', '192.0.2.1', 'r', 'service.updated', 'tnt_1', 's', '{}', '{}');
    INSERT INTO caller_totals VALUES ('ip:192.0.2.1', 0, 1, 1);
    INSERT INTO full_callers VALUES ('ip:192.0.2.1');
    INSERT INTO cells (cell_id, number) VALUES ('home', 0), ('eu', 1);
    INSERT INTO cell_identity (cell_id, deployment_id) VALUES ('home', 'd');
    INSERT INTO citus_positions (cell_number, last_position) VALUES (1, 0);
    INSERT INTO tenant_cells VALUES ('tnt_1', 'eu');
    INSERT INTO tenant_moves VALUES ('tnt_1', 'eu', 'home', 'copying');
";

/// A constraint, and statements that break it and nothing that is checked before it.
const CASES: &[(&str, &[&str])] = &[
    ("tenants_pkey", &["INSERT INTO tenants (tenant_id) VALUES ('public')"]),
    ("tenants_tenant_id_length", &["INSERT INTO tenants (tenant_id) VALUES ('')"]),
    ("tenants_residence_known", &["UPDATE tenants SET residence = 'away'"]),
    ("cells_pkey", &["INSERT INTO cells (cell_id, number) VALUES ('home', 2)"]),
    ("cells_number_key", &["INSERT INTO cells (cell_id, number) VALUES ('us', 1)"]),
    (
        "cells_number_range",
        &["UPDATE cells SET number = 1024 WHERE number = 1", "UPDATE cells SET number = -1 WHERE number = 1"],
    ),
    (
        "cells_cell_id_form",
        &["INSERT INTO cells (cell_id, number) VALUES ('', 2)", "INSERT INTO cells (cell_id, number) VALUES ('-a', 2)"],
    ),
    ("cell_identity_pkey", &["INSERT INTO cell_identity (cell_id, deployment_id) VALUES ('eu', 'd')"]),
    ("cell_identity_only_row", &["UPDATE cell_identity SET only_row = false"]),
    ("citus_positions_pkey", &["INSERT INTO citus_positions (cell_number, last_position) VALUES (2, 0)"]),
    ("citus_positions_only_row", &["UPDATE citus_positions SET only_row = false"]),
    ("citus_positions_cell_number_range", &["UPDATE citus_positions SET cell_number = 1024"]),
    ("citus_positions_last_position_range", &["UPDATE citus_positions SET last_position = -1"]),
    ("tenant_cells_pkey", &["INSERT INTO tenant_cells VALUES ('tnt_1', 'home')"]),
    ("tenant_cells_cell_id_fkey", &["UPDATE tenant_cells SET cell_id = 'none'"]),
    ("tenant_moves_pkey", &["INSERT INTO tenant_moves VALUES ('tnt_1', 'home', 'eu', 'copying')"]),
    ("tenant_moves_from_cell_fkey", &["UPDATE tenant_moves SET from_cell = 'none'"]),
    ("tenant_moves_to_cell_fkey", &["UPDATE tenant_moves SET to_cell = 'none'"]),
    ("tenant_moves_cells_differ", &["UPDATE tenant_moves SET to_cell = 'eu'"]),
    ("tenant_moves_step_known", &["UPDATE tenant_moves SET step = 'begun'"]),
    ("api_keys_pkey", &["INSERT INTO api_keys VALUES ('tnt_1', 'apk_00000001', sha256('2'), 'label', now())"]),
    ("api_keys_prefix_key", &["INSERT INTO api_keys VALUES ('public', 'apk_00000001', sha256('2'), 'label', now())"]),
    ("api_keys_key_hash_key", &["INSERT INTO api_keys VALUES ('public', 'apk_00000002', sha256('1'), 'label', now())"]),
    (
        "api_keys_tenant_id_fkey",
        &[
            "INSERT INTO api_keys VALUES ('none', 'apk_00000002', sha256('2'), 'label', now())",
            "DELETE FROM tenants WHERE tenant_id = 'tnt_1'",
        ],
    ),
    (
        "api_keys_prefix_form",
        &["UPDATE api_keys SET prefix = 'apk_0000000'", "UPDATE api_keys SET prefix = 'apk_0000000G'"],
    ),
    ("api_keys_key_hash_length", &["UPDATE api_keys SET key_hash = '\\x00'"]),
    ("api_keys_scopes_known", &["UPDATE api_keys SET scopes = '{}'", "UPDATE api_keys SET scopes = '{read,write}'"]),
    (
        "api_keys_rate_limit_per_window_range",
        &["UPDATE api_keys SET rate_limit_per_window = 0", "UPDATE api_keys SET rate_limit_per_window = 1000001"],
    ),
    ("api_keys_label_length", &["UPDATE api_keys SET label = ''"]),
    (
        "services_pkey",
        &["INSERT INTO services (tenant_id, service_id, price_stroops, created_at) VALUES ('tnt_1', 's', 1, now())"],
    ),
    (
        "services_price_range",
        &["UPDATE services SET price_stroops = -1", "UPDATE services SET price_stroops = 9007199255"],
    ),
    (
        "services_service_id_form",
        &[
            "UPDATE services SET service_id = ''",
            "UPDATE services SET service_id = 'a b'",
            "UPDATE services SET service_id = E'a\\n'",
            "UPDATE services SET service_id = 'é'",
        ],
    ),
    ("services_metadata_whole", &["UPDATE services SET owner = NULL", "UPDATE services SET description = NULL"]),
    ("services_owner_length", &["UPDATE services SET owner = ''"]),
    (
        "usage_counters_pkey",
        &[
            "INSERT INTO usage_counters (tenant_id, agent_id, service_id, outstanding, version) VALUES ('tnt_1', 'a', 's', 1, 1)",
        ],
    ),
    (
        "usage_counters_agent_id_fkey",
        &[
            "DELETE FROM agents WHERE agent_id = 'a'",
            "INSERT INTO usage_counters (tenant_id, agent_id, service_id, outstanding, version) \
             VALUES ('tnt_1', 'b', 's', 1, 1)",
        ],
    ),
    (
        "usage_counters_pair_id_key",
        &["INSERT INTO usage_counters OVERRIDING SYSTEM VALUE \
        SELECT tenant_id, 'idle', service_id, pair_id, 0, 0, 0, 1 FROM usage_counters"],
    ),
    ("agents_pkey", &["INSERT INTO agents (tenant_id, agent_id) VALUES ('tnt_1', 'a')"]),
    ("agents_agent_id_form", &["UPDATE agents SET agent_id = ''", "UPDATE agents SET agent_id = 'a/b'"]),
    (
        "settlements_pkey",
        &[
            "INSERT INTO settlements SELECT tenant_id, settlement_id, agent_id, service_id, 1, 1, 1, now(), NULL, 'r' FROM settlements",
        ],
    ),
    (
        "settlements_settlement_id_form",
        &[
            "UPDATE settlements SET settlement_id = 'stl_1'",
            "UPDATE settlements SET settlement_id = 'bill' || repeat('0', 32)",
        ],
    ),
    ("settlements_pair_fkey", &["UPDATE settlements SET agent_id = 'b'", "DELETE FROM usage_counters"]),
    ("settlements_requests_positive", &["UPDATE settlements SET requests = 0, billed_stroops = 0"]),
    (
        "settlements_price_range",
        &[
            "UPDATE settlements SET price_stroops = -1, billed_stroops = -2",
            "UPDATE settlements SET price_stroops = 9007199255, billed_stroops = 18014398510",
        ],
    ),
    ("settlements_billed_is_product", &["UPDATE settlements SET billed_stroops = 9"]),
    ("settlements_idempotency_key_length", &["UPDATE settlements SET idempotency_key = ''"]),
    ("settlements_request_id_length", &["UPDATE settlements SET request_id = ''"]),
    ("event_runs_pkey", &["INSERT INTO event_runs SELECT * FROM event_runs"]),
    ("totals_pkey", &["INSERT INTO totals SELECT * FROM totals"]),
    ("full_callers_pkey", &["INSERT INTO full_callers SELECT * FROM full_callers"]),
    ("caller_totals_pkey", &["INSERT INTO caller_totals SELECT * FROM caller_totals"]),
    ("runtime_config_pkey", &["INSERT INTO runtime_config DEFAULT VALUES"]),
    ("runtime_config_only_row", &["INSERT INTO runtime_config (only_row) VALUES (false)"]),
    ("verification_pkey", &["INSERT INTO verification DEFAULT VALUES"]),
    ("verification_only_row", &["INSERT INTO verification (only_row) VALUES (false)"]),
    ("verification_findings_object", &["UPDATE verification SET findings = '[]'"]),
    ("verification_cancelled_steps_object", &["UPDATE verification SET cancelled_steps = '[]'"]),
    (
        "runtime_config_rate_limit_per_window_range",
        &[
            "UPDATE runtime_config SET rate_limit_per_window = 0",
            "UPDATE runtime_config SET rate_limit_per_window = 1000001",
        ],
    ),
    (
        "runtime_config_rate_limit_window_ms_range",
        &[
            "UPDATE runtime_config SET rate_limit_window_ms = 0",
            "UPDATE runtime_config SET rate_limit_window_ms = 86400001",
        ],
    ),
    (
        "runtime_config_bulk_max_items_range",
        &["UPDATE runtime_config SET bulk_max_items = 0", "UPDATE runtime_config SET bulk_max_items = 1001"],
    ),
    (
        "runtime_config_event_log_cap_range",
        &["UPDATE runtime_config SET event_log_cap = 0", "UPDATE runtime_config SET event_log_cap = 100001"],
    ),
    (
        "runtime_config_usage_store_max_keys_range",
        &[
            "UPDATE runtime_config SET usage_store_max_keys = 0",
            "UPDATE runtime_config SET usage_store_max_keys = 100001",
        ],
    ),
    (
        "runtime_config_services_store_max_keys_range",
        &[
            "UPDATE runtime_config SET services_store_max_keys = 0",
            "UPDATE runtime_config SET services_store_max_keys = 10001",
        ],
    ),
    (
        "runtime_config_webhook_store_max_keys_range",
        &[
            "UPDATE runtime_config SET webhook_store_max_keys = 0",
            "UPDATE runtime_config SET webhook_store_max_keys = 10001",
        ],
    ),
    (
        "runtime_config_api_key_store_max_keys_range",
        &[
            "UPDATE runtime_config SET api_key_store_max_keys = 0",
            "UPDATE runtime_config SET api_key_store_max_keys = 10001",
        ],
    ),
    ("idempotency_keys_pkey", &["INSERT INTO idempotency_keys SELECT * FROM idempotency_keys"]),
    ("webhooks_pkey", &["INSERT INTO webhooks SELECT * FROM webhooks"]),
    ("webhooks_tenant_id_fkey", &["UPDATE webhooks SET tenant_id = 'none'"]),
    (
        "webhooks_webhook_id_form",
        &["UPDATE webhooks SET webhook_id = 'wh_1'", "UPDATE webhooks SET webhook_id = 'xx_' || repeat('0', 16)"],
    ),
    (
        "webhooks_previous_secret_length",
        &["UPDATE webhooks SET previous_secret = '\\x00', previous_secret_until = now()"],
    ),
    (
        "webhooks_previous_secret_whole",
        &["UPDATE webhooks SET previous_secret = secret", "UPDATE webhooks SET previous_secret_until = now()"],
    ),
    ("webhooks_url_form", &["UPDATE webhooks SET url = 'ftp://example.com'"]),
    (
        "webhooks_events_known",
        &["UPDATE webhooks SET events = '{}'", "UPDATE webhooks SET events = '{usage.recorded,other}'"],
    ),
    ("webhooks_secret_length", &["UPDATE webhooks SET secret = '\\x00'"]),
    ("outbox_pkey", &["INSERT INTO outbox SELECT * FROM outbox"]),
    ("webhook_queues_pkey", &["INSERT INTO webhook_queues SELECT * FROM webhook_queues"]),
    ("webhook_deliveries_pkey", &["INSERT INTO webhook_deliveries SELECT * FROM webhook_deliveries"]),
    (
        "webhook_deliveries_delivery_id_form",
        &[
            "UPDATE webhook_deliveries SET delivery_id = 'dlv_1'",
            "UPDATE webhook_deliveries SET delivery_id = 'xxx_' || repeat('0', 32)",
        ],
    ),
    ("webhook_deliveries_webhook_id_form", &["UPDATE webhook_deliveries SET webhook_id = 'wh_1'"]),
    ("webhook_deliveries_type_known", &["UPDATE webhook_deliveries SET type = 'other'"]),
    ("webhook_deliveries_payload_length", &["UPDATE webhook_deliveries SET payload = to_json(repeat('x', 8191))"]),
    (
        "webhook_deliveries_status_known",
        &["UPDATE webhook_deliveries SET status = 'other', next_attempt_at = NULL, finished_at = now()"],
    ),
    (
        "webhook_deliveries_attempts_range",
        &["UPDATE webhook_deliveries SET attempts = -1", "UPDATE webhook_deliveries SET attempts = 11"],
    ),
    ("webhook_deliveries_pending_is_due", &["UPDATE webhook_deliveries SET next_attempt_at = NULL"]),
    ("webhook_deliveries_pending_or_finished", &["UPDATE webhook_deliveries SET finished_at = now()"]),
    ("webhook_deliveries_response_status_range", &["UPDATE webhook_deliveries SET response_status = 99"]),
    ("audit_log_pkey", &["INSERT INTO audit_log OVERRIDING SYSTEM VALUE SELECT * FROM audit_log"]),
    ("audit_log_actor_form", &["UPDATE audit_log SET actor = 'nobody'", "UPDATE audit_log SET actor = 'apk_1'"]),
    ("audit_log_before_length", &["UPDATE audit_log SET before = to_jsonb(repeat('x', 16383))"]),
    ("audit_log_after_length", &["UPDATE audit_log SET after = to_jsonb(repeat('x', 16383))"]),
    ("webhook_deliveries_error_length", &["UPDATE webhook_deliveries SET error = ''"]),
];

#[tokio::test]
async fn every_constraint_of_the_schema_refuses_the_row_it_is_there_for() {
    let pool = pool(&new_database().await);
    pool.execute(GOOD).await.expect("good rows");
    for (constraint, statements) in CASES {
        for statement in *statements {
            let error = pool.execute(*statement).await.expect_err(statement);
            let broken = error.as_database_error().and_then(|error| error.constraint());
            assert_eq!(broken, Some(*constraint), "{statement}: {error}");
        }
    }
}

#[tokio::test]
async fn text_longer_than_its_column_is_refused() {
    let pool = pool(&new_database().await);
    pool.execute(GOOD).await.expect("good rows");
    let columns: Vec<(String, String, i32)> = sqlx::query_as(
        "SELECT table_name::text, column_name::text, character_maximum_length FROM information_schema.columns
         JOIN information_schema.tables USING (table_schema, table_name)
         WHERE table_schema = 'public' AND table_type = 'BASE TABLE' AND data_type = 'character varying'
           AND table_name <> '_sqlx_migrations'",
    )
    .fetch_all(&pool)
    .await
    .expect("the catalog");
    assert!(columns.len() > 40);
    for (table, column, length) in columns {
        let statement = format!("UPDATE {table} SET {column} = repeat('x', {length} + 1)");
        let error = pool.execute(AssertSqlSafe(statement.clone())).await.expect_err(&statement);
        let code = error.as_database_error().and_then(|error| error.code()).unwrap_or_default();
        assert_eq!(code, "22001", "{statement}: {error}");
    }
}

#[tokio::test]
async fn every_constraint_of_the_schema_has_a_case() {
    let pool = pool(&new_database().await);
    let catalog: Vec<String> = sqlx::query_scalar(
        "SELECT conname::text FROM pg_constraint WHERE connamespace = 'public'::regnamespace \
         AND contype IN ('c', 'f', 'p', 'u', 'x') AND conrelid <> '_sqlx_migrations'::regclass",
    )
    .fetch_all(&pool)
    .await
    .expect("the catalog");
    let catalog: BTreeSet<&str> = catalog.iter().map(String::as_str).collect();
    let cases: BTreeSet<&str> = CASES.iter().map(|(constraint, _)| *constraint).collect();
    assert_eq!(catalog.difference(&cases).collect::<Vec<_>>(), Vec::<&&str>::new(), "constraints without a case");
    assert_eq!(cases.difference(&catalog).collect::<Vec<_>>(), Vec::<&&str>::new(), "cases without a constraint");
}

#[tokio::test]
async fn every_text_has_a_bound() {
    let pool = pool(&new_database().await);
    let unbounded: Vec<String> = sqlx::query_scalar(
        "SELECT relname::text || '.' || attname FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid \
         WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname <> '_sqlx_migrations' \
         AND attnum > 0 AND (atttypid IN ('text'::regtype, 'bytea'::regtype) OR atttypid = 'varchar'::regtype AND atttypmod = -1) \
         AND NOT EXISTS (\
             SELECT FROM pg_constraint WHERE conrelid = pg_class.oid AND contype IN ('c', 'f') AND attnum = ANY (conkey))",
    )
    .fetch_all(&pool)
    .await
    .expect("the catalog");
    // Checked by the service before it writes, and by `verify`.
    let known = ["event_runs.payloads", "idempotency_keys.request_hash", "idempotency_keys.response"];
    let strays: Vec<&String> = unbounded.iter().filter(|column| !known.contains(&column.as_str())).collect();
    assert_eq!(strays, Vec::<&String>::new(), "texts without a bound");
}
