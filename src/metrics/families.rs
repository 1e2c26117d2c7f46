//! The metric families: names, labels and buckets. Known label values are exported from the start, with the value zero.

use prometheus::core::Collector;
use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

const HTTP_SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const COMMIT_SECONDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const BATCH_SIZES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];

const HTTP_LABELS: &[&str] = &["method", "route", "status"];

pub struct Families {
    pub registry: Registry,
    pub http_requests: IntCounterVec,
    pub http_seconds: HistogramVec,
    pub http_errors: IntCounterVec,
    pub forwarded_in_doubt: IntCounterVec,
    pub replays: IntCounter,
    pub conflicts: IntCounter,
    pub waits: IntCounterVec,
    pub waiting: IntGauge,
    pub unpriced_settlements: IntCounter,
    pub expired: IntCounterVec,
    pub evictions: IntCounterVec,
    pub batch_size: HistogramVec,
    pub commit_seconds: HistogramVec,
    pub retries: IntCounterVec,
    pub webhook_attempts: IntCounterVec,
    pub log_lines_dropped: IntCounter,
    pub trace_spans: IntCounterVec,
    pub local_postgres_restarts: IntCounter,
    pub job_failures: IntCounterVec,
}

impl Families {
    pub fn new() -> Self {
        let registry = Registry::new();
        Self {
            http_requests: counters(
                &registry,
                "agentpay_http_requests_total",
                "HTTP requests answered.",
                HTTP_LABELS,
                &[],
            ),
            http_seconds: register(
                &registry,
                HistogramVec::new(
                    histogram_options(
                        "agentpay_http_request_duration_seconds",
                        "Time from a request's head to its answer.",
                        HTTP_SECONDS,
                    ),
                    HTTP_LABELS,
                ),
            ),
            http_errors: counters(
                &registry,
                "agentpay_http_errors_total",
                "Requests that failed by their body or path, or by a fault of the server.",
                &["type"],
                ERROR_TYPES,
            ),
            forwarded_in_doubt: counters(
                &registry,
                "agentpay_unreadable_forwarded_total",
                "Requests whose forwarded address is in doubt.",
                &["reason"],
                &["unreadable", "short", "missing"],
            ),
            replays: counter(&registry, "agentpay_idempotency_replays_total", "Requests answered from their record."),
            conflicts: counter(
                &registry,
                "agentpay_idempotency_conflicts_total",
                "Requests refused because their key was used for another one.",
            ),
            waits: counters(
                &registry,
                "agentpay_idempotency_waits_total",
                "Requests that met a twin in flight.",
                &["outcome"],
                &["replayed", "conflict", "executed", "timed_out"],
            ),
            waiting: gauge(&registry, "agentpay_idempotency_waiting", "Requests that wait for a twin in flight."),
            unpriced_settlements: counter(
                &registry,
                "agentpay_unpriced_settlements_total",
                "Settlements of requests to services that are not registered, at no price.",
            ),
            expired: counters(
                &registry,
                "agentpay_idempotency_expired_total",
                "Records pruned after their expiry.",
                &["cell"],
                &[],
            ),
            evictions: counters(
                &registry,
                "agentpay_idempotency_evictions_total",
                "Records removed before their expiry, by the cap that was exceeded.",
                &["cap", "cell"],
                &[],
            ),
            batch_size: register(
                &registry,
                HistogramVec::new(
                    histogram_options("agentpay_commit_batch_size", "Commands per commit.", BATCH_SIZES),
                    &["cell"],
                ),
            ),
            commit_seconds: register(
                &registry,
                HistogramVec::new(
                    histogram_options(
                        "agentpay_commit_duration_seconds",
                        "Time from BEGIN to the confirmed COMMIT.",
                        COMMIT_SECONDS,
                    ),
                    &["cell"],
                ),
            ),
            retries: counters(
                &registry,
                "agentpay_commit_retries_total",
                "Commits that were tried again, by reason.",
                &["reason", "cell"],
                &[],
            ),
            webhook_attempts: counters(
                &registry,
                "agentpay_webhook_deliveries_total",
                "Attempts to deliver an event to a webhook.",
                &["outcome", "cell"],
                &[],
            ),
            log_lines_dropped: counter(
                &registry,
                "agentpay_log_lines_dropped_total",
                "Log lines dropped because their reader was too slow or gone.",
            ),
            trace_spans: counters(
                &registry,
                "agentpay_trace_spans_total",
                "Recorded spans of traces, by outcome.",
                &["outcome"],
                &["exported", "failed", "dropped"],
            ),
            local_postgres_restarts: counter(
                &registry,
                "agentpay_local_postgres_restarts_total",
                "Starts of the private PostgreSQL after it ended by itself.",
            ),
            job_failures: counters(
                &registry,
                "agentpay_job_failures_total",
                "Runs of a background job that failed.",
                &["job", "cell"],
                &[],
            ),
            registry,
        }
    }

    /// Exports what is counted for a cell from the start, with the value zero.
    pub fn export(&self, cell: &str, jobs: &[&str]) {
        self.expired.with_label_values(&[cell]);
        self.batch_size.with_label_values(&[cell]);
        self.commit_seconds.with_label_values(&[cell]);
        for (family, known) in [
            (&self.evictions, EVICTION_CAPS),
            (&self.retries, RETRY_REASONS),
            (&self.webhook_attempts, ATTEMPT_OUTCOMES),
            (&self.job_failures, jobs),
        ] {
            for value in known {
                family.with_label_values(&[*value, cell]);
            }
        }
    }
}

const EVICTION_CAPS: &[&str] = &["caller", "total"];
const RETRY_REASONS: &[&str] = &["key_taken", "deadlock", "serialization", "connection_lost", "poisoned"];
const ATTEMPT_OUTCOMES: &[&str] = &["delivered", "retry", "failed", "refused"];

const ERROR_TYPES: &[&str] = &[
    "entity.parse.failed",
    "entity.too.large",
    "entity.corrupt",
    "encoding.unsupported",
    "charset.unsupported",
    "uri.invalid",
    "unavailable",
    "internal",
];

fn register<C: Collector + Clone + 'static>(registry: &Registry, family: prometheus::Result<C>) -> C {
    let family = family.expect("names and labels are constants that fit");
    registry.register(Box::new(family.clone())).expect("no name is used twice");
    family
}

fn counter(registry: &Registry, name: &str, help: &str) -> IntCounter {
    register(registry, IntCounter::new(name, help))
}

fn gauge(registry: &Registry, name: &str, help: &str) -> IntGauge {
    register(registry, IntGauge::new(name, help))
}

/// Known label values are exported from the start, at zero.
fn counters(registry: &Registry, name: &str, help: &str, labels: &[&str], known: &[&str]) -> IntCounterVec {
    let family = register(registry, IntCounterVec::new(Opts::new(name, help), labels));
    for value in known {
        family.with_label_values(&[*value]);
    }
    family
}

fn histogram_options(name: &str, help: &str, buckets: &[f64]) -> HistogramOpts {
    HistogramOpts::new(name, help).buckets(buckets.to_vec())
}
