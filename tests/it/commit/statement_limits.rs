//! A statement that does not end: the requests that wait for it are answered in time, and the others go on.

use std::time::Duration;

use agentpay_billing::settings::Settings;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use crate::support::{Answer, SLEEPING, Service, usage, wait_until};

const USAGE: &str = "/api/v1/usage";
const NOTHING_CHANGED: &str = "the store is unavailable; nothing was changed";
const UNKNOWN: &str =
    "the outcome of this write is unknown; repeat it with the same Idempotency-Key, or check before repeating it";

/// A service with one lane, whose statements may take three seconds.
async fn start() -> Service {
    let limit = |settings: &mut Settings| settings.committer.statement_limit = Duration::from_secs(3);
    Service::start_limited(&[("COMMIT_LANES", "1"), ("REQUEST_TIMEOUT_MS", "60000")], limit).await
}

async fn run(service: &Service, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&service.pool).await.expect("a statement");
}

/// Sends a signal to a server process, as the server's own user.
async fn signal(service: &Service, signal: &str, pid: i64) {
    run(service, format!("COPY (SELECT) TO PROGRAM 'cat >/dev/null; kill -{signal} {pid}'")).await;
}

/// The server process that wrote the latest batch.
const LANE: &str = "SELECT pid::bigint FROM pg_stat_activity
    WHERE datname = current_database() AND query LIKE '-- commit::%' ORDER BY state_change DESC LIMIT 1";

fn post(service: &Service, key: Option<&str>, body: Value) -> tokio::task::JoinHandle<Answer> {
    let client = key.map_or(service.client(), |key| service.client().key(key));
    tokio::spawn(async move { client.post(USAGE, &body).await })
}

async fn is_gone(service: &Service, pid: i64) {
    let left = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}").leak();
    wait_until(async || service.number(left).await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_statement_is_cancelled_by_hand_runs_again() {
    let service = Service::start(&[("COMMIT_LANES", "1")]).await;
    service.slow_down().await;
    // Without a key, so that nothing could be looked up if its outcome were in doubt.
    let write = post(&service, None, usage("slow", "s", 5));
    wait_until(async || service.number(SLEEPING).await == 1).await;
    service.speed_up().await;
    let cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity
                  WHERE datname = current_database() AND wait_event = 'PgSleep'";
    assert_eq!(service.number(cancel).await, 1);
    let answer = write.await.expect("a client");
    assert_eq!((answer.status, &answer.json()["total"]), (201, &json!(5)), "{answer:?}");
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_on_a_read_only_server_changes_nothing_and_says_so() {
    let service = Service::start(&[("COMMIT_LANES", "1")]).await;
    let client = service.client();
    // The second one is a statement by itself.
    for _ in 0..2 {
        assert_eq!(client.post(USAGE, &usage("a", "s", 1)).await.status, 201);
    }
    // Idle for so long that the lane asks whether its connection still works.
    let idle = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                AND query LIKE '-- commit::write%' AND state_change < clock_timestamp() - interval '1.1 s'";
    wait_until(async || service.number(idle).await > 0).await;
    let alter = async |set: &str| {
        let mut connection = service.pool.acquire().await.expect("a connection");
        let database: String =
            sqlx::query_scalar("SELECT current_database()").fetch_one(&mut *connection).await.expect("a name");
        let alter = format!("ALTER DATABASE {database} {set}");
        for statement in ["SET default_transaction_read_only = off", &alter] {
            sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut *connection).await.expect("a statement");
        }
        // A session takes such a setting when it begins.
        let earlier: Vec<i32> = sqlx::query_scalar(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .fetch_all(&mut *connection)
        .await
        .expect("sessions");
        let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid = ANY($1)";
        wait_until(async || {
            let left = sqlx::query_scalar::<_, i64>(terminate).bind(&earlier).fetch_one(&mut *connection).await;
            left.expect("a number") == 0
        })
        .await;
        connection.close().await.expect("closed");
    };
    alter("SET default_transaction_read_only = on").await;
    let pair = json!({ "agent": "a", "serviceId": "s" });
    for (path, body) in [
        (USAGE, usage("a", "s", 1)),
        ("/api/v1/usage/bulk", json!({ "items": [usage("a", "s", 1)] })),
        ("/api/v1/settle", pair),
        ("/api/v1/settle/bulk", json!({ "agent": "a" })),
        ("/api/v1/services", json!({ "serviceId": "s", "priceStroops": 1 })),
        ("/api/v1/webhooks", json!({ "url": "https://example.com/", "events": ["*"] })),
    ] {
        for client in [service.client(), service.client().key(path)] {
            let refused = client.post(path, &body).await.error();
            assert_eq!((refused.0, refused.2.as_str()), (503, NOTHING_CHANGED), "{path}");
        }
    }
    alter("RESET default_transaction_read_only").await;
    wait_until(async || client.key("k").post(USAGE, &usage("a", "s", 10)).await.status == 201).await;
    assert_eq!(service.number("SELECT outstanding + settled + reset FROM usage_counters").await, 12);
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_commits_after_the_deadline_of_its_request() {
    let service = Service::start(&[("COMMIT_LANES", "1"), ("REQUEST_TIMEOUT_MS", "2000")]).await;
    service.slow_down().await;
    let refused = post(&service, None, usage("slow", "s", 5)).await.expect("a client").error();
    assert_eq!((refused.0, refused.2.as_str()), (503, NOTHING_CHANGED));
    // No statement is left behind that could still commit.
    wait_until(async || service.number(SLEEPING).await == 0).await;
    service.speed_up().await;
    let answer = service.beside().await.client().post(USAGE, &usage("slow", "s", 1)).await;
    assert_eq!(answer.json()["total"], 1, "{answer:?}");
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_that_does_not_end_delays_no_other_request_of_its_lane() {
    let service = start().await;
    service.slow_down().await;
    let slow = post(&service, Some("k"), usage("slow", "s", 5));
    wait_until(async || service.number(SLEEPING).await == 1).await;
    for number in 1..=3 {
        let answer = service.client().post(USAGE, &usage("quick", "s", 1)).await;
        assert_eq!(answer.json()["total"], number, "{answer:?}");
    }
    assert!(!slow.is_finished());
    service.speed_up().await;
    let answer = slow.await.expect("a client");
    assert_eq!((answer.status, answer.replayed, &answer.json()["total"]), (201, false, &json!(5)), "{answer:?}");
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lane_whose_server_process_is_stopped_goes_on_over_a_new_connection() {
    let service = start().await;
    let client = service.client();
    for _ in 0..2 {
        assert_eq!(client.post(USAGE, &usage("a", "s", 1)).await.status, 201);
    }
    let stopped = service.number(LANE).await;
    signal(&service, "STOP", stopped).await;
    // Its outcome is in doubt, and looked up. Those that come later are not even that.
    let answer = client.key("k").post(USAGE, &usage("a", "s", 10)).await;
    assert_eq!((answer.status, answer.replayed, &answer.json()["total"]), (201, false, &json!(12)), "{answer:?}");
    assert_eq!(client.post(USAGE, &usage("a", "s", 100)).await.json()["total"], 112);
    // What the process was sent comes to nothing, whenever it goes on.
    signal(&service, "CONT", stopped).await;
    is_gone(&service, stopped).await;
    assert_eq!(service.number("SELECT outstanding + settled + reset FROM usage_counters").await, 112);
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_server_process_blocks_only_the_rows_that_it_locked() {
    let service = start().await;
    let client = service.client();
    service.slow_down().await;
    // In the middle of a statement that has locked a row.
    let lock = "CREATE TRIGGER locked_and_slow AFTER INSERT OR UPDATE ON usage_counters
                FOR EACH ROW WHEN (NEW.agent_id = 'locked') EXECUTE FUNCTION slow_down()";
    run(&service, lock.to_owned()).await;
    let locked = post(&service, Some("k"), usage("locked", "s", 5));
    wait_until(async || service.number(SLEEPING).await == 1).await;
    let stopped = service.number(LANE).await;
    signal(&service, "STOP", stopped).await;
    assert_eq!(client.post(USAGE, &usage("free", "s", 1)).await.json()["total"], 1);
    service.speed_up().await;
    signal(&service, "CONT", stopped).await;
    let answer = locked.await.expect("a client");
    assert_eq!((answer.status, &answer.json()["total"]), (201, &json!(5)), "{answer:?}");
    is_gone(&service, stopped).await;
    assert_eq!(
        service.number("SELECT outstanding + settled + reset FROM usage_counters WHERE agent_id = 'locked'").await,
        5
    );
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_to_a_stopped_server_process_never_commits_once_its_outcome_was_called_unknown() {
    let service = Service::start(&[("COMMIT_LANES", "1"), ("REQUEST_TIMEOUT_MS", "3000")]).await;
    let client = service.client();
    // So often that the lane need not read any more: the first that it sends is the statement that commits.
    for _ in 0..70 {
        assert_eq!(client.post(USAGE, &usage("a", "s", 1)).await.status, 201);
    }
    let stopped = service.number(LANE).await;
    signal(&service, "STOP", stopped).await;
    let refused = client.post(USAGE, &usage("a", "s", 10)).await.error();
    assert_eq!((refused.0, refused.2.as_str()), (503, UNKNOWN));
    signal(&service, "CONT", stopped).await;
    is_gone(&service, stopped).await;
    assert_eq!(service.number("SELECT outstanding + settled + reset FROM usage_counters").await, 70);
    service.verify().await;
}
