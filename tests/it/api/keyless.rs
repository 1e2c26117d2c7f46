//! Keyless mode is for one's own machine: what a page of another site sends, or what comes under a foreign name, is never
//! the operator and writes nothing.

use serde_json::json;

use crate::support::{Client, Logged, Service, free_port, new_database, url, usage, wait_until};

const FOREIGN: &str =
    "without REQUIRE_API_KEY, writes from other sites or with a Host other than localhost are forbidden";

const WRITES: [(&str, &str, &str); 8] = [
    ("POST", "/api/v1/admin/pause", ""),
    ("POST", "/api/v1/admin/reset", ""),
    ("PATCH", "/api/v1/config", r#"{"bulkMaxItems":1}"#),
    ("POST", "/api/v1/api-keys", r#"{"label":"l"}"#),
    ("POST", "/api/v1/usage", r#"{"agent":"a","serviceId":"s","requests":1}"#),
    ("DELETE", "/api/v1/usage/a/s", ""),
    ("PUT", "/api/v1/services/s/metadata", r#"{"description":"d","owner":"o"}"#),
    ("POST", "/api/v1/settle/bulk", r#"{"agent":"a"}"#),
];

fn forbidden() -> (u16, String, String) {
    (403, "forbidden".to_owned(), FOREIGN.to_owned())
}

/// Clients that come from elsewhere, whatever else they say of themselves.
fn strangers(client: &Client) -> Vec<Client> {
    vec![
        client.with("origin", "https://evil.example"),
        client.with("origin", "null"),
        client.with("origin", "http://localhost:1"),
        client.with("origin", "https://evil.example").with("content-type", "application/x-www-form-urlencoded"),
        client.with("sec-fetch-site", "cross-site"),
        client.with("host", "evil.example"),
        client.with("host", "192.168.1.5:3001"),
        client.with("host", "evil.example").with("origin", "http://evil.example").with("sec-fetch-site", "same-origin"),
    ]
}

#[tokio::test]
async fn a_request_from_elsewhere_writes_nothing_and_is_never_the_operator() {
    for admin in [&[][..], &[("ADMIN_API_KEY", "admin")]] {
        let environment = [&[("REQUIRE_API_KEY", "false"), ("ALLOW_ADMIN_RESET", "on")], admin].concat();
        let service = Service::start(&environment).await;
        let local = service.client();
        let operator = if admin.is_empty() { local.clone() } else { local.with("x-api-key", "admin") };
        let made = operator.post("/api/v1/api-keys", &json!({ "label": "l" })).await.json();
        let tenant = local.with("x-api-key", made["key"].as_str().expect("a key"));
        for client in [&local, &operator, &tenant] {
            for stranger in strangers(client) {
                for (method, path, body) in WRITES {
                    let body = (!body.is_empty()).then_some(body);
                    assert_eq!(stranger.send(method, path, body).await.error(), forbidden(), "{method} {path}");
                }
                assert_eq!(stranger.get("/api/v1/api-keys").await.error(), forbidden());
                // Reads are open, of what belongs to the caller.
                assert_eq!(stranger.get("/api/v1/services").await.status, 200);
                assert_eq!(
                    stranger.get("/api/v1/stats").await.json()["totalApiKeys"].as_i64(),
                    own_keys(client, &tenant)
                );
                assert_eq!(stranger.send("POST", "/api/v1/nothing", None).await.status, 404);
            }
        }
        assert_eq!(service.number("SELECT count(*) FROM usage_counters").await, 0);
        assert_eq!(service.number("SELECT count(*) FROM api_keys").await, 1);
        assert!(!service.runtime_config.is_paused());
    }
}

/// How many keys the statistics show to who is not the operator.
fn own_keys(client: &Client, tenant: &Client) -> Option<i64> {
    Some(i64::from(std::ptr::eq(client, tenant)))
}

#[tokio::test]
async fn this_machine_and_the_sites_that_are_listed_are_not_elsewhere() {
    let service = Service::start(&[("CORS_ALLOWED_ORIGINS", "https://app.example")]).await;
    let client = service.client();
    let own = format!("http://{}", service.address);
    for local in [
        client.clone(),
        client.with("origin", &own).with("sec-fetch-site", "same-origin"),
        client.with("origin", "https://app.example").with("sec-fetch-site", "cross-site"),
        client.with("host", "localhost:3001"),
        client.with("host", "billing.localhost"),
        client.with("host", "[::1]:3001"),
        client.with("sec-fetch-site", "none"),
    ] {
        assert_eq!(local.post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
        assert_eq!(local.get("/api/v1/api-keys").await.status, 200);
    }
}

#[tokio::test]
async fn with_an_admin_key_the_operator_needs_it_and_other_callers_still_write() {
    let service = Service::start(&[("ADMIN_API_KEY", "admin")]).await;
    let client = service.client();
    let message = "valid ADMIN_API_KEY required for privileged writes".to_owned();
    let refused = client.send("POST", "/api/v1/admin/pause", None).await;
    assert_eq!(refused.error(), (401, "unauthorized".to_owned(), message));
    assert_eq!(client.post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
    let operator = client.with("x-api-key", "admin");
    assert_eq!(operator.send("POST", "/api/v1/admin/pause", None).await.status, 200);
}

#[tokio::test]
async fn where_keys_are_required_they_decide_whatever_the_host_is() {
    let service = Service::start(&[("REQUIRE_API_KEY", "true"), ("ADMIN_API_KEY", "admin")]).await;
    let public = service.client().with("host", "billing.example").with("origin", "https://shop.example");
    let made = public.with("x-api-key", "admin").post("/api/v1/api-keys", &json!({ "label": "l" })).await;
    assert_eq!(made.status, 201, "{made:?}");
    let tenant = public.with("x-api-key", made.json()["key"].as_str().expect("a key"));
    assert_eq!(tenant.post("/api/v1/usage", &usage("a", "s", 1)).await.status, 201);
    assert_eq!(public.post("/api/v1/usage", &usage("a", "s", 1)).await.status, 401);
}

#[tokio::test]
async fn metrics_need_the_admin_key_or_the_token_once_there_are_keys() {
    let token = [("METRICS_TOKEN", "scrape-me")];
    let required = [("REQUIRE_API_KEY", "true"), ("ADMIN_API_KEY", "admin")];
    let path = "/api/v1/metrics";
    let message = "valid ADMIN_API_KEY or METRICS_TOKEN required for metrics".to_owned();
    let unauthorized = (401, "unauthorized".to_owned(), message);
    for environment in [[&required[..], &token].concat(), [&required[1..], &token].concat()] {
        let service = Service::start(&environment).await;
        let client = service.client();
        assert_eq!(client.with("x-api-key", "admin").get(path).await.status, 200);
        for scheme in ["Bearer", "bearer"] {
            let scraper = client.with("authorization", &format!("{scheme} scrape-me"));
            assert_eq!(scraper.get(path).await.status, 200, "{scheme}");
            // It opens nothing else.
            assert_eq!(scraper.get("/api/v1/api-keys").await.status, 401);
            assert_eq!(scraper.with("authorization", "Bearer scrape-me").get(path).await.error(), unauthorized);
        }
        for wrong in ["Bearer scrape-m", "Bearer ", "scrape-me", "Basic scrape-me", "Bearer scrape-me x", ""] {
            assert_eq!(client.with("authorization", wrong).get(path).await.error(), unauthorized, "{wrong}");
        }
        assert_eq!(client.with("x-api-key", "scrape-me").get(path).await.error(), unauthorized);
    }
    let service = Service::start(&required).await;
    for client in [service.client(), service.client().with("authorization", "Bearer ")] {
        assert_eq!(client.get(path).await.error(), unauthorized);
    }
    assert_eq!(Service::start(&[]).await.client().get(path).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_start_says_what_is_open() {
    let database = url(&new_database().await);
    for (environment, said) in [
        (&[("HOST", "0.0.0.0"), ("REQUIRE_API_KEY", "false")][..], "HOST is 0.0.0.0"),
        (&[("TRUST_PROXY", "1")], "TRUST_PROXY is 1"),
        (&[("TRUST_PROXY", "1"), ("ADMIN_API_KEY", "k")], "operator routes need ADMIN_API_KEY"),
        (&[], ""),
    ] {
        let port = free_port().to_string();
        let mut service =
            Logged::start(&[&[("DATABASE_URL", database.as_str()), ("PORT", &port)], environment].concat());
        wait_until(async || service.text().contains("server started")).await;
        service.terminate();
        service.exit().await;
        let log = service.text();
        let warning = log.lines().find(|line| line.contains("REQUIRE_API_KEY is false"));
        assert_eq!(warning.is_some(), !said.is_empty(), "{log}");
        assert!(warning.is_none_or(|line| line.contains(said) && line.contains("WARN")), "{log}");
    }
}
