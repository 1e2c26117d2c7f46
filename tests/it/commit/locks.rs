//! Rows and tables that another transaction has locked: who needs them is refused in time, and the others go on.

use serde_json::json;

use crate::support::{Service, usage};

const USAGE: &str = "/api/v1/usage";
const NOTHING_CHANGED: &str = "the store is unavailable; nothing was changed";

#[tokio::test(flavor = "multi_thread")]
async fn a_locked_row_blocks_only_the_requests_that_need_it() {
    let service = Service::start(&[("COMMIT_LANES", "1"), ("REQUEST_TIMEOUT_MS", "3000")]).await;
    let client = service.client();
    client.post(USAGE, &usage("locked", "s", 1)).await;
    let mut holder = service.pool.begin().await.expect("transaction");
    sqlx::query("SELECT 1 FROM usage_counters WHERE agent_id = 'locked' FOR UPDATE")
        .execute(&mut *holder)
        .await
        .expect("lock");
    let bulk = json!({ "items": [usage("locked", "s", 1), usage("new", "s", 1)] });
    for (client, path, body) in [
        (client.clone(), USAGE, usage("locked", "s", 10)),
        // No other request has this key. The new pair makes the write need a transaction.
        (client.key("k"), "/api/v1/usage/bulk", bulk),
    ] {
        let gives_up = client.post(path, &body).await.error();
        assert_eq!((gives_up.0, gives_up.2.as_str()), (503, NOTHING_CHANGED), "{path}");
    }
    // As long as others need.
    let patient = service.beside().await;
    let client = patient.client();
    let blocked = tokio::spawn({
        let client = client.clone();
        async move { client.post(USAGE, &usage("locked", "s", 100)).await }
    });
    for _ in 0..5 {
        assert_eq!(client.post(USAGE, &usage("free", "s", 1)).await.status, 201);
    }
    assert!(!blocked.is_finished());
    holder.rollback().await.expect("rollback");
    let answer = blocked.await.expect("an answer");
    assert_eq!(answer.text, r#"{"agent":"locked","serviceId":"s","total":101}"#);
    assert_eq!(service.number("SELECT count(*) FROM usage_counters WHERE agent_id = 'new'").await, 0);
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_waits_for_a_locked_table_until_its_deadline_changed_nothing() {
    let service = Service::start(&[("REQUEST_TIMEOUT_MS", "3000")]).await;
    let client = service.client();
    client.post(USAGE, &usage("a", "s", 1)).await;
    let mut holder = service.pool.begin().await.expect("transaction");
    sqlx::query("LOCK TABLE usage_counters IN EXCLUSIVE MODE").execute(&mut *holder).await.expect("lock");
    // It waits in the lane for blocked requests until its deadline, and nothing was sent that could still commit.
    let refused = client.post(USAGE, &usage("a", "s", 1)).await.error();
    assert_eq!((refused.0, refused.2.as_str()), (503, NOTHING_CHANGED));
    holder.rollback().await.expect("rollback");
    assert_eq!(client.post(USAGE, &usage("a", "s", 1)).await.json()["total"], 2);
    service.verify().await;
}
