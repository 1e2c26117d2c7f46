//! Flat growth: the same load on an empty database and on one that has been used for a long time.

use crate::error::Result;
use crate::fill::{self, Extent};
use crate::load::{self, Kind, Load};
use crate::measure;
use crate::report::Bound::{AtLeast, AtMost};
use crate::report::{Bound, Report, Target};
use crate::scenario::{Bench, Growth};
use crate::service::Service;

/// Pairs of each tenant that all databases are loaded with: 10 000 in all.
const PAIRS_PER_TENANT: u32 = 100;

/// Reads that production polls.
const READS: [&str; 6] = [
    "/api/v1/usage/{agent}/svc",
    "/api/v1/billing/{agent}/svc",
    "/api/v1/billing/total",
    "/api/v1/stats",
    "/api/v1/events",
    "/api/v1/metrics",
];

/// A database, and the API keys of its tenants.
struct Database {
    name: &'static str,
    api_keys: Vec<String>,
    pairs_per_tenant: u32,
}

/// The settings of PostgreSQL that docs/operations.md recommends for ten million keys.
pub fn tuned(growth: Growth) -> Vec<(String, String)> {
    let shared_buffers = format!("{:.0}MB", (4096.0 * growth.scale).max(128.0));
    let settings = [
        ("shared_buffers", shared_buffers.as_str()),
        ("max_wal_size", "16GB"),
        ("checkpoint_timeout", "15min"),
        ("wal_compression", "lz4"),
    ];
    settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
}

/// Ten million keys, a tenth of them expired and pruned as fast as the janitor can, ten million events, a million pairs.
pub async fn ten_million(bench: &Bench, report: &mut Report, growth: Growth) -> Result<()> {
    let [empty, grown] = prepare(bench, report, Extent::new(1e7 * growth.scale, 0.1)).await?;
    let mut connection = bench.server.connect(grown.name).await?;
    let pruning = [("JANITOR_INTERVAL_MS", "200")];
    for _ in 0..bench.rounds {
        // One service at a time, or its janitor would prune what the next one needs.
        writes(bench, report, "empty database", &empty, &pruning, bench.seconds).await?;
        writes(bench, report, "ten million keys, pruning", &grown, &pruning, bench.seconds).await?;
        let count = "SELECT count(*) FROM idempotency_keys WHERE expires_at <= now()";
        let expired: i64 = sqlx::query_scalar(count).fetch_one(&mut connection).await?;
        report.notes.push(format!("{expired} expired keys were left"));
    }
    let over_empty = report.rate("ten million keys, pruning") / report.rate("empty database");
    target(report, "grown to ten million keys, pruning, over empty", AtLeast(0.95), over_empty);
    reads(bench, report, "ten million keys", &grown).await?;
    let sizes: Vec<(String, i64, i64)> = sqlx::query_as(
        "SELECT relname::text, pg_table_size(oid) / 1048576, pg_indexes_size(oid) / 1048576 FROM pg_class
         WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' ORDER BY pg_total_relation_size(oid) DESC LIMIT 5",
    )
    .fetch_all(&mut connection)
    .await?;
    let rows = sizes.iter().map(|(name, table, indexes)| format!("| `{name}` | {table} | {indexes} |\n"));
    let head = "| ten million keys | MiB | MiB of indexes |\n|---|--:|--:|\n";
    report.sections.push(format!("{head}{}", rows.collect::<String>()));
    Ok(())
}

/// PostgreSQL as installed, two million keys, half of them expired and pruned while the load goes on.
pub async fn as_installed(bench: &Bench, report: &mut Report, growth: Growth) -> Result<()> {
    let [empty, grown] = prepare(bench, report, Extent::new(2e6 * growth.scale, 0.5)).await?;
    let (young, aged) = ("as installed, young database", "as installed, two million keys, half of them expiring");
    writes(bench, report, young, &empty, &[], bench.seconds * bench.rounds as u64).await?;
    writes(bench, report, aged, &grown, &[], growth.churn_seconds).await?;
    let worst = report.figures(aged, |measured| measured.per_second).into_iter().fold(f64::NAN, f64::min);
    let p99_ms = report.figures(aged, |measured| measured.p99_ms).into_iter().fold(f64::NAN, f64::max);
    let seconds = bench.seconds;
    let over_young = worst / report.rate(young);
    target(report, &format!("{aged}: worst {seconds} s over the young database"), AtLeast(0.9), over_young);
    target(report, &format!("the same: p99 of the worst {seconds} s, ms"), AtMost(50.0), p99_ms);
    reads(bench, report, "two million keys", &grown).await
}

async fn prepare(bench: &Bench, report: &mut Report, extent: Extent) -> Result<[Database; 2]> {
    let mut databases = Vec::new();
    for name in ["empty", "grown"] {
        bench.server.create_database(name).await?;
        let service = Service::start(bench, name, &[]).await?;
        let api_keys = fill::tenants(&service, extent).await?;
        service.stop().await?;
        databases.push(Database { name, api_keys, pairs_per_tenant: extent.pairs_per_tenant });
    }
    fill::rows(&mut bench.server.connect("grown").await?, extent).await?;
    // Rows are copied by the names of columns, which may have changed.
    Service::verify(bench, "grown").await?;
    report.notes.push(format!("filled with {extent}"));
    databases.try_into().map_err(|_| "not two databases".into())
}

/// Keyed writes for `seconds`, in measurements of the usual length.
async fn writes(
    bench: &Bench,
    report: &mut Report,
    name: &str,
    database: &Database,
    settings: &[(&str, &str)],
    seconds: u64,
) -> Result<()> {
    let service = Service::start(bench, database.name, settings).await?;
    let pairs = PAIRS_PER_TENANT.min(database.pairs_per_tenant);
    let load = Load::new(Kind::Usage, 64, pairs).with_keys(&database.api_keys);
    load::wrk(bench, &service, &load, 1).await?;
    bench.server.checkpoint().await?;
    for _ in 0..seconds.div_ceil(bench.seconds) {
        report.add(measure::continued(bench, name, database.name, &[&service], &load).await?);
    }
    service.stop().await
}

async fn reads(bench: &Bench, report: &mut Report, what: &str, database: &Database) -> Result<()> {
    let service = Service::start(bench, database.name, &[("JANITOR_INTERVAL_MS", "3600000")]).await?;
    let mut slowest_ms: f64 = 0.0;
    for path in READS {
        let load = Load::new(Kind::Get(path), 64, database.pairs_per_tenant).with_keys(&database.api_keys);
        let name = format!("{what}: GET {path}");
        for _ in 0..bench.rounds {
            report.add(measure::continued(bench, &name, database.name, &[&service], &load).await?);
        }
        slowest_ms = slowest_ms.max(report.median(&name, |measured| measured.p99_ms));
    }
    target(report, &format!("{what}: slowest p99 of the polled reads, ms"), AtMost(10.0), slowest_ms);
    service.stop().await
}

fn target(report: &mut Report, name: &str, bound: Bound, measured: f64) {
    report.targets.push(Target { name: name.to_owned(), bounds: vec![bound], measured: vec![measured] });
}
