//! What the project promises about its speed, held against what was measured. Nothing fails here: a busy machine must not.

use std::collections::BTreeSet;

use crate::report::Report;

/// Bytes of heap and index that pgledger publishes for a transfer.
const GROWTH_BYTES_MAX: f64 = 743.0;
const MEMORY_MIB_MAX: f64 = 64.0;

const AT_64: &str = "service, 64 connections";
const AT_256: &str = "service, 256 connections";

/// One promise: what, the bound, and what was measured.
struct Target {
    name: &'static str,
    is_at_least: bool,
    bound: f64,
    measured: Option<f64>,
}

pub fn markdown(report: &Report) -> String {
    let mut text = "| target | bound | measured | met |\n|---|--:|--:|---|\n".to_owned();
    for Target { name, is_at_least, bound, measured } in targets(report) {
        let sign = if is_at_least { "≥" } else { "≤" };
        let Some(measured) = measured else {
            text += &format!("| {name} | {sign} {bound:.2} | not measured | |\n");
            continue;
        };
        let is_met = if is_at_least { measured >= bound } else { measured <= bound };
        text +=
            &format!("| {name} | {sign} {bound:.2} | {measured:.2} | {} |\n", if is_met { "yes" } else { "**no**" });
    }
    text
}

fn targets(report: &Report) -> Vec<Target> {
    let at_least = |name, bound, measured| Target { name, is_at_least: true, bound, measured };
    let at_most = |name, bound, measured| Target { name, is_at_least: false, bound, measured };
    let over = |name: &str, base: Option<f64>| report.rate(name).zip(base).map(|(rate, base)| rate / base);
    let textbook_64 = report.rate("textbook, 64 clients");
    let best = report.best_textbook(false);
    let lone = "textbook, 1 clients";
    let textbook_average_ms = report.median(lone, |measured| 1e3 / measured.per_second);
    let p50 = |name: &str| report.median(name, |measured| measured.p50_ms);
    let p99 = |name: &str| report.median(name, |measured| measured.p99_ms);
    let growth = report.median(AT_64, |measured| measured.growth_per_request());
    let memory = report.median(AT_256, |measured| measured.memory.unwrap_or_default().resident_bytes as f64);
    let reads: Vec<f64> = report.names().into_iter().filter(|name| name.starts_with("read ")).filter_map(p99).collect();
    vec![
        at_least("64 connections, × textbook at 64 clients", 6.0, over(AT_64, textbook_64)),
        at_least("64 connections, × textbook at its best", 3.0, over(AT_64, best)),
        at_least("256 connections, × textbook at 64 clients", 8.0, over(AT_256, textbook_64)),
        at_least("256 connections, × textbook at its best", 4.0, over(AT_256, best)),
        at_least(
            "hot pair, 64 connections, × textbook at its best",
            15.0,
            over("service, hot pair, 64 connections", report.best_textbook(true)),
        ),
        at_most(
            "1 connection: p50 over the textbook's average at one client",
            1.0,
            p50("service, 1 connections").zip(textbook_average_ms).map(|(p50, average)| p50 / average),
        ),
        at_least(
            "replays, 64 connections, × first calls",
            1.5,
            over("service, replays, 64 connections", report.rate(AT_64)),
        ),
        at_least("bulk of 100, items/s", 60_000.0, report.item_rate("service, bulk of 100, 64 connections")),
        at_most("64 connections: p99 over p50", 4.0, p99(AT_64).zip(p50(AT_64)).map(|(p99, p50)| p99 / p50)),
        at_least("64 connections over the bound", 0.6, over(AT_64, bound(report, 64))),
        at_least("256 connections over the bound", 0.7, over(AT_256, bound(report, 256))),
        at_most("bytes of heap and index per keyed write", GROWTH_BYTES_MAX, growth),
        at_most(
            "MiB resident after the run of 256 connections",
            MEMORY_MIB_MAX,
            memory.map(|bytes| bytes / 1_048_576.0),
        ),
        at_most("slowest p99 of the polled reads, ms", 10.0, reads.into_iter().reduce(f64::max)),
    ]
}

/// What a service could do that costs nothing but HTTP and the SQL of its batches, on the same cores.
fn bound(report: &Report, connections: u32) -> Option<f64> {
    let http = report.rate(&format!("no database, {connections} connections"))?;
    let sql = report.item_rate("batched SQL, 100 per statement")?;
    Some(1.0 / (1.0 / http + 1.0 / sql))
}

/// Where the bytes of one write go, the service beside the textbook.
pub fn growth(report: &Report, ours: &str, theirs: &str) -> String {
    let relations: BTreeSet<&String> = report
        .measurements
        .iter()
        .filter(|measured| measured.name == ours || measured.name == theirs)
        .flat_map(|measured| measured.growth.keys())
        .collect();
    let mut text = format!("| bytes per write | {ours} | {theirs} |\n|---|--:|--:|\n");
    let mut row = |name: &str, figure: &dyn Fn(&str) -> Option<f64>| {
        let show = |name: &str| figure(name).map(|bytes| format!("{bytes:.1}")).unwrap_or_default();
        text += &format!("| {name} | {} | {} |\n", show(ours), show(theirs));
    };
    for relation in relations {
        row(&format!("`{relation}`"), &|name| {
            report.median(name, |measured| measured.growth.get(relation).copied().unwrap_or(0.0))
        });
    }
    row("**heap and indexes together**", &|name| report.median(name, |measured| measured.growth_per_request()));
    row("write-ahead log", &|name| report.median(name, |measured| measured.wal_bytes_per_request));
    text
}
