//! The PostgreSQL of the benchmark: a private one in a temporary directory.

use std::collections::BTreeMap;
use std::path::Path;

use agentpay_billing::local_postgres::LocalPostgres;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::process::Command;

use crate::error::Result;
use crate::machine;

pub struct Server {
    local: LocalPostgres,
    pub postmaster: u32,
    /// Version and the settings that matter, for the report.
    pub facts: String,
}

/// A database that a load changes.
#[derive(Clone, Copy)]
pub struct Database<'a> {
    pub server: &'a Server,
    pub name: &'a str,
}

/// What a database has done so far.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    pub wal_bytes: i64,
    /// Requests ever recorded in all counters of the service; 0 in the baseline's database.
    pub recorded: i64,
    /// Bytes of each table, with its TOAST, and of each index.
    pub sizes: BTreeMap<String, i64>,
}

impl Progress {
    pub fn add(&mut self, other: Self) {
        self.wal_bytes += other.wal_bytes;
        self.recorded += other.recorded;
        for (relation, bytes) in other.sizes {
            *self.sizes.entry(relation).or_default() += bytes;
        }
    }
}

impl Server {
    pub async fn start(dir: &Path, settings: &[(&str, &str)]) -> Result<Self> {
        let local = LocalPostgres::start(dir, settings).await?;
        let mut connection = PgConnection::connect_with(&local.connect_options("postgres")).await?;
        let backend: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut connection).await?;
        let postmaster = machine::parent(backend as u32).ok_or("the postmaster has no entry in /proc")?;
        let facts: String = sqlx::query_scalar(
            "SELECT 'PostgreSQL ' || current_setting('server_version') || ': ' || string_agg(name || '='
                || current_setting(name), ', ' ORDER BY name)
             FROM pg_settings
             WHERE name IN ('fsync', 'synchronous_commit', 'full_page_writes', 'shared_buffers', 'max_wal_size',
                            'wal_compression', 'checkpoint_timeout', 'autovacuum', 'data_checksums')",
        )
        .fetch_one(&mut connection)
        .await?;
        Ok(Self { local, postmaster, facts })
    }

    pub async fn stop(self) -> Result<()> {
        Ok(self.local.stop().await?)
    }

    /// Kills the server, as a power failure would.
    pub async fn kill(&self) -> Result<()> {
        Ok(self.local.stop_immediately().await?)
    }

    /// Starts the server that was killed. Its processor time is not measured from then on.
    pub async fn start_again(&self) -> Result<()> {
        Ok(self.local.start_again().await?)
    }

    pub async fn connect(&self, database: &str) -> Result<PgConnection> {
        Ok(PgConnection::connect_with(&self.local.connect_options(database)).await?)
    }

    pub fn url(&self, database: &str) -> String {
        self.local.url(database)
    }

    pub async fn create_database(&self, name: &str) -> Result<PgConnection> {
        run(&mut self.connect("postgres").await?, &format!("CREATE DATABASE {name}")).await?;
        self.connect(name).await
    }

    /// Before each measurement, so that none logs whole pages for another's checkpoint.
    pub async fn checkpoint(&self) -> Result<()> {
        run(&mut self.connect("postgres").await?, "CHECKPOINT").await
    }

    /// pgbench against `database`, with all it needs to connect.
    pub fn pgbench(&self, program: &Path, database: &str) -> Command {
        let options = self.local.connect_options(database);
        let mut command = Command::new(program);
        command.arg("-h").arg(self.local.socket_dir()).args(["-p", &options.get_port().to_string()]);
        command.args(["-U", options.get_username(), "-n", "-M", "prepared", "-j", "1", "--max-tries", "20"]);
        command
    }
}

/// Runs statements that return nothing.
pub async fn run(connection: &mut PgConnection, sql: &str) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?;
    Ok(())
}

pub async fn progress(connection: &mut PgConnection) -> Result<Progress> {
    let position = "SELECT (pg_current_wal_lsn() - '0/0')::bigint";
    let wal_bytes = sqlx::query_scalar(position).fetch_one(&mut *connection).await?;
    let sizes = sqlx::query_as(
        "SELECT relname::text, CASE relkind WHEN 'i' THEN pg_relation_size(oid) ELSE pg_table_size(oid) END
         FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'i')",
    );
    let sizes: Vec<(String, i64)> = sizes.fetch_all(&mut *connection).await?;
    let sizes: BTreeMap<String, i64> = sizes.into_iter().collect();
    // Among the service's tables, but not among the baseline's.
    let recorded = if sizes.contains_key("settlements") {
        let sum = "SELECT coalesce(sum(outstanding + settled + reset), 0)::bigint FROM usage_counters";
        sqlx::query_scalar(sum).fetch_one(connection).await?
    } else {
        0
    };
    Ok(Progress { wal_bytes, recorded, sizes })
}
