//! The binary with all its output in a file, for tests of its log and its exit.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};

use super::process::{exit, signal};
use super::wait_until;

/// Killed when dropped.
pub struct Logged {
    child: Child,
    log: PathBuf,
}

impl Logged {
    pub fn start(environment: &[(&str, &str)]) -> Self {
        let log = std::env::temp_dir().join(format!("agentpay-{}.log", uuid::Uuid::new_v4()));
        let file = fs::File::create(&log).expect("a file");
        let child = Command::new(env!("CARGO_BIN_EXE_agentpay-billing"))
            .envs(environment.iter().copied())
            .stdout(file.try_clone().expect("a file"))
            .stderr(file)
            .spawn()
            .expect("the binary");
        Self { child, log }
    }

    pub fn text(&self) -> String {
        fs::read_to_string(&self.log).expect("the log")
    }

    pub async fn says(&self, text: &str) {
        wait_until(async || self.text().contains(text)).await;
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        signal(&self.child, "-TERM");
    }

    /// Waits until it exits.
    pub async fn exit(&mut self) -> ExitStatus {
        exit(&mut self.child).await
    }
}

impl Drop for Logged {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_file(&self.log);
    }
}
