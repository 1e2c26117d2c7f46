//! The main comparison: the textbook, the bound and the service, one after the other within each round, so that a slow
//! minute of the machine meets them all.

use crate::load::{Kind, Load};
use crate::measure::{self, Measurement};
use crate::report::Report;
use crate::service::Service;
use crate::setup::PAIRS;
use crate::{Bench, Result, figures, setup, targets};

const YARDSTICK: &str = "yardstick";
const SERVICE: &str = "service";

/// Keys that the replay load repeats.
const REPEATED_KEYS: u32 = 10_000;

/// Reads that production polls.
pub const READS: &[(&str, &str)] = &[
    ("read usage", "/api/v1/usage/{agent}/svc"),
    ("read quote", "/api/v1/billing/{agent}/svc"),
    ("read billing total", "/api/v1/billing/total"),
    ("read stats", "/api/v1/stats"),
    ("read events", "/api/v1/events"),
    ("read metrics", "/api/v1/metrics"),
];

enum Work {
    Textbook { clients: u32, agents: u32 },
    Batched { agents: u32 },
    NoDatabase { connections: u32 },
    Service(Load),
}

struct Scenario {
    name: String,
    work: Work,
}

pub async fn run(bench: &Bench) -> Result<Report> {
    bench.server.create_yardstick(YARDSTICK).await?;
    bench.server.create_database(SERVICE).await?;
    let service = Service::start(&bench.server.url(SERVICE), &bench.settings(&[])).await?;
    let baseline = Service::start_baseline().await?;
    setup::warm(bench, &service).await?;
    let run = bench.new_run();
    let keys = if bench.counts_statuses { 500 } else { REPEATED_KEYS };
    setup::answer_keys(&service, &run, keys, PAIRS).await?;

    let mut report = Report::new(if bench.counts_statuses { "smoke" } else { "full" });
    let mut scenarios = scenarios(Kind::Replay { keys, run });
    for (name, path) in READS {
        if service.offers(path).await? {
            let load = Load::new(Kind::Get { path: (*path).to_owned() }, 64, PAIRS);
            scenarios.push(Scenario { name: format!("{name}, 64 connections"), work: Work::Service(load) });
        } else {
            report.notes.push(format!("{name}: skipped, GET {path} is not there"));
        }
    }
    for round in 1..=bench.rounds {
        for scenario in &scenarios {
            let measured = measure_one(bench, scenario, &service, &baseline).await?;
            report.add(Measurement { round, ..measured });
        }
    }
    let memory = service.memory()?;
    let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
    report.notes.push(format!(
        "memory of the service at the end: {:.1} MiB resident, {:.1} MiB at its peak",
        mib(memory.resident_bytes),
        mib(memory.peak_bytes)
    ));
    service.stop().await?;
    report.sections.push(targets::markdown(&report));
    report.sections.push(targets::growth(&report, "service, 64 connections", "textbook, 64 clients"));
    report.figures = figures::of_full(&report);
    Ok(report)
}

async fn measure_one(bench: &Bench, scenario: &Scenario, service: &Service, baseline: &Service) -> Result<Measurement> {
    let name = scenario.name.as_str();
    match &scenario.work {
        Work::Textbook { clients, agents } => {
            measure::pgbench(bench, name, YARDSTICK, "textbook.sql", *clients, *agents, 1).await
        }
        // Two connections: one statement keeps one core busy.
        Work::Batched { agents } => {
            let mut measured = measure::pgbench(bench, name, YARDSTICK, "batched.sql", 2, *agents, 100).await?;
            measured.batch = Some(100.0);
            Ok(measured)
        }
        Work::NoDatabase { connections } => {
            let load = Load::new(Kind::Usage, *connections, PAIRS);
            measure::baseline(bench, name, baseline, &load).await
        }
        Work::Service(load) => measure::service(bench, name, &[service], SERVICE, load).await,
    }
}

/// In an order that puts side by side what is compared.
fn scenarios(replay: Kind) -> Vec<Scenario> {
    let mut all = Vec::new();
    let mut add = |name: String, work| all.push(Scenario { name, work });
    let service = |kind, connections, pairs| Work::Service(Load::new(kind, connections, pairs));
    for (clients, connections) in [(64, 64), (16, 256), (1, 1)] {
        add(format!("textbook, {clients} clients"), Work::Textbook { clients, agents: PAIRS });
        add(format!("service, {connections} connections"), service(Kind::Usage, connections, PAIRS));
    }
    add("textbook, 8 clients".to_owned(), Work::Textbook { clients: 8, agents: PAIRS });
    for connections in [1, 64, 256] {
        add(format!("service, hot pair, {connections} connections"), service(Kind::Usage, connections, 1));
    }
    for clients in [64, 16, 8, 1] {
        add(format!("textbook, hot pair, {clients} clients"), Work::Textbook { clients, agents: 1 });
    }
    add("service, replays, 64 connections".to_owned(), service(replay, 64, PAIRS));
    add("service, bulk of 100, 64 connections".to_owned(), service(Kind::Bulk { items: 100 }, 64, PAIRS));
    add("service, mixed, 64 connections".to_owned(), service(Kind::Mixed, 64, PAIRS));
    add("batched SQL, 100 per statement".to_owned(), Work::Batched { agents: PAIRS });
    add("batched SQL, hot pair".to_owned(), Work::Batched { agents: 1 });
    for connections in [64, 256] {
        add(format!("no database, {connections} connections"), Work::NoDatabase { connections });
    }
    all
}
