//! HTTP contract, section 8: what counts against the quota, and the headers that show it.

use std::time::Instant;

use serde_json::json;

use crate::support::{Answer, Client, Service, usage};

pub const ON: &[(&str, &str)] = &[("RATE_LIMIT", "on"), ("TRUST_PROXY", "1")];
const PATH: &str = "/api/v1/services";

/// Limit, remaining and reset, equal under both names.
fn rate_limit_status(answer: &Answer) -> [String; 3] {
    ["limit", "remaining", "reset"].map(|name| {
        let value = answer.header(&format!("ratelimit-{name}"));
        assert_eq!(value, answer.header(&format!("x-ratelimit-{name}")), "{name}");
        value
    })
}

fn is_uncounted(answer: &Answer) -> bool {
    rate_limit_status(answer) == [""; 3]
}

async fn set(client: &Client, config: &str) {
    let answer = client.send("PATCH", "/api/v1/config", Some(config)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test]
async fn sixty_requests_a_minute_and_the_next_waits() {
    let service = Service::start(ON).await;
    let client = service.client().with("x-forwarded-for", "192.0.2.1");
    let began = Instant::now();
    for number in 1..=60 {
        let answer = client.get(PATH).await;
        assert_eq!(answer.status, 200);
        let [limit, remaining, reset] = rate_limit_status(&answer);
        assert_eq!((limit.as_str(), remaining), ("60", (60 - number).to_string()));
        // The oldest request grows older while the test runs.
        let reset: u64 = reset.parse().expect("a number");
        assert!((59_u64.saturating_sub(began.elapsed().as_secs())..=60).contains(&reset), "{reset}");
        assert!(number > 1 || reset == 60, "{reset}");
        assert_eq!(answer.header("retry-after"), "");
    }
    let refused = client.get(PATH).await;
    let message = "more than 60 requests per 60s".to_owned();
    assert_eq!(refused.error(), (429, "rate_limited".to_owned(), message));
    let [limit, remaining, reset] = rate_limit_status(&refused);
    assert_eq!((limit.as_str(), remaining.as_str()), ("60", "0"));
    assert_eq!(refused.header("retry-after"), reset);
    // Another address, its own /64, and IPv4-mapped IPv6.
    assert_eq!(service.client().with("x-forwarded-for", "192.0.2.2").get(PATH).await.status, 200);
    assert_eq!(service.client().with("x-forwarded-for", "::ffff:192.0.2.1").get(PATH).await.status, 429);
    service.clock.advance_ms(60_000);
    assert_eq!(rate_limit_status(&client.get(PATH).await)[1], "59");
}

#[tokio::test]
async fn a_window_in_fractions_of_a_second_is_named_and_rounded_up() {
    let service = Service::start(ON).await;
    let client = service.client();
    set(&client, r#"{"rateLimitPerWindow":1,"rateLimitWindowMs":60500}"#).await;
    assert_eq!(rate_limit_status(&client.get(PATH).await), ["1", "0", "61"]);
    let refused = client.get(PATH).await;
    assert_eq!(refused.error().2.as_str(), "more than 1 requests per 60.5s");
    let retry_after: u64 = refused.header("retry-after").parse().expect("a number");
    assert!((1..=61).contains(&retry_after), "{retry_after}");
    set(&client, r#"{"rateLimitWindowMs":1}"#).await;
    service.clock.advance_ms(1);
    assert_eq!(client.get(PATH).await.status, 200);
}

#[tokio::test]
async fn a_limit_that_locks_out_every_caller_can_be_undone() {
    let service = Service::start(ON).await;
    let client = service.client();
    set(&client, r#"{"rateLimitPerWindow":1}"#).await;
    client.get(PATH).await;
    assert_eq!(client.get(PATH).await.status, 429);
    set(&client, r#"{"rateLimitPerWindow":5}"#).await;
    assert_eq!(rate_limit_status(&client.get(PATH).await)[1], "3");
}

#[tokio::test]
async fn what_is_counted_and_what_is_exempt() {
    let service = Service::start(ON).await;
    let client = service.client();
    for (method, path, status) in [
        ("GET", "/health", 200),
        ("GET", "/api/v1/health/ready", 200),
        ("GET", "/api/v1/metrics", 200),
        ("GET", "/api/v1/config", 200),
        ("PATCH", "/api/v1/config", 200),
        ("GET", "/api/v1/admin/status", 200),
        ("POST", "/api/v1/admin/unpause", 200),
        ("POST", "/api/v1/admin/reset", 404),
        ("OPTIONS", PATH, 204),
        ("OPTIONS", "/nothing", 204),
    ] {
        let answer = client.send(method, path, None).await;
        assert_eq!((answer.status, is_uncounted(&answer)), (status, true), "{method} {path}");
    }
    let keyed = client.key("k").with("content-type", "application/json");
    let record = usage("a", "s", 1).to_string();
    let mut remaining = 60;
    for (client, method, path, body, status) in [
        (&client, "GET", PATH, None, 200),
        (&client, "HEAD", PATH, None, 200),
        (&client, "GET", "/api/v1/health/deep", None, 200),
        (&client, "GET", "/api/v1/version", None, 200),
        (&client, "GET", "/nothing", None, 404),
        (&client, "PUT", PATH, None, 405),
        (&client, "GET", "/api/v1/usage/%zz/s", None, 400),
        (&client, "POST", "/api/v1/usage", Some("{"), 400),
        (&keyed, "POST", "/api/v1/usage", Some(record.as_str()), 201),
        (&keyed, "POST", "/api/v1/usage", Some(record.as_str()), 201),
    ] {
        let answer = client.send(method, path, body).await;
        remaining -= 1;
        assert_eq!(
            (answer.status, rate_limit_status(&answer)[1].clone()),
            (status, remaining.to_string()),
            "{method} {path}"
        );
    }
}

#[tokio::test]
async fn a_tenant_shares_one_bucket_over_all_its_keys_and_addresses() {
    let service = Service::start(&[ON, &[("ADMIN_API_KEY", "admin")]].concat()).await;
    let operator = service.client().with("x-api-key", "admin").with("x-forwarded-for", "192.0.2.9");
    let mut keys = Vec::new();
    for _ in 0..2 {
        let body = json!({ "label": "l", "tenantId": "public" });
        keys.push(operator.post("/api/v1/api-keys", &body).await.json()["key"].as_str().expect("a key").to_owned());
    }
    let client = |key: &str, address: &str| service.client().with("x-api-key", key).with("x-forwarded-for", address);
    assert_eq!(rate_limit_status(&client(&keys[0], "192.0.2.1").get(PATH).await)[1], "59");
    assert_eq!(rate_limit_status(&client(&keys[1], "192.0.2.2").get(PATH).await)[1], "58");
    // The tenant public is not the address of anybody; unknown and admin keys are.
    assert_eq!(rate_limit_status(&service.client().with("x-forwarded-for", "192.0.2.1").get(PATH).await)[1], "59");
    assert_eq!(rate_limit_status(&client("unknown", "192.0.2.1").get(PATH).await)[1], "58");
    assert_eq!(rate_limit_status(&client("admin", "192.0.2.1").get(PATH).await)[1], "57");
}

#[tokio::test]
async fn failed_logins_use_up_the_quota_of_their_address() {
    let service = Service::start(&[ON, &[("REQUIRE_API_KEY", "true"), ("ADMIN_API_KEY", "admin")]].concat()).await;
    let operator = service.client().with("x-api-key", "admin").with("x-forwarded-for", "192.0.2.9");
    let config = operator.send("PATCH", "/api/v1/config", Some(r#"{"rateLimitPerWindow":3}"#)).await;
    assert_eq!(config.status, 200);
    let guess = service.client().with("x-api-key", "guess").with("x-forwarded-for", "192.0.2.1");
    // On limited and on exempt routes alike.
    for (number, path) in ["/api/v1/admin/pause", "/api/v1/usage", "/api/v1/admin/reset"].iter().enumerate() {
        let answer = guess.send("POST", path, None).await;
        assert_eq!((answer.status, rate_limit_status(&answer)[1].clone()), (401, (2 - number).to_string()), "{path}");
    }
    for path in ["/api/v1/admin/pause", "/api/v1/usage"] {
        let answer = guess.send("POST", path, None).await;
        assert_eq!(answer.error().1, "rate_limited");
        assert_eq!(answer.header("retry-after"), rate_limit_status(&answer)[2]);
    }
    // The right key from there is still the operator's on an exempt route.
    let right = service.client().with("x-api-key", "admin").with("x-forwarded-for", "192.0.2.1");
    assert_eq!(right.send("POST", "/api/v1/admin/unpause", None).await.status, 200);
}

#[tokio::test]
async fn switched_off_nothing_is_counted_or_said() {
    let service = Service::start(&[("RATE_LIMIT", "off")]).await;
    let client = service.client();
    set(&client, r#"{"rateLimitPerWindow":1}"#).await;
    for _ in 0..3 {
        let answer = client.get(PATH).await;
        assert_eq!((answer.status, is_uncounted(&answer)), (200, true));
    }
}
