//! The metrics, for Prometheus to scrape.

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
        connections_idle: connections.idle,
        connections_in_use: connections.in_use,
        jobs: state.jobs.all().map(|(job, known)| (job.name(), seconds(known.last_success_at))).collect(),
        full_callers: state.full_callers.count(),
        clock_offset_seconds: state.clock.offset().map_or(0.0, Offset::seconds),
        http_connections: state.admission.connections(),
        http_held_bytes: state.admission.held_bytes(),
    };
    let figures = gauges::read(&state.reader, &state.oldest_expiry, state.clock.now()).await;
    let mut exact = figures.map_or_else(Vec::new, |figures| families(state, &figures));
    exact.extend(Process::read().into_iter().flat_map(Process::families));
    metrics::render(gauges, &exact).into()
}

/// 0 if it never happened.
fn seconds(moment: Option<Timestamp>) -> i64 {
    moment.map_or(0, |moment| moment.as_ms() / 1000)
}

/// Metrics that describe the whole database.
fn families(state: &ApiState, figures: &Figures) -> Vec<Exact> {
    let lag_seconds = health::janitor_lag_seconds(&state.jobs, figures.oldest_expiry, state.clock.now());
    let totals = &figures.totals;
    let gauge = |name, help, value| Exact { name, kind: "gauge", help, value };
    let counter = |name, help, value| Exact { name, kind: "counter", help, value };
    vec![
        gauge("agentpay_services_total", "Registered services.", totals.services.to_string()),
        gauge("agentpay_api_keys_total", "Live API keys.", totals.api_keys.to_string()),
        gauge("agentpay_webhooks_total", "Registered webhooks.", totals.webhooks.to_string()),
        gauge("agentpay_usage_keys_total", "Pairs of agent and service, zero included.", totals.pairs.to_string()),
        gauge(
            "agentpay_usage_requests_total",
            "Requests recorded and not yet settled or reset.",
            totals.outstanding.to_string(),
        ),
        gauge("agentpay_paused", "1 while writes are refused.", u8::from(figures.paused).to_string()),
        counter("agentpay_requests_recorded_total", "Requests ever recorded.", totals.recorded.to_string()),
        counter("agentpay_settled_stroops_total", "Amount settled, in stroops.", totals.settled_stroops.to_string()),
        counter("agentpay_settlements_total", "Settlements made.", totals.settlements.to_string()),
        gauge("agentpay_idempotency_keys", "Stored idempotency records.", figures.records.to_string()),
        gauge(
            "agentpay_janitor_lag_seconds",
            "Time since the expiry of the oldest record that is not yet pruned, or since a step of the janitor fails.",
            lag_seconds.to_string(),
        ),
        gauge(
            "agentpay_webhook_backlog",
            "Deliveries to webhooks that wait for an attempt.",
            figures.webhook_backlog.to_string(),
        ),
    ]
}
