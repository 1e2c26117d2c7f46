//! Whether the service lives, whether it can serve, and which version it is.

use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use crate::command::Reply;
use crate::store::server;

use super::deep_health::{self, Check, Memory, Status};
use super::exchange::{Failure, Read, check_query, json, respond};
use super::openapi::description::{CURSOR, Description, limit};
use super::query;
use super::state::ApiState;

/// How long the database may take to answer a readiness probe.
const PING_LIMIT: Duration = Duration::from_secs(2);

#[derive(JsonSchema, Serialize)]
struct Alive {
    status: &'static str,
    service: &'static str,
}

pub const ALIVE: Description = Description::of("Whether the process lives")
    .answer::<Alive>(200, r#"{"status":"ok","service":"agentpay-backend"}"#);

pub async fn alive(Read(exchange): Read) -> Result<Response, Failure> {
    check_query(&exchange, &[])?;
    Ok(alive_response())
}

pub(super) fn alive_response() -> Response {
    json(&Alive { status: "ok", service: "agentpay-backend" })
}

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "Readiness")]
struct Ready {
    ready: bool,
}

pub const READY: Description = Description::of("Whether the service can serve")
    .answer::<Ready>(200, r#"{"ready":true}"#)
    .answer::<Ready>(503, r#"{"ready":false}"#);

pub async fn ready(State(state): State<ApiState>, Read(exchange): Read) -> Result<Response, Failure> {
    check_query(&exchange, &[])?;
    let ping = async {
        let mut connection = state.pool.acquire().await.ok()?;
        server::ping(&mut connection).await.ok()
    };
    let answers = tokio::time::timeout(PING_LIMIT, ping).await.ok().flatten().is_some();
    let ready = answers && !state.draining.is_cancelled();
    Ok(respond(Reply::json(if ready { 200 } else { 503 }, &Ready { ready })))
}

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "DeepHealth")]
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

pub const DEEP: Description = Description::of("Every part, with what operators look at first")
    .query(&[limit(10, 50), CURSOR])
    .answer::<Deep<'static>>(
        200,
        r#"{"status":"ok","uptimeSeconds":60,"memory":{"rssMb":30,"heapUsedMb":30},"pid":1,
        "node":"agentpay-billing 0.1.0","checks":[{"name":"database","status":"ok","detail":{"latencyMs":1}}],
        "checksTotal":6,"nextChecksCursor":"ZGF0YWJhc2U"}"#,
    );

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

#[derive(JsonSchema, Serialize)]
struct Version {
    version: &'static str,
}

pub const VERSION: Description =
    Description::of("The version that runs").answer::<Version>(200, r#"{"version":"0.1.0"}"#);

pub async fn version() -> Response {
    json(&Version { version: env!("CARGO_PKG_VERSION") })
}
