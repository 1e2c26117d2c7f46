//! Liveness, readiness and the version.

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Serialize;

use crate::command::Reply;
use crate::job_health::Job;
use crate::store::FaultKind;

use crate::api::handlers::deep_health::{self, Check, Memory, Status};
use crate::api::openapi::description::{CURSOR, Description, limit};
use crate::api::request::errors::ApiError;
use crate::api::request::query;
use crate::api::request::read::ReadRequest;
use crate::api::request::response::{json, respond};
use crate::api::state::{ApiState, Cell};

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "Liveness")]
struct Alive {
    status: &'static str,
    service: &'static str,
}

pub const ALIVE: Description = Description::of(
    "checkLiveness",
    "Check liveness",
    "Returns 200 while the process runs, also when it is paused, draining or without its database.",
)
.answer::<Alive>(200, r#"{"status":"ok","service":"agentpay-backend"}"#);

pub async fn alive() -> Response {
    alive_response()
}

pub fn alive_response() -> Response {
    json(&Alive { status: "ok", service: "agentpay-backend" })
}

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Readiness")]
struct Ready {
    ready: bool,
    /// Why the service is not ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Background jobs that have failed for a minute. Requests are still served.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failing: Vec<&'static str>,
    /// Cells whose tenants are refused, if there are several cells. Other tenants are served.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unavailable_cells: Vec<UnavailableCell>,
}

#[derive(JsonSchema, Serialize)]
struct UnavailableCell {
    cell: String,
    reason: String,
}

pub const READY: Description = Description::of(
    "checkReadiness",
    "Check readiness",
    "Returns 200 when the database can be used and no shutdown has begun. Otherwise returns 503 with the \
         reason.",
)
.answer::<Ready>(200, r#"{"ready":true}"#)
.answer::<Ready>(503, r#"{"ready":false,"reason":"the database does not answer"}"#);

pub async fn ready(State(state): State<ApiState>, request: ReadRequest) -> Result<Response, ApiError> {
    let mut unavailable_cells = Vec::new();
    let mut reason = state.draining.is_cancelled().then(|| "a shutdown has begun".to_owned());
    if reason.is_none() {
        reason = reason_against(state.home(), request.deadline).await;
        if state.has_cells() {
            unavailable_cells = find_unavailable(&state, reason.as_ref());
            reason = reason.filter(|_| !serves_without_home(&state, unavailable_cells.len()));
        }
    }
    let jobs = state.cells.iter().flat_map(|cell| cell.health.all());
    let broken = jobs.filter(|(job, known)| *job != Job::Config && known.is_broken());
    let mut failing: Vec<&str> = broken.map(|(job, _)| job.name()).collect();
    failing.sort_unstable();
    failing.dedup();
    let status = if reason.is_none() { 200 } else { 503 };
    Ok(respond(Reply::json(status, &Ready { ready: reason.is_none(), reason, failing, unavailable_cells })))
}

fn find_unavailable(state: &ApiState, of_home: Option<&String>) -> Vec<UnavailableCell> {
    let of_home = of_home.map(|reason| (state.home(), reason.clone()));
    let others = state.cells.iter().skip(1).filter_map(|cell| {
        let reason = cell.availability.reason().map(|reason| reason.to_string());
        Some((cell, reason.or_else(|| reason_of_commits(cell))?))
    });
    let all = of_home.into_iter().chain(others);
    all.map(|(cell, reason)| UnavailableCell { cell: cell.id.to_string(), reason }).collect()
}

/// Whether the tenants of other cells can be served although the home cell cannot be used.
fn serves_without_home(state: &ApiState, unavailable: usize) -> bool {
    let answers = state.home().health.state(Job::Config).failing_ms.is_none();
    unavailable < state.cells.len() && (answers || state.known_keys.has_any_without_home())
}

/// Why the cell cannot serve requests; `None` if it can.
async fn reason_against(cell: &Cell, deadline: std::time::Instant) -> Option<String> {
    let reason = cell.polled.readiness.reason_against(&cell.reader, deadline).await;
    match reason {
        // A pause or a revoked key may have been missed.
        None if cell.health.state(Job::Config).is_broken() => {
            Some("the configuration could not be read for a minute".to_owned())
        }
        None => reason_of_commits(cell),
        reason => reason,
    }
}

/// Failures that only single requests cause do not count: they must not make the replica unready for all others.
fn reason_of_commits(cell: &Cell) -> Option<String> {
    let commits = cell.health.state(Job::Commit);
    let is_broken = commits.is_broken() && commits.last_fault == Some(FaultKind::Unavailable);
    is_broken.then(|| "nothing could be written for a minute".to_owned())
}

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "HealthReport")]
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

pub const DEEP: Description = Description::of(
    "getHealthReport",
    "Get the health report",
    "Returns one check for each part of the service, and `error`, `paused` or `ok` for the whole.",
)
.query(&[limit(10, 50), CURSOR])
.answer::<Deep<'static>>(
    200,
    r#"{"status":"ok","uptimeSeconds":60,"memory":{"rssMb":30,"heapUsedMb":30},"pid":1,
        "node":"agentpay-billing 0.1.0","checks":[{"name":"database","status":"ok","detail":{"latencyMs":1}}],
        "checksTotal":9,"nextChecksCursor":"ZGF0YWJhc2U"}"#,
);

pub async fn deep(State(state): State<ApiState>, request: ReadRequest) -> Result<Response, ApiError> {
    let limit = request.query.bounded("limit", 10, 1, 50) as usize;
    let page = query::page_of_names(deep_health::names(&state), request.query.cursor()?.as_deref(), limit)?;
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
        checks_total: deep_health::names(&state).len(),
        next_checks_cursor: page.next_cursor,
    }))
}

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "ProgramVersion")]
struct Version {
    version: &'static str,
}

pub const VERSION: Description =
    Description::of("getVersion", "Get the version", "Returns the version of the replica that responds.")
        .answer::<Version>(200, r#"{"version":"0.1.0"}"#);

pub async fn version() -> Response {
    json(&Version { version: env!("CARGO_PKG_VERSION") })
}
