//! HTTP contract, section 2.1: paths are matched as they are sent, and their parameters are decoded once.

use super::invalid;
use crate::support::{Service, Socket};

#[tokio::test]
async fn another_spelling_of_a_path_is_another_path() {
    let service = Service::start(&[]).await;
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/nowhere"),
        ("GET", "/api/v1"),
        ("GET", "/API/v1/services"),
        ("GET", "/api/v1/services//"),
        ("GET", "/api/v1//services"),
        ("GET", "/api/v1/usage//s"),
        // An escape in a literal segment makes it another segment.
        ("GET", "/api%2Fv1/services"),
        ("GET", "/api/v1/servic%65s"),
        ("GET", "/api/v1/../health"),
        ("GET", "/health/."),
        ("POST", "/api/v1/nothing"),
    ] {
        let mut socket = Socket::connect(service.address).await;
        // Unlike a client, a socket does not resolve dots.
        socket.send(format!("{method} {path}?x=1 HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: i\r\n\r\n")).await;
        let expected = format!(r#"{{"error":"not_found","message":"No route for {method} {path}","requestId":"i"}}"#);
        let (head, body) = socket.answer().await;
        assert_eq!((head.status, body), (404, expected));
    }
}

#[tokio::test]
async fn an_invalid_escape_is_400_on_every_path() {
    let service = Service::start(&[]).await;
    for path in [
        "/%zz",
        "/nowhere/%zz",
        "/api/v1/services/%",
        "/api/v1/services/%f",
        "/api/v1/services/%zz",
        "/api/v1/services/%ff",
        "/api/v1/usage/%zz/s",
        "/api/v1/usage/%/s",
        "/api/v1/usage/a/%e",
        "/api/v1/usage/%ff/s",
    ] {
        let message = "request path has an invalid percent-escape";
        assert_eq!(service.client().get(path).await.error(), invalid(message), "{path}");
    }
}

#[tokio::test]
async fn a_parameter_is_decoded_once_and_keeps_slashes_and_dots() {
    let service = Service::start(&[]).await;
    let client = service.client();
    for (path, body) in [
        ("/api/v1/usage/../.", r#"{"agent":"..","serviceId":".","total":0}"#),
        ("/api/v1/agents/%2e%2E/total/", r#"{"agent":"..","total":0}"#),
        ("/api/v1/usage/%61/s/", r#"{"agent":"a","serviceId":"s","total":0}"#),
    ] {
        let mut socket = Socket::connect(service.address).await;
        socket.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
        let (head, text) = socket.answer().await;
        assert_eq!((head.status, text.as_str()), (200, body), "{path}");
    }
    for path in [
        "/api/v1/usage/a%2Fb/s",
        "/api/v1/usage/a%252e/s",
        "/api/v1/usage/a+b/s",
        "/api/v1/usage/a%20b/s",
        "/api/v1/usage/%C3%A9/s",
        "/api/v1/billing/a/s%20",
    ] {
        assert_eq!(client.get(path).await.error(), invalid("agent and serviceId must be safe identifiers"), "{path}");
    }
    let nul = invalid("text must not contain U+0000");
    for path in ["/api/v1/usage/%00/s", "/api/v1/services/a%00b"] {
        assert_eq!(client.get(path).await.error(), nul, "{path}");
    }
    assert_eq!(client.send("DELETE", "/api/v1/usage/a%00/s", None).await.error(), nul);
}

#[tokio::test]
async fn a_slash_at_the_end_is_optional() {
    let service = Service::start(&[]).await;
    for path in ["/api/v1/services", "/api/v1/services/"] {
        assert_eq!(service.client().get(path).await.text, r#"{"services":[]}"#);
    }
}
