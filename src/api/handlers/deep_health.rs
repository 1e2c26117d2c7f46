//! The deep health report: one check per part of the service, with what operators look at first.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::PgConnection;
use tokio::time::Instant;

use crate::clock::Offset;
use crate::domain::timestamp::Timestamp;
use crate::store::deliveries::{self, Backlog};
use crate::store::{StoreError, limits, server};

use crate::api::state::ApiState;

/// How long the database may take to answer everything.
const DATABASE_LIMIT: Duration = Duration::from_secs(2);
/// What is slow for a ping, and what is late for a job.
const LATENCY_MAX_MS: u64 = 250;
const LAG_MAX_SECONDS: i64 = 600;

pub const NAMES: [&str; 8] = ["database", "pool", "commitQueue", "janitor", "webhooks", "memory", "jobs", "clock"];

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
    rss_mb: usize,
    heap_used_mb: usize,
}

pub struct Report {
    /// In the order of [`NAMES`].
    pub checks: [Check; 8],
    pub memory: Memory,
    pub is_paused: bool,
}

/// What a database that answers tells.
struct Told {
    latency_ms: u64,
    oldest_expiry: Option<Timestamp>,
    webhooks: Backlog,
    is_paused: bool,
}

pub async fn report(state: &ApiState) -> Report {
    let began = Instant::now();
    let ask = async |connection: &mut PgConnection| ask(state, connection, began).await;
    let told = state.pool.run(began + DATABASE_LIMIT, ask).await.ok();
    let memory = memory();
    let checks = [
        database(told.as_ref()),
        pool(state),
        commit_queue(state),
        janitor(state, told.as_ref()),
        webhooks(state, told.as_ref()),
        check("memory", Status::Ok, json!(memory)),
        jobs(state),
        clock(state),
    ];
    Report { checks, memory, is_paused: told.map_or_else(|| state.limits.is_paused(), |told| told.is_paused) }
}

async fn ask(state: &ApiState, connection: &mut PgConnection, began: Instant) -> Result<Told, StoreError> {
    server::ping(connection).await?;
    let latency_ms = began.elapsed().as_millis() as u64;
    Ok(Told {
        latency_ms,
        oldest_expiry: state.oldest_expiry.read(connection, state.clock.now()).await?,
        webhooks: deliveries::backlog(connection).await?,
        is_paused: limits::read(connection).await?.paused,
    })
}

fn check(name: &'static str, status: Status, detail: Value) -> Check {
    Check { name, status, detail }
}

fn warn_if(is_odd: bool) -> Status {
    if is_odd { Status::Warn } else { Status::Ok }
}

fn database(told: Option<&Told>) -> Check {
    let latency_ms = told.map(|told| told.latency_ms);
    let status = latency_ms.map_or(Status::Error, |latency_ms| warn_if(latency_ms > LATENCY_MAX_MS));
    check("database", status, json!({ "latencyMs": latency_ms }))
}

fn pool(state: &ApiState) -> Check {
    let (in_use, idle, max) = (state.pool.in_use_count(), state.pool.idle_count(), state.pool.connections_max());
    check("pool", warn_if(in_use >= max), json!({ "inUse": in_use, "idle": idle, "max": max }))
}

fn commit_queue(state: &ApiState) -> Check {
    let (depth, cap) = (state.committer.queue_depth(), state.committer.queue_max());
    let status = if depth >= cap { Status::Error } else { warn_if(depth * 5 >= cap * 4) };
    check("commitQueue", status, json!({ "depth": depth, "cap": cap }))
}

/// Seconds since `moment`, never negative.
fn seconds_since(state: &ApiState, moment: Timestamp) -> i64 {
    ((state.clock.now().as_ms() - moment.as_ms()) / 1000).max(0)
}

/// For how long the janitor has left something undone: since the expiry of the oldest record that is still there, or
/// since one of its steps fails.
pub fn janitor_lag_seconds(state: &ApiState, oldest_expiry: Option<Timestamp>) -> i64 {
    let failing = state.jobs.all().filter(|(job, _)| job.is_of_janitor()).filter_map(|(_, known)| known.failing_ms);
    let failing_seconds = failing.max().map_or(0, |failing_ms| failing_ms / 1000) as i64;
    oldest_expiry.map_or(0, |expiry| seconds_since(state, expiry)).max(failing_seconds)
}

fn janitor(state: &ApiState, told: Option<&Told>) -> Check {
    let lag = told.map(|told| janitor_lag_seconds(state, told.oldest_expiry));
    let status = warn_if(lag.is_some_and(|lag| lag > LAG_MAX_SECONDS));
    check("janitor", status, json!({ "lagSeconds": lag, "lastRunAt": state.janitor_ran.get() }))
}

fn webhooks(state: &ApiState, told: Option<&Told>) -> Check {
    let pending = told.map(|told| told.webhooks.pending);
    let oldest = told.map(|told| told.webhooks.oldest_due_at.map_or(0, |due| seconds_since(state, due)));
    let status = warn_if(oldest.is_some_and(|oldest| oldest > LAG_MAX_SECONDS));
    check("webhooks", status, json!({ "pending": pending, "oldestDueSeconds": oldest }))
}

/// A warning while a job fails, an error once it has failed for a minute.
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

/// A warning beyond a second, an error where that stops the janitor and the dispatcher.
fn clock(state: &ApiState) -> Check {
    let offset = state.clock.offset();
    let status = match offset {
        Some(offset) if offset.is_apart() => Status::Error,
        offset => warn_if(offset.is_some_and(Offset::is_large)),
    };
    check("clock", status, json!({ "offsetMs": offset.map(Offset::as_ms) }))
}

fn memory() -> Memory {
    let rss_mb = memory_stats::memory_stats().map_or(0, |memory| memory.physical_mem) >> 20;
    Memory { rss_mb, heap_used_mb: rss_mb }
}
