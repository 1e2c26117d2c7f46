//! The metrics, for Prometheus to scrape.

use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::future::join_all;

use crate::clock::Offset;
use crate::domain::refusal::Refusal;
use crate::domain::timestamp::Timestamp;
use crate::job_health::{Job, State};
use crate::metrics::{self, Exact};
use crate::query::gauges::{self, Figures};
use crate::query::health;
use crate::store::tenant_moves::Unfinished;
use crate::store::verification::{CheckResult, LastVerification};
use crate::telemetry::process::Process;

use crate::api::openapi::description::{Content, Description};
use crate::api::request::errors::ApiError;
use crate::api::request::read::ReadRequest;
use crate::api::state::{ApiState, Cell};

pub const SHOW: Description = Description::of(
    "getMetrics",
    "Get metrics",
    "Returns the metrics of this replica and of the database in the Prometheus text format.",
)
.content(
    200,
    Content::Text("text/plain"),
    "# HELP agentpay_paused 1 while writes are refused.\n# TYPE agentpay_paused gauge\nagentpay_paused 0\n",
);

pub async fn show(extract::State(state): extract::State<ApiState>, request: ReadRequest) -> Result<Response, ApiError> {
    let text = state.metrics.load((), request.deadline.into(), async |_| vec![render(&state).await]).await;
    let text = text.ok_or(Refusal::StoreUnavailable)?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

async fn render(state: &ApiState) -> Bytes {
    let of_cells = join_all(state.cells.iter().map(|cell| of_cell(cell, state.settings.request_timeout))).await;
    let mut exact = match state.cells.as_slice() {
        [_] => of_cells.into_iter().flatten().collect(),
        cells => {
            let labelled = cells.iter().zip(of_cells).map(|(cell, families)| {
                let is_up = u8::from(cell.availability.reason().is_none());
                let up = Exact::gauge("agentpay_cell_up", "1 if the database of the cell can be used.", is_up);
                let families = std::iter::once(up).chain(families);
                // The pause of the home cell applies to all.
                let own = families.filter(|family| cell.id == state.home().id || family.name != "agentpay_paused");
                own.map(|family| family.label("cell", cell.id.as_str())).collect()
            });
            join(labelled.collect())
        }
    };
    if state.has_cells()
        && state.home().availability.reason().is_none()
        && let Some(moves) = gauges::unfinished_moves(&state.home().reader).await
    {
        exact.extend(of_moves(&moves));
    }
    // Read here, and not counted by the process, which may contain several services.
    let held_bytes = state.admission.held_bytes();
    exact.extend([
        Exact::gauge("agentpay_http_connections", "Open connections of clients.", state.admission.connections()),
        Exact::gauge(
            "agentpay_http_held_bytes",
            "Bytes of bodies and answers above 16 KiB that are held for clients.",
            held_bytes,
        ),
    ]);
    exact.extend(Process::read().into_iter().flat_map(Process::families));
    let counters: Vec<_> = state.cells.iter().map(|cell| &cell.health.counters).collect();
    metrics::render(&counters, &Job::ALL.map(Job::name), &exact).into()
}

/// Moves of tenants between cells.
fn of_moves(moves: &[Unfinished]) -> [Exact; 2] {
    let samples = |figure: fn(&Unfinished) -> String| {
        moves.iter().map(|of_step| (format!("{{step=\"{}\"}}", of_step.step), figure(of_step))).collect()
    };
    [
        Exact::gauges(
            "agentpay_tenant_moves",
            "Moves of tenants that are not complete, by their step.",
            samples(|of_step| of_step.moves.to_string()),
        ),
        Exact::gauges(
            "agentpay_tenant_move_age_seconds",
            "Time since the oldest move of a tenant in this step began; 0 if there is none.",
            samples(|of_step| of_step.oldest_seconds.to_string()),
        ),
    ]
}

/// Puts the samples of all cells for one name together.
fn join(cells: Vec<Vec<Exact>>) -> Vec<Exact> {
    let mut joined: Vec<Exact> = Vec::new();
    for family in cells.into_iter().flatten() {
        match joined.iter_mut().find(|known| known.name == family.name) {
            Some(known) => known.samples.extend(family.samples),
            None => joined.push(family),
        }
    }
    joined
}

/// Metrics of a cell. Those of its database are missing while that does not respond.
async fn of_cell(cell: &Cell, request_timeout: Duration) -> Vec<Exact> {
    let connections = cell.reader.connections();
    let state = |name: &str, count: usize| (format!("{{state=\"{name}\"}}"), count.to_string());
    let success = |(job, known): (Job, State)| {
        (format!("{{job=\"{}\"}}", job.name()), seconds(known.last_success_at).to_string())
    };
    let mut families = vec![
        Exact::gauge("agentpay_commit_queue_depth", "Commands that wait for a commit.", cell.committer.queue_depth()),
        Exact::gauge(
            "agentpay_commit_queue_capacity",
            "Commands that may wait for a commit; more are refused.",
            cell.committer.queue_max(),
        ),
        Exact::gauge(
            "agentpay_commit_oldest_wait_seconds",
            "Age of the oldest request that waits for a commit.",
            oldest_wait(cell, request_timeout).as_secs_f64(),
        ),
        Exact::gauges(
            "agentpay_db_connections",
            "Connections of the pool to the database.",
            vec![state("idle", connections.idle), state("in_use", connections.in_use)],
        ),
        Exact::gauge(
            "agentpay_db_connections_max",
            "Connections that the pool may have to the database.",
            connections.max,
        ),
        Exact::gauges(
            "agentpay_job_last_success_timestamp_seconds",
            "When this process last finished a background job without an error; 0 if it never did.",
            cell.health.all().map(success).collect(),
        ),
        Exact::gauge(
            "agentpay_idempotency_full_callers",
            "Callers that get no new record, because they are over a cap and no record of theirs may be evicted.",
            cell.full_callers.count(),
        ),
        Exact::gauge(
            "agentpay_clock_offset_seconds",
            "This machine's clock minus the database's, which decides.",
            cell.clock.offset().map_or(0.0, Offset::seconds),
        ),
    ];
    if cell.availability.reason().is_none()
        && let Some(figures) =
            gauges::read(&cell.reader, &cell.oldest_expiry, &cell.polled.database_size, cell.clock.now()).await
    {
        families.extend(of_database(cell, &figures));
    }
    families
}

/// The age of the oldest waiting request. All requests have the same time limit.
fn oldest_wait(cell: &Cell, request_timeout: Duration) -> Duration {
    let deadline = cell.committer.earliest_deadline();
    let time_left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    time_left.map_or(Duration::ZERO, |time_left| request_timeout.saturating_sub(time_left))
}

/// 0 if it never happened.
fn seconds(moment: Option<Timestamp>) -> i64 {
    moment.map_or(0, |moment| moment.as_ms() / 1000)
}

/// Metrics that describe the whole database of a cell.
fn of_database(cell: &Cell, figures: &Figures) -> Vec<Exact> {
    let now = cell.clock.now();
    let lag_seconds = health::janitor_lag_seconds(&cell.health, figures.oldest_expiry, now);
    let Figures { totals, webhooks, verification, .. } = figures;
    let due_seconds = webhooks.oldest_due_at.map_or(0, |due| health::seconds_since(due, now));
    let mut families = vec![
        Exact::gauge("agentpay_services_total", "Registered services.", totals.services),
        Exact::gauge("agentpay_api_keys_total", "Live API keys.", totals.api_keys),
        Exact::gauge("agentpay_webhooks_total", "Registered webhooks.", totals.webhooks),
        Exact::gauge("agentpay_usage_keys_total", "Pairs of agent and service, zero included.", totals.pairs),
        Exact::gauge(
            "agentpay_usage_requests_total",
            "Requests recorded and not yet settled or reset.",
            totals.outstanding,
        ),
        Exact::gauge("agentpay_paused", "1 while writes are refused.", u8::from(figures.paused)),
        Exact::counter("agentpay_requests_recorded_total", "Requests ever recorded.", totals.recorded),
        Exact::counter("agentpay_settled_stroops_total", "Amount settled, in stroops.", totals.settled_stroops),
        Exact::counter("agentpay_settlements_total", "Settlements made.", totals.settlements),
        Exact::gauge("agentpay_idempotency_keys", "Stored idempotency records.", figures.records),
        Exact::gauge(
            "agentpay_janitor_lag_seconds",
            "Time since the expiry of the oldest record that is not yet pruned, or since a step of the janitor fails.",
            lag_seconds,
        ),
        Exact::gauge("agentpay_webhook_backlog", "Deliveries to webhooks that wait for an attempt.", webhooks.pending),
        Exact::gauge(
            "agentpay_webhook_oldest_due_seconds",
            "Time since the attempt of the delivery that waits longest was due; 0 if none is.",
            due_seconds,
        ),
        Exact::gauge("agentpay_database_size_bytes", "Size of the database on disk.", figures.database_bytes),
        Exact::gauge(
            "agentpay_verify_last_success_timestamp_seconds",
            "End of the last background verification; 0 if there was none.",
            seconds(verification.finished_at),
        ),
        Exact::gauge(
            "agentpay_verify_duration_seconds",
            "Duration of the last background verification.",
            verification.duration_ms.unwrap_or(0) as f64 / 1000.0,
        ),
    ];
    families.extend(of_checks(verification));
    families
}

/// What the last background verification found and left out. Empty before the first run.
fn of_checks(verification: &LastVerification) -> [Exact; 2] {
    let samples = |figure: fn(&CheckResult) -> i64| {
        let sample = |check: &CheckResult| (format!("{{check=\"{}\"}}", check.name), figure(check).to_string());
        verification.checks.iter().map(sample).collect()
    };
    [
        Exact {
            name: "agentpay_verify_findings",
            kind: "gauge",
            help: "Findings of the last background verification by check.",
            samples: samples(|check| check.findings),
        },
        Exact {
            name: "agentpay_verify_cancelled_steps",
            kind: "gauge",
            help: "Steps of the last background verification that took too long and were left out, by check.",
            samples: samples(|check| check.cancelled_steps),
        },
    ]
}
