//! Cells on two servers: the same load on one database by DATABASE_URL, on one cell and on two cells, one after the other
//! within each round; then the failure of a cell, and how often two replicas look up keys in the home cell.

use std::collections::HashSet;
use std::fs;
use std::time::Duration;

use crate::directory;
use crate::error::Result;
use crate::load::{self, Kind, Load};
use crate::measure::{self, Measurement};
use crate::postgres::{self, Database, Server};
use crate::report::Bound::AtLeast;
use crate::report::{Report, Target};
use crate::scenario::{Bench, Directory};
use crate::service::Service;
use crate::simulate;

const TENANTS: usize = 100;
/// Agents of each tenant: 10 000 in all.
const PAIRS_PER_TENANT: u32 = 100;
const CONNECTIONS: [u32; 3] = [1, 64, 256];
/// API keys that two replicas look up.
const KEYS: usize = 2000;

const ALONE: &str = "DATABASE_URL";
const ONE: &str = "one cell";
const TWO: &str = "two cells";

/// A service with its databases, the home cell first.
struct Subject<'a> {
    name: &'static str,
    databases: Vec<Database<'a>>,
    /// The variable with its value that says where the data is.
    source: (&'static str, String),
    service: Service,
    /// API keys of the tenants of each database.
    api_keys: Vec<Vec<String>>,
}

pub async fn run(bench: &Bench, report: &mut Report, options: Directory) -> Result<()> {
    let member = bench.member.as_ref().ok_or("there is no second server")?;
    let home = |name| bench.database(name);
    let subjects = [
        start(bench, ALONE, vec![home("alone")]).await?,
        start(bench, ONE, vec![home("one")]).await?,
        start(bench, TWO, vec![home("two"), Database { server: member, name: "two" }]).await?,
    ];
    for _ in 0..bench.rounds {
        for connections in CONNECTIONS {
            for Subject { name, databases, service, api_keys, .. } in &subjects {
                let load = Load::new(Kind::Usage, connections, PAIRS_PER_TENANT).with_keys(&api_keys.concat());
                let name = scenario(name, connections);
                report.add(measure::cells(bench, &name, databases, &[service], &load).await?);
            }
        }
    }
    let [alone, one, two] = subjects;
    alone.service.stop().await?;
    one.service.stop().await?;
    replicas(bench, report, &two).await?;
    for _ in 0..bench.rounds {
        outage(bench, report, &two, member).await?;
    }
    let (variable, file) = &two.source;
    two.service.stop().await?;
    Service::command(bench, variable, file, &["cells", "verify"]).await?;
    report.targets = targets(report);
    report.sections.push(costs(report));
    directory::run(bench, report, options.tenants).await
}

fn scenario(name: &str, connections: u32) -> String {
    format!("{name}, {connections} connections")
}

/// A service that has worked for a moment.
async fn start<'a>(bench: &Bench, name: &'static str, databases: Vec<Database<'a>>) -> Result<Subject<'a>> {
    let mut file = String::new();
    for (Database { server, name: database }, id) in databases.iter().zip(["home", "member"]) {
        server.create_database(database).await?;
        file += &format!("[[cell]]\nid = \"{id}\"\nurl = \"{}\"\n\n", server.url(database));
    }
    let source = if name == ALONE {
        ("DATABASE_URL", databases[0].server.url(databases[0].name))
    } else {
        let path = bench.dir.join(format!("{}.toml", databases[0].name));
        fs::write(&path, file)?;
        ("CELLS_FILE", path.to_string_lossy().into_owned())
    };
    if databases.len() > 1 {
        Service::command(bench, source.0, &source.1, &["cells", "add", "member"]).await?;
    }
    let service = Service::start_on(bench, source.0, &source.1, &[]).await?;
    let mut api_keys = vec![Vec::new(); databases.len()];
    let mut created = Vec::new();
    for _ in 0..TENANTS {
        created.push(service.new_tenant().await?);
    }
    let mut connection = databases[0].server.connect(databases[0].name).await?;
    let elsewhere = "SELECT prefix::text FROM api_keys JOIN tenant_cells USING (tenant_id)";
    let elsewhere: Vec<String> = sqlx::query_scalar(elsewhere).fetch_all(&mut connection).await?;
    let elsewhere: HashSet<String> = elsewhere.into_iter().collect();
    for api_key in created {
        let is_elsewhere = api_key.get(..12).is_some_and(|prefix| elsewhere.contains(prefix));
        api_keys[usize::from(is_elsewhere)].push(api_key);
    }
    // The tenant of requests without a key lives in the home cell, too.
    if api_keys.iter().any(|keys| keys.len().abs_diff(TENANTS / databases.len()) > 1) {
        return Err("the tenants are not spread evenly".into());
    }
    let load = Load::new(Kind::Usage, 64, PAIRS_PER_TENANT).with_keys(&api_keys.concat());
    load::wrk(bench, &service, &load, bench.seconds.min(2)).await?;
    Ok(Subject { name, databases, source, service, api_keys })
}

/// The tenants of the home cell, while the other cell is up, while it is down and its clients wait before they repeat their
/// requests, and while they repeat them at once.
async fn outage(bench: &Bench, report: &mut Report, two: &Subject<'_>, member: &Server) -> Result<()> {
    let load = |keys: &[String]| Load::new(Kind::Usage, 32, PAIRS_PER_TENANT).with_keys(keys);
    let (measured, other) = (load(&two.api_keys[0]), load(&two.api_keys[1]));
    for (name, is_killed, waits) in [
        ("tenants of the home cell, the other cell is up", false, true),
        ("tenants of the home cell, the other cell is killed", true, true),
        ("tenants of the home cell, the other cell is killed, its clients repeat at once", true, false),
    ] {
        let kill = async { if is_killed { member.kill().await } else { Ok(()) } };
        let other = Load { waits, ..other.clone() };
        let (service, home) = (&two.service, two.databases[0]);
        let (found, others) = measure::beside_cell(bench, name, home, service, &measured, &other, kill).await?;
        let rate = |count: u64| count as f64 / others.seconds;
        let (succeeded, refused) = (rate(others.succeeded()), rate(others.refused));
        report.notes.push(format!("{name}: the other tenants got {succeeded:.0}/s and {refused:.0} refusals/s"));
        report.add(found);
        if is_killed {
            member.start_again().await?;
            recovered(two).await?;
        }
    }
    Ok(())
}

/// Waits until the service uses the cell that was killed.
async fn recovered(two: &Subject<'_>) -> Result<()> {
    for _ in 0..600 {
        if !two.service.get("/api/v1/health/ready").await?.contains("unavailableCells") {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err("the killed cell is not used again after 60 s".into())
}

/// How many keys two replicas look up in the home cell, and their connections, beside the simulation.
async fn replicas(bench: &Bench, report: &mut Report, two: &Subject<'_>) -> Result<()> {
    let other = Service::start_on(bench, two.source.0, &two.source.1, &[]).await?;
    let mut home = two.databases[0].server.connect(two.databases[0].name).await?;
    let keys: Vec<String> = (0..KEYS).map(|number| format!("bench-key-{number}")).collect();
    let insert = format!(
        "INSERT INTO api_keys (tenant_id, prefix, key_hash, label, created_at)
         SELECT tenant_id, 'apk_' || lpad(to_hex(n), 8, '0'), sha256(convert_to('bench-key-' || n, 'UTF8')), 'bench', now()
         FROM generate_series(0, {KEYS} - 1) AS n
         JOIN (SELECT row_number() OVER () - 1 AS place, tenant_id FROM api_keys) AS tenants ON place = n % {TENANTS};
         ANALYZE api_keys"
    );
    postgres::run(&mut home, &insert).await?;
    let load = Load::new(Kind::Usage, 32, PAIRS_PER_TENANT).with_keys(&keys);
    let services = [&two.service, &other];
    for service in services {
        load::wrk(bench, service, &load, 1).await?;
    }
    // Each lookup of a key reads this table once. The counters lag by a second.
    let scans = "SELECT (seq_scan + idx_scan)::float8 FROM pg_stat_user_tables WHERE relname = 'tenant_cells'";
    let window = Duration::from_secs(bench.seconds.max(2));
    let counted = async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let before: f64 = sqlx::query_scalar(scans).fetch_one(&mut home).await?;
        tokio::time::sleep(window).await;
        let after: f64 = sqlx::query_scalar(scans).fetch_one(&mut home).await?;
        Ok::<f64, Box<dyn std::error::Error + Send + Sync>>((after - before) / window.as_secs_f64())
    };
    let loads = services.map(|service| load::wrk(bench, service, &load, bench.seconds.max(2) + 3));
    let (looked_up, seen) = futures_util::future::try_join(counted, futures_util::future::try_join_all(loads)).await?;
    let rate: f64 = seen.iter().map(|seen| seen.succeeded() as f64 / seen.seconds).sum();
    let simulated: f64 =
        seen.iter().map(|seen| simulate::lookups(seen.succeeded() as f64 / seen.seconds, KEYS as u32, 1e-9).keys).sum();
    report.notes.push(format!(
        "two replicas, {KEYS} keys, {rate:.0} requests/s: {looked_up:.0} lookups of keys/s in the home cell, {simulated:.0} in \
         the simulation"
    ));
    let mut connections = Vec::new();
    for Database { server, name } in &two.databases {
        let count =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND application_name = 'agentpay-billing'";
        let count: i64 = sqlx::query_scalar(count).bind(name).fetch_one(&mut server.connect("postgres").await?).await?;
        connections.push(count.to_string());
    }
    report
        .notes
        .push(format!("two replicas: connections to the home cell · the other cell: {}", connections.join(" · ")));
    // The service counts the keys that it creates.
    postgres::run(&mut home, &format!("DELETE FROM api_keys WHERE prefix < 'apk_{KEYS:08x}'")).await?;
    other.stop().await
}

fn targets(report: &Report) -> Vec<Target> {
    let at = |name: &str| report.rate(&scenario(name, 64));
    let over = |one: f64, other: f64| vec![one / other];
    let target = |name: &str, measured| Target { name: name.to_owned(), bounds: vec![AtLeast(0.95)], measured };
    vec![
        target("64 connections: one cell over DATABASE_URL", over(at(ONE), at(ALONE))),
        target("64 connections: two cells over one cell", over(at(TWO), at(ONE))),
        target(
            "tenants of the home cell: the other cell killed, over up",
            over(
                report.rate("tenants of the home cell, the other cell is killed"),
                report.rate("tenants of the home cell, the other cell is up"),
            ),
        ),
    ]
}

/// The processor time of each request.
fn costs(report: &Report) -> String {
    let mut text =
        "| µs of a core per request | over DATABASE_URL | the service | PostgreSQL of the home cell | of the other \
                    cell | writes per commit |\n|---|--:|--:|--:|--:|--:|\n"
            .to_owned();
    for connections in CONNECTIONS {
        for name in [ALONE, ONE, TWO] {
            let scenario_name = scenario(name, connections);
            let over = report.rate(&scenario_name) / report.rate(&scenario(ALONE, connections));
            let micros = |figure: &dyn Fn(&Measurement) -> f64| {
                report.median(&scenario_name, |measured| figure(measured) / measured.per_second * 1e6)
            };
            let postgres =
                |place: usize| micros(&|measured| measured.cores.postgres.get(place).copied().unwrap_or(0.0));
            let batch = report.median(&scenario_name, |measured| measured.batch);
            text += &format!(
                "| {scenario_name} | {over:.2} | {:.0} | {:.0} | {:.0} | {batch:.1} |\n",
                micros(&|measured| measured.cores.services),
                postgres(0),
                postgres(1),
            );
        }
    }
    text
}
