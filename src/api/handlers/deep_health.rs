//! The deep health report: one check for each part of the service.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use crate::clock::Offset;
use crate::query::health::{self, DatabaseReport};
use crate::query::reader::Connections;
use crate::store::verification::CheckResult;
use crate::telemetry::process::Process;

use crate::api::state::ApiState;

/// Above these, a check is a warning.
const LATENCY_MAX_MS: u64 = 250;
const LAG_MAX_SECONDS: i64 = 600;

pub const NAMES: [&str; 9] =
    ["database", "pool", "commitQueue", "janitor", "webhooks", "memory", "jobs", "clock", "verify"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
#[schemars(rename = "HealthStatus")]
pub enum Status {
    Ok,
    Warn,
    Error,
}

#[derive(Clone, Debug, JsonSchema, Serialize)]
#[schemars(rename = "HealthCheck")]
pub struct Check {
    name: &'static str,
    pub status: Status,
    #[schemars(with = "serde_json::Map<String, Value>")]
    detail: Value,
}

/// Resident and heap memory in whole mebibytes. The allocator does not report its own, so both are equal.
#[derive(Clone, Copy, Debug, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "MemoryUse")]
pub struct Memory {
    rss_mb: u64,
    heap_used_mb: u64,
}

pub struct Report {
    /// In the order of [`NAMES`].
    pub checks: [Check; 9],
    pub memory: Memory,
    pub is_paused: bool,
}

pub async fn report(state: &ApiState) -> Report {
    let database_report = health::report(&state.reader, &state.clock, &state.oldest_expiry).await;
    let report = database_report.as_ref();
    let memory = memory();
    let checks = [
        database(report),
        pool(state),
        commit_queue(state),
        janitor(state, report),
        webhooks(state, report),
        check("memory", Status::Ok, json!(memory)),
        jobs(state),
        clock(state),
        verify(report),
    ];
    Report {
        checks,
        memory,
        is_paused: report.map_or_else(|| state.runtime_config.is_paused(), |report| report.is_paused),
    }
}

fn check(name: &'static str, status: Status, detail: Value) -> Check {
    Check { name, status, detail }
}

fn warn_if(is_odd: bool) -> Status {
    if is_odd { Status::Warn } else { Status::Ok }
}

fn database(report: Option<&DatabaseReport>) -> Check {
    let latency_ms = report.map(|report| report.latency_ms);
    let status = latency_ms.map_or(Status::Error, |latency_ms| warn_if(latency_ms > LATENCY_MAX_MS));
    check("database", status, json!({ "latencyMs": latency_ms }))
}

fn pool(state: &ApiState) -> Check {
    let Connections { in_use, idle, max } = state.reader.connections();
    check("pool", warn_if(in_use >= max), json!({ "inUse": in_use, "idle": idle, "max": max }))
}

fn commit_queue(state: &ApiState) -> Check {
    let (depth, cap) = (state.committer.queue_depth(), state.committer.queue_max());
    let status = if depth >= cap { Status::Error } else { warn_if(depth * 5 >= cap * 4) };
    check("commitQueue", status, json!({ "depth": depth, "cap": cap }))
}

fn janitor(state: &ApiState, report: Option<&DatabaseReport>) -> Check {
    let lag = report.map(|report| health::janitor_lag_seconds(&state.jobs, report.oldest_expiry, state.clock.now()));
    let status = warn_if(lag.is_some_and(|lag| lag > LAG_MAX_SECONDS));
    check("janitor", status, json!({ "lagSeconds": lag, "lastRunAt": state.janitor_ran.get() }))
}

fn webhooks(state: &ApiState, report: Option<&DatabaseReport>) -> Check {
    let pending = report.map(|report| report.webhooks.pending);
    let oldest = report
        .map(|report| report.webhooks.oldest_due_at.map_or(0, |due| health::seconds_since(due, state.clock.now())));
    let status = warn_if(oldest.is_some_and(|oldest| oldest > LAG_MAX_SECONDS));
    check("webhooks", status, json!({ "pending": pending, "oldestDueSeconds": oldest }))
}

/// A warning while a job fails; an error once it has failed for a minute.
fn jobs(state: &ApiState) -> Check {
    let mut status = Status::Ok;
    let mut detail = serde_json::Map::new();
    for (job, known) in state.jobs.all() {
        if known.is_broken() {
            status = Status::Error;
        } else if known.failing_ms.is_some() && status == Status::Ok {
            status = Status::Warn;
        }
        let (last_error, last_error_at) = known.last_error.unzip();
        let known = json!({
            "lastSuccessAt": known.last_success_at,
            "lastError": last_error,
            "lastErrorAt": last_error_at,
        });
        detail.insert(job.name().to_owned(), known);
    }
    check("jobs", status, detail.into())
}

/// A warning above one second; an error when the offset stops the janitor and the dispatcher.
fn clock(state: &ApiState) -> Check {
    let offset = state.clock.offset();
    let status = match offset {
        Some(offset) if offset.is_apart() => Status::Error,
        offset => warn_if(offset.is_some_and(Offset::is_large)),
    };
    check("clock", status, json!({ "offsetMs": offset.map(Offset::as_ms) }))
}

/// An error if the last background verification has findings; a warning if it left out steps.
fn verify(report: Option<&DatabaseReport>) -> Check {
    let last = report.map(|report| &report.verification);
    let of_each = |figure: fn(&CheckResult) -> i64| {
        let figures = last?.checks.iter().map(|check| (check.name.clone(), json!(figure(check))));
        Some(serde_json::Map::from_iter(figures))
    };
    let any = |is_so: fn(&CheckResult) -> bool| last.is_some_and(|last| last.checks.iter().any(is_so));
    let is_incomplete = any(|check| check.cancelled_steps > 0);
    let status = if any(|check| check.findings > 0) { Status::Error } else { warn_if(is_incomplete) };
    let finished_at = last.and_then(|last| last.finished_at);
    let detail = json!({
        "state": finished_at.map(|_| if is_incomplete { "incomplete" } else { "complete" }),
        "lastSuccessAt": finished_at,
        "durationMs": last.and_then(|last| last.duration_ms),
        "findings": of_each(|check| check.findings),
        "cancelledSteps": of_each(|check| check.cancelled_steps),
    });
    check("verify", status, detail)
}

fn memory() -> Memory {
    let rss_mb = Process::read().map_or(0, |process| process.resident_bytes) >> 20;
    Memory { rss_mb, heap_used_mb: rss_mb }
}
