//! HTTP contract, section 2.8: unknown query parameters, escapes that are none, and U+0000.

use super::invalid;
use crate::support::{Service, usage};

const USAGE: &str = "/api/v1/usage";

#[tokio::test]
async fn unknown_query_parameters_are_refused_where_the_route_is_strict() {
    let service = Service::start(&[]).await;
    let client = service.client();
    for path in [
        "/health",
        "/api/v1/health/ready",
        "/api/v1/api-keys",
        "/api/v1/settlements",
        "/api/v1/settlements/x",
        "/api/v1/idempotency/k",
    ] {
        let answer = client.get(&format!("{path}?limit&b%20c=1&d")).await.error();
        let known = ["/api/v1/api-keys", "/api/v1/settlements"].contains(&path);
        let name = if known { "b c" } else { "limit" };
        assert_eq!(answer, invalid(&format!("unexpected query parameter: {name}")), "{path}");
    }
    // An escape that is none is part of the name.
    assert_eq!(client.get("/health?%zz=1").await.error(), invalid("unexpected query parameter: %zz"));
}

#[tokio::test]
async fn other_routes_ignore_unknown_parameters_and_take_invalid_escapes_literally() {
    let service = Service::start(&[]).await;
    for path in ["/api/v1/version", "/api/v1/services", "/api/v1/usage/a/s"] {
        assert_eq!(service.client().get(&format!("{path}?x=1&startDate=2&y=%zz&z=%ff")).await.status, 200, "{path}");
    }
    assert_eq!(service.client().get("/api/v1/services?q=%zz&prefix=%ff&x=%").await.status, 200);
}

#[tokio::test]
async fn u_0000_is_refused_in_every_value() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let nul = invalid("text must not contain U+0000");
    for path in [
        "/api/v1/version?x=%00",
        "/api/v1/services?x=%00",
        "/api/v1/services?q=%00",
        "/api/v1/usage/a/s?x=%00",
        "/api/v1/events?type=%00",
    ] {
        assert_eq!(client.get(path).await.error(), nul, "{path}");
    }
    assert_eq!(client.post(&format!("{USAGE}?x=%00"), &usage("a", "s", 1)).await.error(), nul);
    // A name is not a value.
    assert_eq!(client.post(&format!("{USAGE}?%00=x"), &usage("a", "s", 1)).await.status, 201);
}
