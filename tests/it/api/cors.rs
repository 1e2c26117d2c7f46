//! HTTP contract, section 4.2: CORS and `Vary`.

use crate::support::{Answer, Client, Service};

const ORIGINS: &[(&str, &str)] = &[
    ("CORS_ALLOWED_ORIGINS", "https://App.example:443/, http://localhost:5173, nonsense"),
    ("ADMIN_API_KEY", "admin"),
];

fn cors(answer: &Answer) -> Vec<String> {
    ["origin", "methods", "headers"]
        .map(|name| answer.header(&format!("access-control-allow-{name}")))
        .into_iter()
        .chain(["expose-headers", "max-age"].map(|name| answer.header(&format!("access-control-{name}"))))
        .collect()
}

fn allowed(origin: &str) -> Vec<String> {
    [
        origin,
        "GET,POST,PUT,PATCH,DELETE,OPTIONS",
        "Content-Type,X-Request-Id,X-API-Key,Idempotency-Key,If-None-Match",
        "X-Request-Id,Idempotency-Replayed,RateLimit-Limit,RateLimit-Remaining,RateLimit-Reset,X-RateLimit-Limit,\
         X-RateLimit-Remaining,X-RateLimit-Reset,Retry-After,ETag,Content-Disposition",
        "86400",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn from(client: &Client, origin: &str) -> Client {
    client.with("origin", origin)
}

#[tokio::test]
async fn an_allowed_origin_is_told_so_on_every_response() {
    let service = Service::start(ORIGINS).await;
    let client = service.client();
    for origin in ["https://app.example", "https://APP.example:443", "https://app.example/"] {
        for (method, path, status, vary) in [
            ("GET", "/api/v1/services", 200, "X-API-Key, X-Tenant-Id, Origin"),
            ("HEAD", "/api/v1/services", 200, "X-API-Key, X-Tenant-Id, Origin"),
            ("GET", "/health", 200, "Origin"),
            ("GET", "/nothing", 404, "Origin"),
            ("PUT", "/api/v1/services", 405, "X-API-Key, X-Tenant-Id, Origin"),
            ("POST", "/api/v1/usage", 400, "X-API-Key, X-Tenant-Id, Origin"),
            ("GET", "/api/v1/metrics", 200, "X-API-Key, X-Tenant-Id, Origin"),
            ("OPTIONS", "/api/v1/usage", 204, "Origin"),
            ("OPTIONS", "/nothing", 204, "Origin"),
        ] {
            let answer = from(&client, origin).send(method, path, None).await;
            assert_eq!((answer.status, answer.header("vary").as_str()), (status, vary), "{method} {path}");
            assert_eq!(cors(&answer), allowed("https://app.example"), "{method} {path}");
            assert_eq!(answer.header("access-control-allow-credentials"), "");
        }
    }
    assert_eq!(cors(&from(&client, "http://localhost:5173").get("/health").await), allowed("http://localhost:5173"));
}

#[tokio::test]
async fn another_origin_gets_no_cors_header() {
    let service = Service::start(ORIGINS).await;
    for origin in [
        "https://evil.example",
        "http://app.example",
        "https://app.example:8443",
        "null",
        "nonsense",
        "https://app.example/x",
    ] {
        for (method, status) in [("GET", 200), ("OPTIONS", 204)] {
            let answer = from(&service.client(), origin).send(method, "/health", None).await;
            assert_eq!((answer.status, answer.header("vary").as_str()), (status, "Origin"), "{origin}");
            assert!(!answer.headers.keys().any(|name| name.as_str().starts_with("access-control")), "{answer:?}");
        }
    }
    let none = Service::start(&[]).await;
    let answer = from(&none.client(), "https://app.example").get("/api/v1/version").await;
    assert_eq!(
        (answer.header("vary").as_str(), cors(&answer).concat().as_str()),
        ("X-API-Key, X-Tenant-Id, Origin", "")
    );
}

#[tokio::test]
async fn without_an_origin_options_is_204_and_nothing_varies_by_it() {
    let service = Service::start(ORIGINS).await;
    let client = service.client();
    for path in ["/api/v1/usage", "/nothing", "/health", "/api/v1/usage/%zz"] {
        let answer = client.send("OPTIONS", path, None).await;
        assert_eq!((answer.status, answer.text.as_str(), answer.header("vary").as_str()), (204, "", ""), "{path}");
        assert_eq!((answer.header("cache-control"), answer.header("content-type")), (String::new(), String::new()));
        assert_eq!(answer.header("x-frame-options"), "DENY");
        assert_ne!(answer.header("x-request-id"), "");
    }
    assert_eq!(client.get("/api/v1/services").await.header("vary"), "X-API-Key, X-Tenant-Id");
}
