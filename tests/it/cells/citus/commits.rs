//! A commit on Citus is several statements: what a crash between them leaves behind, and when the terms are compared.

use agentpay_billing::domain::caller::Tenant as TenantId;
use agentpay_billing::domain::cell::Dialect;
use agentpay_billing::domain::timestamp::Timestamp;
use agentpay_billing::store::commit::{self, Changes, TotalsChange};
use agentpay_billing::store::positions::CommitNumbers;
use agentpay_billing::store::{Conflict, FaultKind, StoreError};
use serde_json::json;
use sqlx::Row;
use sqlx::postgres::PgPool;

use super::{Deployment, deployment};
use crate::support::{Process, usage, wait_until};

/// What the commits of a tenant add up to: idempotency records, events, and requests.
async fn stored(cell: &PgPool) -> (i64, i64, i64) {
    let sums =
        "SELECT (SELECT count(*) FROM idempotency_keys), (SELECT coalesce(sum(events), 0) FROM event_runs)::bigint,
        (SELECT coalesce(sum(outstanding), 0) FROM usage_counters)::bigint";
    sqlx::query_as(sums).fetch_one(cell).await.expect("sums")
}

/// The server process on the node of the schema that waits for a lock in a statement, once there is one.
async fn blocked(node: &PgPool, statement: &str) -> i32 {
    let waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%' || $1 || '%'";
    let find = async || sqlx::query(waiting).bind(statement).fetch_optional(node).await.expect("a search");
    wait_until(async || find().await.is_some()).await;
    find().await.map_or(0, |row| row.get(0))
}

fn replica(deployment: &Deployment) -> Process {
    deployment.replica(&[("COMMIT_LANES", "1")])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_between_the_statements_of_a_commit_leaves_nothing_behind() {
    let Some(deployment) = deployment().await else { return };
    deployment.add().await;
    let mut service = replica(&deployment);
    let tenant = deployment.tenant(&service.client()).await;
    deployment.is_followed().await;
    let node = deployment.node().await;
    let client = tenant.client(&service.client());
    assert_eq!(client.key("first").post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
    assert_eq!(stored(&deployment.cell).await, (1, 1, 1));
    // The last statement of a commit adds to these totals.
    let hold = async || {
        let mut transaction = deployment.cell.begin().await.expect("a transaction");
        let lock = sqlx::query("SELECT records FROM caller_totals FOR UPDATE");
        assert!(!lock.fetch_all(&mut *transaction).await.expect("rows").is_empty());
        transaction
    };

    // The server ends the session: the service opens another one and commits again.
    let held = hold().await;
    let second = client.key("second");
    let sent = tokio::spawn(async move { second.post("/api/v1/usage", &usage("a", "s", 2)).await });
    let process = blocked(&node, "add_caller_totals").await;
    assert_eq!(stored(&deployment.cell).await, (1, 1, 1));
    sqlx::query("SELECT pg_terminate_backend($1)").bind(process).execute(&node).await.expect("an end");
    held.rollback().await.expect("a release");
    let answer = sent.await.expect("an answer");
    assert!(answer.status == 201 && !answer.replayed, "{}", answer.text);
    assert_eq!(stored(&deployment.cell).await, (2, 2, 3));

    // The service ends: the server rolls back.
    let held = hold().await;
    let third = client.key("third");
    let body = usage("a", "s", 4).to_string().into_bytes();
    let sent = tokio::spawn(async move { third.try_send("POST", "/api/v1/usage", Some(body)).await });
    blocked(&node, "add_caller_totals").await;
    service.signal("-KILL");
    service.exit().await;
    assert!(sent.await.expect("a task").is_err());
    held.rollback().await.expect("a release");
    let sessions =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'agentpay-billing' AND query LIKE '%commit::%'";
    wait_until(async || sqlx::query_scalar::<_, i64>(sessions).fetch_one(&node).await.expect("a count") == 0).await;
    assert_eq!(stored(&deployment.cell).await, (2, 2, 3));

    let service = replica(&deployment);
    let client = tenant.client(&service.client());
    wait_until(async || client.get("/api/v1/stats").await.status == 200).await;
    let third = client.key("third").post("/api/v1/usage", &usage("a", "s", 4)).await;
    let again = client.key("third").post("/api/v1/usage", &usage("a", "s", 4)).await;
    assert!(third.status == 201 && !third.replayed && again.replayed && again.same(&third), "{}", third.text);
    assert_eq!(stored(&deployment.cell).await, (3, 3, 7));
    drop(service);
    deployment.end().await;
}

/// Adds one to a total of a tenant, if its terms are still of `revision`.
fn changes<'a>(tenant: &'a TenantId, revision: i64) -> Changes<'a> {
    Changes {
        attempt_id: 42,
        now: Timestamp::from_ms(0),
        expires_at: Timestamp::from_ms(1),
        shard: 99,
        counters: Vec::new(),
        new_pairs: Vec::new(),
        numbers: CommitNumbers::default(),
        totals: vec![TotalsChange {
            tenant_id: tenant.as_str(),
            service_id: "",
            pairs_above_zero: 0,
            outstanding: 0,
            recorded: 1,
            events: 0,
        }],
        rare_totals: Vec::new(),
        callers: Vec::new(),
        settlements: &[],
        event_runs: Vec::new(),
        outbox: Vec::new(),
        keys: Vec::new(),
        expired: Vec::new(),
        terms: vec![(tenant, revision)],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_terms_waits_for_no_commit_and_refuses_later_ones() {
    let Some(deployment) = deployment().await else { return };
    deployment.add().await;
    let service = replica(&deployment);
    let tenant = deployment.tenant(&service.client()).await;
    deployment.is_followed().await;
    let client = tenant.client(&service.client());
    for key in ["old", "older"] {
        assert_eq!(client.key(key).post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
    }
    let own = "SELECT tenant_id, terms_revision FROM tenants WHERE tenant_id <> 'public'";
    let (id, revision): (String, i64) = sqlx::query_as(own).fetch_one(&deployment.cell).await.expect("a tenant");
    let id = TenantId::from_stored(id);

    let node = deployment.node().await;
    let mut running = node.begin().await.expect("a transaction");
    commit::write(&mut running, Dialect::Citus, &changes(&id, revision)).await.expect("a commit");
    let registered = client.post("/api/v1/services", &json!({ "serviceId": "s", "priceStroops": 3 })).await;
    assert_eq!(registered.status, 201, "{}", registered.text);
    running.rollback().await.expect("the end of the commit");
    let leave = "UPDATE tenants SET residence = 'leaving', terms_revision = 7 WHERE tenant_id <> 'public'";
    sqlx::query(leave).execute(&deployment.cell).await.expect("it leaves");

    for revision in [revision, 7] {
        let mut late = node.begin().await.expect("a transaction");
        let refused = commit::write(&mut late, Dialect::Citus, &changes(&id, revision)).await;
        let kind = refused.as_ref().map_err(StoreError::kind);
        assert_eq!(kind, Err(FaultKind::Conflict(Conflict::Terms)), "{revision}");
    }
    // Neither a replica that has cached the terms writes, nor does one replay.
    for key in ["old", "new"] {
        let refused = client.key(key).post("/api/v1/usage", &usage("a", "s", 1)).await;
        assert_eq!((refused.status, refused.error().1.as_str()), (503, "tenant_moving"), "{key}");
    }
    assert_eq!(stored(&deployment.cell).await, (2, 2, 2));
    sqlx::query("UPDATE tenants SET residence = 'here', terms_revision = 8 WHERE tenant_id <> 'public'")
        .execute(&deployment.cell)
        .await
        .expect("it stays");
    drop(service);
    deployment.end().await;
}
