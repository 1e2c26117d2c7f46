//! Whether the service lives, whether it can serve, and which version it is.

use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use serde_json::json as value;

use crate::command::Reply;
use crate::store::server;

use super::exchange::{Failure, Read, check_query, json, respond};
use super::state::ApiState;

/// How long the database may take to answer a readiness probe.
const PING_LIMIT: Duration = Duration::from_secs(2);

pub async fn alive(Read(exchange): Read) -> Result<Response, Failure> {
    check_query(&exchange, &[])?;
    Ok(json(&value!({ "status": "ok", "service": "agentpay-backend" })))
}

pub async fn ready(State(state): State<ApiState>, Read(exchange): Read) -> Result<Response, Failure> {
    check_query(&exchange, &[])?;
    let ping = async {
        let mut connection = state.pool.acquire().await.ok()?;
        server::ping(&mut connection).await.ok()
    };
    let answers = tokio::time::timeout(PING_LIMIT, ping).await.ok().flatten().is_some();
    let ready = answers && !state.draining.is_cancelled();
    Ok(respond(Reply::json(if ready { 200 } else { 503 }, &value!({ "ready": ready }))))
}

pub async fn version() -> Response {
    json(&value!({ "version": env!("CARGO_PKG_VERSION") }))
}
