//! HTTP contract, section 6: one execution per key, however often it is sent.

use serde_json::json;

use crate::support::{Answer, Service, new_database, usage};

const USAGE: &str = "/api/v1/usage";
const IP_CALLERS: &[(&str, &str)] = &[("TRUST_PROXY", "1")];

#[tokio::test]
async fn a_replayed_request_returns_the_same_bytes_and_changes_nothing() {
    let service = Service::start(&[]).await;
    let client = service.client().key("k");
    let first = client.post(USAGE, &usage("a", "s", 5)).await;
    assert_eq!((first.status, first.replayed), (201, false));
    assert_eq!(first.text, r#"{"agent":"a","serviceId":"s","total":5}"#);
    // Another order, another spelling, a slash and a query: the same request.
    for (path, body) in [
        (USAGE, r#"{"agent":"a","serviceId":"s","requests":5}"#),
        ("/api/v1/usage/?x=1", r#" {"requests":5.0, "serviceId":"s","agent":"a"}"#),
    ] {
        let again = client.send("POST", path, Some(body)).await;
        assert!(again.same(&first) && again.replayed, "{again:?}");
    }
    assert_eq!(service.number("SELECT outstanding FROM usage_counters").await, 5);
    assert_eq!(service.number("SELECT count(*) FROM events").await, 1);
    service.verify().await;
}

#[tokio::test]
async fn another_body_or_route_under_the_same_key_is_a_conflict() {
    let service = Service::start(&[]).await;
    let client = service.client().key("k");
    client.post(USAGE, &usage("a", "s", 5)).await;
    let message = "Idempotency-Key was already used with a different request body or route".to_owned();
    for (path, body) in [(USAGE, usage("a", "s", 6)), ("/api/v1/settle", usage("a", "s", 5)), (USAGE, json!({}))] {
        let answer = client.post(path, &body).await;
        assert_eq!(answer.error(), (409, "idempotency_conflict".to_owned(), message.clone()));
        assert!(!answer.replayed);
    }
    assert_eq!(service.number("SELECT outstanding FROM usage_counters").await, 5);
    assert!(client.post(USAGE, &usage("a", "s", 5)).await.replayed);
}

#[tokio::test]
async fn an_expired_key_runs_as_new_pruned_or_not() {
    let service = Service::start(&[("IDEMPOTENCY_CACHE_TTL_MS", "1000"), ("JANITOR_INTERVAL_MS", "3600000")]).await;
    let client = service.client().key("k");
    client.post(USAGE, &usage("a", "s", 5)).await;
    assert!(client.post(USAGE, &usage("a", "s", 5)).await.replayed);
    service.clock.advance_ms(1000);
    assert_eq!(client.get("/api/v1/idempotency/k").await.status, 404);
    let executed = client.post(USAGE, &usage("a", "s", 7)).await;
    assert_eq!((executed.text.as_str(), executed.replayed), (r#"{"agent":"a","serviceId":"s","total":12}"#, false));
    assert!(client.post(USAGE, &usage("a", "s", 7)).await.replayed);
    service.age_records(2000).await;
    assert_eq!(service.janitor.run_once().await.expect("janitor").expired, 1);
    assert!(!client.post(USAGE, &usage("a", "s", 7)).await.replayed);
    service.verify().await;
}

#[tokio::test]
async fn an_expired_key_replaced_within_a_transaction_is_counted_once() {
    let service = Service::start(&[("IDEMPOTENCY_CACHE_TTL_MS", "1000"), ("JANITOR_INTERVAL_MS", "3600000")]).await;
    let client = service.client().key("k");
    for price in [1, 2] {
        let body = json!({ "serviceId": "s", "priceStroops": price });
        assert!(!client.post("/api/v1/services", &body).await.replayed);
        service.clock.advance_ms(1000);
    }
    assert_eq!(service.number("SELECT count(*) FROM idempotency_keys").await, 1);
    service.verify().await;
}

#[tokio::test]
async fn without_a_key_every_request_counts() {
    let service = Service::start(&[]).await;
    for client in [service.client(), service.client().key(""), service.client().key("\"\"")] {
        assert!(!client.post(USAGE, &usage("a", "s", 1)).await.replayed);
    }
    assert_eq!(service.number("SELECT outstanding FROM usage_counters").await, 3);
    assert_eq!(service.number("SELECT count(*) FROM idempotency_keys").await, 0);
}

#[tokio::test]
async fn callers_never_share_a_key() {
    let service = Service::start(IP_CALLERS).await;
    let mut clients = vec![
        service.client().with("x-forwarded-for", "192.0.2.1"),
        service.client().with("x-forwarded-for", "192.0.2.2"),
        service.client().with("x-forwarded-for", "2001:db8::1"),
    ];
    for label in ["one", "two"] {
        let made = service.client().post("/api/v1/api-keys", &json!({ "label": label })).await.json();
        clients.push(service.client().with("x-api-key", made["key"].as_str().expect("a key")));
    }
    // A key of the tenant public is no anonymous client.
    let made = service.client().post("/api/v1/api-keys", &json!({ "label": "p", "tenantId": "public" })).await.json();
    clients.push(service.client().with("x-api-key", made["key"].as_str().expect("a key")));
    for client in &clients {
        assert!(!client.key("k").post(USAGE, &usage("a", "s", 1)).await.replayed);
        assert!(client.key("k").post(USAGE, &usage("a", "s", 1)).await.replayed);
    }
    let same_network = service.client().with("x-forwarded-for", "2001:db8::2").key("k");
    assert!(same_network.post(USAGE, &usage("a", "s", 1)).await.replayed);
    assert_eq!(service.number("SELECT count(*) FROM idempotency_keys").await, 6);
    assert_eq!(service.number("SELECT outstanding FROM usage_counters WHERE tenant_id = 'public'").await, 4);
}

#[tokio::test]
async fn a_revoked_key_is_not_recognised() {
    let service = Service::start(&[]).await;
    let made = service.client().post("/api/v1/api-keys", &json!({ "label": "x" })).await.json();
    let key = made["key"].as_str().expect("a key").to_owned();
    let client = service.client().with("x-api-key", &key).key("k");
    client.post(USAGE, &usage("a", "s", 1)).await;
    let revoked = service.client().send("DELETE", &format!("/api/v1/api-keys/{}", &key[..12]), None).await;
    assert_eq!((revoked.status, revoked.text.as_str()), (204, ""));
    assert!(!client.post(USAGE, &usage("a", "s", 1)).await.replayed);
    assert_eq!(service.number("SELECT outstanding FROM usage_counters WHERE tenant_id = 'public'").await, 1);
}

#[tokio::test]
async fn keys_are_quoted_or_raw_and_at_most_255_characters() {
    let service = Service::start(&[]).await;
    let client = service.client();
    client.key("abc").post(USAGE, &usage("a", "s", 1)).await;
    assert!(client.key("\"abc\"").post(USAGE, &usage("a", "s", 1)).await.replayed);
    assert_eq!(client.key(&"k".repeat(255)).post(USAGE, &usage("a", "s", 1)).await.status, 201);
    for bad in [&"k".repeat(256), "\"abc", "a b", "\"abc\";x=1"] {
        let (status, code, message) = client.key(bad).post(USAGE, &usage("a", "s", 1)).await.error();
        assert_eq!((status, code.as_str()), (400, "invalid_idempotency_key"));
        assert_eq!(message, "Idempotency-Key must be 1-255 visible ASCII characters");
    }
    let (status, _, message) = client.key("a").key("b").post(USAGE, &usage("a", "s", 1)).await.error();
    assert_eq!((status, message.as_str()), (400, "Idempotency-Key must be sent once"));
}

#[tokio::test]
async fn an_idempotency_key_is_ignored_where_the_route_honours_none() {
    let service = Service::start(&[]).await;
    let client = service.client().key("a b");
    assert_eq!(client.get("/health").await.status, 200);
    let labels = [json!({ "label": "x" }), json!({ "label": "y" })];
    for label in &labels {
        assert_eq!(client.post("/api/v1/api-keys", label).await.status, 201);
        assert_eq!(service.client().key("same").post("/api/v1/api-keys", label).await.status, 201);
    }
    assert_eq!(service.number("SELECT count(*) FROM api_keys").await, 4);
    assert_eq!(service.number("SELECT count(*) FROM idempotency_keys").await, 0);
}

#[tokio::test]
async fn refusals_400_404_and_service_disabled_are_replayed_and_others_are_not() {
    let service = Service::start(&[]).await;
    let client = service.client();
    client.post("/api/v1/services", &json!({ "serviceId": "off", "priceStroops": 1 })).await;
    client.send("POST", "/api/v1/services/off/disable", None).await;
    for (key, path, body, status) in [
        ("400", USAGE, json!({ "agent": "" }), 400),
        ("404", "/api/v1/services/none/disable", json!({}), 404),
        ("409", USAGE, usage("a", "off", 1), 409),
    ] {
        let first = client.key(key).post(path, &body).await;
        assert_eq!((first.status, first.replayed), (status, false), "{first:?}");
        let again = client.key(key).post(path, &body).await;
        assert!(again.same(&first) && again.replayed, "{again:?}");
        // The body tells of the first request, the header of this one.
        assert_ne!(again.headers["x-request-id"].to_str().ok(), again.json()["requestId"].as_str());
    }
    sqlx::query("UPDATE runtime_config SET usage_store_max_keys = 1").execute(&service.pool).await.expect("limits");
    service.config_watcher.run_once().await.expect("limits");
    client.post(USAGE, &usage("first", "s", 1)).await;
    let full = client.key("429").post(USAGE, &usage("second", "s", 1)).await;
    assert_eq!(full.error().2, "usage store capacity exceeded");
    client.post("/api/v1/settle", &json!({ "agent": "first", "serviceId": "s" })).await;
    let now = client.key("429").post(USAGE, &usage("second", "s", 1)).await;
    assert_eq!((now.status, now.replayed), (201, false));
    service.verify().await;
}

#[tokio::test]
async fn a_key_can_be_looked_up_by_its_caller_only() {
    let service = Service::start(IP_CALLERS).await;
    let client = service.client();
    let answer = client.key("a/b").with("x-request-id", "req 1").post("/api/v1/usage/", &usage("a", "s", 1)).await;
    assert_eq!(answer.headers["x-request-id"], "req 1");
    let found = client.get("/api/v1/idempotency/a%2Fb").await.json();
    let start = r#"{"key":"a/b","method":"POST","path":"/api/v1/usage/","status":201,"createdAt":"#;
    assert!(found.to_string().starts_with(start), "{found}");
    assert_eq!(found["expiresAt"].as_i64(), found["createdAt"].as_i64().map(|ms| ms + 86_400_000));
    assert_eq!(found["requestId"], "req 1");
    for (client, path) in [
        (client.clone(), "/api/v1/idempotency/other"),
        (client.with("x-forwarded-for", "192.0.2.9"), "/api/v1/idempotency/a%2Fb"),
    ] {
        assert_eq!(client.get(path).await.error().2, "no request is recorded under this Idempotency-Key");
    }
    assert_eq!(client.get("/api/v1/idempotency/a%20b").await.error().1, "invalid_idempotency_key");
}

#[tokio::test]
async fn the_key_in_a_path_is_taken_literally() {
    let service = Service::start(&[]).await;
    let client = service.client();
    // In the header, quotes stand around a key, unless a backslash makes them part of it.
    for (header, body) in [(r#""x9""#, usage("a", "s", 1)), (r#""\"y9\"""#, usage("a", "s", 2))] {
        assert_eq!(client.key(header).post(USAGE, &body).await.status, 201);
    }
    for (path, key) in [("x9", Some("x9")), ("%22x9%22", None), ("y9", None), ("%22y9%22", Some("\"y9\""))] {
        let answer = client.get(&format!("/api/v1/idempotency/{path}")).await;
        assert_eq!((answer.status == 200, answer.json()["key"].as_str()), (key.is_some(), key), "{path}: {answer:?}");
    }
}

async fn two_hundred_requests_with_one_key(services: &[Service]) {
    let requests = (0..200).map(|number: usize| {
        let client = services[number % services.len()].client().key("k");
        tokio::spawn(async move { client.post(USAGE, &usage("a", "s", 3)).await })
    });
    let requests: Vec<_> = requests.collect();
    let mut answers: Vec<Answer> = Vec::new();
    for request in requests {
        answers.push(request.await.expect("a request"));
    }
    assert!(answers.iter().all(|answer| answer.same(&answers[0]) && answer.status == 201), "{answers:?}");
    assert_eq!(answers.iter().filter(|answer| answer.replayed).count(), 199);
    assert_eq!(services[0].number("SELECT outstanding + settled + reset FROM usage_counters").await, 3);
    services[0].verify().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_200_concurrent_requests_with_one_key_in_one_process_one_executes() {
    two_hundred_requests_with_one_key(&[Service::start(&[]).await]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_200_concurrent_requests_with_one_key_in_two_services_one_executes() {
    let database = new_database().await;
    let first = Service::start_on(database.clone(), &[]).await;
    two_hundred_requests_with_one_key(&[first, Service::start_on(database, &[]).await]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn different_requests_with_one_key_in_one_batch_conflict_and_equal_ones_replay() {
    let service = Service::start(&[("COMMIT_LANES", "1")]).await;
    let client = service.client();
    let records = [("k", 3), ("k", 3), ("other", 5), ("other", 7)];
    let records = records.map(|(key, requests)| (client.key(key), usage("a", "s", requests)));
    let answers = service.record_together(records.to_vec()).await;
    // They may have come in any order.
    let (equal, different) = answers.split_at(2);
    assert!(equal[0].same(&equal[1]) && equal[0].status == 201, "{equal:?}");
    assert_ne!(equal[0].replayed, equal[1].replayed);
    let mut statuses = [different[0].status, different[1].status];
    statuses.sort_unstable();
    assert_eq!(statuses, [201, 409], "{different:?}");
    let refused = different.iter().find(|answer| answer.status == 409).expect("one of them").error();
    assert_eq!(refused.1, "idempotency_conflict");
    let executed = if different[0].status == 201 { 5 } else { 7 };
    assert_eq!(
        service.number("SELECT outstanding + settled + reset FROM usage_counters WHERE agent_id = 'a'").await,
        3 + executed
    );
    service.verify().await;
}

#[tokio::test]
async fn the_stored_size_of_a_refused_request_does_not_depend_on_what_was_sent() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let long = "x".repeat(90_000);
    let field = client.key("field").post("/api/v1/usage/bulk", &json!({ long.as_str(): 1 })).await;
    assert_eq!(field.error().2, format!("unexpected field: {}…", "x".repeat(64)));
    let again = client.key("field").post("/api/v1/usage/bulk", &json!({ long.as_str(): 1 })).await;
    assert!(again.replayed && again.same(&field), "{again:?}");
    // So is a path, which belongs to no valid request.
    let path = format!("/api/v1/services/{}/disable", "x".repeat(20_000));
    let refused = client.key("path").post(&path, &json!({})).await;
    assert_eq!(refused.status, 400, "{refused:?}");
    assert!(client.key("path").post(&path, &json!({})).await.replayed);
    assert!(service.number("SELECT max(octet_length(response::text))::bigint FROM idempotency_keys").await < 300);
    assert_eq!(service.number("SELECT max(octet_length(path))::bigint FROM idempotency_keys").await, 1024);
}
