//! The PostgreSQL of the benchmark: a private one in a temporary directory, with the settings of a fresh installation.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use agentpay_billing::local_postgres::LocalPostgres;
use serde::Serialize;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use tokio::process::Command;

use crate::{Result, machine};

pub struct Server {
    local: LocalPostgres,
    pub postmaster: u32,
    /// Version and the settings that matter, for the report.
    pub facts: String,
}

/// Size of one table (with its TOAST) or index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Size {
    pub is_index: bool,
    pub bytes: i64,
    pub dead_tuples: i64,
    pub updates: i64,
    /// Of them, those that touched no index.
    pub hot_updates: i64,
    pub autovacuums: i64,
}

pub type Sizes = BTreeMap<String, Size>;

/// What a database has done so far.
#[derive(Clone, Debug)]
pub struct Progress {
    pub wal_bytes: i64,
    /// Requests ever recorded in all counters of the service; 0 in the yardstick's database.
    pub lifetime: i64,
    pub sizes: Sizes,
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
                            'wal_level', 'wal_compression', 'checkpoint_timeout', 'autovacuum', 'data_checksums',
                            'shared_preload_libraries')",
        )
        .fetch_one(&mut connection)
        .await?;
        Ok(Self { local, postmaster, facts })
    }

    pub async fn stop(self) -> Result<()> {
        Ok(self.local.stop().await?)
    }

    pub async fn connect(&self, database: &str) -> Result<PgConnection> {
        Ok(PgConnection::connect_with(&self.local.connect_options(database)).await?)
    }

    pub fn url(&self, database: &str) -> String {
        self.local.url(database)
    }

    pub fn socket_dir(&self) -> &Path {
        self.local.socket_dir()
    }

    pub async fn create_database(&self, name: &str) -> Result<()> {
        run(&mut self.connect("postgres").await?, &format!("CREATE DATABASE {name}")).await
    }

    pub async fn create_yardstick(&self, name: &str) -> Result<()> {
        self.create_database(name).await?;
        run(&mut self.connect(name).await?, include_str!("textbook-schema.sql")).await
    }

    /// The server's log.
    pub async fn log(&self) -> Result<PathBuf> {
        let mut connection = self.connect("postgres").await?;
        let data: String = sqlx::query_scalar("SHOW data_directory").fetch_one(&mut connection).await?;
        Ok(Path::new(&data).parent().ok_or("the data directory has no parent")?.join("server.log"))
    }

    /// pgbench against `database`, with all it needs to connect.
    pub fn pgbench(&self, program: &Path, database: &str) -> Command {
        let options = self.local.connect_options(database);
        let mut command = Command::new(program);
        command.arg("-h").arg(self.socket_dir()).args(["-p", &options.get_port().to_string()]);
        command.args(["-U", options.get_username(), "-n", "-M", "prepared", "-j", "1", "--max-tries", "20"]);
        command
    }
}

/// Runs statements that return nothing.
pub async fn run(connection: &mut PgConnection, sql: &str) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await?;
    Ok(())
}

/// Everybody begins with an empty write-ahead log behind the last checkpoint, so that none pays for another's pages.
pub async fn checkpoint(connection: &mut PgConnection) -> Result<()> {
    run(connection, "CHECKPOINT").await
}

pub async fn progress(connection: &mut PgConnection) -> Result<Progress> {
    let position = "SELECT (pg_current_wal_lsn() - '0/0')::bigint";
    let wal_bytes = sqlx::query_scalar(position).fetch_one(&mut *connection).await?;
    Ok(Progress { wal_bytes, lifetime: lifetime(connection).await?, sizes: sizes(connection).await? })
}

async fn lifetime(connection: &mut PgConnection) -> Result<i64> {
    let is_ours: bool = sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM information_schema.columns
                        WHERE table_name = 'usage_counters' AND column_name = 'lifetime')",
    )
    .fetch_one(&mut *connection)
    .await?;
    if !is_ours {
        return Ok(0);
    }
    let sum = "SELECT coalesce(sum(lifetime), 0)::bigint FROM usage_counters";
    Ok(sqlx::query_scalar(sum).fetch_one(connection).await?)
}

/// All tables and indexes of the service.
pub async fn sizes(connection: &mut PgConnection) -> Result<Sizes> {
    let rows = sqlx::query(
        "SELECT relation.relname::text AS name, relation.relkind = 'i' AS is_index,
                CASE relation.relkind WHEN 'i' THEN pg_relation_size(relation.oid)
                     ELSE pg_table_size(relation.oid) END AS bytes,
                coalesce(pg_stat_get_dead_tuples(relation.oid), 0) AS dead_tuples,
                coalesce(pg_stat_get_tuples_updated(relation.oid), 0) AS updates,
                coalesce(pg_stat_get_tuples_hot_updated(relation.oid), 0) AS hot_updates,
                coalesce(pg_stat_get_autovacuum_count(relation.oid), 0) AS autovacuums
         FROM pg_class AS relation
         WHERE relation.relnamespace = 'public'::regnamespace AND relation.relkind IN ('r', 'm', 'i')",
    )
    .fetch_all(connection)
    .await?;
    let mut sizes = Sizes::new();
    for row in rows {
        let size = Size {
            is_index: row.try_get("is_index")?,
            bytes: row.try_get("bytes")?,
            dead_tuples: row.try_get("dead_tuples")?,
            updates: row.try_get("updates")?,
            hot_updates: row.try_get("hot_updates")?,
            autovacuums: row.try_get("autovacuums")?,
        };
        sizes.insert(row.try_get("name")?, size);
    }
    Ok(sizes)
}
