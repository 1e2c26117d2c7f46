//! PostgreSQL servers of a drill, and what an operator does with them.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use agentpay_billing::local_postgres::LocalPostgres;
use sqlx::postgres::{PgConnectOptions, PgPool};
use sqlx::{AssertSqlSafe, Executor};

use crate::support::{DataDir, is_alive, pool, program, wait_until};

pub struct Server {
    pub postgres: LocalPostgres,
    pub pool: PgPool,
    pub dir: DataDir,
}

impl Server {
    /// With these settings, in a new directory or in one that was prepared.
    pub async fn start(dir: DataDir, settings: &[(&str, &str)]) -> Self {
        let settings = [settings, &[("max_connections", "200")]].concat();
        let postgres = LocalPostgres::start(dir.path(), &settings).await.expect("a PostgreSQL");
        Self { pool: pool(&postgres.connect_options("agentpay")), postgres, dir }
    }

    pub fn database(&self) -> PgConnectOptions {
        self.postgres.connect_options("agentpay")
    }

    pub fn data(&self) -> PathBuf {
        self.dir.path().join("postgres/data")
    }

    pub async fn execute(&self, sql: impl Into<String>) {
        let sql = sql.into();
        self.pool.execute(AssertSqlSafe(sql.clone())).await.expect(&sql);
    }

    pub async fn text(&self, sql: &'static str) -> String {
        sqlx::query_scalar(sql).fetch_one(&self.pool).await.expect(sql)
    }

    /// A client program of PostgreSQL that connects to this server.
    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(program(name));
        command.arg("-h").arg(self.postgres.socket_dir()).args(["-p", "5432", "-U", "agentpay"]);
        command.stdin(Stdio::null());
        command
    }

    /// Copies the running server into a new directory.
    pub async fn base_backup(&self, arguments: &[&str]) -> DataDir {
        let copy = DataDir::new();
        fs::create_dir_all(copy.path().join("postgres")).expect("a directory");
        let data = copy.path().join("postgres/data");
        let mut command = self.command("pg_basebackup");
        command.args(["-X", "stream", "-c", "fast"]).args(arguments).arg("-D").arg(&data);
        run_to_success(command).await;
        give_to_owner_of(&self.data(), &copy.path().join("postgres"));
        copy
    }

    /// `kill -9` of the server and of all processes that serve its connections.
    pub async fn kill(&self) {
        let processes = self.dir.servers();
        let _ = Command::new("kill").arg("-KILL").args(&processes).stderr(Stdio::null()).status();
        wait_until(async || !processes.iter().any(|process| is_alive(process))).await;
    }

    /// A program that works in `dir` as the user that runs this server.
    pub fn as_its_user(&self, program: &Path, dir: &Path) -> Command {
        let owner = fs::metadata(self.data()).expect("the data");
        let is_another = owner.uid() != rustix::process::geteuid().as_raw();
        let mut command = if is_another {
            let mut command = Command::new("setpriv");
            command.args([format!("--reuid={}", owner.uid()), format!("--regid={}", owner.gid())]);
            command.arg("--clear-groups").arg(program);
            command
        } else {
            Command::new(program)
        };
        command.current_dir(dir).stdin(Stdio::null());
        command
    }

    pub async fn stop(self) {
        drop(self.stop_and_keep().await);
    }

    /// Stops the server. Its data go away with the directory.
    pub async fn stop_and_keep(self) -> DataDir {
        self.pool.close().await;
        self.postgres.stop().await.expect("stop");
        self.dir
    }
}

/// What the server writes or reads belongs to the user that runs it.
pub fn give_to_owner_of(example: &Path, path: &Path) {
    let owner = fs::metadata(example).expect("an example");
    let owner = format!("{}:{}", owner.uid(), owner.gid());
    assert!(Command::new("chown").args(["-hR", &owner]).arg(path).status().expect("chown").success());
}

pub async fn run_to_success(mut command: Command) {
    let output = tokio::task::spawn_blocking(move || command.output().expect("a program")).await.expect("a thread");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
