//! The service as a process of its own: started as in production, asked whether it is ready, stopped by SIGTERM.

use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::process::{Child, Command};

use crate::{Result, machine};

/// How long a start may take.
const READY_LIMIT: Duration = Duration::from_secs(60);

pub struct Service {
    process: Child,
    pub pid: u32,
    pub port: u16,
}

impl Service {
    /// `settings` go on top of what every run has. Its log, at the default level, is written and thrown away.
    pub async fn start(database_url: &str, settings: &[(&str, &str)]) -> Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_agentpay-billing"));
        command.arg("serve").env_clear();
        command.envs([("RATE_LIMIT", "off"), ("HOST", "127.0.0.1"), ("LOG_LEVEL", "info"), ("LOG_FORMAT", "json")]);
        command.env("DATABASE_URL", database_url).envs(settings.iter().copied());
        Self::spawn(command, "/api/v1/health/ready").await
    }

    /// The same HTTP stack that parses, hashes and answers, and stores nothing; in a process of its own too.
    pub async fn start_baseline() -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("baseline");
        Self::spawn(command, "/health").await
    }

    async fn spawn(mut command: Command, ready_path: &str) -> Result<Self> {
        let port = free_port().await?;
        command.env("PORT", port.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true);
        let mut process = command.spawn()?;
        let pid = process.id().ok_or("the service has no process id")?;
        let url = format!("http://127.0.0.1:{port}{ready_path}");
        let began = Instant::now();
        loop {
            if let Some(status) = process.try_wait()? {
                return Err(format!("the service did not start: {status}").into());
            }
            if reqwest::get(&url).await.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(Self { process, pid, port });
            }
            if began.elapsed() > READY_LIMIT {
                return Err("the service is not ready after 60 s".into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub fn memory(&self) -> Result<machine::Memory> {
        machine::memory(self.pid)
    }

    /// Whether a read is there to be measured. `{agent}` is agent-1.
    pub async fn offers(&self, path: &str) -> Result<bool> {
        Ok(reqwest::get(self.url(&path.replace("{agent}", "agent-1"))).await?.status().is_success())
    }

    /// Commands and commits so far, from the service's metrics.
    pub async fn batches(&self) -> Result<(f64, f64)> {
        let text = reqwest::get(self.url("/api/v1/metrics")).await?.error_for_status()?.text().await?;
        let value = |name: &str| -> Result<f64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            Ok(line.ok_or_else(|| format!("the metrics lack {name}"))?.trim().parse()?)
        };
        Ok((value("agentpay_commit_batch_size_sum")?, value("agentpay_commit_batch_size_count")?))
    }

    /// Drains it, and says if that went wrong.
    pub async fn stop(mut self) -> Result<()> {
        Command::new("kill").args(["-TERM", &self.pid.to_string()]).status().await?;
        let status = tokio::time::timeout(Duration::from_secs(30), self.process.wait()).await??;
        if status.success() { Ok(()) } else { Err(format!("the service ended with {status}").into()) }
    }
}

pub async fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0)).await?.local_addr()?.port())
}
