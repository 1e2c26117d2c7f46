//! One measurement: a load, and what it did to the machine, the database and the service meanwhile.
//! It also proves the load: what was acknowledged must have been recorded, no more and no less.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use sqlx::PgConnection;

use crate::load::{self, Load, Seen};
use crate::machine::{Cores, Memory, Ticks};
use crate::postgres::{self, Progress};
use crate::service::Service;
use crate::{Bench, Result};

/// Requests one record of usage counts, in every load.
const REQUESTS_PER_RECORD: i64 = 3;

#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    pub name: String,
    pub round: usize,
    pub requests: u64,
    pub seconds: f64,
    pub per_second: f64,
    /// Records of usage per request; 100 for a bulk of 100.
    pub items: u32,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub cores: Cores,
    pub wal_bytes_per_request: f64,
    /// Requests per commit, from the service's metrics.
    pub batch: Option<f64>,
    /// Bytes per request by table and index.
    pub growth: BTreeMap<String, f64>,
    pub memory: Option<Memory>,
    pub faults: Vec<String>,
}

impl Measurement {
    pub fn growth_per_request(&self) -> f64 {
        self.growth.values().sum()
    }
}

/// A load by wrk on one or several processes of the service, each with all of the load's connections.
pub async fn service(
    bench: &Bench,
    name: &str,
    services: &[&Service],
    database: &str,
    load: &Load,
) -> Result<Measurement> {
    service_for(bench, name, services, database, load, bench.seconds).await
}

pub async fn service_for(
    bench: &Bench,
    name: &str,
    services: &[&Service],
    database: &str,
    load: &Load,
    seconds: u64,
) -> Result<Measurement> {
    let mut connection = bench.server.connect(database).await?;
    let pids: Vec<u32> = services.iter().map(|service| service.pid).collect();
    let before = settled(&mut connection).await?;
    postgres::checkpoint(&mut connection).await?;
    let batches_before = batches(services).await?;
    let start = postgres::progress(&mut connection).await?;
    let ticks = Ticks::now(&pids, bench.server.postmaster, bench.pooler())?;
    let runs = services.iter().map(|service| async {
        let run = bench.new_run();
        load::wrk(bench, service.port, load, &run, seconds).await
    });
    let all = futures_util::future::try_join_all(runs).await?;
    let seen = together(all);
    let cores = ticks.cores_until(Ticks::now(&pids, bench.server.postmaster, bench.pooler())?, seen.seconds);
    let memory = services.first().map(|service| service.memory()).transpose()?;
    let end = settled(&mut connection).await?;
    let batches_after = batches(services).await?;
    let mut faults = seen.faults.clone();
    let in_flight = i64::from(load.connections) * services.len() as i64;
    // A run with refusals is not valid anyway, and naming them has sent more.
    if faults.is_empty() {
        faults.extend(load.records().and_then(|records| miscounted(&before, &end, &seen, records, in_flight)));
    }
    let (commands, commits) = (batches_after.0 - batches_before.0, batches_after.1 - batches_before.1);
    let batch = (commits > 0.0).then(|| commands / commits);
    Ok(conclude(name, seen, cores, (&start, &end), batch, load.records().unwrap_or(1).max(1), memory, faults))
}

/// A script of pgbench on the yardstick's database; `items` requests per transaction.
pub async fn pgbench(
    bench: &Bench,
    name: &str,
    database: &str,
    script: &str,
    clients: u32,
    agents: u32,
    items: u32,
) -> Result<Measurement> {
    let mut connection = bench.server.connect(database).await?;
    postgres::checkpoint(&mut connection).await?;
    let start = postgres::progress(&mut connection).await?;
    let ticks = Ticks::now(&[], bench.server.postmaster, None)?;
    let seen = load::pgbench(bench, database, script, clients, agents).await?;
    let cores = ticks.cores_until(Ticks::now(&[], bench.server.postmaster, None)?, seen.seconds);
    let end = postgres::progress(&mut connection).await?;
    let faults = seen.faults.clone();
    Ok(conclude(name, seen, cores, (&start, &end), None, items, None, faults))
}

/// The service that has no database.
pub async fn baseline(bench: &Bench, name: &str, service: &Service, load: &Load) -> Result<Measurement> {
    let ticks = Ticks::now(&[service.pid], bench.server.postmaster, None)?;
    let seen = load::wrk(bench, service.port, load, &bench.new_run(), bench.seconds).await?;
    let cores = ticks.cores_until(Ticks::now(&[service.pid], bench.server.postmaster, None)?, seen.seconds);
    let nothing = Progress { wal_bytes: 0, lifetime: 0, sizes: BTreeMap::new() };
    let faults = seen.faults.clone();
    let memory = Some(service.memory()?);
    Ok(conclude(name, seen, cores, (&nothing, &nothing), None, 1, memory, faults))
}

#[expect(clippy::too_many_arguments, reason = "the parts of one struct, gathered in three ways")]
fn conclude(
    name: &str,
    seen: Seen,
    cores: Cores,
    (start, end): (&Progress, &Progress),
    batch: Option<f64>,
    items: u32,
    memory: Option<Memory>,
    faults: Vec<String>,
) -> Measurement {
    let requests = seen.requests.max(1) as f64;
    let growth = end.sizes.iter().map(|(relation, size)| {
        let earlier = start.sizes.get(relation).map_or(0, |size| size.bytes);
        (relation.clone(), (size.bytes - earlier) as f64 / requests)
    });
    Measurement {
        name: name.to_owned(),
        round: 0,
        requests: seen.requests,
        seconds: seen.seconds,
        per_second: seen.requests as f64 / seen.seconds,
        items,
        p50_ms: seen.p50_ms,
        p99_ms: seen.p99_ms,
        cores,
        wal_bytes_per_request: (end.wal_bytes - start.wal_bytes) as f64 / requests,
        batch,
        growth: growth.filter(|(_, bytes)| *bytes != 0.0).collect(),
        memory,
        faults,
    }
}

/// Several load generators side by side: their sum, and the slowest's latencies.
fn together(all: Vec<Seen>) -> Seen {
    let mut sum = Seen::default();
    for seen in all {
        sum.requests += seen.requests;
        sum.seconds = sum.seconds.max(seen.seconds);
        sum.p50_ms = sum.p50_ms.max(seen.p50_ms);
        sum.p99_ms = sum.p99_ms.max(seen.p99_ms);
        sum.faults.extend(seen.faults);
    }
    sum
}

/// wrk hangs up in the middle of its last requests; what of them was queued is committed a moment later.
async fn settled(connection: &mut PgConnection) -> Result<Progress> {
    let mut last = postgres::progress(connection).await?;
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = postgres::progress(connection).await?;
        if now.lifetime == last.lifetime {
            return Ok(now);
        }
        last = now;
    }
}

/// What was acknowledged and what was recorded must be the same, but for the last requests of each connection.
fn miscounted(before: &Progress, after: &Progress, seen: &Seen, records: u32, in_flight: i64) -> Option<String> {
    let recorded = (after.lifetime - before.lifetime) / REQUESTS_PER_RECORD;
    let acknowledged = seen.requests as i64 * i64::from(records);
    let possible = acknowledged + in_flight * i64::from(records);
    let is_right = (acknowledged..=possible).contains(&recorded);
    (!is_right).then(|| format!("{acknowledged} records acknowledged, but {recorded} made"))
}

async fn batches(services: &[&Service]) -> Result<(f64, f64)> {
    let mut sums = (0.0, 0.0);
    for service in services {
        let own = service.batches().await?;
        sums = (sums.0 + own.0, sums.1 + own.1);
    }
    Ok(sums)
}
