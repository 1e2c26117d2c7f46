//! The page for people: complete, from the service itself, and without scripts.

use crate::support::Service;

#[tokio::test]
async fn the_page_shows_every_operation_and_loads_nothing_from_elsewhere() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let page = client.get("/docs").await;
    assert_eq!((page.status, page.header("content-type").as_str()), (200, "text/html; charset=utf-8"));
    let document = client.get("/api/v1/openapi.json").await.json();
    for operations in document["paths"].as_object().expect("paths").values() {
        for operation in operations.as_object().expect("operations").values() {
            let id = operation["operationId"].as_str().expect("an id");
            assert!(page.text.contains(&format!("<section id=\"{id}\">")), "{id}");
        }
    }
    for absent in ["<script", "http://", "src="] {
        assert!(!page.text.contains(absent), "{absent}");
    }
    let policy = page.header("content-security-policy");
    assert_eq!(
        policy,
        "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    assert_eq!(client.get("/docs/").await.text, page.text);

    let style = client.get("/docs/style.css").await;
    assert_eq!((style.status, style.header("content-type").as_str()), (200, "text/css; charset=utf-8"));
    assert!(page.text.contains("href=\"/docs/style.css\""));
}

#[tokio::test]
async fn the_page_passes_the_pipeline() {
    let service = Service::start(&[("RATE_LIMIT", "on")]).await;
    let client = service.client().with("x-request-id", "r-1");
    let page = client.get("/docs").await;
    assert_eq!(page.header("ratelimit-remaining"), "59");
    assert_eq!((page.header("x-request-id").as_str(), page.header("x-frame-options").as_str()), ("r-1", "DENY"));
    let refused = client.send("POST", "/docs", None).await;
    assert_eq!((refused.error().0, refused.header("allow").as_str()), (405, "GET, HEAD, OPTIONS"));
    let head = client.send("HEAD", "/docs", None).await;
    assert_eq!((head.status, head.text.as_str()), (200, ""));
    // Other responses keep the strict policy.
    let version = client.get("/api/v1/version").await;
    assert!(version.header("content-security-policy").contains("style-src 'none'"));
}
