//! HTTP contract, section 2.2: a request that several steps would refuse is refused by the first of them.

use serde_json::json;

use super::rate_limit::ON;
use crate::support::{Client, Service, usage};

const USAGE: &str = "/api/v1/usage";

#[tokio::test]
async fn access_comes_before_the_body_the_query_and_the_idempotency_key() {
    let service = Service::start(&[("REQUIRE_API_KEY", "true"), ("ADMIN_API_KEY", "root")]).await;
    let anyone = service.client();
    let admin = anyone.with("x-api-key", "root");
    let made = admin.post("/api/v1/api-keys", &json!({ "label": "x" })).await.json();
    let tenant = anyone.with("x-api-key", made["key"].as_str().expect("a key"));
    let text = |client: &Client| client.with("content-type", "text/plain");
    let key = |client: &Client| client.key("a b");
    let full = format!("{USAGE}?x=%00");
    let code = |client: Client, path: &'static str, body: &'static str| async move {
        let (status, code, _) = client.send("POST", path, Some(body)).await.error();
        (status, code)
    };
    // 401 before an escape, a media type, a body, a query and a key.
    assert_eq!(code(key(&text(&anyone)), USAGE, "{").await, (401, "unauthorized".to_owned()));
    let (status, _, message) = key(&text(&tenant)).send("POST", &full, Some("{")).await.error();
    assert_eq!((status, message.starts_with("write requests")), (415, true));
    let (_, _, message) = key(&tenant).send("POST", &full, Some("{")).await.error();
    assert_eq!(message, "Malformed JSON in request body");
    let (_, _, message) = key(&tenant).send("POST", &full, Some("{}")).await.error();
    assert_eq!(message, "text must not contain U+0000");
    assert_eq!(code(key(&tenant), USAGE, "{}").await, (400, "invalid_idempotency_key".to_owned()));
    assert_eq!(code(tenant.clone(), USAGE, "{}").await, (400, "invalid_request".to_owned()));
    // An unknown path and another method ask for no key.
    assert_eq!(anyone.send("POST", "/api/v1/nowhere", Some("{")).await.status, 404);
    assert_eq!(anyone.send("PUT", USAGE, Some("{")).await.status, 405);
    // A key sent twice is never recognised, not even the operator's.
    assert_eq!(tenant.with("x-api-key", "root").post(USAGE, &usage("a", "s", 1)).await.status, 401);
    assert_eq!(admin.with("x-api-key", "root").get("/api/v1/api-keys").await.status, 401);
    assert!(!anyone.send("POST", USAGE, None).await.headers.contains_key("www-authenticate"));
}

/// HTTP contract, section 2.2: each request has every fault from its step on; the first step wins.
#[tokio::test]
async fn access_the_pause_and_the_rate_limit_come_before_the_path_and_the_body() {
    let environment = [ON, &[("REQUIRE_API_KEY", "true"), ("ADMIN_API_KEY", "admin")]].concat();
    let service = Service::start(&environment).await;
    let operator = service.client().with("x-api-key", "admin").with("x-forwarded-for", "192.0.2.9");
    let created = operator.post("/api/v1/api-keys", &json!({ "label": "l" })).await.json();
    let nobody = service.client();
    let tenant = service.client().with("x-api-key", created["key"].as_str().expect("a key"));
    let odd = |client: &Client| client.with("content-type", "text/plain").key("a b").with("content-encoding", "zip");
    let code = async |client: &Client, method, path| odd(client).send(method, path, Some("{")).await.error().1;

    // Body, then key.
    assert_eq!(code(&tenant, "POST", "/api/v1/usage").await, "unsupported_media_type");
    let plain = tenant.key("a b").with("content-type", "application/json");
    assert_eq!(plain.send("POST", "/api/v1/usage", Some("{")).await.error().2, "Malformed JSON in request body");
    assert_eq!(plain.send("POST", "/api/v1/usage", Some("{}")).await.error().1, "invalid_idempotency_key");
    // The limiter before the match's outcome, and before bodies.
    operator.send("PATCH", "/api/v1/config", Some(r#"{"rateLimitPerWindow":1}"#)).await;
    nobody.get("/api/v1/version").await;
    for client in [&tenant, &nobody] {
        for (method, path) in [("POST", "/api/v1/nothing"), ("PUT", "/api/v1/usage"), ("GET", "/api/v1/usage/%zz/s")] {
            assert_eq!(code(client, method, path).await, "rate_limited", "{method} {path}");
        }
    }
    assert_eq!(code(&tenant, "POST", "/api/v1/usage").await, "rate_limited");
    // The pause before the limiter, on matched rows only.
    operator.send("POST", "/api/v1/admin/pause", None).await;
    assert_eq!(code(&tenant, "POST", "/api/v1/usage").await, "service_paused");
    assert_eq!(code(&tenant, "POST", "/api/v1/nothing").await, "rate_limited");
    // Authorisation before the pause; never on an unknown path.
    let fresh = service.client().with("x-forwarded-for", "192.0.2.77");
    assert_eq!(code(&fresh, "POST", "/api/v1/usage").await, "unauthorized");
    operator.send("PATCH", "/api/v1/config", Some(r#"{"rateLimitPerWindow":9}"#)).await;
    assert_eq!(code(&fresh, "POST", "/api/v1/nothing").await, "not_found");
    assert_eq!(code(&fresh, "PUT", "/api/v1/usage").await, "method_not_allowed");
    assert_eq!(fresh.get("/api/v1/usage/%zz/s").await.error().2, "request path has an invalid percent-escape");
}
