//! The binary as a separate process: a service that is killed when dropped, or a command.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use sqlx::postgres::PgConnectOptions;

use super::{Client, url, wait_until};

const BINARY: &str = env!("CARGO_BIN_EXE_agentpay-billing");

/// Below those that Linux gives to whoever asks for any port.
const FIRST_PORT: u32 = 20_000;
const PORTS: u32 = 12_000;

pub struct Process {
    pub child: Child,
    pub address: SocketAddr,
}

impl Process {
    /// Starts the service, and waits until it has started. `port` 0 means any free port.
    pub fn start(database: &PgConnectOptions, port: u16) -> Self {
        Self::start_with(&[("DATABASE_URL", &url(database))], port)
    }

    /// Like [`Self::start`], with more settings.
    pub fn start_on(database: &PgConnectOptions, environment: &[(&str, &str)]) -> Self {
        let url = url(database);
        let own = [("DATABASE_URL", url.as_str())];
        Self::start_with(&[&own, environment].concat(), 0)
    }

    pub fn start_with(environment: &[(&str, &str)], port: u16) -> Self {
        Self::start_program(Path::new(BINARY), environment, port)
    }

    /// Another build of the service.
    pub fn start_program(program: &Path, environment: &[(&str, &str)], port: u16) -> Self {
        let port = if port == 0 { free_port() } else { port };
        let mut command = command(program, environment);
        let mut child = command.env("PORT", port.to_string()).stdout(Stdio::piped()).spawn().expect("the binary");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
        let started = lines.by_ref().map_while(Result::ok).any(|line| line.contains("server started"));
        assert!(started, "the service did not start");
        // If nobody read the log, its pipe would fill up.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { child, address: SocketAddr::from(([127, 0, 0, 1], port)) }
    }

    /// Starts the service, and returns the pipe with its log.
    pub fn spawn(environment: &[(&str, &str)]) -> (Self, ChildStdout) {
        let port = free_port();
        let mut command = binary(environment);
        let mut child = command.env("PORT", port.to_string()).stdout(Stdio::piped()).spawn().expect("the binary");
        let log = child.stdout.take().expect("stdout");
        (Self { child, address: SocketAddr::from(([127, 0, 0, 1], port)) }, log)
    }

    pub fn client(&self) -> Client {
        Client::new(self.address)
    }

    /// Waits until the port is open.
    pub async fn listens(&self) {
        let client = self.client();
        wait_until(async || client.try_send("GET", "/health", None).await.is_ok()).await;
    }

    /// Waits until the service has started.
    pub async fn is_ready(&self) {
        let client = self.client();
        let answers = async || client.try_send("GET", "/api/v1/health/ready", None).await;
        wait_until(async || answers().await.is_ok_and(|answer| answer.status == 200)).await;
    }

    /// Waits until it exits.
    pub async fn exit(&mut self) -> ExitStatus {
        exit(&mut self.child).await
    }

    pub fn signal(&self, name: &str) {
        signal(&self.child, name);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until a process exits.
pub async fn exit(child: &mut Child) -> ExitStatus {
    let mut status = None;
    let ends = async || {
        status = child.try_wait().expect("a process");
        status.is_some()
    };
    wait_until(ends).await;
    status.expect("it ended")
}

pub fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    assert!(Command::new("kill").args([name, &pid]).status().expect("kill").success());
}

/// `kill -9` of a process that may have ended by now.
pub fn kill(process: &str) {
    let _ = Command::new("kill").args(["-KILL", process]).stderr(Stdio::null()).status();
}

/// The binary with this environment, and without the variables of the test that it would read. The rate limit is off
/// unless `environment` sets it.
pub fn binary(environment: &[(&str, &str)]) -> Command {
    command(Path::new(BINARY), environment)
}

fn command(program: &Path, environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(program);
    command.env_clear().stdin(Stdio::null());
    for name in ["PATH", "HOME", "TMPDIR", "LANG"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    command.env("RATE_LIMIT", "off").envs(environment.iter().copied());
    command
}

/// Runs the binary until it exits.
pub async fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    run_program(Path::new(BINARY), arguments, environment).await
}

/// The same with another build of it.
pub async fn run_program(program: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = command(program, environment);
    command.args(arguments);
    tokio::task::spawn_blocking(move || command.output().expect("the binary")).await.expect("a thread")
}

/// A port that nothing uses. It is not one of those that the system gives to others that ask for any: one of them could
/// have it before the caller.
pub fn free_port() -> u16 {
    static NEXT: LazyLock<AtomicU32> = LazyLock::new(|| AtomicU32::new(rand::random_range(0..PORTS)));
    loop {
        let port = (FIRST_PORT + NEXT.fetch_add(1, Ordering::Relaxed) % PORTS) as u16;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
