//! The main comparison: the baseline and the service, with and without a line for each request in its log, one after
//! the other within each round, so that a slow minute of the machine meets them all.

use reqwest::Method;
use serde_json::{Value, json};

use crate::error::Result;
use crate::load::{self, Kind, Load};
use crate::measure;
use crate::postgres;
use crate::report::Bound::{AtLeast, AtMost};
use crate::report::{Bound, Report, Target};
use crate::scenario::Bench;
use crate::service::Service;

const BASELINE: &str = "baseline";
const LOG_LEVELS: [&str; 2] = ["info", "warn"];

/// Agents of the loads that do not ask for one hot pair.
const PAIRS: u32 = 10_000;

/// The baseline's best is the best of these.
const CLIENTS: [u32; 4] = [1, 8, 16, 64];

const REPLICAS: u32 = 4;

const BATCHED: &str = "batched SQL, 2 clients";
const BYTES: &str = "service without janitor, 64 connections";

/// A service on a database of its own.
struct Subject {
    database: &'static str,
    log_level: &'static str,
    service: Service,
}

pub async fn run(bench: &Bench, report: &mut Report) -> Result<()> {
    let mut baseline = bench.server.create_database(BASELINE).await?;
    postgres::run(&mut baseline, include_str!("baseline-schema.sql")).await?;
    let mut subjects = Vec::new();
    for log_level in LOG_LEVELS {
        subjects.push(start(bench, log_level, log_level, "5000").await?);
    }
    for _ in 0..bench.rounds {
        for (pairs, hot) in [(PAIRS, ""), (1, "hot pair, ")] {
            for clients in CLIENTS {
                let name = format!("baseline, {hot}{clients} clients");
                report.add(measure::pgbench(bench, &name, BASELINE, "baseline.sql", clients, pairs).await?);
            }
            for connections in [1, 64, 256] {
                let name = format!("{hot}{connections} connections");
                usage(bench, report, &subjects, &name, &Load::new(Kind::Usage, connections, pairs)).await?;
            }
        }
        // One statement keeps one core busy, and there are two at least.
        report.add(measure::pgbench(bench, BATCHED, BASELINE, "batched.sql", 2, PAIRS).await?);
        usage(bench, report, &subjects, "bulk of 100", &Load::new(Kind::Bulk, 64, PAIRS)).await?;
        for subject in &subjects {
            hot_pair_of_replicas(bench, report, subject).await?;
            beside_flood(bench, report, subject).await?;
        }
    }
    for subject in subjects {
        subject.service.stop().await?;
    }
    bytes_of_a_write(bench, report).await?;
    report.targets = targets(report);
    Ok(())
}

/// A service that knows its pairs and has worked for a moment: one that just started is not what is measured.
async fn start(
    bench: &Bench,
    database: &'static str,
    log_level: &'static str,
    janitor_interval_ms: &str,
) -> Result<Subject> {
    bench.server.create_database(database).await?;
    let settings = [("LOG_LEVEL", log_level), ("JANITOR_INTERVAL_MS", janitor_interval_ms)];
    let service = Service::start(bench, database, &settings).await?;
    let priced = json!({ "serviceId": "svc", "priceStroops": 100 });
    service.send_json(Method::POST, "/api/v1/services", "", priced).await?;
    for first in (1..PAIRS).step_by(100) {
        let usage = |pair| json!({ "agent": format!("agent-{pair}"), "serviceId": "svc", "requests": 3 });
        let items: Vec<Value> = (first..first + 100).map(usage).collect();
        service.send_json(Method::POST, "/api/v1/usage/bulk", "", json!({ "items": items })).await?;
    }
    load::wrk(bench, &service, &Load::new(Kind::Usage, 64, PAIRS), bench.seconds.min(2)).await?;
    Ok(Subject { database, log_level, service })
}

async fn usage(bench: &Bench, report: &mut Report, subjects: &[Subject], name: &str, load: &Load) -> Result<()> {
    for Subject { database, log_level, service } in subjects {
        report.add(measure::service(bench, &of_service(name, log_level), database, &[service], load).await?);
    }
    Ok(())
}

fn of_service(name: &str, log_level: &str) -> String {
    format!("service, {name}, {log_level}")
}

/// Shares 64 connections among several processes that write the same row.
async fn hot_pair_of_replicas(bench: &Bench, report: &mut Report, subject: &Subject) -> Result<()> {
    let load = Load::new(Kind::Usage, 64 / REPLICAS, 1);
    let mut others = Vec::new();
    for _ in 1..REPLICAS {
        let other = Service::start(bench, subject.database, &[("LOG_LEVEL", subject.log_level)]).await?;
        load::wrk(bench, &other, &load, 1).await?;
        others.push(other);
    }
    let all: Vec<&Service> = others.iter().chain([&subject.service]).collect();
    let name = of_service("hot pair, 4 processes", subject.log_level);
    report.add(measure::service(bench, &name, subject.database, &all, &load).await?);
    for other in others {
        other.stop().await?;
    }
    Ok(())
}

/// One tenant floods the service, another one's single writes are measured.
async fn beside_flood(bench: &Bench, report: &mut Report, subject: &Subject) -> Result<()> {
    let Subject { database, log_level, service } = subject;
    let flood = Load::new(Kind::Bulk, 512, PAIRS).with_keys(&[service.new_tenant().await?]);
    let load = Load::new(Kind::Usage, 8, 100).with_keys(&[service.new_tenant().await?]);
    let name = of_service("beside a flood", log_level);
    let (measured, flooded) = measure::beside_flood(bench, &name, database, service, &load, &flood).await?;
    report.add(measured);
    let items = flooded.succeeded() as f64 * f64::from(flood.records()) / flooded.seconds;
    report.notes.push(format!("{name}: the flood got {items:.0} items/s and {} refusals", flooded.refused));
    Ok(())
}

/// What a keyed write adds to tables and indexes, without a janitor that makes space for later rows.
async fn bytes_of_a_write(bench: &Bench, report: &mut Report) -> Result<()> {
    let Subject { database, service, .. } = start(bench, "bytes", "info", "3600000").await?;
    let load = Load::new(Kind::Usage, 64, PAIRS);
    let measured = measure::service(bench, BYTES, database, &[&service], &load).await?;
    let rows = measured.growth.iter().map(|(relation, bytes)| format!("| `{relation}` | {bytes:.1} |\n"));
    report.sections.push(format!("| | bytes for each keyed write |\n|---|--:|\n{}", rows.collect::<String>()));
    report.add(measured);
    service.stop().await
}

fn targets(report: &Report) -> Vec<Target> {
    let best = |hot: &str| {
        let rates = CLIENTS.iter().map(|clients| report.rate(&format!("baseline, {hot}{clients} clients")));
        rates.fold(f64::NAN, f64::max)
    };
    let p50 = |name: &str| report.median(name, |measured| measured.p50_ms);
    let p99 = |name: &str| report.median(name, |measured| measured.p99_ms);
    let both = |name: &str, bounds: [Bound; 2], scenario: &str, figure: &dyn Fn(&str, &str) -> f64| Target {
        name: name.to_owned(),
        bounds: bounds.to_vec(),
        measured: LOG_LEVELS.iter().map(|level| figure(&of_service(scenario, level), level)).collect(),
    };
    let over = |base: f64| move |name: &str, _: &str| report.rate(name) / base;
    let one_process = |level: &str| report.rate(&of_service("hot pair, 64 connections", level));
    vec![
        both(
            "64 connections, over the baseline's best",
            [AtLeast(3.5), AtLeast(4.5)],
            "64 connections",
            &over(best("")),
        ),
        both("256 connections, over the same", [AtLeast(4.5), AtLeast(5.5)], "256 connections", &over(best(""))),
        both(
            "hot pair, 64 connections, over the baseline's best on it",
            [AtLeast(8.0), AtLeast(10.0)],
            "hot pair, 64 connections",
            &over(best("hot pair, ")),
        ),
        both("1 connection: p50 over the baseline's", [AtMost(1.0), AtMost(0.8)], "1 connections", &|name, _| {
            p50(name) / p50("baseline, 1 clients")
        }),
        both("bulk of 100, items, over batched SQL", [AtLeast(1.2); 2], "bulk of 100", &over(report.rate(BATCHED))),
        both("4 processes on a hot pair, over one", [AtLeast(0.6); 2], "hot pair, 4 processes", &|name, level| {
            report.rate(name) / one_process(level)
        }),
        both("p99 of single writes beside a flood, ms", [AtMost(100.0); 2], "beside a flood", &|name, _| p99(name)),
        Target {
            name: "bytes of heap and index for each keyed write".to_owned(),
            bounds: vec![AtMost(400.0)],
            measured: vec![report.median(BYTES, |measured| measured.growth.values().sum())],
        },
    ]
}
