//! What all scenarios work with.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::postgres::{Database, Server};

#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Growth {
    /// Rows relative to that; 0.01 to try it out.
    #[arg(long, default_value_t = 1.0)]
    pub scale: f64,
    /// Seconds of load while half of the two million keys expire.
    #[arg(long, default_value_t = 120)]
    pub churn_seconds: u64,
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Directory {
    /// Tenants in the directory of which the lookups are measured.
    #[arg(long, default_value_t = 300_000, value_parser = clap::value_parser!(u32).range(1000..=1_000_000))]
    pub tenants: u32,
}

/// What all scenarios work with.
pub struct Bench {
    pub server: Server,
    /// The second server of the mode `cells`.
    pub member: Option<Server>,
    pub wrk: PathBuf,
    pub pgbench: PathBuf,
    pub service: PathBuf,
    pub dir: PathBuf,
    pub seconds: u64,
    pub rounds: usize,
    pub settings: Vec<(String, String)>,
    pub runs: AtomicU32,
}

impl Bench {
    /// A text that no other run of a load has.
    pub fn new_run(&self) -> String {
        format!("b{}", self.runs.fetch_add(1, Ordering::Relaxed))
    }

    /// A database of the first server.
    pub fn database<'a>(&'a self, name: &'a str) -> Database<'a> {
        Database { server: &self.server, name }
    }

    /// Settings of the service from the command line, overridden by those of the scenario.
    pub fn settings<'a>(&'a self, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        borrowed(&self.settings).chain(more.iter().copied()).collect()
    }
}

pub fn borrowed(settings: &[(String, String)]) -> impl Iterator<Item = (&str, &str)> {
    settings.iter().map(|(name, value)| (name.as_str(), value.as_str()))
}
