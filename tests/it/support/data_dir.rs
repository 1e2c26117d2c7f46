//! A DATA_DIR for the binary, and slow PostgreSQL programs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::wait_until;

/// A DATA_DIR that is deleted together with its server, however the service ended.
pub struct DataDir(PathBuf);

impl DataDir {
    pub fn new() -> Self {
        Self(std::env::temp_dir().join(format!("agentpay-data-{}", uuid::Uuid::new_v4())))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn as_str(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }

    /// The process id of the server, if it runs or was killed.
    pub fn postmaster(&self) -> Option<String> {
        let pid_file = fs::read_to_string(self.0.join("postgres/data/postmaster.pid")).ok()?;
        pid_file.lines().next().map(str::to_owned).filter(|line| !line.is_empty())
    }

    /// The server and all processes that serve its connections.
    pub fn servers(&self) -> Vec<String> {
        let Some(postmaster) = self.postmaster() else { return Vec::new() };
        let children = Command::new("ps").args(["-o", "pid=", "--ppid", &postmaster]).output().expect("ps");
        let children = String::from_utf8(children.stdout).expect("digits");
        children.split_whitespace().map(str::to_owned).chain([postmaster]).collect()
    }

    /// Waits until no server runs here or is about to.
    pub async fn is_quiet(&self) {
        wait_until(async || self.postmaster().is_none_or(|process| !is_alive(&process))).await;
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        for process in self.servers() {
            let _ = Command::new("kill").args(["-KILL", &process]).stderr(Stdio::null()).status();
        }
        let _ = fs::remove_dir_all(self.0.join("postgres/"));
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub fn is_alive(process: &str) -> bool {
    // A process that has ended and is not reaped still exists for `kill -0`.
    let state = Command::new("ps").args(["-o", "stat=", "-p", process]).output().expect("ps");
    let state = String::from_utf8(state.stdout).expect("text");
    !state.trim().is_empty() && !state.trim().starts_with('Z')
}

/// Server programs that are found first on any machine, and whose initdb does not end.
pub struct SlowPrograms(PathBuf);

impl SlowPrograms {
    pub fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("agentpay-programs-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&dir).expect("a directory");
        for (name, script) in [
            ("postgres", "echo 'postgres (PostgreSQL) 99.1'"),
            ("pg_ctl", "exit 3"),
            // Like the real one, it runs another program. Its working directory is the server's home.
            ("initdb", "echo $$ > initdb.pid\nsleep 600\n"),
        ] {
            let path = dir.join(name);
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a script");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
        }
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).expect("open to all");
        Self(dir)
    }

    /// A PATH on which these programs come first.
    pub fn path(&self) -> String {
        format!("{}:{}", self.0.display(), std::env::var("PATH").expect("PATH"))
    }

    /// Waits until initdb runs for `data_dir`, and returns its process id.
    pub async fn initdb_of(&self, data_dir: &DataDir) -> String {
        let mut process = String::new();
        let runs = async || {
            process = fs::read_to_string(data_dir.path().join("postgres/initdb.pid")).unwrap_or_default();
            process.ends_with('\n')
        };
        wait_until(runs).await;
        process.trim().to_owned()
    }
}

impl Drop for SlowPrograms {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
