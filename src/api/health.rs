//! Whether the service lives, whether it can serve, and which version it is.

use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use serde_json::json as value;

use crate::command::Reply;
use crate::store::server;

use super::deep_health::{self, Check, Memory, Status};
use super::exchange::{Failure, Read, check_query, json, respond};
use super::query;
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

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Deep<'a> {
    status: &'static str,
    uptime_seconds: u64,
    memory: Memory,
    pid: u32,
    node: &'static str,
    checks: &'a [Check],
    checks_total: usize,
    next_checks_cursor: Option<String>,
}

pub async fn deep(State(state): State<ApiState>, Read(exchange): Read) -> Result<Response, Failure> {
    check_query(&exchange, &["limit", "cursor"])?;
    let limit = exchange.query.bounded("limit", 10, 1, 50) as usize;
    let page = query::page_of_names(&deep_health::NAMES, exchange.query.cursor()?.as_deref(), limit)?;
    let report = deep_health::report(&state).await;
    let has_error = report.checks.iter().any(|check| check.status == Status::Error);
    Ok(json(&Deep {
        status: if has_error {
            "error"
        } else if report.is_paused {
            "paused"
        } else {
            "ok"
        },
        uptime_seconds: state.started.elapsed().as_secs(),
        memory: report.memory,
        pid: std::process::id(),
        node: concat!("agentpay-billing ", env!("CARGO_PKG_VERSION")),
        checks: &report.checks[page.range],
        checks_total: deep_health::NAMES.len(),
        next_checks_cursor: page.next_cursor,
    }))
}

pub async fn version() -> Response {
    json(&value!({ "version": env!("CARGO_PKG_VERSION") }))
}
