//! `cargo bench`: how fast the service is on this machine, over a baseline of one transaction per request.
//! It starts what it needs on 127.0.0.1 and in a temporary directory, and stops and removes it.

mod cells;
mod directory;
mod error;
mod fill;
mod full;
mod grown;
mod load;
mod machine;
mod measure;
mod postgres;
mod report;
mod scenario;
mod service;
mod simulate;

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicU32;

use clap::{Parser, Subcommand};
use futures_util::FutureExt;
use tokio::signal::unix::{SignalKind, signal};

use error::Result;
use postgres::Server;
use report::Report;
use scenario::{Bench, Directory, Growth, borrowed};

#[derive(Debug, Parser)]
#[command(about = "Measures the service: cargo bench [-- MODE]")]
struct Arguments {
    #[command(subcommand)]
    mode: Option<Mode>,
    /// Seconds of one measurement.
    #[arg(long, global = true, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: Option<u64>,
    /// How often everything is measured; the report shows medians.
    #[arg(long, global = true, value_parser = clap::value_parser!(u64).range(1..=1000))]
    rounds: Option<u64>,
    /// Where the database is kept meanwhile: it should be a real disk. The system's temporary directory otherwise.
    #[arg(long, global = true)]
    dir: Option<PathBuf>,
    /// Another build of the service, to compare two versions.
    #[arg(long, global = true, default_value = env!("CARGO_BIN_EXE_agentpay-billing"))]
    service: PathBuf,
    /// Settings of the service, such as COMMIT_LANES=4.
    #[arg(long = "set", global = true, value_name = "NAME=VALUE", value_parser = assignment)]
    settings: Vec<(String, String)>,
    /// Settings of PostgreSQL, such as shared_buffers=1GB.
    #[arg(long = "postgres", global = true, value_name = "NAME=VALUE", value_parser = assignment)]
    postgres: Vec<(String, String)>,
    /// cargo bench adds it.
    #[arg(long, global = true, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum Mode {
    /// The service over the baseline in one run; the default.
    Full,
    /// The same, each scenario once for a second: does the benchmark still work?
    Smoke,
    /// A database of ten million keys over an empty one, then what follows.
    Grown(Growth),
    /// A database of two million keys, half of them expiring, with PostgreSQL as installed.
    AsInstalled(Growth),
    /// One cell and two cells on two servers over one database, and the failure of a cell.
    Cells(Directory),
    /// The model of docs/scaling.md. Measures nothing.
    Simulate,
}

#[tokio::main]
async fn main() -> ExitCode {
    // Two TLS providers are compiled in, so reqwest has to be told. A second call changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(Arguments::parse()).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// True if every measurement was valid.
async fn run(arguments: Arguments) -> Result<bool> {
    if matches!(arguments.mode, Some(Mode::Simulate)) {
        println!("{}", simulate::tables().join("\n"));
        return Ok(true);
    }
    if cfg!(debug_assertions) {
        return Err("this is no release build: run it by `cargo bench`".into());
    }
    if !arguments.service.is_file() {
        return Err(format!("--service: there is no file {}", arguments.service.display()).into());
    }
    let own = ["DATABASE_URL", "CELLS_FILE", "PORT", "HOST"];
    if let Some((name, _)) = arguments.settings.iter().find(|(name, _)| own.contains(&name.as_str())) {
        return Err(format!("--set {name}: the benchmark sets {name} itself").into());
    }
    let mode = arguments.mode.unwrap_or(Mode::Full);
    // Each part has a PostgreSQL of its own.
    let (name, parts) = match mode {
        Mode::Full => ("full", vec![mode]),
        Mode::Smoke => ("smoke", vec![mode]),
        Mode::AsInstalled(_) => ("as-installed", vec![mode]),
        Mode::Grown(growth) => ("grown", vec![mode, Mode::AsInstalled(growth)]),
        Mode::Cells(_) | Mode::Simulate => ("cells", vec![mode]),
    };
    let dir = arguments.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = dir.join(format!("agentpay-bench-{}", std::process::id()));
    let mut report = Report::new(name, machine::describe(dir.parent().unwrap_or(&dir)));
    for part in parts {
        run_part(&arguments, part, &dir, &mut report).await?;
    }
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench").join(name);
    report.write(&out)?;
    println!("{}\nwritten to {}", report.markdown(), out.display());
    Ok(report.is_valid())
}

async fn run_part(arguments: &Arguments, part: Mode, dir: &Path, report: &mut Report) -> Result<()> {
    let is_smoke = matches!(part, Mode::Smoke);
    let tuned = match part {
        Mode::Grown(growth) => grown::tuned(growth),
        _ => Vec::new(),
    };
    let (wrk, pgbench) = (machine::find("wrk", "wrk")?, machine::find("pgbench", "postgresql-contrib")?);
    let settings: Vec<(&str, &str)> = borrowed(&tuned).chain(borrowed(&arguments.postgres)).collect();
    let server = Server::start(&dir.join("data"), &settings).await?;
    let member = match part {
        Mode::Cells(_) => match Server::start(&dir.join("member"), &settings).await {
            Ok(member) => Some(member),
            Err(error) => return server.stop().await.and(Err(error)),
        },
        _ => None,
    };
    let bench = Bench {
        server,
        member,
        wrk,
        pgbench,
        service: arguments.service.clone(),
        dir: dir.to_owned(),
        seconds: arguments.seconds.unwrap_or(if is_smoke { 1 } else { 8 }),
        rounds: arguments.rounds.unwrap_or(if is_smoke { 1 } else { 3 }) as usize,
        settings: arguments.settings.clone(),
        runs: AtomicU32::new(1),
    };
    report.facts.push(bench.server.facts.clone());
    let work = async {
        match part {
            Mode::Full | Mode::Smoke => full::run(&bench, report).await,
            Mode::Grown(growth) => grown::ten_million(&bench, report, growth).await,
            Mode::AsInstalled(growth) => grown::as_installed(&bench, report, growth).await,
            Mode::Cells(directory) => cells::run(&bench, report, directory).await,
            Mode::Simulate => Ok(()),
        }
    };
    let mut terminate = signal(SignalKind::terminate())?;
    // The servers are stopped in any case: they would outlive the benchmark.
    let outcome = tokio::select! {
        outcome = AssertUnwindSafe(work).catch_unwind() => {
            outcome.unwrap_or_else(|_| Err("the benchmark panicked".into()))
        }
        _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
        _ = terminate.recv() => Err("terminated".into()),
    };
    bench.server.stop().await?;
    if let Some(member) = bench.member {
        member.stop().await?;
    }
    std::fs::remove_dir_all(dir)?;
    outcome
}

fn assignment(text: &str) -> std::result::Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it has no =")?;
    Ok((name.to_owned(), value.to_owned()))
}
