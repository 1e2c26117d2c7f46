//! A database that falls silent, fails over or takes no writes: all parts find it again, and nothing false is said.

use agentpay_billing::clock::Clock;
use agentpay_billing::domain::runtime_config::RuntimeConfig;
use agentpay_billing::domain::timestamp::Timestamp;
use agentpay_billing::job_health::JobHealth;
use agentpay_billing::jobs::watch_runtime_config::RuntimeConfigWatcher;
use agentpay_billing::runtime_config::SharedRuntimeConfig;
use agentpay_billing::store::StoreError;
use agentpay_billing::store::idempotency::{self, CallerKey};
use agentpay_billing::store::pool::Pool;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::support::{
    Client, Forwarder, LIMIT, Process, ReadOnly, Receiver, Service, needs_one_cell, new_database, pool, usage,
    wait_until,
};

const READY: &str = "/api/v1/health/ready";
const SETTINGS: &[(&str, &str)] =
    &[("JANITOR_INTERVAL_MS", "10"), ("WEBHOOK_ALLOW_PRIVATE", "true"), ("REQUEST_TIMEOUT_MS", "6000")];

async fn job(client: &Client, name: &str) -> Value {
    client.get("/api/v1/health/deep").await.json()["checks"][6]["detail"][name].clone()
}

/// Waits until each job has succeeded once more.
async fn all_jobs_run(client: &Client) {
    for name in ["config", "janitor_expired", "janitor_events", "webhook_lease", "webhook_prune"] {
        let last = async || job(client, name).await["lastSuccessAt"].as_i64();
        let before = last().await;
        wait_until(async || last().await > before).await;
    }
}

async fn records(client: &Client) {
    wait_until(async || client.post("/api/v1/usage", &usage("a", "s", 1)).await.status == 201).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_parts_work_again_after_their_connections_froze() {
    let database = new_database().await;
    let forwarder = Forwarder::start(&database).await;
    let service = Service::start_on(forwarder.options(), SETTINGS).await;
    let direct = pool(&database);
    let (client, receiver) = (service.client(), Receiver::start().await);
    let hook = json!({ "url": receiver.url, "events": ["usage.recorded"] });
    assert_eq!(client.post("/api/v1/webhooks", &hook).await.status, 201);
    client.key("k").post("/api/v1/usage", &usage("a", "s", 1)).await;
    receiver.reach(1).await;
    all_jobs_run(&client).await;
    // The dispatcher is caught in the middle of a lease.
    let mut table = direct.begin().await.expect("begin");
    table.execute("LOCK TABLE webhook_queues").await.expect("a lock");
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() \
                 AND wait_event_type = 'Lock' AND query LIKE '%webhook_queues::heads%'";
    let leases = async || sqlx::query_scalar::<_, i64>(waits).fetch_one(&direct).await.expect("a count") > 0;
    wait_until(leases).await;
    forwarder.freeze();
    table.rollback().await.expect("rollback");

    records(&client).await;
    receiver.reach(2).await;
    all_jobs_run(&client).await;
    for path in ["/api/v1/usage/a/s", "/api/v1/services", "/api/v1/idempotency/k", "/api/v1/usage/export.csv", READY] {
        wait_until(async || client.get(path).await.status == 200).await;
    }
    sqlx::query("UPDATE runtime_config SET paused = true").execute(&direct).await.expect("a pause");
    wait_until(async || service.runtime_config.is_paused()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_froze_hears_again() {
    let database = new_database().await;
    let forwarder = Forwarder::start(&database).await;
    let config = SharedRuntimeConfig::new(RuntimeConfig::default());
    let clock = Clock::default();
    let mut watcher =
        RuntimeConfigWatcher::new(forwarder.options(), config.clone(), JobHealth::new(clock.clone()), clock);
    watcher.poll_interval = LIMIT * 10;
    let stop = CancellationToken::new();
    let watching = tokio::spawn(watcher.run(stop.clone()));
    let direct = pool(&database);
    let listening = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'";
    let listeners = async || sqlx::query_scalar::<_, i64>(listening).fetch_one(&direct).await.expect("a count");
    wait_until(async || listeners().await == 1).await;
    forwarder.freeze();
    // The former session has not noticed yet that its client is gone.
    wait_until(async || listeners().await == 2).await;
    for paused in [true, false] {
        let change = "WITH told AS (SELECT pg_notify('agentpay_runtime_config', '')) UPDATE runtime_config SET paused = $1 FROM told";
        sqlx::query(change).bind(paused).execute(&direct).await.expect("a change");
        wait_until(async || config.is_paused() == paused).await;
    }
    stop.cancel();
    watching.await.expect("it ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_a_process_whose_database_is_silent() {
    let forwarder = Forwarder::start(&new_database().await).await;
    let mut process = Process::start_on(&forwarder.options(), SETTINGS);
    let client = process.client();
    all_jobs_run(&client).await;
    let write = tokio::spawn({
        let client = client.clone();
        async move { client.try_send("POST", "/api/v1/usage", Some(usage("a", "s", 1).to_string().into())).await }
    });
    forwarder.freeze_for_ever();
    wait_until(async || forwarder.swallowed() > 0).await;
    process.signal("-TERM");
    wait_until(async || process.child.try_wait().expect("a process").is_some()).await;
    let _ = write.await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_parts_return_to_a_writer_after_a_failover() {
    if needs_one_cell("a service with several cells is ready without one of them, which cells::outages tests") {
        return;
    }
    let database = new_database().await;
    let service = Service::start_on(database.clone(), SETTINGS).await;
    let (client, receiver) = (service.client(), Receiver::start().await);
    let hook = json!({ "url": receiver.url, "events": ["usage.recorded"] });
    assert_eq!(client.post("/api/v1/webhooks", &hook).await.status, 201);
    let committed = client.key("k").post("/api/v1/usage", &usage("a", "s", 1)).await;
    assert_eq!(committed.status, 201);
    receiver.reach(1).await;

    let read_only = ReadOnly::begin(&database).await;
    let unready = r#"{"ready":false,"reason":"the database is read-only"}"#;
    wait_until(async || client.get(READY).await.text == unready).await;
    for path in ["/api/v1/idempotency/k", "/api/v1/idempotency/unknown", "/api/v1/services"] {
        assert_eq!(client.get(path).await.status, 503, "{path}");
    }
    assert_eq!(client.post("/api/v1/usage", &usage("a", "s", 1)).await.status, 503);
    wait_until(async || !job(&client, "config").await["lastErrorAt"].is_null()).await;
    read_only.end().await;

    wait_until(async || client.get(READY).await.status == 200).await;
    records(&client).await;
    receiver.reach(2).await;
    all_jobs_run(&client).await;
    assert_eq!(client.get("/api/v1/idempotency/k").await.status, 200);
    assert_eq!(client.get("/api/v1/idempotency/unknown").await.status, 404);
}

async fn backend(pool: &Pool) -> Result<(i32, String), StoreError> {
    pool.run(Instant::now() + LIMIT, async |connection: &mut PgConnection| {
        let which = "SELECT pg_backend_pid(), current_setting('transaction_read_only')";
        Ok(sqlx::query_as(which).fetch_one(connection).await?)
    })
    .await
}

/// Makes a connection like one that stays with a former primary.
const LOSE_THE_WRITER: &str = "SET default_transaction_read_only = on";

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_leads_to_no_writer_is_dropped_however_busy_it_is() {
    let pool = Pool::new(new_database().await, 2, LIMIT);
    let lose = async |connection: &mut PgConnection| {
        connection.execute(LOSE_THE_WRITER).await?;
        Ok(())
    };
    pool.run(Instant::now() + LIMIT, lose).await.expect("a setting");
    wait_until(async || backend(&pool).await.expect("a read").1 == "off").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_refused_as_read_only_drops_its_connection() {
    let pool = Pool::new(new_database().await, 2, LIMIT);
    let write = async |connection: &mut PgConnection| {
        connection.execute(LOSE_THE_WRITER).await?;
        connection.execute("UPDATE runtime_config SET paused = paused").await?;
        Ok(())
    };
    assert!(pool.run(Instant::now() + LIMIT, write).await.is_err());
    assert_eq!(backend(&pool).await.expect("a read").1, "off");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_unknown_only_where_a_writer_says_so() {
    let pool = Pool::new(new_database().await, 2, LIMIT);
    let id = CallerKey { caller: "ip:192.0.2.1".to_owned(), key: "k".to_owned() };
    for (before, is_known) in [("SELECT", true), (LOSE_THE_WRITER, false)] {
        let find = async |connection: &mut PgConnection| {
            connection.execute(before).await?;
            idempotency::find(connection, &id, Timestamp::from_ms(0)).await
        };
        let found = pool.run(Instant::now() + LIMIT, find).await;
        assert_eq!(matches!(found, Ok(None)), is_known);
        assert_eq!(matches!(found, Err(StoreError::ReadOnly)), !is_known);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_closes_the_connection_and_frees_its_place() {
    let database = new_database().await;
    let (pool, direct) = (Pool::new(database.clone(), 1, LIMIT), pool(&database));
    let (first, _) = backend(&pool).await.expect("a read");
    let mut table = direct.begin().await.expect("begin");
    table.execute("LOCK TABLE runtime_config").await.expect("a lock");
    let wait = async |connection: &mut PgConnection| {
        connection.execute("SET lock_timeout = 0; UPDATE runtime_config SET paused = true").await?;
        Ok(())
    };
    let waits = pool.run(Instant::now() + std::time::Duration::from_secs(2), wait);
    assert!(matches!(waits.await, Err(StoreError::TimedOut)));
    let (second, _) = backend(&pool).await.expect("a read");
    assert_ne!(first, second);
    table.rollback().await.expect("rollback");
}

/// A restore or a failover may set the row back.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_is_in_force_when_it_is_answered_whatever_the_revision_was() {
    let database = new_database().await;
    let services = [Service::start_on(database.clone(), &[]).await, Service::start_on(database, &[]).await];
    let [here, there] = services.each_ref().map(Service::client);
    for _ in 0..3 {
        assert_eq!(here.send("POST", "/api/v1/admin/unpause", None).await.status, 200);
    }
    let restore = "UPDATE runtime_config SET revision = 0, keys_revision = 0";
    sqlx::query(restore).execute(&services[0].pool).await.expect("a restore");
    assert_eq!(here.send("POST", "/api/v1/admin/pause", None).await.status, 200);
    let refuses = async |client: &Client| client.post("/api/v1/usage", &usage("a", "s", 1)).await.status == 503;
    assert!(refuses(&here).await);
    wait_until(async || refuses(&there).await).await;
}

/// Has the database refuse each write of usage with `code`.
fn refusing(code: &str) -> AssertSqlSafe<String> {
    AssertSqlSafe(format!(
        "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '{code}'; END $$;
         CREATE OR REPLACE TRIGGER refuse BEFORE INSERT OR UPDATE ON usage_counters FOR EACH ROW EXECUTE FUNCTION refuse()"
    ))
}

#[tokio::test]
async fn writes_that_fail_for_a_minute_show_in_readiness_health_and_metrics_until_one_succeeds() {
    if needs_one_cell("a service with several cells is ready without one of them, which cells::outages tests") {
        return;
    }
    let service = Service::start(&[]).await;
    let client = service.client();
    let all_refused =
        json!({ "ready": false, "reason": "nothing could be written for a minute", "failing": ["commit"] });
    let some_refused = json!({ "ready": true, "failing": ["commit"] });
    // The disk is full, or requests break a rule of the database, which need not be all of them.
    for (code, refused, ready, report) in [("53100", 503, 503, all_refused), ("23514", 500, 200, some_refused)] {
        service.pool.execute(refusing(code)).await.expect("a trigger");
        for pause_ms in [59_000, 1_000] {
            assert_eq!(client.post("/api/v1/usage", &usage("a", "s", 1)).await.status, refused);
            service.clock.advance_ms(pause_ms);
        }
        let answer = client.get(READY).await;
        assert_eq!((answer.status, answer.json()), (ready, report));
        let jobs = client.get("/api/v1/health/deep").await.json()["checks"][6].clone();
        let told = jobs["detail"]["commit"]["lastError"].as_str().unwrap_or_default().contains(code);
        assert!(jobs["status"] == "error" && told, "{jobs}");
        // The counter belongs to the process, so another test may reset it.
        let is_counted = async || {
            client.post("/api/v1/usage", &usage("a", "s", 1)).await;
            service.metric("agentpay_job_failures_total{job=\"commit\"}").await > 0
        };
        wait_until(is_counted).await;

        service.pool.execute("DROP TRIGGER refuse ON usage_counters").await.expect("no trigger");
        assert_eq!(client.post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
        let answer = client.get(READY).await;
        assert_eq!((answer.status, answer.json()), (200, json!({ "ready": true })));
    }
}

#[tokio::test]
async fn a_database_that_refuses_connections_is_not_said_to_be_silent() {
    if needs_one_cell("a service with several cells is ready without one of them, which cells::outages tests") {
        return;
    }
    let database = new_database().await;
    let service = Service::start_on(database.clone(), &[]).await;
    let name = database.get_database().expect("a name").to_owned();
    let elsewhere = pool(&database.clone().database("postgres"));
    elsewhere.execute(AssertSqlSafe(format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false"))).await.expect("a ban");
    let end = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
    elsewhere.execute(AssertSqlSafe(end)).await.expect("an end");
    let reason = async || service.client().get(READY).await.json()["reason"].clone();
    wait_until(async || reason().await == "PostgreSQL refused: SQLSTATE 55000").await;
}
