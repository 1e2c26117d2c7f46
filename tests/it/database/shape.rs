//! A database that was published, copied or restored in part: what still works works, and what is missing is said.

use serde_json::{Value, json};
use sqlx::Executor;
use sqlx::postgres::PgPool;

use crate::support::{Service, new_database, pool, run, url, usage, wait_until};

const READY: &str = "/api/v1/health/ready";
const BY_HAND: &[(&str, &str)] = &[("JANITOR_INTERVAL_MS", "3600000"), ("ALLOW_ADMIN_RESET", "true")];

async fn execute(pool: &PgPool, sql: &'static str) {
    pool.execute(sqlx::raw_sql(sql)).await.expect(sql);
}

async fn names(pool: &PgPool, sql: &'static str) -> Vec<String> {
    sqlx::query_scalar(sql).fetch_all(pool).await.expect(sql)
}

#[tokio::test]
async fn every_table_has_a_primary_key() {
    let pool = pool(&new_database().await);
    let without = "SELECT relname::text FROM pg_class WHERE relkind IN ('r', 'p') \
                   AND relnamespace = current_schema()::regnamespace \
                   AND NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = pg_class.oid AND contype = 'p')";
    assert_eq!(names(&pool, without).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_database_is_pruned_and_reset() {
    let service = Service::start(BY_HAND).await;
    let client = service.client();
    execute(&service.pool, "CREATE PUBLICATION p FOR ALL TABLES; UPDATE runtime_config SET event_log_cap = 10").await;
    service.config_watcher.run_once().await.expect("limits");
    for number in 0..15 {
        let answer = client.key(&format!("k{number}")).post("/api/v1/usage", &usage("a", "s", 1)).await;
        assert_eq!(answer.status, 201);
    }
    assert_eq!(service.janitor.run_once().await.expect("the janitor").events, 5);
    assert_eq!(client.send("POST", "/api/v1/admin/reset", None).await.status, 200);
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_step_that_fails_keeps_no_other_from_running_and_is_seen_everywhere() {
    let service = Service::start(BY_HAND).await;
    let client = service.client();
    execute(
        &service.pool,
        "UPDATE runtime_config SET event_log_cap = 1;
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'secret'; END $$;
         CREATE TRIGGER nothing_expires BEFORE DELETE ON idempotency_keys EXECUTE FUNCTION refuse();",
    )
    .await;
    service.config_watcher.run_once().await.expect("limits");
    for number in 0..3 {
        client.key(&format!("k{number}")).post("/api/v1/usage", &usage("a", "s", 1)).await;
    }
    let jobs = async || client.get("/api/v1/health/deep").await.json()["checks"][6].clone();
    assert_eq!(jobs().await["status"], "ok");
    assert!(service.janitor.run_once().await.is_err());
    assert_eq!(service.number("SELECT count(*) FROM events").await, 1);
    let check = jobs().await;
    let (expired, events) = (&check["detail"]["janitor_expired"], &check["detail"]["janitor_events"]);
    assert_eq!((&check["status"], &expired["lastSuccessAt"]), (&json!("warn"), &Value::Null));
    assert_eq!(expired["lastError"], "PostgreSQL refused: SQLSTATE P0001");
    assert!(expired["lastErrorAt"].is_i64() && events["lastSuccessAt"].is_i64() && events["lastError"].is_null());
    assert_eq!(client.get(READY).await.text, r#"{"ready":true}"#);

    service.clock.advance_ms(60_000);
    assert_eq!(jobs().await["status"], "error");
    let ready = client.get(READY).await;
    assert_eq!((ready.status, ready.text.as_str()), (200, r#"{"ready":true,"failing":["janitor_expired"]}"#));
    let metrics = client.get("/api/v1/metrics").await.text;
    let figure = |name: &str| metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<i64>().ok());
    assert!(figure("agentpay_janitor_lag_seconds") >= Some(60), "{metrics}");
    assert_eq!(figure("agentpay_job_last_success_timestamp_seconds{job=\"janitor_expired\"}"), Some(0));
    assert!(figure("agentpay_job_last_success_timestamp_seconds{job=\"janitor_events\"}") > Some(0));

    execute(&service.pool, "DROP TRIGGER nothing_expires ON idempotency_keys").await;
    service.janitor.run_once().await.expect("the janitor");
    assert_eq!(jobs().await["status"], "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_cannot_be_read_for_a_minute_makes_the_service_unready() {
    let service = Service::start(BY_HAND).await;
    let client = service.client();
    execute(&service.pool, "ALTER TABLE runtime_config RENAME COLUMN keys_revision TO renamed").await;
    assert!(service.config_watcher.run_once().await.is_err());
    assert_eq!(client.get(READY).await.status, 200);
    service.clock.advance_ms(60_000);
    let unready = r#"{"ready":false,"reason":"the configuration could not be read for a minute"}"#;
    assert_eq!(client.get(READY).await.text, unready);
    execute(&service.pool, "ALTER TABLE runtime_config RENAME COLUMN renamed TO keys_revision").await;
    wait_until(async || client.get(READY).await.status == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_says_what_the_schema_lacks() {
    let service = Service::start(BY_HAND).await;
    let client = service.client();
    let says = async |reason: &str| {
        let ready = client.get(READY).await;
        assert_eq!(ready.json(), json!({ "ready": false, "reason": reason }));
        assert_eq!(ready.status, 503);
    };
    execute(&service.pool, "UPDATE _sqlx_migrations SET version = 9999 WHERE version = 10").await;
    says("pending migrations: 0010_commits").await;
    execute(
        &service.pool,
        "INSERT INTO _sqlx_migrations SELECT 10, description, now(), true, checksum, 0 FROM _sqlx_migrations \
         WHERE version = 9999",
    )
    .await;
    // Those of a newer program keep no running replica from serving.
    assert_eq!(client.get(READY).await.status, 200);
    execute(&service.pool, "DROP TABLE settlements CASCADE; DROP TABLE api_keys CASCADE").await;
    says("the database lacks tables: settlements, api_keys").await;
}

/// As after a logical copy, which leaves sequences at their beginning.
#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_behind_its_table_is_an_error_that_verify_names() {
    let database = new_database().await;
    let service = Service::start_on(database.clone(), BY_HAND).await;
    let client = service.client();
    for _ in 0..3 {
        assert_eq!(client.post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
    }
    execute(&service.pool, "SELECT setval('event_positions', 1)").await;
    assert_eq!(client.post("/api/v1/usage", &usage("a", "s", 1)).await.error().0, 500);
    let url = url(&database);
    let output = run(&["verify"], &[("DATABASE_URL", &url)]).await;
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("event_runs.position: the sequence is at 257 but the table holds 513"), "{text}");
}

#[tokio::test]
async fn verify_compares_every_sequence_of_the_schema() {
    let pool = pool(&new_database().await);
    let identities = "SELECT attrelid::regclass || '.' || attname FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid \
                      WHERE attidentity <> '' AND relnamespace = current_schema()::regnamespace AND relkind = 'r' ORDER BY 1";
    let identities = names(&pool, identities).await;
    let source = include_str!("../../../src/store/audit/forms.rs");
    for identity in &identities {
        assert!(source.contains(&format!("SELECT '{identity}'")), "{identity}");
    }
    assert!(identities.len() >= 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_and_exports_show_every_row_when_positions_repeat() {
    const PAIRS: usize = 2500;
    let service = Service::start(BY_HAND).await;
    let client = service.client();
    execute(
        &service.pool,
        "INSERT INTO agents (tenant_id, agent_id, list_position) OVERRIDING SYSTEM VALUE
         SELECT 'public', 'agent-' || number, 1 FROM generate_series(1, 2500) AS number;
         INSERT INTO usage_counters (tenant_id, agent_id, service_id, outstanding, version, pair_id)
         OVERRIDING SYSTEM VALUE SELECT 'public', 'agent-' || number, 's', 1, 1, number FROM generate_series(1, 2500) AS number;
         INSERT INTO settlements (tenant_id, settlement_id, agent_id, service_id, requests, price_stroops, billed_stroops,
                                  settled_at, request_id, list_position)
         OVERRIDING SYSTEM VALUE
         SELECT 'public', 'stl_' || lpad(number::text, 32, '0'), 'agent-1', 's', 1, 1, 1, to_timestamp(1700000000), 'r', 1
         FROM generate_series(1, 25) AS number;",
    )
    .await;
    let csv = client.get("/api/v1/usage/export.csv").await.text;
    let mut agents: Vec<&str> = csv.lines().skip(1).map(|line| line.split(',').next().expect("an agent")).collect();
    agents.sort_unstable();
    agents.dedup();
    assert_eq!((agents.len(), csv.lines().count()), (PAIRS, PAIRS + 1));
    let mut listed = std::collections::BTreeSet::new();
    for page in 1..=3 {
        let page = client.get(&format!("/api/v1/agents?limit=1000&page={page}")).await.json();
        listed.extend(page["agents"].as_array().expect("agents").iter().map(Value::to_string));
    }
    assert_eq!(listed.len(), PAIRS);
    let (mut bills, mut path) = (0, "/api/v1/settlements?limit=10".to_owned());
    loop {
        let page = client.get(&path).await.json();
        bills += page["items"].as_array().expect("items").len();
        let Some(cursor) = page["nextCursor"].as_str() else { break };
        path = format!("/api/v1/settlements?limit=10&cursor={cursor}");
    }
    assert_eq!(bills, 25);
}
