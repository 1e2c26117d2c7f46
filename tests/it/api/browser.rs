//! Browser clients (HTTP contract, section 4.2), seen with a real browser: headless Chromium opens a page of one origin,
//! whose script talks to the service on another and writes into the page what it could do and read.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use axum::Router;
use axum::response::Html;
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::support::{CHROMIUM_OPTIONS, Service, chromium, new_profile, remove_profile};

const PAGE: &str = include_str!("browser.html");

/// The page on an origin of its own, which takes the findings of its script.
struct Page {
    origin: String,
    found: watch::Receiver<Option<Value>>,
}

impl Page {
    async fn serve() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let (sender, found) = watch::channel(None);
        let mut finished = found.clone();
        // The browser waits for this image before it takes the page to be loaded, and ends.
        let done = get(move || async move {
            let _ = finished.wait_for(Option::is_some).await;
        });
        let take = post(move |body: String| async move {
            sender.send_replace(Some(serde_json::from_str(&body).expect("findings")));
        });
        let router = Router::new().route("/", get(|| async { Html(PAGE) })).route("/done", done).route("/found", take);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { origin: format!("http://localhost:{port}"), found }
    }

    /// Opens the page with a service and an API key to use, and returns what its script found.
    async fn open(&self, chromium: &Path, service: &Service, key: &str) -> Value {
        let profile = new_profile();
        let run = tokio::process::Command::new(chromium)
            .args(CHROMIUM_OPTIONS)
            .arg("--dump-dom")
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg(format!("{}/?api=http://{}&key={key}", self.origin, service.address))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(Duration::from_secs(180), run).await.expect("Chromium ends").expect("a run");
        remove_profile(&profile);
        let found = self.found.borrow().clone();
        found.unwrap_or_else(|| panic!("no findings: {}", String::from_utf8_lossy(&output.stderr)))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_an_allowed_origin_writes_retries_and_reads_its_limits() {
    let Some(chromium) = chromium() else { return };
    let page = Page::serve().await;
    let environment =
        [("CORS_ALLOWED_ORIGINS", page.origin.as_str()), ("ADMIN_API_KEY", "admin"), ("RATE_LIMIT", "on")];
    let service = Service::start(&environment).await;
    let operator = service.client().with("x-api-key", "admin");
    let key = operator.post("/api/v1/api-keys", &json!({ "label": "browser" })).await.json();
    let limits = operator.send("PATCH", "/api/v1/config", Some(r#"{"rateLimitPerWindow":8}"#)).await;
    assert_eq!(limits.status, 200);
    let key = key["key"].as_str().expect("a key");
    let found = page.open(&chromium, &service, key).await;

    let total = r#"{"agent":"a","serviceId":"s","total":5}"#;
    assert_eq!(found["first"]["body"], total, "{found:#}");
    assert_eq!(
        (&found["first"]["status"], &found["first"]["headers"]["idempotency-replayed"]),
        (&json!(201), &Value::Null)
    );
    assert_eq!(
        (&found["again"]["body"], &found["again"]["headers"]["idempotency-replayed"]),
        (&json!(total), &json!("true"))
    );
    for (name, values) in [("limit", ["8", "8"]), ("remaining", ["7", "6"]), ("reset", ["60", "60"])] {
        for (answer, value) in ["first", "again"].into_iter().zip(values) {
            for header in [format!("ratelimit-{name}"), format!("x-ratelimit-{name}")] {
                let shown = found[answer]["headers"][&header].as_str().unwrap_or_default();
                // A slow machine may be a second on.
                assert!(
                    shown == value || name == "reset" && shown.parse().is_ok_and(|s: i64| s >= 1),
                    "{header}: {found:#}"
                );
            }
        }
    }
    assert_eq!(found["first"]["headers"]["x-request-id"], "from-the-page");
    // What is not exposed stays hidden.
    assert_eq!(found["first"]["headers"]["server-timing"], Value::Null);
    for method in ["PUT", "PATCH", "DELETE"] {
        assert_eq!(found[method]["status"], 404, "{method}: {found:#}");
    }
    let tag = found["list"]["headers"]["etag"].as_str().expect("an ETag");
    assert!(tag.starts_with("W/\""), "{found:#}");
    assert_eq!(found["unchanged"]["status"], 304, "{found:#}");
    assert_eq!(found["export"]["headers"]["content-disposition"], "attachment; filename=usage.csv");
    assert_eq!(found["limited"]["status"], 429, "{found:#}");
    let after = found["limited"]["headers"]["retry-after"].as_str().and_then(|text| text.parse::<u64>().ok());
    assert!(after.is_some_and(|after| (1..=60).contains(&after)), "{found:#}");
    // Credentials are never allowed, so an answer to a request with them is not readable.
    assert_eq!(
        (&found["credentials"]["error"], &found["foreignHeader"]["error"]),
        (&json!("TypeError"), &json!("TypeError"))
    );
    let calls = service.number("SELECT outstanding + settled + reset FROM usage_counters").await;
    assert_eq!(calls, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_of_another_origin_can_neither_write_nor_read() {
    let Some(chromium) = chromium() else { return };
    let page = Page::serve().await;
    let service = Service::start(&[("CORS_ALLOWED_ORIGINS", "https://app.example")]).await;
    let found = page.open(&chromium, &service, "unknown").await;
    for request in ["first", "again", "PUT", "PATCH", "DELETE", "list", "export", "limited", "credentials"] {
        assert_eq!(found[request], json!({ "error": "TypeError" }), "{request}: {found:#}");
    }
    // Its preflight was refused, so the write never was sent.
    assert_eq!(service.number("SELECT count(*) FROM usage_counters").await, 0);
}
