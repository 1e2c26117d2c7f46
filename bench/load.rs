//! The two load generators, wrk and pgbench: how they are called, and what they report.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use tokio::process::Command;

use crate::{Bench, Result};

/// What wrk sends; see load.lua.
#[derive(Clone, Debug)]
pub struct Load {
    pub kind: Kind,
    pub connections: u32,
    pub pairs: u32,
    /// 0: without API keys.
    pub tenants: u32,
    pub has_uuid_keys: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Usage,
    /// The keys that are repeated, and the text they were made of.
    Replay {
        keys: u32,
        run: String,
    },
    Bulk {
        items: u32,
    },
    /// 80 % usage, 10 % bulk of 10, 5 % settle, 5 % reads.
    Mixed,
    Get {
        path: String,
    },
}

impl Load {
    pub fn new(kind: Kind, connections: u32, pairs: u32) -> Self {
        Self { kind, connections, pairs, tenants: 0, has_uuid_keys: false }
    }

    /// Records of usage one request makes, where that is a fixed number.
    pub fn records(&self) -> Option<u32> {
        match &self.kind {
            Kind::Usage => Some(1),
            Kind::Bulk { items } => Some(*items),
            Kind::Replay { .. } | Kind::Get { .. } => Some(0),
            Kind::Mixed => None,
        }
    }
}

/// What one run of a load generator saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub requests: u64,
    pub seconds: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    /// Why the run is not valid.
    pub faults: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct WrkReport {
    requests: u64,
    seconds: f64,
    p50_ms: f64,
    p99_ms: f64,
    refused: u64,
    broken: u64,
    statuses: BTreeMap<String, u64>,
}

/// Sends a load to one port of this machine. `run` must be new, or keys would repeat.
pub async fn wrk(bench: &Bench, port: u16, load: &Load, run: &str, seconds: u64) -> Result<Seen> {
    let report = call_wrk(bench, port, load, run, seconds, bench.counts_statuses).await?;
    let mut faults = Vec::new();
    if report.broken > 0 {
        faults.push(format!("{} requests without an answer", report.broken));
    }
    let odd = |statuses: &BTreeMap<String, u64>| -> Vec<String> {
        let odd = statuses.iter().filter(|(status, _)| !status.starts_with('2'));
        odd.map(|(status, count)| format!("{count} answers of {status}")).collect()
    };
    faults.extend(odd(&report.statuses));
    if report.refused > 0 && report.statuses.is_empty() {
        // wrk counts refusals but does not name them: a second short run does, which would slow down the first.
        let again = call_wrk(bench, port, load, &format!("{run}0000"), 1, true).await?;
        faults.push(format!("{} refusals; once more: {}", report.refused, odd(&again.statuses).join(", ")));
    }
    Ok(Seen {
        requests: report.requests.saturating_sub(report.refused),
        seconds: report.seconds,
        p50_ms: report.p50_ms,
        p99_ms: report.p99_ms,
        faults,
    })
}

async fn call_wrk(
    bench: &Bench,
    port: u16,
    load: &Load,
    run: &str,
    seconds: u64,
    counts_statuses: bool,
) -> Result<WrkReport> {
    let (name, run, items, keys, path) = match &load.kind {
        Kind::Usage => ("usage", run, 0, 0, ""),
        Kind::Replay { keys, run } => ("replay", run.as_str(), 0, *keys, ""),
        Kind::Bulk { items } => ("bulk", run, *items, 0, ""),
        Kind::Mixed => ("mixed", run, 10, 0, ""),
        Kind::Get { path } => ("get", run, 0, 0, path.as_str()),
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench/load.lua");
    let mut command = Command::new(&bench.wrk);
    command.args(["-t", if load.connections == 1 { "1" } else { "2" }]);
    command.args(["-c", &load.connections.to_string(), "-d", &format!("{seconds}s"), "--timeout", "10s"]);
    command.arg("-s").arg(script).arg(format!("http://127.0.0.1:{port}/"));
    command.env("BENCH_KIND", name).env("BENCH_RUN", run).env("BENCH_PATH", path);
    command.env("BENCH_PAIRS", load.pairs.to_string()).env("BENCH_TENANTS", load.tenants.to_string());
    command.env("BENCH_ITEMS", items.to_string()).env("BENCH_KEYS", keys.to_string());
    command.env("BENCH_KEY_FORM", if load.has_uuid_keys { "uuid" } else { "short" });
    if counts_statuses {
        command.env("BENCH_STATUSES", "yes");
    }
    let output = command.kill_on_drop(true).output().await?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().find_map(|line| line.strip_prefix("BENCH ")) {
        Some(json) => Ok(serde_json::from_str(json)?),
        None => Err(format!("wrk failed: {text}{}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

/// Runs a script of pgbench with `clients` connections over `agents` pairs.
pub async fn pgbench(bench: &Bench, database: &str, script: &str, clients: u32, agents: u32) -> Result<Seen> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("bench").join(script);
    let dir = bench.dir.join("pgbench");
    fs::create_dir_all(&dir)?;
    let mut command = bench.server.pgbench(&bench.pgbench, database);
    command.arg("-f").arg(script).args(["-D", &format!("agents={agents}"), "-c", &clients.to_string()]);
    command.args(["-T", &bench.seconds.to_string(), "-l", "--log-prefix", "latency"]);
    // Enough for a 99th percentile, and no load of its own.
    command.args(["--sampling-rate", if clients <= 2 { "1" } else { "0.1" }]);
    let output = command.arg(database).current_dir(&dir).kill_on_drop(true).output().await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let value = |prefix: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(prefix));
        line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok())
    };
    let (Some(rate), Some(transactions)) = (value("tps = "), value("number of transactions actually processed: "))
    else {
        return Err(format!("pgbench failed: {text}{errors}").into());
    };
    let mut faults = Vec::new();
    if !output.status.success() || value("number of failed transactions: ").is_some_and(|failed| failed > 0.0) {
        faults.push(format!("pgbench: {}", errors.lines().last().unwrap_or("transactions failed")));
    }
    let latencies_ms = read_latencies(&dir)?;
    fs::remove_dir_all(&dir)?;
    let percentile = |share: f64| {
        let place = (latencies_ms.len().saturating_sub(1) as f64 * share) as usize;
        latencies_ms.get(place).copied().unwrap_or(0.0)
    };
    Ok(Seen {
        requests: transactions as u64,
        seconds: transactions / rate,
        p50_ms: percentile(0.5),
        p99_ms: percentile(0.99),
        faults,
    })
}

/// The third column of pgbench's log is the transaction's time in microseconds. Sorted.
fn read_latencies(dir: &Path) -> Result<Vec<f64>> {
    let mut latencies_ms = Vec::new();
    for entry in fs::read_dir(dir)? {
        let text = fs::read_to_string(entry?.path())?;
        let micros = text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<f64>().ok());
        latencies_ms.extend(micros.map(|micros| micros / 1e3));
    }
    latencies_ms.sort_by(f64::total_cmp);
    Ok(latencies_ms)
}
