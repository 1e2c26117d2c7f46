//! Flat growth: the same load on an empty database and on one that has been used for a long time, while the janitor
//! prunes and while it does not; then reads, churn, and the plan of every statement at that size.

use std::time::{Duration, Instant};

use serde_json::json;
use sqlx::{PgConnection, Row};

use crate::fill::{self, Extent, TENANTS};
use crate::full::READS;
use crate::load::{self, Kind, Load};
use crate::measure::{self, Measurement};
use crate::postgres::{self, Size, Sizes};
use crate::report::Report;
use crate::service::Service;
use crate::{Bench, Result, explained};

const EMPTY: &str = "empty";
pub const GROWN: &str = "grown";

/// Pairs of each tenant that both databases are loaded with: 10 000 in all.
const PAIRS_PER_TENANT: u32 = 100;

pub const PRUNING: &[(&str, &str)] = &[("JANITOR_INTERVAL_MS", "200")];
const NO_PRUNING: &[(&str, &str)] = &[("JANITOR_INTERVAL_MS", "3600000")];

/// How long the janitor may take for everything that has expired.
const PRUNED_LIMIT: Duration = Duration::from_secs(600);

const ON_EMPTY: &str = "empty database, 64 connections";
const AT_REST: &str = "grown, no pruning, 64 connections";
const WHILE_PRUNING: &str = "grown, pruning, 64 connections";
const ALL_PAIRS: &str = "grown, pruning, over all pairs, 64 connections";

pub async fn run(bench: &Bench, scale: f64, churn_seconds: u64) -> Result<Report> {
    let extent = Extent::new(scale);
    for database in [EMPTY, GROWN] {
        bench.server.create_database(database).await?;
        // A start applies the migrations.
        start(bench, database, NO_PRUNING).await?.stop().await?;
        fill::tenants(&mut bench.server.connect(database).await?).await?;
    }
    let mut grown = bench.server.connect(GROWN).await?;
    fill::rows(&mut grown, extent).await?;
    postgres::run(&mut grown, "CREATE SCHEMA bench; CREATE EXTENSION pg_stat_statements SCHEMA bench").await?;

    let mut report = Report::new("grown");
    report.notes.push(format!(
        "{} keys, {} events, {} pairs, {TENANTS} tenants",
        extent.rows,
        extent.rows,
        extent.pairs_per_tenant * TENANTS
    ));
    writes(bench, &mut report, &mut grown, extent).await?;
    reads(bench, &mut report, extent).await?;
    report.sections.push(summary(&report));
    report.sections.push(statements(&mut grown).await?);
    churn(bench, &mut report, &mut grown, churn_seconds).await?;
    explained::run(bench, &mut report, &mut grown, extent).await?;
    Ok(report)
}

async fn start(bench: &Bench, database: &str, settings: &[(&'static str, &'static str)]) -> Result<Service> {
    Service::start(&bench.server.url(database), &bench.settings(settings)).await
}

pub fn load_of(kind: Kind, connections: u32, pairs_per_tenant: u32) -> Load {
    Load { tenants: TENANTS, ..Load::new(kind, connections, pairs_per_tenant) }
}

async fn writes(bench: &Bench, report: &mut Report, grown: &mut PgConnection, extent: Extent) -> Result<()> {
    let few = PAIRS_PER_TENANT.min(extent.pairs_per_tenant);
    for round in 1..=bench.rounds {
        for (name, database, settings, pairs) in [
            (ON_EMPTY, EMPTY, PRUNING, few),
            (AT_REST, GROWN, NO_PRUNING, few),
            (WHILE_PRUNING, GROWN, PRUNING, few),
            (ALL_PAIRS, GROWN, PRUNING, extent.pairs_per_tenant),
        ] {
            // Measured by itself, or its janitor would prune what the next one needs.
            let service = start(bench, database, settings).await?;
            let load = load_of(Kind::Usage, 64, pairs);
            load::wrk(bench, service.port, &load, &bench.new_run(), 1).await?;
            let expired = count_expired(grown).await?;
            let measured = measure::service(bench, name, &[&service], database, &load).await?;
            let left = count_expired(grown).await?;
            service.stop().await?;
            report.add(Measurement { round, ..measured });
            if database == GROWN {
                report.notes.push(format!("round {round}, {name}: {expired} expired keys before, {left} after"));
            }
        }
    }
    Ok(())
}

async fn count_expired(connection: &mut PgConnection) -> Result<i64> {
    let count = "SELECT count(*) FROM idempotency_keys WHERE expires_at <= now()";
    Ok(sqlx::query_scalar(count).fetch_one(connection).await?)
}

/// Without the rest of the expired rows: pruning has been measured.
async fn reads(bench: &Bench, report: &mut Report, extent: Extent) -> Result<()> {
    let service = start(bench, GROWN, NO_PRUNING).await?;
    for round in 1..=bench.rounds {
        for (name, path) in READS {
            let kind = Kind::Get { path: (*path).to_owned() };
            if !service.offers(path).await? && !path.contains("billing/{agent}") {
                report.notes.push(format!("{name}: skipped, GET {path} is not there"));
                continue;
            }
            let load = load_of(kind, 64, extent.pairs_per_tenant);
            let name = format!("{name}, 64 connections");
            let measured = measure::service(bench, &name, &[&service], GROWN, &load).await?;
            report.add(Measurement { round, ..measured });
        }
    }
    service.stop().await
}

fn summary(report: &Report) -> String {
    let rate = |name: &str| report.rate(name).unwrap_or(0.0);
    let p99 = |name: &str| report.median(name, |measured| measured.p99_ms).unwrap_or(0.0);
    let reads = report.names().into_iter().filter(|name| name.starts_with("read ")).map(p99);
    let at_least = |bound: f64, measured: f64| (format!("≥ {bound:.2}"), measured, measured >= bound);
    let at_most = |bound: f64, measured: f64| (format!("≤ {bound:.2}"), measured, measured <= bound);
    let mut text = "| target | bound | measured | met |\n|---|--:|--:|---|\n".to_owned();
    for (name, (bound, measured, is_met)) in [
        ("grown, pruning, over empty: throughput", at_least(0.85, rate(WHILE_PRUNING) / rate(ON_EMPTY))),
        ("the same over all pairs", at_least(0.85, rate(ALL_PAIRS) / rate(ON_EMPTY))),
        ("p99 while pruning over p99 without", at_most(2.0, p99(WHILE_PRUNING) / p99(AT_REST))),
        ("slowest p99 of the polled reads, ms", at_most(10.0, reads.fold(0.0, f64::max))),
    ] {
        text += &format!("| {name} | {bound} | {measured:.2} | {} |\n", if is_met { "yes" } else { "**no**" });
    }
    text
}

/// What the statements cost on average, the dearest first.
async fn statements(connection: &mut PgConnection) -> Result<String> {
    let rows = sqlx::query(
        "SELECT substring(query FROM '^-- ([a-z_:]+)') AS name, sum(calls)::bigint AS calls,
                sum(total_exec_time) AS total_ms, sum(rows)::bigint AS rows,
                sum(shared_blks_hit + shared_blks_read)::bigint AS pages
         FROM bench.pg_stat_statements
         WHERE query ~ '^-- [a-z_]+::' AND dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
         GROUP BY 1 ORDER BY 3 DESC",
    )
    .fetch_all(connection)
    .await?;
    let mut text =
        "| statement | calls | total s | ms each | rows each | pages each |\n|---|--:|--:|--:|--:|--:|\n".to_owned();
    for row in rows {
        let calls: i64 = row.try_get("calls")?;
        let each = |sum: f64| sum / calls.max(1) as f64;
        let total_ms: f64 = row.try_get("total_ms")?;
        text += &format!(
            "| `{}` | {calls} | {:.1} | {:.3} | {:.1} | {:.0} |\n",
            row.try_get::<String, _>("name")?,
            total_ms / 1e3,
            each(total_ms),
            each(row.try_get::<i64, _>("rows")? as f64),
            each(row.try_get::<i64, _>("pages")? as f64),
        );
    }
    Ok(text)
}

/// A long load on few pairs, with autovacuum and janitor at work, once everything that had expired is pruned: dead rows
/// and sizes before, half-way and after.
async fn churn(bench: &Bench, report: &mut Report, grown: &mut PgConnection, seconds: u64) -> Result<()> {
    let service = start(bench, GROWN, PRUNING).await?;
    let began = Instant::now();
    // A hundred more expire every second.
    while count_expired(grown).await? >= 1000 {
        if began.elapsed() > PRUNED_LIMIT {
            return Err("the janitor has not pruned what expired".into());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    report.notes.push(format!("the rest of the expired keys was pruned in {:.0} s", began.elapsed().as_secs_f64()));
    service.stop().await?;
    let service = start(bench, GROWN, &[]).await?;
    let load = load_of(Kind::Mixed, 64, PAIRS_PER_TENANT);
    let mut looks = vec![(0, postgres::sizes(grown).await?)];
    for round in 1..=2 {
        let name = "churn, mixed, 64 connections";
        let measured = measure::service_for(bench, name, &[&service], GROWN, &load, seconds.div_ceil(2)).await?;
        // The statistics of the last second arrive late.
        tokio::time::sleep(Duration::from_secs(2)).await;
        looks.push((looks[round - 1].0 + measured.requests, postgres::sizes(grown).await?));
        report.add(Measurement { round, ..measured });
    }
    service.stop().await?;
    report.details.push(("churn", json!(looks)));
    report.sections.push(churn_table(&looks));
    Ok(())
}

fn churn_table(looks: &[(u64, Sizes)]) -> String {
    let requests: Vec<String> = looks.iter().map(|(requests, _)| requests.to_string()).collect();
    let mut text = format!(
        "After {} requests of churn; tables and indexes of a MiB and more. HOT updates are those that touch no index.\n\n\
         | | MiB | dead rows | autovacuums | HOT updates |\n|---|--:|--:|--:|--:|\n",
        requests.join(", ")
    );
    let (_, last) = &looks[looks.len() - 1];
    for (name, size) in last.iter().filter(|(_, size)| size.bytes >= 1 << 20) {
        let at = |look: &(u64, Sizes)| look.1.get(name).copied().unwrap_or_default();
        let each = |figure: &dyn Fn(Size) -> String| looks.iter().map(at).map(figure).collect::<Vec<_>>().join(", ");
        let of_table = |text: String| if size.is_index { String::new() } else { text };
        let hot = format!("{:.0} %", 100.0 * size.hot_updates as f64 / size.updates.max(1) as f64);
        text += &format!(
            "| `{name}` | {} | {} | {} | {} |\n",
            each(&|size| format!("{:.0}", size.bytes as f64 / 1_048_576.0)),
            of_table(each(&|size| size.dead_tuples.to_string())),
            of_table(each(&|size| size.autovacuums.to_string())),
            if size.updates > 0 { hot } else { String::new() },
        );
    }
    text
}
