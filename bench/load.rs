//! The two load generators, wrk and pgbench: how they are called, and what they report.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tokio::process::Command;

use crate::error::Result;
use crate::scenario::Bench;
use crate::service::Service;

pub const BULK_ITEMS: u32 = 100;

/// What wrk sends; see load.lua.
#[derive(Clone, Debug)]
pub struct Load {
    pub kind: Kind,
    pub connections: u32,
    /// Agents of each tenant.
    pub pairs: u32,
    /// One of them is drawn for each request; requests have no key if there is none.
    pub api_keys: Vec<String>,
    /// Whether a client that is refused waits for as long as Retry-After says.
    pub waits: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Usage,
    Bulk,
    Get(&'static str),
}

impl Load {
    pub fn new(kind: Kind, connections: u32, pairs: u32) -> Self {
        Self { kind, connections, pairs, api_keys: Vec::new(), waits: false }
    }

    pub fn with_keys(self, api_keys: &[String]) -> Self {
        Self { api_keys: api_keys.to_vec(), ..self }
    }

    /// Records of usage that one request makes.
    pub fn records(&self) -> u32 {
        match self.kind {
            Kind::Usage => 1,
            Kind::Bulk => BULK_ITEMS,
            Kind::Get(_) => 0,
        }
    }
}

/// What one run of a load generator saw.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Seen {
    /// Answers, refusals included.
    pub requests: u64,
    pub refused: u64,
    /// Requests without an answer.
    pub broken: u64,
    pub seconds: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

impl Seen {
    pub fn succeeded(&self) -> u64 {
        self.requests.saturating_sub(self.refused)
    }

    pub fn fault(&self) -> Option<String> {
        let (refused, broken) = (self.refused, self.broken);
        let is_valid = self.requests > 0 && refused + broken == 0;
        (!is_valid)
            .then(|| format!("{} answers, {refused} of them refusals; {broken} requests without one", self.requests))
    }
}

/// Sends a load to a service of this machine.
pub async fn wrk(bench: &Bench, service: &Service, load: &Load, seconds: u64) -> Result<Seen> {
    let (name, path) = match load.kind {
        Kind::Usage => ("usage", ""),
        Kind::Bulk => ("bulk", ""),
        Kind::Get(path) => ("get", path),
    };
    let mut command = Command::new(&bench.wrk);
    command.args(["-t", if load.connections < 64 { "1" } else { "2" }, "--timeout", "10s"]);
    command.args(["-c", &load.connections.to_string(), "-d", &format!("{seconds}s")]);
    command.arg("-s").arg(file("load.lua")).arg(format!("http://127.0.0.1:{}/", service.port));
    command.env("BENCH_KIND", name).env("BENCH_RUN", bench.new_run()).env("BENCH_PATH", path);
    command.env("BENCH_PAIRS", load.pairs.to_string()).env("BENCH_ITEMS", BULK_ITEMS.to_string());
    command.env("BENCH_API_KEYS", load.api_keys.join(",")).env("BENCH_WAITS", if load.waits { "1" } else { "0" });
    let output = command.kill_on_drop(true).output().await?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text.lines().find_map(|line| line.strip_prefix("BENCH ")) {
        Some(json) => Ok(serde_json::from_str(json)?),
        None => Err(format!("wrk failed: {text}{}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

/// Runs a script of pgbench with `clients` connections over `agents` pairs.
pub async fn pgbench(bench: &Bench, database: &str, script: &str, clients: u32, agents: u32) -> Result<Seen> {
    let dir = bench.dir.join("pgbench");
    fs::create_dir_all(&dir)?;
    let mut command = bench.server.pgbench(&bench.pgbench, database);
    command.arg("-f").arg(file(script)).args(["-D", &format!("agents={agents}"), "-c", &clients.to_string()]);
    command.args(["-T", &bench.seconds.to_string(), "-l", "--log-prefix", "latency"]);
    // Enough for a 99th percentile, without a load of its own.
    command.args(["--sampling-rate", if clients <= 2 { "1" } else { "0.1" }]);
    let output = command.arg(database).current_dir(&dir).kill_on_drop(true).output().await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let value = |prefix: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(prefix));
        line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok())
    };
    let (Some(rate), Some(transactions)) = (value("tps = "), value("number of transactions actually processed: "))
    else {
        return Err(format!("pgbench failed: {text}{}", String::from_utf8_lossy(&output.stderr)).into());
    };
    let latencies_ms = read_latencies(&dir)?;
    fs::remove_dir_all(&dir)?;
    let percentile = |share: f64| {
        let place = (latencies_ms.len().saturating_sub(1) as f64 * share) as usize;
        latencies_ms.get(place).copied().unwrap_or(0.0)
    };
    Ok(Seen {
        requests: transactions as u64,
        refused: value("number of failed transactions: ").unwrap_or(0.0) as u64,
        broken: u64::from(!output.status.success()),
        seconds: transactions / rate,
        p50_ms: percentile(0.5),
        p99_ms: percentile(0.99),
    })
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("bench").join(name)
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
