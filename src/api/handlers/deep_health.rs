//! The deep health report: one check for each part of the service.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use crate::clock::Offset;
use crate::query::health::{self, DatabaseReport};
use crate::query::reader::Connections;
use crate::store::verification::CheckResult;
use crate::telemetry::process::Process;

use crate::api::state::{ApiState, Cell};

/// Above these, a check is a warning.
const LATENCY_MAX_MS: u64 = 250;
const LAG_MAX_SECONDS: i64 = 600;

const NAMES: [&str; 10] =
    ["database", "pool", "commitQueue", "janitor", "webhooks", "memory", "jobs", "clock", "verify", "cells"];

/// The names of the checks. The last one is about several cells; the others are about the home cell.
pub fn names(state: &ApiState) -> &'static [&'static str] {
    if state.has_cells() { &NAMES } else { &NAMES[..NAMES.len() - 1] }
}

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
    /// In the order of [`names`].
    pub checks: Vec<Check>,
    pub memory: Memory,
    pub is_paused: bool,
}

pub async fn report(state: &ApiState) -> Report {
    let cell = state.home();
    let database_report = health::report(&cell.reader, &cell.clock, &cell.oldest_expiry).await;
    let report = database_report.as_ref();
    let memory = memory();
    let mut checks = vec![
        database(report),
        pool(cell),
        commit_queue(cell),
        janitor(cell, report),
        webhooks(cell, report),
        check("memory", Status::Ok, json!(memory)),
        jobs(cell),
        clock(cell),
        verify(report),
    ];
    if state.has_cells() {
        checks.push(cells(state));
    }
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

fn pool(cell: &Cell) -> Check {
    let Connections { in_use, idle, max } = cell.reader.connections();
    check("pool", warn_if(in_use >= max), json!({ "inUse": in_use, "idle": idle, "max": max }))
}

fn commit_queue(cell: &Cell) -> Check {
    let (depth, cap) = (cell.committer.queue_depth(), cell.committer.queue_max());
    let status = if depth >= cap { Status::Error } else { warn_if(depth * 5 >= cap * 4) };
    check("commitQueue", status, json!({ "depth": depth, "cap": cap }))
}

fn janitor(cell: &Cell, report: Option<&DatabaseReport>) -> Check {
    let lag = report.map(|report| health::janitor_lag_seconds(&cell.health, report.oldest_expiry, cell.clock.now()));
    let status = warn_if(lag.is_some_and(|lag| lag > LAG_MAX_SECONDS));
    check("janitor", status, json!({ "lagSeconds": lag, "lastRunAt": cell.jobs.janitor.last_run.get() }))
}

fn webhooks(cell: &Cell, report: Option<&DatabaseReport>) -> Check {
    let pending = report.map(|report| report.webhooks.pending);
    let oldest = report
        .map(|report| report.webhooks.oldest_due_at.map_or(0, |due| health::seconds_since(due, cell.clock.now())));
    let status = warn_if(oldest.is_some_and(|oldest| oldest > LAG_MAX_SECONDS));
    check("webhooks", status, json!({ "pending": pending, "oldestDueSeconds": oldest }))
}

/// A warning while a job fails; an error once it has failed for a minute.
fn jobs(cell: &Cell) -> Check {
    let mut status = Status::Ok;
    let mut detail = serde_json::Map::new();
    for (job, known) in cell.health.all() {
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
fn clock(cell: &Cell) -> Check {
    let offset = cell.clock.offset();
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

/// An error if a cell cannot be used; a warning if one of its jobs fails.
fn cells(state: &ApiState) -> Check {
    let mut status = Status::Ok;
    let mut detail = serde_json::Map::new();
    for cell in &state.cells {
        let reason = cell.availability.reason();
        let failing: Vec<&str> =
            cell.health.all().filter(|(_, known)| known.failing_ms.is_some()).map(|(job, _)| job.name()).collect();
        if reason.is_some() {
            status = Status::Error;
        } else if !failing.is_empty() && status == Status::Ok {
            status = Status::Warn;
        }
        let Connections { in_use, max, .. } = cell.reader.connections();
        let known = json!({
            "unavailable": reason.as_deref(),
            "failing": failing,
            "commitQueueDepth": cell.committer.queue_depth(),
            "connectionsInUse": in_use,
            "connectionsMax": max,
        });
        detail.insert(cell.id.to_string(), known);
    }
    check("cells", status, detail.into())
}

fn memory() -> Memory {
    let rss_mb = Process::read().map_or(0, |process| process.resident_bytes) >> 20;
    Memory { rss_mb, heap_used_mb: rss_mb }
}
