//! The metrics of this process (HTTP contract, section 17.2). Every layer may call these functions; each takes a
//! fraction of a microsecond. The crate `prometheus` formats them, except for figures of the database, which must be
//! exact.

mod families;
pub mod snapshot;

use std::fmt::{Display, Write};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use prometheus::core::Collector;
use prometheus::{TextEncoder, proto};

use families::Families;

/// All metrics start at zero together, at the start and after a reset.
static FAMILIES: LazyLock<ArcSwap<Families>> = LazyLock::new(|| ArcSwap::from_pointee(Families::new()));

/// Lines were dropped because their reader was too slow.
pub fn log_lines_dropped(count: u64) {
    FAMILIES.load().log_lines_dropped.inc_by(count);
}

/// Counts recorded spans that have ended. `outcome` is `exported`, `failed` or `dropped`.
pub fn spans_ended(outcome: &str, count: u64) {
    FAMILIES.load().trace_spans.with_label_values(&[outcome]).inc_by(count);
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

/// The private PostgreSQL was restarted.
pub fn local_postgres_restarted() {
    FAMILIES.load().local_postgres_restarts.inc();
}

/// Counts what happens in one cell.
#[derive(Clone, Debug, Default)]
pub struct CellCounters {
    /// The label `cell`. Empty, and not shown, if there is one cell.
    cell: Arc<str>,
}

impl CellCounters {
    /// Those of one of several cells.
    pub fn of(cell: &str) -> Self {
        Self { cell: cell.into() }
    }

    pub fn records_expired(&self, count: u64) {
        FAMILIES.load().expired.with_label_values(&[&self.cell]).inc_by(count);
    }

    /// Records were evicted before they expired. `cap` is `caller` or `total`.
    pub fn records_evicted(&self, cap: &str, count: u64) {
        FAMILIES.load().evictions.with_label_values(&[cap, &self.cell]).inc_by(count);
    }

    /// A commit succeeded.
    pub fn committed(&self, commands: usize, took: Duration) {
        let families = FAMILIES.load();
        families.batch_size.with_label_values(&[&self.cell]).observe(commands as f64);
        families.commit_seconds.with_label_values(&[&self.cell]).observe(took.as_secs_f64());
    }

    /// `reason` is `key_taken`, `deadlock`, `serialization`, `connection_lost` or `poisoned`.
    pub fn commit_retried(&self, reason: &str) {
        FAMILIES.load().retries.with_label_values(&[reason, &self.cell]).inc();
    }

    /// An attempt ended. `outcome` is `delivered`, `retry`, `failed` or `refused`.
    pub fn webhook_attempt(&self, outcome: &str) {
        FAMILIES.load().webhook_attempts.with_label_values(&[outcome, &self.cell]).inc();
    }

    /// A run of a background job failed.
    pub fn job_failed(&self, job: &str) {
        FAMILIES.load().job_failures.with_label_values(&[job, &self.cell]).inc();
    }
}

/// One metric, written exactly as given.
pub struct Exact {
    pub name: &'static str,
    pub kind: &'static str,
    pub help: &'static str,
    /// Labels in braces, or nothing, and the value.
    pub samples: Vec<(String, String)>,
}

impl Exact {
    pub fn gauge(name: &'static str, help: &'static str, value: impl Display) -> Self {
        Self { name, kind: "gauge", help, samples: vec![(String::new(), value.to_string())] }
    }

    /// Each sample has labels in braces, or nothing, and a value.
    pub fn gauges(name: &'static str, help: &'static str, samples: Vec<(String, String)>) -> Self {
        Self { name, kind: "gauge", help, samples }
    }

    /// Adds a label to all samples.
    pub fn label(mut self, name: &str, value: &str) -> Self {
        for (labels, _) in &mut self.samples {
            let others = labels.strip_prefix('{').map_or("}".to_owned(), |others| format!(",{others}"));
            *labels = format!("{{{name}=\"{value}\"{others}");
        }
        self
    }

    pub fn counter(name: &'static str, help: &'static str, value: impl Display) -> Self {
        Self { kind: "counter", ..Self::gauge(name, help, value) }
    }
}

/// Renders all metrics in the Prometheus text format 0.0.4: those that this process has counted, and `exact`.
pub fn render(cells: &[&CellCounters], jobs: &[&str], exact: &[Exact]) -> String {
    let families = FAMILIES.load();
    for CellCounters { cell } in cells {
        families.export(cell, jobs);
    }
    let mut text = String::new();
    for Exact { name, kind, help, samples } in exact {
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
        for (labels, value) in samples {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    }
    let mut gathered = families.registry.gather();
    gathered.iter_mut().for_each(round_sums);
    gathered.iter_mut().for_each(hide_empty_cells);
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

/// A service with one cell has no label for it.
fn hide_empty_cells(family: &mut proto::MetricFamily) {
    for metric in family.mut_metric().iter_mut() {
        let mut labels = metric.take_label();
        labels.retain(|label| label.name() != "cell" || !label.value().is_empty());
        metric.set_label(labels);
    }
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
