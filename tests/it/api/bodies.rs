//! HTTP contract, section 2.6: what may be sent as a body, and the exact refusal of everything else.

use std::io::Write;

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};

use crate::support::{Client, Service, Socket, usage};

const USAGE: &str = "/api/v1/usage";
const MEDIA: &str = "write requests with a body must use Content-Type: application/json";
const CHARSET: &str = "request bodies must use UTF-8";
const ENCODING: &str = "unsupported Content-Encoding";
const LARGE: &str = "request body exceeds the 100 KiB limit";
const CORRUPT: &str = "request body could not be decompressed";
const MALFORMED: &str = "Malformed JSON in request body";

fn body() -> Vec<u8> {
    usage("a", "s", 1).to_string().into_bytes()
}

/// A valid body of exactly this many bytes.
fn body_of(bytes: usize) -> Vec<u8> {
    let mut body = body();
    body.resize(bytes, b' ');
    body
}

fn gzip(bytes: &[u8], level: Compression) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), level);
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

async fn post(client: &Client, body: Vec<u8>) -> (u16, String, String) {
    let answer = client.try_send("POST", USAGE, Some(body)).await.expect("an answer");
    if answer.status == 201 { (201, String::new(), String::new()) } else { answer.error() }
}

fn expected(status: u16, code: &str, message: &str) -> (u16, String, String) {
    (status, code.to_owned(), message.to_owned())
}

#[tokio::test]
async fn the_media_type_is_json_in_utf_8() {
    let service = Service::start(&[]).await;
    for accepted in [
        "application/json",
        "Application/JSON; charset=UTF-8",
        "application/json;charset=\"utf-8\"; x=y",
        "APPLICATION/JSON;Charset=\"UTF-8\"; x=y",
    ] {
        let client = service.client().with("content-type", accepted);
        assert_eq!(post(&client, body()).await.0, 201, "{accepted}");
    }
    for other in [
        "",
        "text/plain",
        "application/problem+json",
        "application/vnd.x+json",
        "application/jsonp",
        "multipart/form-data",
        "json",
    ] {
        let client = service.client().with("content-type", other);
        assert_eq!(post(&client, body()).await, expected(415, "unsupported_media_type", MEDIA), "{other}");
    }
    for charset in ["iso-8859-1", "utf-16", "us-ascii"] {
        let client = service.client().with("content-type", &format!("application/json; charset={charset}"));
        assert_eq!(post(&client, body()).await, expected(415, "unsupported_media_type", CHARSET), "{charset}");
    }
    let mut untyped = Socket::connect(service.address).await;
    untyped.send(format!("POST {USAGE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{{}}")).await;
    let (head, text) = untyped.answer().await;
    assert!(head.status == 415 && text.contains(MEDIA), "{text}");
}

/// The first check that fails decides.
#[tokio::test]
async fn bodies_are_checked_for_type_then_encoding_then_size_then_content() {
    let service = Service::start(&[]).await;
    let large = vec![b' '; 102_401];
    let gzip = |bytes: &[u8]| gzip(bytes, Compression::default());
    for (kind, encoding, bytes, status, code, message) in [
        ("text/plain", "zip", large.clone(), 415, "unsupported_media_type", MEDIA),
        ("application/json; charset=latin1", "zip", b"{".to_vec(), 415, "unsupported_media_type", CHARSET),
        ("application/json", "zip", large.clone(), 415, "unsupported_media_type", ENCODING),
        ("application/json", "gzip, gzip", b"{".to_vec(), 415, "unsupported_media_type", ENCODING),
        ("application/json", "identity", large.clone(), 413, "payload_too_large", LARGE),
        ("application/json", "gzip", gzip(&large), 413, "payload_too_large", LARGE),
        ("application/json", "gzip", gzip(b"{"), 400, "invalid_request", MALFORMED),
    ] {
        let client = service.client().with("content-type", kind).with("content-encoding", encoding);
        assert_eq!(post(&client, bytes).await, expected(status, code, message), "{kind} {encoding}");
    }
    assert_eq!(service.number("SELECT count(*) FROM usage_counters").await, 0);
}

#[tokio::test]
async fn a_request_without_a_body_needs_no_media_type_and_counts_as_an_empty_object() {
    let service = Service::start(&[]).await;
    let mut socket = Socket::connect(service.address).await;
    for (path, head, payload) in [
        (USAGE, "Content-Length: 0\r\n", ""),
        (USAGE, "", ""),
        (USAGE, "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
        (USAGE, "Content-Type: text/plain\r\nContent-Length: 0\r\n", ""),
    ] {
        socket.send(format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: i\r\n{head}\r\n{payload}")).await;
        let (head, text) = socket.answer().await;
        let expected = r#"{"error":"invalid_request","message":"agent must be a safe identifier","requestId":"i"}"#;
        assert_eq!((head.status, text.as_str()), (400, expected));
    }
    // Even an empty chunked body is a payload, and has to say what it is.
    for chunks in ["0\r\n\r\n", "2\r\n{}\r\n0\r\n\r\n"] {
        let mut socket = Socket::connect(service.address).await;
        socket
            .send(format!("POST {USAGE} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"))
            .await;
        let (head, text) = socket.answer().await;
        assert!(head.status == 415 && text.contains(MEDIA), "{text}");
    }
    // A body of GET or DELETE is ignored, whatever it is.
    let client = service.client().with("content-type", "text/plain").with("content-encoding", "zip");
    assert_eq!(client.send("GET", "/health", Some("{")).await.status, 200);
    let deleted = client.send("DELETE", "/api/v1/api-keys/apk_none", Some("{")).await.error();
    assert_eq!(deleted, expected(404, "not_found", "no api key with prefix apk_none"));
}

#[tokio::test]
async fn bodies_may_be_compressed_in_three_ways() {
    let service = Service::start(&[]).await;
    let client = |encoding: &str| service.client().with("content-encoding", encoding);
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
    zlib.write_all(&body()).expect("memory");
    let mut deflate = DeflateEncoder::new(Vec::new(), Compression::default());
    deflate.write_all(&body()).expect("memory");
    // A brotli stream of one uncompressed block of 42 bytes.
    let brotli = b"\x8b\x14\x80{\"agent\":\"a\",\"serviceId\":\"s\",\"requests\":1}\x03".to_vec();
    for (encoding, bytes) in [
        ("identity", body()),
        ("", body()),
        ("gzip", gzip(&body(), Compression::default())),
        ("GZip", gzip(&body(), Compression::default())),
        ("deflate", zlib.finish().expect("memory")),
        ("deflate", deflate.finish().expect("memory")),
        ("br", brotli),
    ] {
        assert_eq!(post(&client(encoding), bytes).await.0, 201, "{encoding}");
    }
    for encoding in ["zstd", "compress", "x-gzip", "gzip, gzip", "gzip, identity"] {
        assert_eq!(
            post(&client(encoding), body()).await,
            expected(415, "unsupported_media_type", ENCODING),
            "{encoding}"
        );
    }
    let twice = client("gzip").with("content-encoding", "gzip");
    assert_eq!(post(&twice, body()).await, expected(415, "unsupported_media_type", ENCODING));
    let half = gzip(&body(), Compression::default());
    for (encoding, bytes) in
        [("gzip", body()), ("gzip", half[..20].to_vec()), ("deflate", body()), ("br", vec![255; 9])]
    {
        assert_eq!(post(&client(encoding), bytes).await, expected(400, "invalid_request", CORRUPT), "{encoding}");
    }
}

#[tokio::test]
async fn a_byte_order_mark_and_charset_utf8_are_accepted() {
    let service = Service::start(&[]).await;
    let body = [b"\xef\xbb\xbf", body().as_slice()].concat();
    let gzip = gzip(&body, Compression::default());
    for (kind, encoding, bytes) in [
        ("application/json", "identity", body.clone()),
        ("application/json; charset=utf8", "identity", body),
        ("application/json; charset=\"UTF8\"", "gzip", gzip),
    ] {
        let client = service.client().with("content-type", kind).with("content-encoding", encoding);
        assert_eq!(post(&client, bytes).await.0, 201, "{kind}");
    }
}

#[tokio::test]
async fn a_brotli_body_with_a_large_window_is_refused() {
    let service = Service::start(&[]).await;
    let hex = "111e3800027b226167656e74223a2261222c22736572766963654964223a2273222c600008227265717565737473223a317d03";
    let body: Vec<u8> =
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex")).collect();
    let client = service.client().with("content-encoding", "br");
    assert_eq!(post(&client, body).await, expected(400, "invalid_request", CORRUPT));
}

#[tokio::test]
async fn a_body_has_at_most_102400_bytes() {
    let service = Service::start(&[]).await;
    let client = service.client();
    let zipped = client.with("content-encoding", "gzip");
    assert_eq!(post(&client, body_of(102_400)).await.0, 201);
    // Stored rather than compressed, this is longer than what it holds.
    assert_eq!(post(&zipped, gzip(&body_of(102_400), Compression::none())).await.0, 201);
    let refusal = expected(413, "payload_too_large", LARGE);
    assert_eq!(post(&client, body_of(102_401)).await, refusal);
    for level in [Compression::default(), Compression::none()] {
        assert_eq!(post(&zipped, gzip(&body_of(102_401), level)).await, refusal);
    }
    // Ten megabytes of blanks are ten kilobytes on the wire, and are not unpacked further than the limit.
    assert_eq!(post(&zipped, gzip(&body_of(10_000_000), Compression::best())).await, refusal);
    let head = format!("POST {USAGE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n");
    // By its announcement alone, without a byte of it.
    let mut announced = Socket::connect(service.address).await;
    announced.send(format!("{head}Content-Length: 102401\r\n\r\n")).await;
    assert_eq!(announced.answer().await.0.status, 413);
    let mut chunked = Socket::connect(service.address).await;
    chunked.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n19001\r\n{}", " ".repeat(102_401))).await;
    let (head, text) = chunked.answer().await;
    assert!(head.status == 413 && text.contains(LARGE), "{text}");
}

#[tokio::test]
async fn a_body_that_does_not_arrive_in_time_is_408_and_ends_the_connection() {
    let service = Service::start(&[("REQUEST_TIMEOUT_MS", "300")]).await;
    for start in ["Content-Length: 100\r\n\r\n{", "Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"] {
        let mut socket = Socket::connect(service.address).await;
        let head = "Host: localhost\r\nX-Request-Id: i\r\nIdempotency-Key: k\r\nContent-Type: application/json\r\n";
        socket.send(format!("POST {USAGE} HTTP/1.1\r\n{head}{start}")).await;
        let (head, text) = socket.answer().await;
        let expected =
            r#"{"error":"request_timeout","message":"request body was not received in time","requestId":"i"}"#;
        assert_eq!((head.status, text.as_str(), head.header("connection")), (408, expected, "close"));
        assert_eq!(socket.rest().await, "");
    }
    let record = service.beside().await.client().get("/api/v1/idempotency/k").await;
    assert_eq!(record.status, 404, "{record:?}");
}

#[tokio::test]
async fn malformed_json_is_refused_and_not_repeated() {
    let service = Service::start(&[]).await;
    let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
    let deep = nested(129);
    for text in
        [" ", "{", "{}{}", "1", "\"a\"", "null", "true", "[1e999]", r#"["\ud800"]"#, r#"{"a":1,}"#, "{}\u{feff}", &deep]
    {
        let refusal = expected(400, "invalid_request", MALFORMED);
        assert_eq!(post(&service.client(), text.as_bytes().to_vec()).await, refusal, "{text}");
    }
    assert_eq!(post(&service.client(), b"{\"a\":\"\xff\"}".to_vec()).await.2, MALFORMED);
    let mut broken = Socket::connect(service.address).await;
    let head = "Host: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n";
    broken.send(format!("POST {USAGE} HTTP/1.1\r\n{head}\r\nzz\r\n")).await;
    let (head, text) = broken.answer().await;
    assert!(head.status == 400 && text.contains(MALFORMED), "{text}");
    for text in [&nested(128), "[]", r#"[{"agent":"a"}]"#, "{}"] {
        let refusal = expected(400, "invalid_request", "agent must be a safe identifier");
        assert_eq!(post(&service.client(), text.as_bytes().to_vec()).await, refusal, "{text}");
    }
    for text in [r#"{"\u0000":1}"#, r#"{"a":["x\u0000"]}"#] {
        let refusal = expected(400, "invalid_request", "text must not contain U+0000");
        assert_eq!(post(&service.client(), text.as_bytes().to_vec()).await, refusal, "{text}");
    }
    // Of members with one name the last counts.
    let twice = r#"{"agent":"x y","serviceId":"s","requests":0,"requests":3e0,"agent":"a"}"#;
    let answer = service.client().send("POST", USAGE, Some(twice)).await;
    assert_eq!(answer.text, r#"{"agent":"a","serviceId":"s","total":3}"#);
}
