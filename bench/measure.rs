//! One measurement: a load, and what it did to the machine, the database and the service meanwhile.
//! It also checks the load: what was acknowledged must have been recorded, no more and no less.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;
use sqlx::PgConnection;

use crate::error::Result;
use crate::load::{self, BULK_ITEMS, Load, Seen};
use crate::machine::{self, Cores};
use crate::postgres::{self, Database, Progress};
use crate::scenario::Bench;
use crate::service::Service;

/// Requests that one record of usage counts, in every load.
const REQUESTS_PER_RECORD: i64 = 3;

#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    pub name: String,
    pub per_second: f64,
    /// Records of usage for each request; 100 for a bulk of 100.
    pub items: u32,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub cores: Cores,
    pub wal_bytes_per_request: f64,
    /// Commands in a commit, from the service's metrics.
    pub batch: f64,
    /// Bytes for each request by table and index.
    pub growth: BTreeMap<String, f64>,
    pub memory_mib: f64,
    pub fault: Option<String>,
}

/// A load on one or several processes of the service, each with all of the load's connections.
pub async fn service(
    bench: &Bench,
    name: &str,
    database: &str,
    services: &[&Service],
    load: &Load,
) -> Result<Measurement> {
    bench.server.checkpoint().await?;
    continued(bench, name, database, services, load).await
}

/// The same in several databases, together.
pub async fn cells(
    bench: &Bench,
    name: &str,
    databases: &[Database<'_>],
    services: &[&Service],
    load: &Load,
) -> Result<Measurement> {
    for database in databases {
        database.server.checkpoint().await?;
    }
    on_all(bench, name, databases, services, load).await
}

/// The same without a checkpoint first.
pub async fn continued(
    bench: &Bench,
    name: &str,
    database: &str,
    services: &[&Service],
    load: &Load,
) -> Result<Measurement> {
    on_all(bench, name, &[bench.database(database)], services, load).await
}

async fn on_all(
    bench: &Bench,
    name: &str,
    databases: &[Database<'_>],
    services: &[&Service],
    load: &Load,
) -> Result<Measurement> {
    let probe = Probe::start(databases, services).await?;
    let runs = services.iter().map(|service| load::wrk(bench, service, load, bench.seconds));
    let all = futures_util::future::try_join_all(runs).await?;
    let loads: Vec<(&Seen, &Load)> = all.iter().map(|seen| (seen, load)).collect();
    probe.finish(name, &together(&all), &loads).await
}

/// A load beside a flood of bulk requests, which is refused in part without fault. Measures the load, and returns what
/// the flood saw.
pub async fn beside_flood(
    bench: &Bench,
    name: &str,
    database: &str,
    service: &Service,
    load: &Load,
    flood: &Load,
) -> Result<(Measurement, Seen)> {
    bench.server.checkpoint().await?;
    let (databases, services) = ([bench.database(database)], [service]);
    let probe = Probe::start(&databases, &services).await?;
    let (seen, flooded) = side_by_side(bench, service, load, flood, async { Ok(()) }).await?;
    Ok((probe.finish(name, &seen, &[(&seen, load), (&flooded, flood)]).await?, flooded))
}

/// The load of one cell beside that of another cell, which may be refused. `event` happens when the measurement begins.
pub async fn beside_cell(
    bench: &Bench,
    name: &str,
    database: Database<'_>,
    service: &Service,
    load: &Load,
    other: &Load,
    event: impl Future<Output = Result<()>>,
) -> Result<(Measurement, Seen)> {
    let (databases, services) = ([database], [service]);
    let probe = Probe::start(&databases, &services).await?;
    let (seen, others) = side_by_side(bench, service, load, other, event).await?;
    Ok((probe.finish(name, &seen, &[(&seen, load)]).await?, others))
}

/// The other load begins a second before `load` and `event`, and ends a second after the load.
async fn side_by_side(
    bench: &Bench,
    service: &Service,
    load: &Load,
    other: &Load,
    event: impl Future<Output = Result<()>>,
) -> Result<(Seen, Seen)> {
    let delayed = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(futures_util::future::try_join(load::wrk(bench, service, load, bench.seconds), event).await?.0)
    };
    futures_util::future::try_join(delayed, load::wrk(bench, service, other, bench.seconds + 2)).await
}

/// A script of pgbench; `items` requests for each transaction.
pub async fn pgbench(
    bench: &Bench,
    name: &str,
    database: &str,
    script: &str,
    clients: u32,
    agents: u32,
) -> Result<Measurement> {
    bench.server.checkpoint().await?;
    let databases = [bench.database(database)];
    let probe = Probe::start(&databases, &[]).await?;
    let seen = load::pgbench(bench, database, script, clients, agents).await?;
    let measured = probe.finish(name, &seen, &[]).await?;
    Ok(Measurement { items: if script == "batched.sql" { BULK_ITEMS } else { 1 }, ..measured })
}

/// What was there before a load.
struct Probe<'a> {
    databases: &'a [Database<'a>],
    connections: Vec<PgConnection>,
    services: &'a [&'a Service],
    batches: (f64, f64),
    progress: Progress,
    ticks: Cores,
    began: Instant,
}

impl<'a> Probe<'a> {
    async fn start(databases: &'a [Database<'a>], services: &'a [&'a Service]) -> Result<Self> {
        let mut connections = Vec::new();
        for database in databases {
            connections.push(database.server.connect(database.name).await?);
        }
        let progress = settled(&mut connections).await?;
        let batches = batches(services).await?;
        let (ticks, began) = (ticks(databases, services)?, Instant::now());
        Ok(Self { databases, connections, services, batches, progress, ticks, began })
    }

    async fn finish(mut self, name: &str, seen: &Seen, loads: &[(&Seen, &Load)]) -> Result<Measurement> {
        let cores = ticks(self.databases, self.services)?.since(&self.ticks, self.began.elapsed().as_secs_f64());
        let memory_mib = self.services.first().map_or(Ok(0.0), |service| machine::memory_mib(service.pid))?;
        let end = settled(&mut self.connections).await?;
        let (commands, commits) = batches(self.services).await?;
        let requests = seen.succeeded().max(1) as f64;
        let growth = end.sizes.iter().map(|(relation, bytes)| {
            (relation.clone(), (bytes - self.progress.sizes.get(relation).unwrap_or(&0)) as f64 / requests)
        });
        let recorded = (end.recorded - self.progress.recorded) / REQUESTS_PER_RECORD;
        Ok(Measurement {
            name: name.to_owned(),
            per_second: seen.succeeded() as f64 / seen.seconds,
            items: loads.first().map_or(1, |(_, load)| load.records().max(1)),
            p50_ms: seen.p50_ms,
            p99_ms: seen.p99_ms,
            cores,
            wal_bytes_per_request: (end.wal_bytes - self.progress.wal_bytes) as f64 / requests,
            batch: (commands - self.batches.0) / (commits - self.batches.1).max(1.0),
            growth: growth.filter(|(_, bytes)| *bytes != 0.0).collect(),
            memory_mib,
            fault: seen.fault().or_else(|| miscounted(recorded, loads)),
        })
    }
}

/// Several load generators side by side: their sum, and the slowest's latencies.
fn together(all: &[Seen]) -> Seen {
    all.iter().fold(Seen::default(), |sum, seen| Seen {
        requests: sum.requests + seen.requests,
        refused: sum.refused + seen.refused,
        broken: sum.broken + seen.broken,
        seconds: sum.seconds.max(seen.seconds),
        p50_ms: sum.p50_ms.max(seen.p50_ms),
        p99_ms: sum.p99_ms.max(seen.p99_ms),
    })
}

/// wrk hangs up in the middle of its last requests; those that were queued are committed a moment later.
async fn settled(connections: &mut [PgConnection]) -> Result<Progress> {
    let mut last = progress(connections).await?;
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let now = progress(connections).await?;
        if now.recorded == last.recorded {
            return Ok(now);
        }
        last = now;
    }
}

async fn progress(connections: &mut [PgConnection]) -> Result<Progress> {
    let mut sum = Progress::default();
    for connection in connections {
        sum.add(postgres::progress(connection).await?);
    }
    Ok(sum)
}

/// What was acknowledged and what was recorded must be the same, but for the last request of each connection.
fn miscounted(recorded: i64, loads: &[(&Seen, &Load)]) -> Option<String> {
    let sum = |count: &dyn Fn(&Seen, &Load) -> u64| -> i64 {
        loads.iter().map(|(seen, load)| (count(seen, load) * u64::from(load.records())) as i64).sum()
    };
    let acknowledged = sum(&|seen, _| seen.succeeded());
    let possible = acknowledged + sum(&|seen, load| u64::from(load.connections) + seen.broken);
    let is_right = (acknowledged..=possible).contains(&recorded);
    (!is_right).then(|| format!("{acknowledged} records acknowledged, but {recorded} made"))
}

fn ticks(databases: &[Database<'_>], services: &[&Service]) -> Result<Cores> {
    let pids: Vec<u32> = services.iter().map(|service| service.pid).collect();
    let postmasters: Vec<u32> = databases.iter().map(|database| database.server.postmaster).collect();
    Cores::ticks(&pids, &postmasters)
}

async fn batches(services: &[&Service]) -> Result<(f64, f64)> {
    let mut sums = (0.0, 0.0);
    for service in services {
        let (commands, commits) = service.batches().await?;
        sums = (sums.0 + commands, sums.1 + commits);
    }
    Ok(sums)
}
