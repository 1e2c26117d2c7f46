//! HTTP contract, sections 2, 4 and 5: routes, request ids, bodies and headers, where no area of its own shows them.

use std::io::Write;

use agentpay_billing::api::routes::ROUTES;
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Answer, Client, Service};

const USAGE: &str = "/api/v1/usage";
const RECORD: &str = r#"{"agent":"a","serviceId":"s","requests":1}"#;

/// Everything the service says to these bytes, until it closes the connection.
async fn raw(service: &Service, request: &str) -> String {
    let mut stream = TcpStream::connect(service.address).await.expect("connect");
    stream.write_all(request.as_bytes()).await.expect("write");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("read");
    String::from_utf8(answer).expect("text")
}

#[tokio::test]
async fn every_kind_of_response_has_its_headers() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let none =
        |directives: &str| directives.split(' ').map(|name| format!("{name} 'none'")).collect::<Vec<_>>().join("; ");
    let csp = none(
        "default-src base-uri connect-src font-src form-action frame-ancestors img-src manifest-src media-src \
         object-src script-src script-src-attr style-src worker-src",
    );
    let tag = client.get("/api/v1/stats").await.header("etag");
    let known = client.with("if-none-match", &tag);
    client.post("/api/v1/services", &json!({ "serviceId": "s", "priceStroops": 1 })).await;
    for (client, method, path, status) in [
        (&client, "GET", "/health", 200),
        (&client, "HEAD", "/health", 200),
        (&client, "GET", "/api/v1/metrics", 200),
        (&client, "GET", "/api/v1/usage/export.csv", 200),
        (&client, "DELETE", "/api/v1/services/s", 204),
        (&known, "GET", "/api/v1/stats", 304),
        (&client, "OPTIONS", "/nothing", 204),
        (&client, "POST", USAGE, 400),
        (&client, "GET", "/nothing", 404),
        (&client, "PUT", USAGE, 405),
        (&client, "GET", "/api/v1/usage/%zz/s", 400),
        (&client.with("x-api-key", "unknown"), "POST", "/api/v1/admin/pause", 401),
        (&client.with("content-type", "text/plain"), "POST", USAGE, 415),
        (&client, "TRACE", "/health", 405),
    ] {
        let body = (status == 415).then_some("x");
        let answer = client.send(method, path, body).await;
        let case = format!("{method} {path}: {answer:?}");
        assert_eq!(answer.status, status, "{case}");
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("x-frame-options", "DENY"),
            ("referrer-policy", "no-referrer"),
            ("strict-transport-security", "max-age=63072000; includeSubDomains; preload"),
            ("permissions-policy", "geolocation=(), camera=(), microphone=()"),
            ("content-security-policy", csp.as_str()),
            ("x-powered-by", ""),
            ("server", ""),
        ] {
            assert_eq!(answer.header(name), value, "{name}, {case}");
        }
        let timing = answer.header("server-timing");
        let ms = timing.strip_prefix("app;dur=").and_then(|ms| ms.split_once('.'));
        assert!(ms.is_some_and(|(_, tenths)| tenths.len() == 1), "{case}");
        assert_eq!(
            uuid::Uuid::parse_str(&answer.header("x-request-id")).expect("an id").get_version_num(),
            4,
            "{case}"
        );
        let is_api = path.starts_with("/api/v1/") && method != "OPTIONS";
        let cached = if is_api || path == "/health" { "private, no-cache" } else { "" };
        assert_eq!(answer.header("cache-control"), cached, "{case}");
        assert_eq!(answer.header("vary"), if is_api { "X-API-Key" } else { "" }, "{case}");
        if matches!(status, 204 | 304) {
            assert_eq!((answer.header("content-type").as_str(), answer.text.as_str()), ("", ""), "{case}");
        } else if status != 200 {
            assert_eq!(answer.header("content-type"), "application/json; charset=utf-8", "{case}");
        }
    }
    // Beside the API is not under it.
    assert_eq!(client.get("/api/v1beside").await.header("cache-control"), "");
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
async fn a_request_id_is_echoed_if_it_is_one() {
    let service = Service::start(&[]).await;
    let client = service.client();
    for id in ["a", "with blanks, and ~signs!", &"x".repeat(200)] {
        let answer = client.with("x-request-id", id).get("/nothing").await;
        assert_eq!((answer.header("x-request-id").as_str(), &answer.json()["requestId"]), (id, &json!(id)));
    }
    for id in ["", "é", &"x".repeat(201)] {
        let minted = client.with("x-request-id", id).get("/nothing").await.header("x-request-id");
        assert!(uuid::Uuid::parse_str(&minted).is_ok_and(|uuid| uuid.to_string() == minted), "{minted}");
    }
    // A replay tells whose answer it repeats in its body only.
    let keyed = client.key("k");
    let first = keyed.with("x-request-id", "first").post(USAGE, &json!({})).await;
    let again = keyed.with("x-request-id", "again").post(USAGE, &json!({})).await;
    assert_eq!((again.replayed, again.header("x-request-id").as_str()), (true, "again"));
    assert_eq!((&again.json()["requestId"], again.text), (&json!("first"), first.text));
}

#[tokio::test]
async fn paths_are_matched_as_sent() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let message = |answer: Answer| (answer.status, answer.error().2);
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/api/v1"),
        ("GET", "/API/v1/services"),
        ("GET", "/api/v1/services//"),
        ("GET", "/api/v1//services"),
        ("GET", "/api/v1/usage//s"),
        ("GET", "/api%2Fv1/services"),
        ("GET", "/api/v1/servic%65s"),
        ("POST", "/api/v1/nothing?x=1"),
    ] {
        let bare = path.split('?').next().unwrap_or_default();
        assert_eq!(message(client.send(method, path, None).await), (404, format!("No route for {method} {bare}")));
    }
    for (method, path, allow) in [
        ("PUT", "/api/v1/services", "GET, HEAD, POST, OPTIONS"),
        ("DELETE", "/api/v1/services/?x=1", "GET, HEAD, POST, OPTIONS"),
        ("GET", "/api/v1/usage", "POST, OPTIONS"),
        ("POST", "/api/v1/usage/a/s", "GET, HEAD, DELETE, OPTIONS"),
        ("POST", "/api/v1/webhooks/x", "GET, HEAD, PATCH, DELETE, OPTIONS"),
        ("POST", "/api/v1/services/s/metadata", "GET, HEAD, PUT, OPTIONS"),
        ("BREW", "/health", "GET, HEAD, OPTIONS"),
    ] {
        let answer = client.send(method, path, None).await;
        let bare = path.split('?').next().unwrap_or_default();
        assert_eq!((answer.status, answer.header("allow").as_str()), (405, allow), "{method} {path}");
        assert_eq!(
            answer.error(),
            (405, "method_not_allowed".to_owned(), format!("method {method} is not allowed for {bare}"))
        );
    }
    for path in ["/api/v1/services/%", "/api/v1/services/%f", "/api/v1/services/%zz", "/api/v1/services/%ff", "/%zz"] {
        assert_eq!(message(client.get(path).await), (400, "request path has an invalid percent-escape".to_owned()));
    }
    // Decoded once; a slash stays in its parameter; dots mean nothing.
    // As raw text, because clients resolve dots themselves.
    for (path, body) in [
        ("/api/v1/usage/../.", r#"{"agent":"..","serviceId":".","total":0}"#),
        ("/api/v1/agents/%2e%2E/total/", r#"{"agent":"..","total":0}"#),
    ] {
        let answer =
            raw(&service, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(body), "{answer}");
    }
    for path in ["/api/v1/usage/a%2Fb/s", "/api/v1/usage/a%252e/s", "/api/v1/usage/a+b/s", "/api/v1/usage/a%20b/s"] {
        assert_eq!(message(client.get(path).await), (400, "agent and serviceId must be safe identifiers".to_owned()));
    }
    // A slash at the end is optional.
    assert_eq!(client.get("/api/v1/services/").await.text, r#"{"services":[]}"#);
    // Escapes of a query are taken literally.
    assert_eq!(client.get("/api/v1/services?q=%zz&prefix=%ff&x=%").await.status, 200);
    assert_eq!(message(client.get("/health?%zz=1").await), (400, "unexpected query parameter: %zz".to_owned()));
    for path in ["/api/v1/services?q=%00", "/api/v1/services/a%00b", "/api/v1/events?type=%00"] {
        assert_eq!(message(client.get(path).await), (400, "text must not contain U+0000".to_owned()), "{path}");
    }
    let nul = client.send("DELETE", "/api/v1/usage/a%00/s", None).await;
    assert_eq!(message(nul), (400, "text must not contain U+0000".to_owned()));
}

#[tokio::test]
async fn http_1_0_is_served_and_broken_framing_is_no_fault_of_ours() {
    let service = Service::start(&[]).await;
    let old = raw(&service, "GET /health HTTP/1.0\r\n\r\n").await;
    assert!(
        old.starts_with("HTTP/1.0 200") && old.ends_with(r#"{"status":"ok","service":"agentpay-backend"}"#),
        "{old}"
    );
    let post = |headers: &str, body: &str| {
        format!("POST {USAGE} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n\r\n{body}")
    };
    for (headers, body, status, message) in [
        (
            "Transfer-Encoding: chunked\r\nContent-Type: application/json",
            "0\r\n\r\n",
            "400",
            "agent must be a safe identifier",
        ),
        ("Content-Length: 0", "", "400", "agent must be a safe identifier"),
        ("Content-Length: 0\r\nContent-Type: text/plain", "", "400", "agent must be a safe identifier"),
        ("X-Nothing: at all", "", "400", "agent must be a safe identifier"),
        ("Transfer-Encoding: chunked", "2\r\n{}\r\n0\r\n\r\n", "415", "write requests with a body must use"),
        (
            "Transfer-Encoding: chunked\r\nContent-Type: application/json",
            "zz\r\n",
            "400",
            "Malformed JSON in request body",
        ),
    ] {
        let answer = raw(&service, &post(headers, body)).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.contains(message), "{headers}: {answer}");
    }
    // A body of a read or a DELETE is ignored, whatever it is.
    let client = service.client().with("content-type", "text/plain").with("content-encoding", "zip");
    assert_eq!(client.send("GET", "/health", Some("{")).await.status, 200);
    assert_eq!(client.send("DELETE", "/api/v1/services/s", Some("{\u{0}")).await.status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_408_and_the_connection_ends() {
    let service = Service::start(&[("REQUEST_TIMEOUT_MS", "100")]).await;
    let head = format!(
        "POST {USAGE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{{"
    );
    let answer = raw(&service, &head).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("connection: close"), "{answer}");
    assert!(
        answer.contains(r#"{"error":"request_timeout","message":"request body was not received in time","#),
        "{answer}"
    );
}

fn compressed(encoding: &str, text: &[u8]) -> Vec<u8> {
    let level = Compression::default();
    let write = |mut writer: Box<dyn Write>| writer.write_all(text);
    let mut out = Vec::new();
    match encoding {
        "gzip" => write(Box::new(GzEncoder::new(&mut out, level))),
        "zlib" => write(Box::new(ZlibEncoder::new(&mut out, level))),
        _ => write(Box::new(DeflateEncoder::new(&mut out, level))),
    }
    .expect("memory");
    out
}

async fn send(client: &Client, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
    let client = headers.iter().fold(client.clone(), |client, (name, value)| client.with(name, value));
    client.try_send("POST", USAGE, Some(body)).await.expect("an answer")
}

#[tokio::test]
async fn bodies_are_judged_by_type_then_encoding_then_size_then_content() {
    let service = Service::start(&[]).await;
    let client = service.client();
    const TYPE: &str = "write requests with a body must use Content-Type: application/json";
    const CHARSET: &str = "request bodies must use UTF-8";
    const ENCODING: &str = "unsupported Content-Encoding";
    const LARGE: &str = "request body exceeds the 100 KiB limit";
    const CORRUPT: &str = "request body could not be decompressed";
    const MALFORMED: &str = "Malformed JSON in request body";
    let json = ("content-type", "application/json");
    let large = vec![b' '; 102_401];
    let refused = vec![
        (
            vec![("content-type", "text/plain"), ("content-encoding", "zip")],
            large.clone(),
            415,
            "unsupported_media_type",
            TYPE,
        ),
        (vec![("content-type", "application/vnd.x+json")], b"{}".to_vec(), 415, "unsupported_media_type", TYPE),
        (vec![("content-type", "")], b"{}".to_vec(), 415, "unsupported_media_type", TYPE),
        (
            vec![("content-type", "application/json; charset=latin1"), ("content-encoding", "zip")],
            b"{".to_vec(),
            415,
            "unsupported_media_type",
            CHARSET,
        ),
        (vec![json, ("content-encoding", "zip")], large.clone(), 415, "unsupported_media_type", ENCODING),
        (vec![json, ("content-encoding", "gzip, gzip")], b"{".to_vec(), 415, "unsupported_media_type", ENCODING),
        (vec![json, ("content-encoding", "gzip")], b"{}".to_vec(), 400, "invalid_request", CORRUPT),
        (vec![json, ("content-encoding", "br")], b"{}".to_vec(), 400, "invalid_request", CORRUPT),
        (vec![json, ("content-encoding", "deflate")], b"{}".to_vec(), 400, "invalid_request", CORRUPT),
        (
            vec![json, ("content-encoding", "gzip")],
            compressed("gzip", RECORD.as_bytes())[..30].to_vec(),
            400,
            "invalid_request",
            CORRUPT,
        ),
        (vec![json], large.clone(), 413, "payload_too_large", LARGE),
        (vec![json, ("content-encoding", "gzip")], compressed("gzip", &large), 413, "payload_too_large", LARGE),
        (vec![json, ("content-encoding", "gzip")], compressed("gzip", b"{"), 400, "invalid_request", MALFORMED),
        (vec![json], br#"{"agent":"a\u0000"}"#.to_vec(), 400, "invalid_request", "text must not contain U+0000"),
    ];
    for (headers, body, status, code, message) in refused {
        let answer = send(&client, &headers, body).await;
        assert_eq!(answer.error(), (status, code.to_owned(), message.to_owned()), "{headers:?}");
    }
    for (headers, body) in [
        (vec![("content-type", "APPLICATION/JSON;Charset=\"UTF-8\"; x=y")], RECORD.as_bytes().to_vec()),
        (vec![json, ("content-encoding", "identity")], RECORD.as_bytes().to_vec()),
        (vec![json, ("content-encoding", "GZIP")], compressed("gzip", RECORD.as_bytes())),
        (vec![json, ("content-encoding", "deflate")], compressed("zlib", RECORD.as_bytes())),
        (vec![json, ("content-encoding", "deflate")], compressed("raw", RECORD.as_bytes())),
        (vec![json], format!("{RECORD}{}", " ".repeat(102_400 - RECORD.len())).into_bytes()),
        (vec![json], br#"{"requests":9,"agent":"a","serviceId":"s","requests":1.0,"x":null}"#.to_vec()),
    ] {
        assert_eq!(send(&client, &headers, body).await.status, 201, "{headers:?}");
    }
    // The limit is one of what comes out: a body that hardly shrinks may be longer on its way.
    let mut stored = GzEncoder::new(Vec::new(), Compression::none());
    stored.write_all(format!("{RECORD}{}", " ".repeat(102_400 - RECORD.len())).as_bytes()).expect("memory");
    let stored = stored.finish().expect("memory");
    assert!(stored.len() > 102_400);
    assert_eq!(send(&client, &[json, ("content-encoding", "gzip")], stored).await.status, 201);
    assert_eq!(service.number("SELECT outstanding + settled + reset FROM usage_counters").await, 8);
}

#[tokio::test]
async fn an_error_of_ours_says_nothing_but_where_it_happened() {
    let service = Service::start(&[]).await;
    sqlx::query("ALTER TABLE services RENAME COLUMN owner TO gone").execute(&service.pool).await.expect("DDL");
    let answer = service.client().with("x-request-id", "r").get("/api/v1/services/?q=x").await;
    assert_eq!(answer.status, 500, "{answer:?}");
    let body = r#"{"error":"internal_error","message":"Unexpected server error","method":"GET","path":"/api/v1/services/","requestId":"r"}"#;
    assert_eq!(answer.text, body);
}

#[tokio::test]
async fn members_stand_in_order_also_in_refusals() {
    let service = Service::start(&[]).await;
    let client = service.client().with("x-request-id", "r");
    let body = client.send("PATCH", "/api/v1/config", Some(r#"{"b":1,"a":2}"#)).await;
    let expected =
        r#"{"error":"invalid_request","message":"unknown config keys: b, a","unknownKeys":["b","a"],"requestId":"r"}"#;
    assert_eq!(body.text, expected);
    assert_eq!(client.get("/x").await.text, r#"{"error":"not_found","message":"No route for GET /x","requestId":"r"}"#);
    let health: Value = client.get("/api/v1/health/ready").await.json();
    assert_eq!(health, json!({ "ready": true }));
}
