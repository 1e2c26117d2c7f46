//! HTTP contract, section 5.3: what each field, cursor, id and cap is refused with, word for word.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::invalid;
use crate::support::{Answer, Client, Service, usage, wait_until};

const USAGE: &str = "/api/v1/usage";
const BULK: &str = "/api/v1/usage/bulk";
const SERVICES: &str = "/api/v1/services";
const KEYS: &str = "/api/v1/api-keys";

const AGENT: &str = "agent must be a safe identifier";
const SERVICE: &str = "serviceId must be 1-128 chars using only letters, numbers, dot, underscore, or hyphen";
const PAIR: &str = "agent and serviceId must be safe identifiers";
const REQUESTS: &str = "requests must be a positive integer";
const PRICE: &str = "priceStroops must be a non-negative integer within supported bounds";
const DESCRIPTION: &str = "description must be a string up to 256 chars";
const OWNER: &str = "owner must be a non-empty string up to 256 chars";
const LABEL: &str = "label must be a non-empty string up to 64 chars";
const TENANT: &str = "tenantId must be a string of 1-64 chars";

/// Every value that is no id of at most `length_max` characters.
fn bad_ids(length_max: usize) -> Vec<Value> {
    let texts = ["", " ", "a b", "a/b", "é", "a\n", "a:b", "a\u{200b}", ".", ".."].map(Value::from);
    let others = [json!(1), json!(true), json!(null), json!(["a"]), json!({}), json!("x".repeat(length_max + 1))];
    texts.into_iter().chain(others).collect()
}

#[tokio::test]
async fn usage_and_settle_check_their_members_in_order() {
    let service = Service::start(&[]).await;
    let client = service.client();
    for (path, agent, other) in [(USAGE, AGENT, SERVICE), ("/api/v1/settle", PAIR, PAIR)] {
        for id in bad_ids(256) {
            let answer = client.post(path, &json!({ "agent": id, "serviceId": id, "requests": 0 })).await;
            assert_eq!(answer.error(), invalid(agent), "{path} {id}");
        }
        for id in bad_ids(128) {
            let answer = client.post(path, &json!({ "agent": "a", "serviceId": id, "requests": 0 })).await;
            assert_eq!(answer.error(), invalid(other), "{path} {id}");
        }
    }
    for id in bad_ids(256) {
        assert_eq!(client.post("/api/v1/settle/bulk", &json!({ "agent": id })).await.error(), invalid(AGENT), "{id}");
    }
    for requests in ["0", "-1", "1.5", "1000001", "1e300", "\"3\"", "true", "null", "[1]", "{}"] {
        let body = format!(r#"{{"agent":"a","serviceId":"s","requests":{requests}}}"#);
        assert_eq!(client.send("POST", USAGE, Some(&body)).await.error(), invalid(REQUESTS), "{requests}");
    }
    assert_eq!(client.post(USAGE, &json!({ "agent": "a", "serviceId": "s" })).await.error(), invalid(REQUESTS));
    // The longest ids that are accepted, and unknown members.
    let longest = json!({ "agent": "A".repeat(256), "serviceId": "._-".repeat(42), "requests": 1e6, "x": null });
    assert_eq!(client.post(USAGE, &longest).await.status, 201);
    assert_eq!(service.number("SELECT count(*) FROM usage_counters").await, 1);
}

#[tokio::test]
async fn a_bulk_body_is_strict_and_holds_one_to_bulk_max_items_items() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let items = |count: usize| json!({ "items": vec![usage("a", "s", 1); count] });
    let message = "items must be a non-empty array of up to 100 entries";
    let lists = [json!([]), json!(null), json!({}), json!("x"), json!(1), items(101)["items"].clone()];
    for list in lists.into_iter().map(|items| json!({ "items": items })).chain([json!({})]) {
        assert_eq!(client.post(BULK, &list).await.error(), invalid(message), "{list}");
    }
    assert_eq!(client.post(BULK, &json!([1])).await.error(), invalid("body must be a JSON object"));
    let unknown = json!({ "y": 1, "items": [], "x": 1 });
    assert_eq!(client.post(BULK, &unknown).await.error(), invalid("unexpected field: y"));
    assert_eq!(client.post(BULK, &items(100)).await.status, 201);
    set_limit(&service, "bulk_max_items", 2).await;
    let message = "items must be a non-empty array of up to 2 entries";
    assert_eq!(client.post(BULK, &items(3)).await.error(), invalid(message));
    assert_eq!(client.post(BULK, &items(2)).await.status, 201);
}

#[tokio::test]
async fn a_registration_is_strict_and_checks_its_members_in_order() {
    let service = Service::start(&[]).await;
    let client = service.client();
    assert_eq!(client.post(SERVICES, &json!([])).await.error(), invalid("body must be a JSON object"));
    let unknown = json!({ "priceStroops": -1, "disabled": true });
    assert_eq!(client.post(SERVICES, &unknown).await.error(), invalid("unexpected field: disabled"));
    for id in bad_ids(128) {
        let answer = client.post(SERVICES, &json!({ "serviceId": id, "priceStroops": -1 })).await;
        assert_eq!(answer.error(), invalid(SERVICE), "{id}");
    }
    for price in ["-1", "0.5", "9007199255", "1e17", "\"1\"", "null", "true"] {
        let body = format!(r#"{{"serviceId":"s","priceStroops":{price},"owner":1}}"#);
        assert_eq!(client.send("POST", SERVICES, Some(&body)).await.error(), invalid(PRICE), "{price}");
    }
    let long = "x".repeat(257);
    // Two UTF-16 code units each: 256 are 128 of these.
    let wide = "😀".repeat(128);
    for (description, owner, message) in [
        (json!(null), json!("o"), DESCRIPTION),
        (json!(1), json!("o"), DESCRIPTION),
        (json!(long), json!(""), DESCRIPTION),
        (json!(format!("{wide}x")), json!("o"), DESCRIPTION),
        (json!(""), json!(null), OWNER),
        (json!(""), json!(""), OWNER),
        (json!(""), json!(long), OWNER),
    ] {
        let body = json!({ "serviceId": "s", "priceStroops": 1, "description": description, "owner": owner });
        assert_eq!(client.post(SERVICES, &body).await.error(), invalid(message), "{body}");
    }
    assert_eq!(service.number("SELECT count(*) FROM services").await, 0);
    let body = json!({ "serviceId": "s", "priceStroops": 9_007_199_254_i64, "description": wide, "owner": wide });
    let made = client.post(SERVICES, &body).await;
    assert_eq!((made.status, made.json()), (201, body));
    assert_eq!(client.post(SERVICES, &json!({ "serviceId": "s", "priceStroops": -0.0 })).await.status, 200);
}

#[tokio::test]
async fn ids_in_paths_are_checked_before_anything_else_and_things_that_are_not_there_are_named() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let refusal = |method: &'static str, path: String| {
        let client = client.clone();
        async move { client.send(method, &path, None).await.error() }
    };
    let not_found = |message: &str| (404, "not_found".to_owned(), message.to_owned());
    let long = "x".repeat(129);
    for id in ["a%20b", "%C3%A9", "a%2Fb", &long] {
        for (method, path) in [("GET", ""), ("POST", "/disable"), ("POST", "/enable")]
            .map(|(m, end)| (m, format!("{SERVICES}/{id}{end}")))
        {
            assert_eq!(refusal(method, path.clone()).await, invalid(SERVICE), "{method} {path}");
        }
        for path in [format!("{USAGE}/a/{id}"), format!("/api/v1/billing/a/{id}"), format!("{USAGE}/a%40b/s")] {
            assert_eq!(refusal("GET", path.clone()).await, invalid(PAIR), "{path}");
        }
    }
    for (method, path) in [("GET", ""), ("POST", "/disable"), ("POST", "/enable")] {
        let path = format!("{SERVICES}/none{path}");
        assert_eq!(refusal(method, path).await, not_found("service none is not registered"));
    }
    assert_eq!(refusal("GET", "/api/v1/billing/a/none".to_owned()).await, not_found("service none is not registered"));
    assert_eq!(refusal("GET", "/api/v1/settlements/stl%20x".to_owned()).await, not_found("settlement stl x not found"));
    let prefix = "prefix must be 1-64 alphanumeric/underscore characters";
    for bad in ["a-b", "a%20b", "%C3%A9", &"x".repeat(65)] {
        assert_eq!(refusal("DELETE", format!("{KEYS}/{bad}")).await, invalid(prefix), "{bad}");
    }
    let longest = "x".repeat(64);
    let message = format!("no api key with prefix {longest}");
    assert_eq!(refusal("DELETE", format!("{KEYS}/{longest}")).await, not_found(&message));
    let syntax = "Idempotency-Key must be 1-255 visible ASCII characters";
    for key in ["a%20b", "%C3%A9", "%7F", "%09", &"k".repeat(256)] {
        let expected = (400, "invalid_idempotency_key".to_owned(), syntax.to_owned());
        assert_eq!(refusal("GET", format!("/api/v1/idempotency/{key}")).await, expected, "{key}");
    }
    for key in ["abc", "%22abc%22", "%22abc", "%22%22", "%22a%22;x=1", &"k".repeat(255)] {
        let message = "no request is recorded under this Idempotency-Key";
        assert_eq!(refusal("GET", format!("/api/v1/idempotency/{key}")).await, not_found(message), "{key}");
    }
}

#[tokio::test]
async fn making_an_api_key_is_strict_and_checks_its_members_in_order() {
    let service = Service::start(&[]).await;
    let client = service.client();
    assert_eq!(client.post(KEYS, &json!([])).await.error(), invalid("body must be a JSON object"));
    assert_eq!(client.post(KEYS, &json!({ "name": 1 })).await.error(), invalid("unexpected field: name"));
    let long = "x".repeat(65);
    for label in [json!(null), json!(1), json!(""), json!("  "), json!(long)] {
        let answer = client.post(KEYS, &json!({ "label": label, "tenantId": 1 })).await;
        assert_eq!(answer.error(), invalid(LABEL), "{label}");
    }
    assert_eq!(client.post(KEYS, &json!({})).await.error(), invalid(LABEL));
    for tenant in [json!(null), json!(1), json!(""), json!(long)] {
        let answer = client.post(KEYS, &json!({ "label": "x", "tenantId": tenant })).await;
        assert_eq!(answer.error(), invalid(TENANT), "{tenant}");
    }
    let unknown = client.post(KEYS, &json!({ "label": "x", "tenantId": "tnt_none" })).await.error();
    assert_eq!(unknown, (404, "not_found".to_owned(), "no tenant with id tnt_none".to_owned()));
    // An unknown tenant is said before a full store.
    set_limit(&service, "api_key_store_max_keys", 1).await;
    assert_eq!(client.post(KEYS, &json!({ "label": " x " })).await.json()["label"], " x ");
    assert_eq!(client.post(KEYS, &json!({ "label": "x", "tenantId": "tnt_none" })).await.status, 404);
    let full = client.post(KEYS, &json!({ "label": "x" })).await;
    assert_full(&full, "api key store capacity exceeded");
    assert_eq!(service.number_at_home("SELECT count(*) FROM tenants").await, 2);
}

#[tokio::test]
async fn malformed_cursors_are_refused() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let mut cursors: Vec<String> = ["", "!!", "a", "a b", "cA==", "%2B%2F", "_w"].map(str::to_owned).into();
    for text in ["x", ":", "1", "1:", ":1", "-1:1", "1.5:1", " 1:1", "1:\0", "99999999999999999999:1"] {
        cursors.push(encode(text));
    }
    for path in ["/api/v1/settlements", KEYS] {
        for cursor in &cursors {
            let answer = client.get(&format!("{path}?cursor={cursor}")).await;
            assert_eq!(answer.error(), invalid("cursor is malformed"), "{path} {cursor}");
        }
        // Positions beyond everything are positions; a cursor sent twice is none.
        for fine in [encode("9223372036854775807:1"), encode("0:0"), "!!&cursor=!!".to_owned()] {
            assert_eq!(client.get(&format!("{path}?cursor={fine}")).await.status, 200, "{path} {fine}");
        }
    }
    let settlements = encode("1:x");
    assert_eq!(client.get(&format!("/api/v1/settlements?cursor={settlements}")).await.status, 400);
}

#[tokio::test]
async fn filters_of_the_ledger_are_checked_and_its_numbers_are_clamped() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let list = |query: &'static str| {
        let client = client.clone();
        async move { client.get(&format!("/api/v1/settlements?{query}")).await }
    };
    assert_eq!(list("agent=a%20b").await.error(), invalid(AGENT));
    assert_eq!(list("serviceId=a%20b").await.error(), invalid(SERVICE));
    for query in
        ["agent=", "serviceId=", "agent=a%20b&agent=x", "limit=0", "limit=abc&since=-5", "since=9e15", "since=1e999"]
    {
        assert_eq!(list(query).await.text, r#"{"items":[],"nextCursor":null}"#, "{query}");
    }
}

#[tokio::test]
async fn a_full_store_says_which_and_when_to_stop() {
    let service = Service::start(&[]).await;
    let client = service.client();
    set_limit(&service, "usage_store_max_keys", 1).await;
    client.post(USAGE, &usage("a", "s", 1)).await;
    assert_full(&client.post(USAGE, &usage("b", "s", 1)).await, "usage store capacity exceeded");
    assert_eq!(client.post(USAGE, &usage("a", "s", 1)).await.status, 201);
    let items = json!({ "items": [usage("a", "s", 1), usage("b", "s", 1)] });
    let bulk = client.post(BULK, &items).await.json();
    assert_eq!(bulk["results"][0], json!({ "index": 0, "ok": true, "total": 3 }));
    assert_eq!(bulk["results"][1], json!({ "index": 1, "ok": false, "error": "store_capacity_exceeded" }));
    set_limit(&service, "services_store_max_keys", 1).await;
    let register = |id: &str| json!({ "serviceId": id, "priceStroops": 1 });
    assert_eq!(client.post(SERVICES, &register("s")).await.status, 201);
    assert_full(&client.post(SERVICES, &register("t")).await, "service store capacity exceeded");
    assert_eq!(client.post(SERVICES, &register("s")).await.status, 200);
    // Another tenant has its own capacity.
    let key = client.post(KEYS, &json!({ "label": "x" })).await.json()["key"].as_str().expect("a key").to_owned();
    assert_eq!(client.with("x-api-key", &key).post(SERVICES, &register("t")).await.status, 201);
    assert_eq!(client.with("x-api-key", &key).post(USAGE, &usage("b", "s", 1)).await.status, 201);
}

#[tokio::test]
async fn usage_of_a_disabled_service_is_refused_by_its_name() {
    let service = Service::start(&[]).await;
    let client = service.client();
    client.post(SERVICES, &json!({ "serviceId": "off", "priceStroops": 1 })).await;
    client.send("POST", "/api/v1/services/off/disable", None).await;
    let refused = client.post(USAGE, &usage("a", "off", 1)).await.error();
    assert_eq!(refused, (409, "service_disabled".to_owned(), "service off is currently disabled".to_owned()));
    client.send("POST", "/api/v1/services/off/enable", None).await;
    assert_eq!(client.post(USAGE, &usage("a", "off", 1)).await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_is_503_with_retry_after_and_changes_nothing() {
    let environment = [("COMMIT_QUEUE_MAX", "1"), ("COMMIT_LANES", "1"), ("COMMIT_BATCH_MAX", "1")];
    let service = Service::start(&environment).await;
    service.client().post(USAGE, &usage("a", "s", 1)).await;
    let mut holder = service.pool.begin().await.expect("transaction");
    sqlx::query("SELECT 1 FROM usage_counters FOR UPDATE").execute(&mut *holder).await.expect("lock");
    let requests: Vec<_> = (0..30).map(|_| send_usage(service.client())).collect();
    wait_until(async || requests.iter().any(tokio::task::JoinHandle::is_finished)).await;
    holder.rollback().await.expect("rollback");
    let mut counts = BTreeMap::new();
    for request in requests {
        let answer = request.await.expect("a client");
        *counts.entry(answer.status).or_insert(0_i64) += 1;
        if answer.status != 201 {
            let message = "the write queue is full; nothing was changed".to_owned();
            assert_eq!(answer.error(), (503, "service_unavailable".to_owned(), message));
            assert_eq!(answer.headers["retry-after"], "1");
        }
    }
    assert!(counts[&503] > 0, "{counts:?}");
    let recorded = counts.get(&201).copied().unwrap_or(0) + 1;
    assert_eq!(service.number("SELECT outstanding + settled + reset FROM usage_counters").await, recorded);
    service.verify().await;
}

fn send_usage(client: Client) -> tokio::task::JoinHandle<Answer> {
    tokio::spawn(async move { client.post(USAGE, &usage("a", "s", 1)).await })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_is_in_flight_until_the_deadline_is_409_with_retry_after() {
    let service = Service::start(&[("REQUEST_TIMEOUT_MS", "3000")]).await;
    service.client().post(USAGE, &usage("a", "s", 1)).await;
    let mut holder = service.pool.begin().await.expect("transaction");
    sqlx::query("SELECT 1 FROM usage_counters FOR UPDATE").execute(&mut *holder).await.expect("lock");
    let (first, second) = (send_usage(service.client().key("k")), send_usage(service.client().key("k")));
    let mut answers = [first.await.expect("a client"), second.await.expect("a client")].map(|answer| {
        assert_eq!(answer.headers["retry-after"], "1");
        answer.error()
    });
    answers.sort();
    let in_flight = "a request with this Idempotency-Key is still being processed";
    let unchanged = "the store is unavailable; nothing was changed";
    assert_eq!(answers[0], (409, "idempotency_in_flight".to_owned(), in_flight.to_owned()));
    assert_eq!(answers[1], (503, "service_unavailable".to_owned(), unchanged.to_owned()));
    holder.rollback().await.expect("rollback");
    let done = service.client().key("k").post(USAGE, &usage("a", "s", 1)).await;
    assert_eq!((done.status, done.text.as_str()), (201, r#"{"agent":"a","serviceId":"s","total":2}"#));
}

#[tokio::test]
async fn a_read_that_is_not_done_by_the_deadline_is_503() {
    let service = Service::start(&[("REQUEST_TIMEOUT_MS", "300")]).await;
    let mut holder = service.pool.begin().await.expect("transaction");
    sqlx::query("LOCK TABLE usage_counters, api_keys").execute(&mut *holder).await.expect("lock");
    // The tenant of the second cannot be read either.
    for client in [service.client(), service.client().with("x-api-key", "apk_unknown")] {
        let answer = client.get("/api/v1/usage/a/s").await;
        let message = "the store is unavailable; nothing was changed".to_owned();
        assert_eq!(answer.error(), (503, "service_unavailable".to_owned(), message));
        assert_eq!(answer.headers["retry-after"], "1");
    }
}

/// A store stays full until a caller frees capacity, so there is no Retry-After.
fn assert_full(answer: &Answer, message: &str) {
    assert_eq!(answer.error(), (429, "store_capacity_exceeded".to_owned(), message.to_owned()));
    assert!(!answer.headers.contains_key("retry-after"));
}

/// Changes one limit in the database and in this service.
async fn set_limit(service: &Service, name: &'static str, value: i64) {
    let update = sqlx::AssertSqlSafe(format!("UPDATE runtime_config SET {name} = {value}"));
    sqlx::query(update).execute(&service.pool).await.expect("limits");
    service.config_watcher.run_once().await.expect("limits");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_without_a_key_that_waits_for_a_lock_until_its_deadline_changed_nothing() {
    let service = Service::start(&[("REQUEST_TIMEOUT_MS", "3000")]).await;
    let mut holder = service.pool.begin().await.expect("transaction");
    let insert = "INSERT INTO agents (tenant_id, agent_id) VALUES ('public', 'a')";
    sqlx::query(insert).execute(&mut *holder).await.expect("an agent that is not committed");
    let error = service.client().post("/api/v1/usage", &usage("a", "s", 1)).await.error();
    let message = "the store is unavailable; nothing was changed";
    assert_eq!(error, (503, "service_unavailable".to_owned(), message.to_owned()));
    holder.rollback().await.expect("rollback");
    assert_eq!(service.number("SELECT count(*) FROM usage_counters").await, 0);
}
