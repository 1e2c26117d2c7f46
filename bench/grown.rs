//! Flat growth: the same load on an empty database and on one that has been used for a long time, while the janitor
//! prunes and while it does not; then reads, churn, and the plan of every statement at that size.

use std::time::Duration;

use serde_json::json;
use sqlx::{PgConnection, Row};

use crate::fill::{self, Extent, TENANTS};
use crate::full::READS;
use crate::load::{self, Kind, Load};
use crate::measure::{self, Measurement};
use crate::postgres::{self, Sizes};
use crate::report::Report;
use crate::service::Service;
use crate::{Bench, Result, plans};

const EMPTY: &str = "empty";
const GROWN: &str = "grown";

/// Pairs of each tenant that both databases are loaded with: 10 000 in all.
const PAIRS_PER_TENANT: u32 = 100;

const PRUNING: &[(&str, &str)] = &[("JANITOR_INTERVAL_MS", "200")];
const NO_PRUNING: &[(&str, &str)] = &[("JANITOR_INTERVAL_MS", "3600000")];

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
    explain(bench, &mut report, &mut grown, extent).await?;
    Ok(report)
}

async fn start(bench: &Bench, database: &str, settings: &[(&'static str, &'static str)]) -> Result<Service> {
    Service::start(&bench.server.url(database), &bench.settings(settings)).await
}

fn load_of(kind: Kind, connections: u32, pairs_per_tenant: u32) -> Load {
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
    format!(
        "| target | bound | measured |\n|---|--:|--:|\n\
         | grown, pruning, over empty: throughput | ≥ 0.85 | {:.2} |\n\
         | the same over all pairs | ≥ 0.85 | {:.2} |\n\
         | p99 while pruning over p99 without | ≤ 2 | {:.2} |\n\
         | slowest p99 of the polled reads, ms | ≤ 10 | {:.2} |\n",
        rate(WHILE_PRUNING) / rate(ON_EMPTY),
        rate(ALL_PAIRS) / rate(ON_EMPTY),
        p99(WHILE_PRUNING) / p99(AT_REST),
        reads.fold(0.0, f64::max),
    )
}

/// What the statements cost on average, the dearest first.
async fn statements(connection: &mut PgConnection) -> Result<String> {
    let rows = sqlx::query(
        "SELECT substring(query FROM '^-- ([a-z_:]+)') AS name, sum(calls)::bigint AS calls,
                sum(total_exec_time) AS total_ms, sum(rows)::bigint AS rows,
                sum(shared_blks_hit + shared_blks_read)::bigint AS pages
         FROM bench.pg_stat_statements WHERE query ~ '^-- [a-z_]+::' GROUP BY 1 ORDER BY 3 DESC",
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

/// A long load on few pairs, with autovacuum and janitor at work: dead rows and sizes before and after.
async fn churn(bench: &Bench, report: &mut Report, grown: &mut PgConnection, seconds: u64) -> Result<()> {
    let before = postgres::sizes(grown).await?;
    let service = start(bench, GROWN, &[]).await?;
    let load = load_of(Kind::Mixed, 64, PAIRS_PER_TENANT);
    let measured =
        measure::service_for(bench, "churn, mixed, 64 connections", &[&service], GROWN, &load, seconds).await?;
    let requests = measured.requests;
    report.add(Measurement { round: 1, ..measured });
    // The statistics of the last second arrive late.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = postgres::sizes(grown).await?;
    service.stop().await?;
    report.details.push(("churn", json!({ "requests": requests, "before": before, "after": after })));
    report.sections.push(churn_table(requests, &before, &after));
    Ok(())
}

fn churn_table(requests: u64, before: &Sizes, after: &Sizes) -> String {
    let mut text = format!(
        "| after {requests} requests of churn | MiB before | MiB after | dead rows before | dead rows after |\n\
         |---|--:|--:|--:|--:|\n"
    );
    for (name, size) in after {
        let earlier = before.get(name).copied().unwrap_or_default();
        let mib = |bytes: i64| bytes as f64 / 1_048_576.0;
        let dead = |dead: i64| if size.is_index { String::new() } else { dead.to_string() };
        text += &format!(
            "| `{name}` | {:.1} | {:.1} | {} | {} |\n",
            mib(earlier.bytes),
            mib(size.bytes),
            dead(earlier.dead_tuples),
            dead(size.dead_tuples)
        );
    }
    text
}

/// A few requests of every kind, each statement explained by the server itself.
async fn explain(bench: &Bench, report: &mut Report, grown: &mut PgConnection, extent: Extent) -> Result<()> {
    let log = bench.server.log().await?;
    let offset = std::fs::metadata(&log)?.len();
    plans::switch_on(grown, GROWN).await?;
    let service = start(bench, GROWN, PRUNING).await?;
    for kind in [Kind::Usage, Kind::Bulk { items: 100 }, Kind::Mixed] {
        let load = load_of(kind, 4, extent.pairs_per_tenant);
        load::wrk(bench, service.port, &load, &bench.new_run(), 1).await?;
    }
    let client = reqwest::Client::new();
    let key = format!("apk_{:08x}{:024x}", 1, 0);
    for path in READS.iter().map(|(_, path)| *path).chain(LISTS.iter().copied()) {
        // Those that are not there yet have no statement to explain.
        client.get(service.url(&path.replace("{agent}", "agent-1"))).header("x-api-key", &key).send().await?;
    }
    service.stop().await?;
    plans::switch_off(grown, GROWN).await?;
    let plans = plans::read(&log, offset)?;
    report.details.push(("plans", json!(plans)));
    report.sections.push(plans::markdown(&plans));
    Ok(())
}

/// Every other read that has a statement of its own.
const LISTS: &[&str] = &[
    "/api/v1/services",
    "/api/v1/services/svc",
    "/api/v1/services/svc/usage",
    "/api/v1/services/svc/agents",
    "/api/v1/services/svc/agents/top",
    "/api/v1/agents",
    "/api/v1/agents/agent-1/total",
    "/api/v1/agents/agent-1/usage",
    "/api/v1/settlements",
    "/api/v1/settlements?agent=agent-1",
    "/api/v1/settlements?serviceId=svc",
    "/api/v1/events/summary",
    "/api/v1/api-keys",
    "/api/v1/idempotency/k-1",
    "/api/v1/usage/export.csv",
];
