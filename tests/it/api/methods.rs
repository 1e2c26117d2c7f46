//! HTTP contract, section 2.1: HEAD, OPTIONS, and methods that a path does not have.

use agentpay_billing::api::routes::ROUTES;

use crate::support::{Head, Service, Socket};

#[tokio::test]
async fn a_known_path_with_another_method_lists_the_methods_it_has() {
    let service = Service::start(&[]).await;
    for (method, path, allow) in [
        ("PUT", "/api/v1/services", "GET, HEAD, POST, OPTIONS"),
        ("DELETE", "/api/v1/services/?x=1", "GET, HEAD, POST, OPTIONS"),
        ("GET", "/api/v1/usage", "POST, OPTIONS"),
        ("HEAD", "/api/v1/settle", "POST, OPTIONS"),
        ("POST", "/api/v1/usage/a/s", "GET, HEAD, DELETE, OPTIONS"),
        ("POST", "/api/v1/webhooks/x", "GET, HEAD, PATCH, DELETE, OPTIONS"),
        ("POST", "/api/v1/services/s/metadata", "GET, HEAD, PUT, OPTIONS"),
        ("POST", "/health", "GET, HEAD, OPTIONS"),
        ("DELETE", "/api/v1/settlements/x", "GET, HEAD, OPTIONS"),
        ("POST", "/api/v1/idempotency/k/", "GET, HEAD, OPTIONS"),
        ("TRACE", "/api/v1/version", "GET, HEAD, OPTIONS"),
        ("PURGE", "/api/v1/version", "GET, HEAD, OPTIONS"),
        ("BREW", "/health", "GET, HEAD, OPTIONS"),
    ] {
        let answer = service.client().send(method, path, None).await;
        assert_eq!((answer.status, answer.header("allow").as_str()), (405, allow), "{method} {path}");
        if method != "HEAD" {
            let bare = path.split('?').next().unwrap_or_default();
            let message = format!("method {method} is not allowed for {bare}");
            assert_eq!(answer.error(), (405, "method_not_allowed".to_owned(), message));
        }
    }
}

#[tokio::test]
async fn options_is_204_on_any_path() {
    let service = Service::start(&[("REQUIRE_API_KEY", "true"), ("ADMIN_API_KEY", "root")]).await;
    for path in ["/api/v1/services", "/api/v1/api-keys", "/nowhere", "/%zz", "/"] {
        let answer = service.client().send("OPTIONS", path, None).await;
        assert_eq!((answer.status, answer.text.as_str()), (204, ""), "{path}");
        assert!(!answer.headers.contains_key("vary"), "{path}");
    }
    let known = service.client().send("OPTIONS", "/api/v1/settlements/s/", None).await;
    assert_eq!(known.headers["allow"], "GET, HEAD, OPTIONS");
}

#[tokio::test]
async fn head_has_the_headers_of_get_on_every_read() {
    let service = Service::start(&[]).await;
    let client = service.client();
    for route in ROUTES.iter().filter(|route| route.method == "GET") {
        let path = route.pattern.replace(':', "");
        let (get, head) = (client.get(&path).await, client.send("HEAD", &path, None).await);
        assert_eq!((head.status, head.text.as_str()), (get.status, ""), "{path}");
        for name in ["content-type", "cache-control", "vary", "etag", "content-disposition", "ratelimit-limit", "allow"]
        {
            assert_eq!(head.header(name), get.header(name), "{name} of {path}");
        }
    }
}

#[tokio::test]
async fn head_is_answered_like_get_without_a_body() {
    let service = Service::start(&[]).await;
    let mut socket = Socket::connect(service.address).await;
    for (path, status) in [("/health", 200), ("/api/v1/usage/a/s", 200), ("/api/v1/services/none", 404), ("/x", 404)] {
        let mut heads: Vec<Head> = Vec::new();
        for method in ["GET", "HEAD"] {
            socket.send(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: i\r\n\r\n")).await;
            heads.push(if method == "GET" { socket.answer().await.0 } else { socket.head().await });
        }
        let without_times = |head: &Head| {
            let changing = ["server-timing", "date"];
            head.headers.iter().filter(|(name, _)| !changing.contains(&name.as_str())).cloned().collect::<Vec<_>>()
        };
        assert_eq!((heads[0].status, heads[1].status), (status, status), "{path}");
        // The message names the method, so its length differs where the path is unknown.
        if path != "/x" {
            assert_eq!(without_times(&heads[0]), without_times(&heads[1]), "{path}");
        }
    }
    // A body after HEAD would have been taken for the next head.
    socket.send("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(socket.answer().await.0.status, 200);
}
