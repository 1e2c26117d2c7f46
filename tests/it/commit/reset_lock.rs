//! The lock that a reset holds alone and all commits hold together: who waits too long for it comes to no harm.

use serde_json::json;
use sqlx::{Postgres, Transaction};

use crate::support::{Service, usage};

const GATE: i64 = 0x6167_656e_7470_617a;

/// What a reset does to everybody else.
async fn close(service: &Service) -> Transaction<'static, Postgres> {
    let mut holder = service.pool.begin().await.expect("transaction");
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(GATE).execute(&mut *holder).await.expect("the gate");
    holder
}

const WAITING: &str = "SELECT coalesce(max(extract(epoch FROM waitstart) * 1000000), 0)::bigint FROM pg_locks
    WHERE locktype = 'advisory' AND NOT granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";

/// Waits until somebody has begun to wait at the gate since `before`, and tells when that was.
async fn begun_to_wait(service: &Service, before: i64) -> i64 {
    let began = std::time::Instant::now();
    loop {
        assert!(began.elapsed().as_secs() < 10, "nobody waits at the gate again");
        let since = service.number(WAITING).await;
        if since > before {
            return since;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_gave_up_at_the_gate_leaves_its_lane_in_order() {
    let service = Service::start(&[("COMMIT_LANES", "1")]).await;
    let client = service.client();
    for (path, body) in
        [("/api/v1/services", json!({ "serviceId": "s", "priceStroops": 1 })), ("/api/v1/usage", usage("a", "s", 1))]
    {
        let holder = close(&service).await;
        let writer = client.key(path);
        let write = tokio::spawn(async move { writer.post(path, &body).await });
        // It begins to wait, gives up, and begins again in the waiting room.
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
async fn a_commit_without_counters_waits_at_the_gate_too() {
    let service = Service::start(&[("COMMIT_LANES", "1")]).await;
    for round in 0..10 {
        for (path, body) in
            [("/api/v1/usage", json!({})), ("/api/v1/settle", json!({ "agent": "nobody", "serviceId": "s" }))]
        {
            let holder = close(&service).await;
            let writer = service.client().key(&format!("{path}{round}"));
            let write = tokio::spawn(async move { writer.post(path, &body).await });
            while !write.is_finished() && service.number(WAITING).await == 0 {}
            assert!(!write.is_finished(), "{path} went through a closed gate in round {round}");
            holder.rollback().await.expect("rollback");
            assert!(matches!(write.await.expect("a client").status, 200 | 400));
        }
    }
}
