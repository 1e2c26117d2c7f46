//! HTTP contract, section 5.1: error bodies, byte for byte.

use crate::support::Service;

#[tokio::test]
async fn an_internal_error_tells_the_method_and_the_path_and_nothing_else() {
    let service = Service::start(&[]).await;
    sqlx::query("ALTER TABLE services RENAME COLUMN owner TO gone").execute(&service.pool).await.expect("DDL");
    let answer = service.client().with("x-request-id", "r").get("/api/v1/services/?q=x").await;
    assert_eq!(answer.status, 500, "{answer:?}");
    let body = r#"{"error":"internal_error","message":"Unexpected server error","method":"GET","path":"/api/v1/services/","requestId":"r"}"#;
    assert_eq!(answer.text, body);
}

#[tokio::test]
async fn members_of_an_error_body_are_in_order() {
    let service = Service::start(&[]).await;
    let client = service.client().with("x-request-id", "r");
    let body = client.send("PATCH", "/api/v1/config", Some(r#"{"b":1,"a":2}"#)).await;
    let expected =
        r#"{"error":"invalid_request","message":"unknown config keys: b, a","unknownKeys":["b","a"],"requestId":"r"}"#;
    assert_eq!(body.text, expected);
    assert_eq!(client.get("/x").await.text, r#"{"error":"not_found","message":"No route for GET /x","requestId":"r"}"#);
}
