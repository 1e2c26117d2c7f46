//! The real binary in a process of its own, for what only shows between processes or counts per process.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};

use sqlx::postgres::PgConnectOptions;

use super::{Client, url};

/// Killed when dropped.
pub struct Process {
    child: Child,
    pub address: SocketAddr,
}

impl Process {
    /// Starts the binary, and waits for its line that it serves.
    pub fn start(database: &PgConnectOptions, environment: &[(&str, &str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        drop(listener);
        let mut child = Command::new(env!("CARGO_BIN_EXE_agentpay-billing"))
            .env("DATABASE_URL", url(database))
            .env("PORT", address.port().to_string())
            .env("RATE_LIMIT", "off")
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary");
        let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
        let started = lines.by_ref().map_while(Result::ok).any(|line| line.contains("server started"));
        assert!(started, "the service did not start");
        // Its log has to be read on, or its pipe fills up.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self { child, address }
    }

    pub fn client(&self) -> Client {
        Client::new(self.address)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
