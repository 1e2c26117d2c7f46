//! The metrics of this process (HTTP contract, section 17.2). Every layer may call these functions; each takes a
//! fraction of a microsecond. The crate `prometheus` formats them, except for figures of the database, which must be
//! exact.

use std::fmt::Write;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use prometheus::core::Collector;
use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder, proto,
};

/// All metrics start at zero together, at the start and after a reset.
static FAMILIES: LazyLock<ArcSwap<Families>> = LazyLock::new(|| ArcSwap::from_pointee(Families::new()));

const HTTP_SECONDS: &[f64] = &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const COMMIT_SECONDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const BATCH_SIZES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];

const HTTP_LABELS: &[&str] = &["method", "route", "status"];

struct Families {
    registry: Registry,
    http_requests: IntCounterVec,
    http_seconds: HistogramVec,
    http_errors: IntCounterVec,
    forwarded_in_doubt: IntCounterVec,
    replays: IntCounter,
    conflicts: IntCounter,
    waits: IntCounterVec,
    waiting: IntGauge,
    unpriced_settlements: IntCounter,
    expired: IntCounter,
    evictions: IntCounterVec,
    batch_size: Histogram,
    commit_seconds: Histogram,
    queue_depth: IntGauge,
    retries: IntCounterVec,
    connections: IntGaugeVec,
    http_connections: IntGauge,
    http_held_bytes: IntGauge,
    webhook_attempts: IntCounterVec,
    log_lines_dropped: IntCounter,
    local_postgres_restarts: IntCounter,
    job_failures: IntCounterVec,
    job_success: IntGaugeVec,
    clock_offset: Gauge,
    full_callers: IntGauge,
}

impl Families {
    fn new() -> Self {
        let registry = Registry::new();
        let families = Self {
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
            expired: counter(&registry, "agentpay_idempotency_expired_total", "Records pruned after their expiry."),
            evictions: counters(
                &registry,
                "agentpay_idempotency_evictions_total",
                "Records removed before their expiry, by the cap that was exceeded.",
                &["cap"],
                &["caller", "total"],
            ),
            batch_size: register(
                &registry,
                Histogram::with_opts(histogram_options(
                    "agentpay_commit_batch_size",
                    "Commands per commit.",
                    BATCH_SIZES,
                )),
            ),
            commit_seconds: register(
                &registry,
                Histogram::with_opts(histogram_options(
                    "agentpay_commit_duration_seconds",
                    "Time from BEGIN to the confirmed COMMIT.",
                    COMMIT_SECONDS,
                )),
            ),
            queue_depth: gauge(&registry, "agentpay_commit_queue_depth", "Commands that wait for a commit."),
            retries: counters(
                &registry,
                "agentpay_commit_retries_total",
                "Commits that were tried again, by reason.",
                &["reason"],
                &["key_taken", "deadlock", "serialization", "connection_lost", "poisoned"],
            ),
            connections: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new("agentpay_db_connections", "Connections of the pool to the database."),
                    &["state"],
                ),
            ),
            http_connections: gauge(&registry, "agentpay_http_connections", "Open connections of clients."),
            http_held_bytes: gauge(
                &registry,
                "agentpay_http_held_bytes",
                "Bytes of bodies and answers above 16 KiB that are held for clients.",
            ),
            webhook_attempts: counters(
                &registry,
                "agentpay_webhook_deliveries_total",
                "Attempts to deliver an event to a webhook.",
                &["outcome"],
                &["delivered", "retry", "failed", "refused"],
            ),
            log_lines_dropped: counter(
                &registry,
                "agentpay_log_lines_dropped_total",
                "Log lines dropped because their reader was too slow or gone.",
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
                &["job"],
                &[],
            ),
            job_success: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "agentpay_job_last_success_timestamp_seconds",
                        "When this process last finished a background job without an error; 0 if it never did.",
                    ),
                    &["job"],
                ),
            ),
            full_callers: gauge(
                &registry,
                "agentpay_idempotency_full_callers",
                "Callers that get no new record, because they are over a cap and no record of theirs may be evicted.",
            ),
            clock_offset: register(
                &registry,
                Gauge::new(
                    "agentpay_clock_offset_seconds",
                    "This machine's clock minus the database's, which decides.",
                ),
            ),
            registry,
        };
        for state in ["idle", "in_use"] {
            families.connections.with_label_values(&[state]);
        }
        families
    }
}

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

/// Lines were dropped because their reader was too slow.
pub fn log_lines_dropped(count: u64) {
    FAMILIES.load().log_lines_dropped.inc_by(count);
}

/// Resets all counters to zero. What is in progress stays in progress.
pub fn restart() {
    let families = Families::new();
    families.waiting.set(FAMILIES.load().waiting.get());
    FAMILIES.store(Arc::new(families));
}

/// A request was answered. `method`, `route` and `status` must be from bounded sets.
pub fn http_request(method: &str, route: &str, status: &str, took: Duration) {
    let families = FAMILIES.load();
    families.http_requests.with_label_values(&[method, route, status]).inc();
    families.http_seconds.with_label_values(&[method, route, status]).observe(took.as_secs_f64());
}

/// A request failed because of its body, its path or the server.
pub fn http_error(error_type: &str) {
    FAMILIES.load().http_errors.with_label_values(&[error_type]).inc();
}

/// The client's address is uncertain. `reason` is `unreadable`, `short` or `missing`.
pub fn forwarded_in_doubt(reason: &str) {
    FAMILIES.load().forwarded_in_doubt.with_label_values(&[reason]).inc();
}

pub fn idempotency_replayed() {
    FAMILIES.load().replays.inc();
}

pub fn idempotency_conflicted() {
    FAMILIES.load().conflicts.inc();
}

/// A request has the same key as one in progress. [`twin_wait_ended`] must follow.
pub fn twin_wait_began() {
    FAMILIES.load().waiting.inc();
}

pub fn twin_wait_ended() {
    FAMILIES.load().waiting.dec();
}

/// `outcome` is `replayed`, `conflict`, `executed` or `timed_out`.
pub fn twin_waited(outcome: &str) {
    FAMILIES.load().waits.with_label_values(&[outcome]).inc();
}

/// Usage of a service without a price was settled.
pub fn settled_without_price() {
    FAMILIES.load().unpriced_settlements.inc();
}

pub fn records_expired(count: u64) {
    FAMILIES.load().expired.inc_by(count);
}

/// Records were evicted before they expired. `cap` is `caller` or `total`.
pub fn records_evicted(cap: &str, count: u64) {
    FAMILIES.load().evictions.with_label_values(&[cap]).inc_by(count);
}

/// A commit succeeded.
pub fn committed(commands: usize, took: Duration) {
    let families = FAMILIES.load();
    families.batch_size.observe(commands as f64);
    families.commit_seconds.observe(took.as_secs_f64());
}

/// `reason` is `key_taken`, `deadlock`, `serialization`, `connection_lost` or `poisoned`.
pub fn commit_retried(reason: &str) {
    FAMILIES.load().retries.with_label_values(&[reason]).inc();
}

/// An attempt ended. `outcome` is `delivered`, `retry`, `failed` or `refused`.
pub fn webhook_attempt(outcome: &str) {
    FAMILIES.load().webhook_attempts.with_label_values(&[outcome]).inc();
}

/// The private PostgreSQL was restarted.
pub fn local_postgres_restarted() {
    FAMILIES.load().local_postgres_restarts.inc();
}

/// A run of a background job failed.
pub fn job_failed(job: &str) {
    FAMILIES.load().job_failures.with_label_values(&[job]).inc();
}

/// Values that are read at the moment of a scrape.
#[derive(Clone, Debug)]
pub struct Gauges {
    pub queue_depth: usize,
    pub connections_idle: usize,
    pub connections_in_use: usize,
    /// Each background job, and when it last succeeded in seconds since the Unix epoch.
    pub jobs: Vec<(&'static str, i64)>,
    /// This machine's clock minus the database's.
    pub clock_offset_seconds: f64,
    pub full_callers: usize,
    pub http_connections: usize,
    pub http_held_bytes: usize,
}

/// One metric with one value, written exactly as given.
pub struct Exact {
    pub name: &'static str,
    pub kind: &'static str,
    pub help: &'static str,
    pub value: String,
}

/// Renders all metrics in the Prometheus text format 0.0.4.
pub fn render(gauges: Gauges, exact: &[Exact]) -> String {
    let families = FAMILIES.load();
    families.queue_depth.set(gauges.queue_depth as i64);
    families.connections.with_label_values(&["idle"]).set(gauges.connections_idle as i64);
    families.connections.with_label_values(&["in_use"]).set(gauges.connections_in_use as i64);
    for (job, last_success_seconds) in gauges.jobs {
        families.job_success.with_label_values(&[job]).set(last_success_seconds);
        // Exported from the start, at zero.
        families.job_failures.with_label_values(&[job]);
    }
    families.full_callers.set(gauges.full_callers as i64);
    families.clock_offset.set(gauges.clock_offset_seconds);
    families.http_connections.set(gauges.http_connections as i64);
    families.http_held_bytes.set(gauges.http_held_bytes as i64);
    let mut text = String::new();
    for Exact { name, kind, help, value } in exact {
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
    }
    let mut gathered = families.registry.gather();
    gathered.iter_mut().for_each(round_sums);
    // Metrics without a value are exported, too, so that their names are known.
    for empty in [families.http_requests.collect(), families.http_seconds.collect()].iter().flatten() {
        if !gathered.iter().any(|family| family.name() == empty.name()) {
            let kind = format!("{:?}", empty.get_field_type()).to_lowercase();
            let _ = write!(text, "# HELP {0} {1}\n# TYPE {0} {kind}\n", empty.name(), empty.help());
        }
    }
    // Fails only for a metric without a value, and gathering returns none.
    let _ = TextEncoder::new().encode_utf8(&gathered, &mut text);
    text
}

/// Rounds sums of seconds to six decimals.
fn round_sums(family: &mut proto::MetricFamily) {
    if family.get_field_type() != proto::MetricType::HISTOGRAM {
        return;
    }
    for metric in family.mut_metric().iter_mut() {
        let mut histogram = metric.get_histogram().clone();
        histogram.set_sample_sum((histogram.get_sample_sum() * 1e6).round() / 1e6);
        metric.set_histogram(histogram);
    }
}
