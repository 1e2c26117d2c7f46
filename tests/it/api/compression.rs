//! HTTP contract, section 4.4: compression.

use std::io::Read;

use serde_json::json;

use crate::support::{Answer, Client, Service};

const ON: &[(&str, &str)] = &[("COMPRESSION", "on"), ("COMPRESSION_THRESHOLD_BYTES", "200")];

/// Encoding and `Vary`.
fn coding(answer: &Answer) -> (String, String) {
    (answer.header("content-encoding"), answer.header("vary"))
}

async fn ten_services(client: &Client) {
    for number in 0..10 {
        let body = json!({ "serviceId": format!("service-{number}"), "priceStroops": number });
        assert_eq!(client.post("/api/v1/services", &body).await.status, 201);
    }
}

#[tokio::test]
async fn long_bodies_are_compressed_for_who_accepts_gzip() {
    let service = Service::start(ON).await;
    let client = service.client();
    ten_services(&client).await;
    let plain = client.get("/api/v1/services").await;
    assert_eq!(coding(&plain), (String::new(), "Accept-Encoding, X-API-Key, X-Tenant-Id".to_owned()));
    for accept in ["gzip", "gzip;q=0.5, identity;q=0.1", "br, GZIP", "*"] {
        let answer = client.with("accept-encoding", accept).get_bytes("/api/v1/services").await;
        assert_eq!(answer.headers["content-encoding"], "gzip", "{accept}");
        let mut text = String::new();
        flate2::read::GzDecoder::new(answer.body.as_slice()).read_to_string(&mut text).expect("gzip");
        assert_eq!(text, plain.text);
        assert!(answer.body.len() < text.len());
    }
    for accept in ["identity", "gzip;q=0", "br", "identity;q=0, gzip;q=0", "*;q=0"] {
        let answer = client.with("accept-encoding", accept).get("/api/v1/services").await;
        assert_eq!((answer.status, answer.text.as_str(), coding(&answer).0.as_str()), (200, plain.text.as_str(), ""));
    }
}

#[tokio::test]
async fn head_tells_how_get_would_be_encoded() {
    let service = Service::start(ON).await;
    let client = service.client();
    ten_services(&client).await;
    for (accept, path) in [("gzip", "/api/v1/services"), ("identity", "/api/v1/services"), ("gzip", "/api/v1/version")]
    {
        let client = client.with("accept-encoding", accept);
        let (get, head) = (client.get_bytes(path).await, client.send("HEAD", path, None).await);
        assert_eq!((head.status, head.text.as_str()), (200, ""));
        for name in ["content-encoding", "content-length", "content-type", "vary", "etag"] {
            assert_eq!(head.headers.get(name), get.headers.get(name), "{name} of {path} for {accept}");
        }
    }
}

#[tokio::test]
async fn short_bodies_plain_text_and_no_body_stay_as_they_are() {
    let service = Service::start(ON).await;
    let client = service.client().with("accept-encoding", "gzip");
    ten_services(&client).await;
    let short = client.get("/api/v1/version").await;
    assert_eq!(coding(&short), (String::new(), "Accept-Encoding, X-API-Key, X-Tenant-Id".to_owned()));
    let metrics = client.get("/api/v1/metrics").await;
    assert!(metrics.text.len() > 200);
    assert_eq!(coding(&metrics), (String::new(), "X-API-Key, X-Tenant-Id".to_owned()));
    let etag = client.get("/api/v1/services").await.header("etag");
    let known = client.with("if-none-match", &etag).get("/api/v1/services").await;
    assert_eq!((known.status, coding(&known).0.as_str(), known.text.as_str()), (304, "", ""));
    assert_eq!(coding(&client.send("OPTIONS", "/api/v1/services", None).await), (String::new(), String::new()));
    let vary = client.with("origin", "https://a.example").get("/api/v1/services").await.header("vary");
    assert_eq!(vary, "Accept-Encoding, X-API-Key, X-Tenant-Id, Origin");
}

#[tokio::test]
async fn errors_are_compressed_like_everything_else() {
    let service = Service::start(&[("COMPRESSION", "on"), ("COMPRESSION_THRESHOLD_BYTES", "1")]).await;
    let answer = service.client().with("accept-encoding", "gzip").get("/nothing").await;
    assert_eq!((answer.status, coding(&answer).0.as_str()), (404, "gzip"));
}

#[tokio::test]
async fn switched_off_nothing_is_compressed() {
    let service = Service::start(&[("COMPRESSION_THRESHOLD_BYTES", "1")]).await;
    let client = service.client().with("accept-encoding", "gzip");
    ten_services(&client).await;
    assert_eq!(coding(&client.get("/api/v1/services").await), (String::new(), "X-API-Key, X-Tenant-Id".to_owned()));
}
