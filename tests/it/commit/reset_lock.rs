//! The lock that a reset holds alone and all commits hold together: a commit that waits too long for it changes nothing.

use serde_json::json;
use sqlx::{Postgres, Transaction};

use crate::support::{Service, usage, wait_until};

const RESET_LOCK: i64 = 0x6167_656e_7470_617a;

/// Takes the lock as a reset does.
async fn hold(service: &Service) -> Transaction<'static, Postgres> {
    let mut holder = service.pool.begin().await.expect("transaction");
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(RESET_LOCK)
        .execute(&mut *holder)
        .await
        .expect("the reset lock");
    holder
}

const WAITING: &str = "SELECT coalesce(max(extract(epoch FROM waitstart) * 1000000), 0)::bigint FROM pg_locks
    WHERE locktype = 'advisory' AND NOT granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// Waits until a commit has begun to wait for the lock since `before`, and returns when that was.
async fn begun_to_wait(service: &Service, before: i64) -> i64 {
    let mut since = before;
    let begins = async || {
        since = service.number(WAITING).await;
        since > before
    };
    wait_until(begins).await;
    since
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_gave_up_waiting_for_the_reset_lock_leaves_its_lane_in_order() {
    let service = Service::start(&[("COMMIT_LANES", "1")]).await;
    let client = service.client();
    for (path, body) in
        [("/api/v1/services", json!({ "serviceId": "s", "priceStroops": 1 })), ("/api/v1/usage", usage("a", "s", 1))]
    {
        let holder = hold(&service).await;
        let writer = client.key(path);
        let write = tokio::spawn(async move { writer.post(path, &body).await });
        // It begins to wait, gives up, and begins again in the lane for blocked requests.
        let mut since = 0;
        for _ in 0..3 {
            since = begun_to_wait(&service, since).await;
            assert!(!write.is_finished());
        }
        holder.rollback().await.expect("rollback");
        let answer = write.await.expect("a client");
        assert_eq!(answer.status, 201, "{answer:?}");
        for number in 0..3 {
            let service = json!({ "serviceId": format!("s{number}"), "priceStroops": 1 });
            assert!(matches!(client.post("/api/v1/services", &service).await.status, 200 | 201));
            assert_eq!(client.post("/api/v1/usage", &usage("b", "s", 1)).await.status, 201);
        }
    }
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_without_counters_waits_for_the_reset_lock_too() {
    let service = Service::start(&[("COMMIT_LANES", "1")]).await;
    for round in 0..10 {
        for (path, body) in
            [("/api/v1/usage", json!({})), ("/api/v1/settle", json!({ "agent": "nobody", "serviceId": "s" }))]
        {
            let holder = hold(&service).await;
            let writer = service.client().key(&format!("{path}{round}"));
            let write = tokio::spawn(async move { writer.post(path, &body).await });
            wait_until(async || write.is_finished() || service.number(WAITING).await > 0).await;
            assert!(!write.is_finished(), "{path} committed during a reset in round {round}");
            holder.rollback().await.expect("rollback");
            assert!(matches!(write.await.expect("a client").status, 200 | 400));
        }
    }
}
