//! `cargo bench`: how fast the service is on this machine, against a textbook and against its own bound.
//! Everything it needs it starts itself, on 127.0.0.1 and in a temporary directory, and stops and removes it again.

mod baseline;
mod explained;
mod figures;
mod fill;
mod full;
mod grown;
mod load;
mod machine;
mod measure;
mod plans;
mod postgres;
mod replicas;
mod report;
mod service;
mod setup;
mod sweep;
mod targets;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};

use clap::{Parser, Subcommand};
use futures_util::FutureExt;
use tokio::signal::unix::{SignalKind, signal};

use postgres::Server;
use report::Report;

/// As the service has it, so that the stack without a database is the same.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

#[derive(Debug, Parser)]
#[command(about = "Measures the service: cargo bench [-- MODE]")]
struct Arguments {
    #[command(subcommand)]
    mode: Option<Mode>,
    /// Seconds of one measurement.
    #[arg(long, global = true)]
    seconds: Option<u64>,
    /// How often everything is measured; the report shows medians.
    #[arg(long, global = true)]
    rounds: Option<usize>,
    /// Where result.json, table.md and the figures go; target/bench/<mode> otherwise.
    #[arg(long, global = true)]
    out: Option<PathBuf>,
    /// Where the database is kept meanwhile: it should be a real disk. The system's temporary directory otherwise.
    #[arg(long, global = true)]
    dir: Option<PathBuf>,
    /// Settings of the service, such as COMMIT_LANES=4.
    #[arg(long = "set", global = true, value_name = "NAME=VALUE", value_parser = assignment)]
    settings: Vec<(String, String)>,
    /// Settings of PostgreSQL, such as shared_buffers=1GB.
    #[arg(long = "postgres", global = true, value_name = "NAME=VALUE", value_parser = assignment)]
    postgres: Vec<(String, String)>,
    /// cargo bench says so.
    #[arg(long, global = true, hide = true)]
    bench: bool,
}

#[derive(Clone, Debug, Subcommand)]
enum Mode {
    /// The textbook, the bound and the service, side by side; the default.
    Full,
    /// Every scenario once, for a second: does the benchmark still work?
    Smoke,
    /// Flat growth: an empty database against one of 10 million keys, 10 million events and a million pairs.
    Grown {
        /// Rows relative to that; 0.01 to try it out.
        #[arg(long, default_value_t = 1.0)]
        scale: f64,
        /// Seconds of churn before dead rows and sizes are looked at again.
        #[arg(long, default_value_t = 60)]
        churn_seconds: u64,
    },
    /// 1, 2 and 4 processes of the service on one PostgreSQL.
    Replicas,
    /// The service behind PgBouncer in transaction mode.
    Pgbouncer,
    /// Lanes and batch sizes over connections.
    Sweep,
    /// The HTTP stack without a database; a child process of the other modes.
    #[command(hide = true)]
    Baseline,
}

/// What all modes work with.
pub struct Bench {
    pub server: Server,
    pub wrk: PathBuf,
    pub pgbench: PathBuf,
    pub dir: PathBuf,
    pub seconds: u64,
    pub rounds: usize,
    pub counts_statuses: bool,
    settings: Vec<(String, String)>,
    runs: AtomicU32,
    pooler: AtomicU32,
}

impl Bench {
    /// A text no other run of a load has.
    pub fn new_run(&self) -> String {
        format!("b{}", self.runs.fetch_add(1, Ordering::Relaxed))
    }

    /// The connection pooler in front of PostgreSQL, if there is one.
    pub fn pooler(&self) -> Option<u32> {
        Some(self.pooler.load(Ordering::Relaxed)).filter(|pid| *pid != 0)
    }

    pub fn set_pooler(&self, pid: u32) {
        self.pooler.store(pid, Ordering::Relaxed);
    }

    /// Settings of the service from the command line, with those of the mode over them.
    pub fn settings<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let own = self.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        own.chain(more.iter().copied()).collect()
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    // reqwest asks for one as soon as the fetching of PostgreSQL switches its TLS on. A second one changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments = Arguments::parse();
    let mode = arguments.mode.clone().unwrap_or(Mode::Full);
    if matches!(mode, Mode::Baseline) {
        return exit(baseline::serve().await.map(|()| true));
    }
    exit(measure(arguments, mode).await)
}

fn exit(outcome: Result<bool>) -> ExitCode {
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// True if every run was valid.
async fn measure(arguments: Arguments, mode: Mode) -> Result<bool> {
    if cfg!(debug_assertions) {
        return Err("this is no release build: run it by `cargo bench`".into());
    }
    let (wrk, pgbench) = (machine::need("wrk", "wrk")?, machine::need("pgbench", "postgresql-contrib")?);
    let is_smoke = matches!(mode, Mode::Smoke);
    let dir = arguments.dir.unwrap_or_else(std::env::temp_dir);
    let dir = dir.join(format!("agentpay-bench-{}", std::process::id()));
    // A fresh installation, except where statements are explained.
    let mut settings: Vec<(&str, &str)> = match mode {
        Mode::Grown { .. } => vec![("shared_preload_libraries", "pg_stat_statements")],
        _ => Vec::new(),
    };
    settings.extend(arguments.postgres.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let server = Server::start(&dir.join("data"), &settings).await?;
    let bench = Bench {
        server,
        wrk,
        pgbench,
        dir: dir.clone(),
        seconds: arguments.seconds.unwrap_or(if is_smoke { 1 } else { 8 }),
        rounds: arguments.rounds.unwrap_or(if is_smoke { 1 } else { 2 }),
        counts_statuses: is_smoke,
        settings: arguments.settings,
        runs: AtomicU32::new(1),
        pooler: AtomicU32::new(0),
    };
    let facts = [machine::describe(&dir), bench.server.facts.clone()];
    let mut terminate = signal(SignalKind::terminate())?;
    // However it ends, the server must be stopped: it would outlive us.
    let outcome = tokio::select! {
        outcome = AssertUnwindSafe(run(&bench, &mode)).catch_unwind() => {
            outcome.unwrap_or_else(|_| Err("the benchmark has a fault".into()))
        }
        _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
        _ = terminate.recv() => Err("terminated".into()),
    };
    bench.server.stop().await?;
    std::fs::remove_dir_all(&dir)?;
    let mut report = outcome?;
    report.facts.splice(0..0, facts);
    let out = arguments.out.unwrap_or_else(|| default_out(&mode));
    report.write(&out)?;
    println!("{}\nwritten to {}", report.markdown(), out.display());
    Ok(report.is_valid())
}

fn assignment(text: &str) -> std::result::Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it has no =")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn default_out(mode: &Mode) -> PathBuf {
    let name = match mode {
        Mode::Full | Mode::Baseline => "",
        Mode::Smoke => "smoke",
        Mode::Grown { .. } => "grown",
        Mode::Replicas => "replicas",
        Mode::Pgbouncer => "pgbouncer",
        Mode::Sweep => "sweep",
    };
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench").join(name)
}

async fn run(bench: &Bench, mode: &Mode) -> Result<Report> {
    match mode {
        Mode::Full | Mode::Smoke | Mode::Baseline => full::run(bench).await,
        Mode::Grown { scale, churn_seconds } => grown::run(bench, *scale, *churn_seconds).await,
        Mode::Replicas => replicas::run(bench).await,
        Mode::Pgbouncer => replicas::behind_pgbouncer(bench).await,
        Mode::Sweep => sweep::run(bench).await,
    }
}
