//! The metrics, for Prometheus to scrape.

use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use crate::clock::Offset;
use crate::domain::refusal::Refusal;
use crate::domain::timestamp::Timestamp;
use crate::metrics::{self, Exact, Gauges};
use crate::query::gauges::{self, Figures};
use crate::query::health;
use crate::store::verification::{CheckResult, LastVerification};
use crate::telemetry::process::Process;

use crate::api::openapi::description::{Content, Description};
use crate::api::request::errors::ApiError;
use crate::api::request::read::ReadRequest;
use crate::api::state::ApiState;

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

pub async fn show(State(state): State<ApiState>, request: ReadRequest) -> Result<Response, ApiError> {
    let text = state.polled.metrics.load((), request.deadline.into(), async |_| vec![render(&state).await]).await;
    let text = text.ok_or(Refusal::StoreUnavailable)?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

async fn render(state: &ApiState) -> Bytes {
    let connections = state.reader.connections();
    let gauges = Gauges {
        queue_depth: state.committer.queue_depth(),
        queue_capacity: state.committer.queue_max(),
        oldest_wait: oldest_wait(state),
        connections_idle: connections.idle,
        connections_in_use: connections.in_use,
        connections_max: connections.max,
        jobs: state.jobs.all().map(|(job, known)| (job.name(), seconds(known.last_success_at))).collect(),
        full_callers: state.full_callers.count(),
        clock_offset_seconds: state.clock.offset().map_or(0.0, Offset::seconds),
        http_connections: state.admission.connections(),
        http_held_bytes: state.admission.held_bytes(),
    };
    let figures =
        gauges::read(&state.reader, &state.oldest_expiry, &state.polled.database_size, state.clock.now()).await;
    let mut exact = figures.map_or_else(Vec::new, |figures| families(state, &figures));
    exact.extend(Process::read().into_iter().flat_map(Process::families));
    metrics::render(gauges, &exact).into()
}

/// The age of the oldest waiting request. All requests have the same time limit.
fn oldest_wait(state: &ApiState) -> Duration {
    let deadline = state.committer.earliest_deadline();
    let time_left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    time_left.map_or(Duration::ZERO, |time_left| state.settings.request_timeout.saturating_sub(time_left))
}

/// 0 if it never happened.
fn seconds(moment: Option<Timestamp>) -> i64 {
    moment.map_or(0, |moment| moment.as_ms() / 1000)
}

/// Metrics that describe the whole database.
fn families(state: &ApiState, figures: &Figures) -> Vec<Exact> {
    let now = state.clock.now();
    let lag_seconds = health::janitor_lag_seconds(&state.jobs, figures.oldest_expiry, now);
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
