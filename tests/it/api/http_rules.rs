//! HTTP contract, sections 2 and 4: paths, methods, the order of the pipeline, and the headers of every response.

use serde_json::json;

use crate::support::{Client, Head, Service, Socket, usage};

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

/// Status, code and message of a request without body.
async fn refused(client: &Client, method: &str, path: &str) -> (u16, String, String) {
    client.send(method, path, None).await.error()
}

fn expected(status: u16, code: &str, message: &str) -> (u16, String, String) {
    (status, code.to_owned(), message.to_owned())
}

#[tokio::test]
async fn every_response_has_the_fixed_headers() {
    let service = Service::start(&[]).await;
    let client = service.client();
    client.post("/api/v1/services", &json!({ "serviceId": "s", "priceStroops": 1 })).await;
    let listed = client.get("/api/v1/services").await;
    let etag = listed.headers["etag"].to_str().expect("a tag").to_owned();
    let made = client.post("/api/v1/api-keys", &json!({ "label": "x" })).await.json();
    let prefix = &made["key"].as_str().expect("a key")[..12];
    for (client, method, path, status) in [
        (client.clone(), "GET", "/health".to_owned(), 200),
        (client.clone(), "GET", "/health/".to_owned(), 200),
        (client.clone(), "HEAD", "/health".to_owned(), 200),
        (client.with("if-none-match", &etag), "GET", "/api/v1/services".to_owned(), 304),
        (client.clone(), "DELETE", format!("/api/v1/api-keys/{prefix}"), 204),
        (client.clone(), "OPTIONS", "/api/v1/services".to_owned(), 204),
        (client.clone(), "OPTIONS", "/nowhere".to_owned(), 204),
        (client.clone(), "GET", "/nowhere".to_owned(), 404),
        (client.clone(), "GET", "/api/v1/nowhere".to_owned(), 404),
        (client.clone(), "GET", "/api/v10".to_owned(), 404),
        (client.clone(), "PUT", "/api/v1/services".to_owned(), 405),
        (client.clone(), "GET", "/api/v1/%zz".to_owned(), 400),
        (client.with("content-type", "text/plain"), "POST", USAGE.to_owned(), 400),
    ] {
        let answer = client.with("x-request-id", "my id").send(method, &path, None).await;
        assert_eq!(answer.status, status, "{method} {path}");
        for (name, value) in FIXED {
            assert_eq!(answer.headers.get(name).and_then(|own| own.to_str().ok()), Some(value), "{method} {path}");
        }
        assert_eq!(answer.headers["x-request-id"], "my id");
        let timing = answer.headers["server-timing"].to_str().expect("text");
        let ms = timing.strip_prefix("app;dur=").expect(timing);
        assert!(ms.parse::<f64>().is_ok() && ms.split_once('.').is_some_and(|(_, tenths)| tenths.len() == 1), "{ms}");
        assert!(!answer.headers.contains_key("server") && !answer.headers.contains_key("x-powered-by"));
        let is_options = method == "OPTIONS";
        let is_api = path.starts_with("/api/v1/") && !is_options;
        let varies = answer.headers.get_all("vary").iter().any(|value| value == "X-API-Key");
        assert_eq!(varies, is_api, "{method} {path}");
        let cache = answer.headers.get("cache-control").and_then(|value| value.to_str().ok());
        let is_cached = is_api || path.starts_with("/health");
        assert_eq!(cache, is_cached.then_some("private, no-cache"), "{method} {path}");
        let media = answer.headers.get("content-type").and_then(|value| value.to_str().ok());
        let has_type = ![204, 304].contains(&status);
        assert_eq!(media, has_type.then_some("application/json; charset=utf-8"), "{method} {path}");
    }
}

#[tokio::test]
async fn a_request_id_of_200_printable_characters_is_used_and_others_are_replaced() {
    let service = Service::start(&[]).await;
    for id in ["x".to_owned(), "~ !".to_owned(), "x".repeat(200)] {
        assert_eq!(service.client().with("x-request-id", &id).get("/health").await.headers["x-request-id"], id);
    }
    for id in ["x".repeat(201), "é".to_owned(), String::new()] {
        let answer = service.client().with("x-request-id", &id).get("/health").await;
        let minted = answer.headers["x-request-id"].to_str().expect("ASCII");
        let parsed = uuid::Uuid::parse_str(minted).expect(minted);
        assert_eq!((parsed.get_version_num(), minted.to_lowercase().as_str()), (4, minted));
    }
}

#[tokio::test]
async fn an_api_key_is_shown_in_an_answer_nobody_may_store() {
    let service = Service::start(&[]).await;
    let made = service.client().post("/api/v1/api-keys", &json!({ "label": "x" })).await;
    assert_eq!((made.status, &made.headers["cache-control"]), (201, &"no-store".parse().expect("a value")));
    let refused = service.client().post("/api/v1/api-keys", &json!({ "label": "x", "tenantId": "none" })).await;
    assert_eq!(
        (refused.status, &refused.headers["cache-control"]),
        (404, &"private, no-cache".parse().expect("a value"))
    );
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

#[tokio::test]
async fn http_1_0_is_served() {
    let service = Service::start(&[]).await;
    let mut socket = Socket::connect(service.address).await;
    socket.send("GET /health HTTP/1.0\r\n\r\n").await;
    let (head, text) = socket.answer().await;
    assert_eq!((head.status, text.as_str()), (200, r#"{"status":"ok","service":"agentpay-backend"}"#));
    assert_eq!(socket.rest().await, "");
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
async fn a_known_path_with_another_method_lists_the_methods_it_has() {
    let service = Service::start(&[]).await;
    for (method, path, allow) in [
        ("PUT", "/api/v1/services", "GET, HEAD, POST, OPTIONS"),
        ("GET", "/api/v1/usage", "POST, OPTIONS"),
        ("HEAD", "/api/v1/settle", "POST, OPTIONS"),
        ("POST", "/health", "GET, HEAD, OPTIONS"),
        ("DELETE", "/api/v1/settlements/x", "GET, HEAD, OPTIONS"),
        ("POST", "/api/v1/idempotency/k/", "GET, HEAD, OPTIONS"),
        ("TRACE", "/api/v1/version", "GET, HEAD, OPTIONS"),
        ("PURGE", "/api/v1/version", "GET, HEAD, OPTIONS"),
    ] {
        let answer = service.client().send(method, path, None).await;
        assert_eq!(
            (answer.status, &answer.headers["allow"]),
            (405, &allow.parse().expect("a value")),
            "{method} {path}"
        );
        if method != "HEAD" {
            let message = format!("method {method} is not allowed for {path}");
            assert_eq!(answer.error(), expected(405, "method_not_allowed", &message));
        }
    }
}

#[tokio::test]
async fn paths_are_matched_as_they_are_written() {
    let service = Service::start(&[]).await;
    let client = service.client();
    for path in [
        "/",
        "/nowhere",
        "/API/v1/services",
        "/api/v1/services//",
        "/api/v1/usage//s",
        "/api/v1/../health",
        "/health/.",
    ] {
        let mut socket = Socket::connect(service.address).await;
        // Unlike a client, a socket leaves dots alone.
        socket.send(format!("GET {path}?x=1 HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: i\r\n\r\n")).await;
        let expected = format!(r#"{{"error":"not_found","message":"No route for GET {path}","requestId":"i"}}"#);
        let (head, body) = socket.answer().await;
        assert_eq!((head.status, body), (404, expected));
    }
    for path in
        ["/api/v1/usage/%zz/s", "/api/v1/usage/%/s", "/api/v1/usage/a/%e", "/api/v1/usage/%ff/s", "/nowhere/%zz"]
    {
        let message = "request path has an invalid percent-escape";
        assert_eq!(refused(&client, "GET", path).await, expected(400, "invalid_request", message), "{path}");
    }
    // An escape in a literal segment is another segment; in a parameter it is its character.
    assert_eq!(client.get("/api/v1/%73ervices").await.status, 404);
    assert_eq!(client.get("/api/v1/usage/%61/s/").await.text, r#"{"agent":"a","serviceId":"s","total":0}"#);
    let pair = "agent and serviceId must be safe identifiers";
    for path in ["/api/v1/usage/a%2Fb/s", "/api/v1/billing/a/s%20", "/api/v1/usage/%C3%A9/s"] {
        assert_eq!(refused(&client, "GET", path).await, expected(400, "invalid_request", pair), "{path}");
    }
    assert_eq!(
        refused(&client, "GET", "/api/v1/usage/%00/s").await,
        expected(400, "invalid_request", "text must not contain U+0000")
    );
}

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
        let answer = refused(&client, "GET", &format!("{path}?limit&b%20c=1&d")).await;
        let known = ["/api/v1/api-keys", "/api/v1/settlements"].contains(&path);
        let name = if known { "b c" } else { "limit" };
        assert_eq!(answer, expected(400, "invalid_request", &format!("unexpected query parameter: {name}")), "{path}");
    }
    for path in ["/api/v1/version", "/api/v1/services", "/api/v1/usage/a/s"] {
        assert_eq!(client.get(&format!("{path}?x=1&startDate=2&y=%zz&z=%ff")).await.status, 200, "{path}");
        let nul = refused(&client, "GET", &format!("{path}?x=%00")).await;
        assert_eq!(nul, expected(400, "invalid_request", "text must not contain U+0000"), "{path}");
    }
    let nul = client.post(&format!("{USAGE}?x=%00"), &usage("a", "s", 1)).await.error();
    assert_eq!(nul, expected(400, "invalid_request", "text must not contain U+0000"));
    assert_eq!(client.post(&format!("{USAGE}?%00=x"), &usage("a", "s", 1)).await.status, 201);
}

#[tokio::test]
async fn the_earlier_step_of_the_pipeline_wins() {
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

#[tokio::test]
async fn an_idempotency_key_is_ignored_where_the_route_honours_none() {
    let service = Service::start(&[]).await;
    let client = service.client().key("a b");
    assert_eq!(client.get("/health").await.status, 200);
    let labels = [json!({ "label": "x" }), json!({ "label": "y" })];
    for label in &labels {
        assert_eq!(client.post("/api/v1/api-keys", label).await.status, 201);
        assert_eq!(service.client().key("same").post("/api/v1/api-keys", label).await.status, 201);
    }
    assert_eq!(service.number("SELECT count(*) FROM api_keys").await, 4);
    assert_eq!(service.number("SELECT count(*) FROM idempotency_keys").await, 0);
}

#[tokio::test]
async fn what_the_client_has_already_is_not_sent_again() {
    let service = Service::start(&[]).await;
    let client = service.client();
    client.post("/api/v1/services", &json!({ "serviceId": "s", "priceStroops": 1 })).await;
    let tag = client.get("/api/v1/services").await.headers["etag"].to_str().expect("a tag").to_owned();
    assert!(tag.starts_with("W/\""), "{tag}");
    for known in [tag.clone(), tag[2..].to_owned(), format!("\"x\", {tag}"), "*".to_owned()] {
        let answer = client.with("if-none-match", &known).get("/api/v1/services").await;
        assert_eq!(
            (answer.status, answer.text.as_str(), &answer.headers["etag"]),
            (304, "", &tag.parse().expect("a value"))
        );
    }
    client.post("/api/v1/services", &json!({ "serviceId": "s", "priceStroops": 2 })).await;
    assert_eq!(client.with("if-none-match", &tag).get("/api/v1/services").await.status, 200);
}
