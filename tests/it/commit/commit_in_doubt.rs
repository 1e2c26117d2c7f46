//! Commits whose answer is lost, at an exact moment, by a proxy before PostgreSQL: a write that landed is answered with
//! its result, one that did not is executed again, and where this cannot be decided the client is told so.

use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::support::{
    Answer, Client, Moment, Process, Proxy, Service, new_database, pool, url, usage, verify, wait_until,
};

const USAGE: &str = "/api/v1/usage";
const UNKNOWN: &str =
    "the outcome of this write is unknown; repeat it with the same Idempotency-Key, or check before repeating it";

/// A service behind a proxy; its own pool goes straight to the database.
async fn behind_proxy(environment: &[(&str, &str)]) -> (Service, Proxy) {
    let database = new_database().await;
    let proxy = Proxy::start(&database).await;
    let mut service = Service::start_on(proxy.options(), environment).await;
    service.pool = pool(&database);
    // What the lanes do first is done: the next commit is the one a test means.
    let warm = service.client().post(USAGE, &usage("warm", "s", 1)).await;
    assert_eq!(warm.status, 201);
    (service, proxy)
}

async fn requests_of(service: &Service, agent: &'static str) -> i64 {
    let sql = "SELECT coalesce(sum(outstanding + settled + reset), 0)::bigint FROM usage_counters WHERE agent_id = $1";
    sqlx::query_scalar(sql).bind(agent).fetch_one(&service.pool).await.expect("a sum")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyed_write_in_doubt_is_answered_with_its_result() {
    let (service, proxy) = behind_proxy(&[]).await;
    for moment in [Moment::AfterCommit, Moment::BeforeCommit] {
        proxy.at_next_commit(moment);
        let client = service.client().key(&format!("{moment:?}"));
        let answer = client.post(USAGE, &usage("a", "s", 1)).await;
        let total = requests_of(&service, "a").await;
        assert_eq!(answer.text, format!(r#"{{"agent":"a","serviceId":"s","total":{total}}}"#), "{moment:?}");
        assert_eq!((answer.status, answer.replayed), (201, false), "{moment:?}");
        assert!(client.post(USAGE, &usage("a", "s", 1)).await.replayed);
    }
    assert_eq!((requests_of(&service, "a").await, proxy.moments()), (2, 2));
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settlement_whose_commit_is_in_doubt_exists_once() {
    let (service, proxy) = behind_proxy(&[]).await;
    let client = service.client();
    client.post("/api/v1/services", &json!({ "serviceId": "s", "priceStroops": 7 })).await;
    for (moment, number) in [(Moment::AfterCommit, 1), (Moment::BeforeCommit, 2)] {
        client.post(USAGE, &usage("a", "s", 5)).await;
        proxy.at_next_commit(moment);
        let settled =
            client.key(&format!("{moment:?}")).post("/api/v1/settle", &json!({"agent":"a","serviceId":"s"})).await;
        let expected = r#"{"agent":"a","serviceId":"s","requests":5,"priceStroops":7,"billedStroops":35}"#;
        assert_eq!((settled.status, settled.text.as_str()), (200, expected), "{moment:?}");
        assert_eq!(service.number("SELECT count(*) FROM settlements").await, number);
    }
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unkeyed_write_in_doubt_is_answered_that_its_outcome_is_unknown() {
    let (service, proxy) = behind_proxy(&[]).await;
    for (moment, total) in [(Moment::AfterCommit, 1), (Moment::BeforeCommit, 1)] {
        proxy.at_next_commit(moment);
        let answer = service.client().post(USAGE, &usage("a", "s", 1)).await;
        assert_eq!(answer.error(), (503, "service_unavailable".to_owned(), UNKNOWN.to_owned()), "{moment:?}");
        assert_eq!(answer.headers["retry-after"], "1");
        assert_eq!(requests_of(&service, "a").await, total, "{moment:?}");
    }
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_cannot_be_settled_by_the_deadline_is_unknown_until_it_can() {
    let (service, proxy) = behind_proxy(&[("REQUEST_TIMEOUT_MS", "3000")]).await;
    proxy.at_next_commit_and_close(Moment::AfterCommit);
    let client = service.client().key("k");
    let answer = client.post(USAGE, &usage("a", "s", 1)).await;
    assert_eq!(answer.error(), (503, "service_unavailable".to_owned(), UNKNOWN.to_owned()));
    proxy.open();
    let again = service.beside().await.client().key("k").post(USAGE, &usage("a", "s", 1)).await;
    assert_eq!((again.status, again.replayed, requests_of(&service, "a").await), (201, true, 1));
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_to_a_commit_that_never_comes_is_given_up_at_the_deadline() {
    let (service, proxy) = behind_proxy(&[("REQUEST_TIMEOUT_MS", "3000")]).await;
    proxy.at_next_commit(Moment::AfterCommitSilent);
    let client = service.client().key("k");
    let answer = client.post(USAGE, &usage("a", "s", 1)).await;
    assert_eq!(answer.error(), (503, "service_unavailable".to_owned(), UNKNOWN.to_owned()));
    let again = service.beside().await.client().key("k").post(USAGE, &usage("a", "s", 1)).await;
    assert_eq!((again.status, again.replayed, requests_of(&service, "a").await), (201, true, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_of_an_interrupted_batch_is_answered_once() {
    let (service, proxy) = behind_proxy(&[("COMMIT_LANES", "1")]).await;
    for (moment, agent) in [(Moment::AfterCommit, "landed"), (Moment::BeforeCommit, "lost")] {
        proxy.at_next_commit(moment);
        let tasks: Vec<_> = (0..40)
            .map(|number| {
                let client = service.client().key(&format!("{agent}-{number}"));
                tokio::spawn(async move { client.post(USAGE, &usage(agent, "s", 1)).await })
            })
            .collect();
        let mut totals = Vec::new();
        for task in tasks {
            let answer: Answer = task.await.expect("a client");
            assert_eq!((answer.status, answer.replayed), (201, false), "{answer:?}");
            totals.push(answer.json()["total"].as_i64().expect("a total"));
        }
        // Each one saw a total of its own: none was answered with another's.
        totals.sort_unstable();
        assert_eq!(totals, (1..=40).collect::<Vec<_>>());
    }
    service.verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_killed_between_commit_and_answer_has_counted_once() {
    let database = new_database().await;
    let proxy = Proxy::start(&database).await;
    let process = Process::start(&proxy.options(), 0);
    let port = process.address.port();
    process.client().post(USAGE, &usage("warm", "s", 1)).await;
    proxy.at_next_commit(Moment::AfterCommitSilent);
    let client = process.client().key("k");
    let body = usage("a", "s", 1).to_string().into_bytes();
    let unanswered = tokio::spawn(async move { client.try_send("POST", USAGE, Some(body)).await });
    proxy.happened().await;
    drop(process);
    unanswered.await.expect("a client").expect_err("no process is left to answer");
    let pool = pool(&database);
    let stored: String = sqlx::query_scalar("SELECT response::text FROM idempotency_keys WHERE key = 'k'")
        .fetch_one(&pool)
        .await
        .expect("the commit landed");
    let process = Process::start_with(&[("DATABASE_URL", &url(&proxy.options()))], port);
    let again = process.client().key("k").post(USAGE, &usage("a", "s", 1)).await;
    assert_eq!((again.status, again.replayed, &again.text), (201, true, &stored));
    verify(&pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_after_sending_has_counted_once() {
    for head in ["Idempotency-Key: k\r\n", ""] {
        let service = Service::start(&[]).await;
        let client = service.client();
        client.post(USAGE, &usage("a", "s", 1)).await;
        // A locked row keeps the write from committing until the client is gone.
        let mut holder = service.pool.begin().await.expect("transaction");
        sqlx::query("SELECT 1 FROM usage_counters FOR UPDATE").execute(&mut *holder).await.expect("lock");
        let body = usage("a", "s", 10).to_string();
        let mut socket = tokio::net::TcpStream::connect(service.address).await.expect("connect");
        let request = format!(
            "POST {USAGE} HTTP/1.1\r\nHost: localhost\r\n{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        socket.write_all(request.as_bytes()).await.expect("send");
        service.blocked(1).await;
        drop(socket);
        // The service has seen it go: its next request on a new connection comes after that.
        assert_eq!(client.get("/health").await.status, 200);
        holder.rollback().await.expect("rollback");
        let counted = "SELECT outstanding + settled + reset FROM usage_counters";
        wait_until(async || service.number(counted).await == 11).await;
        if !head.is_empty() {
            let again = client.key("k").post(USAGE, &usage("a", "s", 10)).await;
            assert_eq!((again.status, again.replayed, service.number(counted).await), (201, true, 11));
        }
        service.verify().await;
    }
}

/// So that the other tests mean something: without interruption the proxy is a wire.
#[tokio::test(flavor = "multi_thread")]
async fn the_proxy_without_an_interruption_changes_nothing() {
    let (service, proxy) = behind_proxy(&[]).await;
    let client: Client = service.client().key("k");
    assert_eq!(client.post(USAGE, &usage("a", "s", 1)).await.status, 201);
    assert!(client.post(USAGE, &usage("a", "s", 1)).await.replayed);
    assert_eq!(proxy.moments(), 0);
}
