//! HTTP contract, sections 4.1 and 4.3: the headers of every response, and those that depend on its kind.

use serde_json::json;

use crate::support::Service;

const USAGE: &str = "/api/v1/usage";

/// The headers whose value never changes (HTTP contract, section 4.1).
const FIXED: [(&str, &str); 6] = [
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("strict-transport-security", "max-age=63072000; includeSubDomains; preload"),
    ("permissions-policy", "geolocation=(), camera=(), microphone=()"),
    (
        "content-security-policy",
        "default-src 'none'; base-uri 'none'; connect-src 'none'; font-src 'none'; form-action 'none'; \
         frame-ancestors 'none'; img-src 'none'; manifest-src 'none'; media-src 'none'; object-src 'none'; \
         script-src 'none'; script-src-attr 'none'; style-src 'none'; worker-src 'none'",
    ),
];

#[tokio::test]
async fn every_kind_of_response_has_its_headers() {
    let service = Service::start(&[]).await;
    for request_id in [None, Some("my id")] {
        let client = request_id.map_or(service.client(), |id| service.client().with("x-request-id", id));
        let registration = json!({ "serviceId": "s", "priceStroops": 1 });
        client.post("/api/v1/services", &registration).await;
        let tag = client.get("/api/v1/services").await.header("etag");
        let known = client.with("if-none-match", &tag);
        for (client, method, path, status) in [
            (&client, "GET", "/health", 200),
            (&client, "GET", "/health/", 200),
            (&client, "HEAD", "/health", 200),
            (&client, "GET", "/api/v1/services", 200),
            (&client, "GET", "/api/v1/metrics", 200),
            (&client, "GET", "/api/v1/usage/export.csv", 200),
            (&known, "GET", "/api/v1/services", 304),
            (&client, "DELETE", "/api/v1/services/s", 204),
            (&client, "OPTIONS", "/api/v1/services", 204),
            (&client, "OPTIONS", "/nowhere", 204),
            (&client, "POST", USAGE, 400),
            (&client.with("content-type", "text/plain"), "POST", USAGE, 400),
            (&client, "GET", "/api/v1/usage/%zz/s", 400),
            (&client.with("x-api-key", "unknown"), "POST", "/api/v1/admin/pause", 401),
            (&client, "GET", "/nowhere", 404),
            (&client, "GET", "/api/v1/nowhere", 404),
            // Beside the API, not under it.
            (&client, "GET", "/api/v10", 404),
            (&client, "GET", "/api/v1beside", 404),
            (&client, "PUT", USAGE, 405),
            (&client, "TRACE", "/health", 405),
            (&client.with("content-type", "text/plain"), "POST", "/api/v1/settle", 415),
        ] {
            let body = (status == 415).then_some("x");
            let answer = client.send(method, path, body).await;
            let case = format!("{method} {path}: {answer:?}");
            assert_eq!(answer.status, status, "{case}");
            for (name, value) in FIXED {
                assert_eq!(answer.header(name), value, "{name}, {case}");
            }
            assert!(!answer.headers.contains_key("server") && !answer.headers.contains_key("x-powered-by"), "{case}");
            let timing = answer.header("server-timing");
            let ms = timing.strip_prefix("app;dur=").expect(&case);
            assert!(
                ms.parse::<f64>().is_ok() && ms.split_once('.').is_some_and(|(_, tenths)| tenths.len() == 1),
                "{case}"
            );
            let id = answer.header("x-request-id");
            match request_id {
                Some(own) => assert_eq!(id, own, "{case}"),
                None => assert_eq!(uuid::Uuid::parse_str(&id).expect("a UUID").get_version_num(), 4, "{case}"),
            }
            let is_api = path.starts_with("/api/v1/") && method != "OPTIONS";
            let cached = if is_api || path.starts_with("/health") { "private, no-cache" } else { "" };
            assert_eq!(answer.header("cache-control"), cached, "{case}");
            assert_eq!(answer.header("vary"), if is_api { "X-API-Key, X-Tenant-Id" } else { "" }, "{case}");
            let media = match (status, path) {
                (204 | 304, _) => "",
                (_, "/api/v1/metrics") => "text/plain; version=0.0.4; charset=utf-8",
                (_, "/api/v1/usage/export.csv") => "text/csv; charset=utf-8",
                _ => "application/json; charset=utf-8",
            };
            assert_eq!(answer.header("content-type"), media, "{case}");
            assert!(!media.is_empty() || answer.text.is_empty(), "{case}");
        }
    }
}

#[tokio::test]
async fn the_response_with_a_new_api_key_must_not_be_stored() {
    let service = Service::start(&[]).await;
    let made = service.client().post("/api/v1/api-keys", &json!({ "label": "x" })).await;
    assert_eq!((made.status, made.header("cache-control").as_str()), (201, "no-store"));
    let refused = service.client().post("/api/v1/api-keys", &json!({ "label": "x", "tenantId": "none" })).await;
    assert_eq!((refused.status, refused.header("cache-control").as_str()), (404, "private, no-cache"));
}
