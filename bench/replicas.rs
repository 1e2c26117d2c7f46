//! Past one process: replicas of the service on one PostgreSQL, and a connection pooler in front of it.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::load::{Kind, Load};
use crate::measure::{self, Measurement};
use crate::report::Report;
use crate::service::{Service, free_port};
use crate::setup::PAIRS;
use crate::{Bench, Result, machine, setup};

const DATABASE: &str = "service";

/// 1, 2 and 4 processes; the connections are shared among them, and each has a load generator of its own.
pub async fn run(bench: &Bench) -> Result<Report> {
    bench.server.create_database(DATABASE).await?;
    let mut report = Report::new("replicas");
    let mut services: Vec<Service> = Vec::new();
    for _ in 0..4 {
        services.push(Service::start(&bench.server.url(DATABASE), &bench.settings(&[])).await?);
        setup::warm(bench, &services[services.len() - 1]).await?;
    }
    for round in 1..=bench.rounds {
        for processes in [1, 2, 4] {
            let some: Vec<&Service> = services.iter().take(processes).collect();
            for (connections, pairs, what) in [(64, PAIRS, ""), (256, PAIRS, ""), (64, 1, "hot pair, ")] {
                let name = format!("service × {processes}, {what}{connections} connections in all");
                let load = Load::new(Kind::Usage, connections / processes as u32, pairs);
                let measured = measure::service(bench, &name, &some, DATABASE, &load).await?;
                report.add(Measurement { round, ..measured });
            }
        }
    }
    for service in services {
        service.stop().await?;
    }
    report.notes.push("All processes, PostgreSQL and the load generators share the machine's cores.".to_owned());
    Ok(report)
}

/// How the service and PgBouncer are told to go together.
struct Way {
    name: &'static str,
    /// What comes behind the database's name in DATABASE_URL.
    url_options: &'static str,
    pooler_settings: &'static str,
}

/// sqlx prepares named statements. PgBouncer follows those through its pool from 1.21 on; before, they cannot be used.
const WAYS: &[Way] = &[
    Way { name: "named statements", url_options: "", pooler_settings: "max_prepared_statements = 500\n" },
    Way { name: "no statement cache", url_options: "&statement-cache-capacity=0", pooler_settings: "" },
];

pub async fn behind_pgbouncer(bench: &Bench) -> Result<Report> {
    let program = machine::need("pgbouncer", "pgbouncer")?;
    let version = Command::new(&program).arg("--version").output().await?;
    let version = String::from_utf8_lossy(&version.stdout).lines().next().unwrap_or_default().to_owned();
    bench.server.create_database(DATABASE).await?;
    let mut report = Report::new("pgbouncer");
    report.notes.push(version.clone());
    let direct = Service::start(&bench.server.url(DATABASE), &bench.settings(&[])).await?;
    setup::warm(bench, &direct).await?;
    for way in WAYS {
        if way.pooler_settings.contains("max_prepared_statements") && !follows_statements(&version) {
            report.notes.push(format!("{}: skipped, it needs PgBouncer 1.21 or newer", way.name));
            continue;
        }
        let (mut pooler, port) = start_pooler(bench, &program, way).await?;
        let url = format!("postgres://agentpay@127.0.0.1:{port}/{DATABASE}?sslmode=disable{}", way.url_options);
        match Service::start(&url, &bench.settings(&[])).await {
            Ok(pooled) => {
                compare(bench, &mut report, way, &direct, &pooled).await?;
                if let Err(error) = pooled.stop().await {
                    report.notes.push(format!("{}: {error}", way.name));
                }
            }
            Err(error) => report.notes.push(format!("{}: the service does not start: {error}", way.name)),
        }
        pooler.kill().await?;
        bench.set_pooler(0);
    }
    direct.stop().await?;
    Ok(report)
}

async fn compare(bench: &Bench, report: &mut Report, way: &Way, direct: &Service, pooled: &Service) -> Result<()> {
    for round in 1..=bench.rounds {
        for (connections, kind, what) in [
            (64, Kind::Usage, "keyed writes"),
            (256, Kind::Usage, "keyed writes"),
            (64, Kind::Get { path: "/api/v1/usage/{agent}/svc".to_owned() }, "reads"),
        ] {
            let load = Load::new(kind, connections, PAIRS);
            for (service, how) in [(direct, "direct"), (pooled, way.name)] {
                let name = format!("{how}: {what}, {connections} connections");
                let measured = measure::service(bench, &name, &[service], DATABASE, &load).await?;
                report.add(Measurement { round, ..measured });
            }
        }
    }
    Ok(())
}

fn follows_statements(version: &str) -> bool {
    let number = version.split_whitespace().nth(1).unwrap_or_default();
    let mut parts = number.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (1, 21)
}

async fn start_pooler(bench: &Bench, program: &Path, way: &Way) -> Result<(Child, u16)> {
    let port = free_port().await?;
    let socket_dir = bench.server.socket_dir();
    let config = format!(
        "[databases]\n{DATABASE} = host={} port=5432 user=agentpay dbname={DATABASE}\n\
         [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
         pool_mode = transaction\nmax_client_conn = 1000\ndefault_pool_size = 20\n\
         ignore_startup_parameters = extra_float_digits\n{}",
        socket_dir.display(),
        way.pooler_settings,
    );
    let dir = bench.dir.join("pgbouncer");
    fs::create_dir_all(&dir)?;
    let file = dir.join("pgbouncer.ini");
    fs::write(&file, config)?;
    let mut command = Command::new(program);
    // It refuses to be root, and has to reach PostgreSQL's socket: whoever owns that.
    let owner = fs::metadata(socket_dir)?;
    if fs::metadata(&dir)?.uid() == 0 {
        chown(&bench.dir, Some(owner.uid()), Some(owner.gid()))?;
        chown(&file, Some(owner.uid()), Some(owner.gid()))?;
        command.uid(owner.uid()).gid(owner.gid());
    }
    command.arg("-q").arg(&file).current_dir("/").stdin(Stdio::null()).kill_on_drop(true);
    let pooler = command.spawn()?;
    bench.set_pooler(pooler.id().ok_or("pgbouncer has no process id")?);
    let began = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        if began.elapsed() > Duration::from_secs(10) {
            return Err("pgbouncer does not listen".into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok((pooler, port))
}
