//! The service without its work: reads the head, parses the body, hashes it, answers. How fast this machine's HTTP can be.

use axum::Router;
use axum::body::Bytes;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;

use crate::Result;

pub async fn serve() -> Result<()> {
    let port: u16 = std::env::var("PORT")?.parse()?;
    let router = Router::new().route("/health", get(async || "ok")).route("/api/v1/usage", post(record));
    axum::serve(TcpListener::bind(("127.0.0.1", port)).await?, router).await?;
    Ok(())
}

async fn record(headers: HeaderMap, body: Bytes) -> Response {
    let Ok(body) = serde_json::from_slice::<Value>(&body) else { return StatusCode::BAD_REQUEST.into_response() };
    let fingerprint = json!(["POST", "/api/v1/usage", {}, body]).to_string();
    let hash = Sha256::digest(fingerprint.as_bytes());
    // What was computed must leave the process, or the compiler could drop it.
    let key = headers.get("idempotency-key").map_or(0, |key| key.as_bytes().len());
    let total = i64::from(hash[0]) + key as i64;
    let answer = json!({ "agent": body["agent"], "serviceId": body["serviceId"], "total": total });
    (StatusCode::CREATED, [(header::CONTENT_TYPE, "application/json")], answer.to_string()).into_response()
}
