//! The private local PostgreSQL, against real servers in temporary directories.
//! Each test has a directory of its own and leaves neither a server nor a file behind, even when it fails.

mod data_dirs;
mod with_the_service;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use agentpay_billing::local_postgres::{LocalPostgres, LocalPostgresError};
use sqlx::{Connection, PgConnection, Row};
use uuid::Uuid;

use crate::support::wait_until;

/// Throw-away servers need not survive a power failure.
const SETTINGS: &[(&str, &str)] = &[("fsync", "off")];

#[tokio::test]
async fn a_fresh_directory_becomes_a_server_with_the_database_agentpay() {
    let dir = TestDir::new("");
    let postgres = start(&dir).await;
    let mut connection = PgConnection::connect(&postgres.url("agentpay")).await.expect("connect by URL");
    let row = sqlx::query(
        "SELECT current_user::text, current_database()::text, current_setting('listen_addresses'), \
         current_setting('fsync'), current_setting('lc_collate'), current_setting('server_encoding')",
    )
    .fetch_one(&mut connection)
    .await
    .expect("query");
    let values: Vec<String> = (0..row.len()).map(|column| row.get(column)).collect();
    assert_eq!(values, ["agentpay", "agentpay", "", "off", "C", "UTF8"]);
    let mode = fs::metadata(postgres.socket_dir()).expect("socket directory").permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    drop(connection);
    postgres.stop().await.expect("stop");
}

#[tokio::test]
async fn a_second_service_on_the_same_directory_is_refused() {
    let dir = TestDir::new("");
    let postgres = start(&dir).await;
    let error = LocalPostgres::start(&dir.0, SETTINGS).await.expect_err("in use");
    assert!(matches!(error, LocalPostgresError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("is in use by another agentpay-billing"), "{error}");
    postgres.stop().await.expect("stop");
}

#[tokio::test]
async fn a_server_left_running_by_a_killed_service_is_taken_over() {
    let dir = TestDir::new("");
    let postgres = start(&dir).await;
    keep_a_row(&postgres).await;
    let process = dir.postmaster();
    // Dropping it is what a kill does: the lock is freed, the server runs on.
    drop(postgres);
    let postgres = start(&dir).await;
    assert_eq!(dir.postmaster(), process);
    assert_eq!(rows(&postgres).await, 1);
    postgres.stop().await.expect("stop");
}

#[tokio::test]
async fn a_killed_server_is_started_again_with_its_data() {
    let dir = TestDir::new("");
    let postgres = start(&dir).await;
    keep_a_row(&postgres).await;
    let process = dir.postmaster();
    signal("-KILL", &process);
    drop(postgres);
    let postgres = start(&dir).await;
    assert_ne!(dir.postmaster(), process);
    assert_eq!(rows(&postgres).await, 1);
    postgres.stop().await.expect("stop");
}

#[tokio::test]
async fn a_server_that_is_shutting_down_is_waited_for_and_started_again() {
    let dir = TestDir::new("");
    let postgres = start(&dir).await;
    keep_a_row(&postgres).await;
    // A smart shutdown lasts until the last connection ends, and refuses new ones meanwhile.
    let connection = PgConnection::connect_with(&postgres.connect_options("agentpay")).await.expect("connect");
    let process = dir.postmaster();
    signal("-TERM", &process);
    drop(postgres);
    let (postgres, ()) = tokio::join!(start(&dir), async { connection.close().await.expect("close") });
    assert_eq!(rows(&postgres).await, 1);
    postgres.stop().await.expect("stop");
}

#[tokio::test]
async fn a_stopped_server_comes_back_with_its_data() {
    let dir = TestDir::new("");
    let postgres = start(&dir).await;
    keep_a_row(&postgres).await;
    postgres.stop().await.expect("stop");
    let postgres = start(&dir).await;
    assert_eq!(rows(&postgres).await, 1);
    postgres.stop().await.expect("stop");
}

#[tokio::test]
async fn an_immediate_stop_loses_nothing_that_was_committed() {
    let dir = TestDir::new("");
    let postgres = start(&dir).await;
    keep_a_row(&postgres).await;
    postgres.stop_immediately().await.expect("stop immediately");
    PgConnection::connect_with(&postgres.connect_options("agentpay")).await.expect_err("stopped");
    postgres.start_again().await.expect("start again");
    assert_eq!(rows(&postgres).await, 1);
    postgres.stop().await.expect("stop");
}

#[tokio::test]
async fn a_stale_process_id_of_another_process_is_not_taken_for_a_server() {
    let dir = TestDir::new("");
    let postgres = start(&dir).await;
    postgres.stop_immediately().await.expect("stop immediately");
    drop(postgres);
    // This very test process is alive, and no PostgreSQL.
    let data = dir.0.join("postgres/data");
    let stale = format!("{}\n{}\n0\n5432\n\n\n0 0\n", std::process::id(), data.display());
    fs::write(data.join("postmaster.pid"), stale).expect("write postmaster.pid");
    let postgres = start(&dir).await;
    postgres.stop().await.expect("stop");
}

#[tokio::test]
async fn recovery_may_take_long_while_the_server_reports_progress() {
    let dir = TestDir::new("");
    let postgres = start(&dir).await;
    keep_a_row(&postgres).await;
    postgres.stop_immediately().await.expect("stop immediately");
    // Recovery from an archive that does not answer until the file is there: for the server it is slow recovery.
    let data = dir.0.join("postgres/data");
    fs::write(data.join("recovery.signal"), "").expect("recovery.signal");
    let slow = "restore_command = 'touch asked; while ! [ -e go ]; do sleep 0.05; done; false'\n";
    fs::write(data.join("postgresql.auto.conf"), slow).expect("postgresql.auto.conf");
    let limit = Duration::from_secs(4);
    let recovering = postgres.start_again_unless_silent(limit);
    let going_on = async {
        wait_until(async || data.join("asked").exists()).await;
        let began = Instant::now();
        // It takes longer than the server may be silent.
        wait_until(async || began.elapsed() > 2 * limit).await;
        fs::write(data.join("go"), "").expect("go");
    };
    let (recovered, ()) = tokio::join!(recovering, going_on);
    recovered.expect("it recovered");
    assert_eq!(rows(&postgres).await, 1);
    postgres.stop().await.expect("stop");
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up() {
    let dir = TestDir::new("");
    let postgres = start(&dir).await;
    signal("-STOP", &dir.postmaster());
    let error = postgres.start_again_unless_silent(Duration::from_secs(1)).await.expect_err("silence");
    signal("-CONT", &dir.postmaster());
    assert!(matches!(error, LocalPostgresError::NotReady { limit_s: 1, .. }), "{error}");
    postgres.start_again().await.expect("it answers");
    postgres.stop().await.expect("stop");
}

#[tokio::test]
async fn a_server_that_was_left_running_with_too_few_connections_is_started_again_with_more() {
    let dir = TestDir::new("");
    let few = LocalPostgres::start(&dir.0, &[("fsync", "off"), ("max_connections", "20")]).await.expect("start");
    keep_a_row(&few).await;
    drop(few);
    let more = LocalPostgres::start(&dir.0, &[("fsync", "off"), ("max_connections", "30")]).await.expect("start");
    assert_eq!(rows(&more).await, 1);
    let mut connection = PgConnection::connect_with(&more.connect_options("agentpay")).await.expect("connect");
    let max: String = sqlx::query_scalar("SHOW max_connections").fetch_one(&mut connection).await.expect("a number");
    assert_eq!(max, "30");
    drop(connection);
    more.stop().await.expect("stop");
}

async fn start(dir: &TestDir) -> LocalPostgres {
    LocalPostgres::start(&dir.0, SETTINGS).await.expect("start")
}

async fn keep_a_row(postgres: &LocalPostgres) {
    let mut connection = PgConnection::connect_with(&postgres.connect_options("agentpay")).await.expect("connect");
    sqlx::raw_sql("CREATE TABLE kept (value int); INSERT INTO kept VALUES (1)")
        .execute(&mut connection)
        .await
        .expect("insert");
}

async fn rows(postgres: &LocalPostgres) -> i64 {
    let mut connection = PgConnection::connect_with(&postgres.connect_options("agentpay")).await.expect("connect");
    sqlx::query_scalar("SELECT count(*) FROM kept").fetch_one(&mut connection).await.expect("count")
}

fn signal(signal: &str, process: &str) {
    // Quiet, because a server that is gone already is fine.
    let status = Command::new("kill").args([signal, process]).stderr(Stdio::null()).status();
    status.expect("run kill");
}

/// A DATA_DIR, not made yet, in a temporary directory that goes away with its server.
struct TestDir(PathBuf);

impl TestDir {
    fn new(name: &str) -> TestDir {
        TestDir(std::env::temp_dir().join(format!("agentpay-test-{}", Uuid::new_v4().simple())).join(name))
    }

    fn as_str(&self) -> &str {
        self.0.to_str().expect("UTF-8")
    }

    fn postmaster(&self) -> String {
        let pid_file = fs::read_to_string(self.0.join("postgres/data/postmaster.pid")).unwrap_or_default();
        pid_file.lines().next().unwrap_or_default().to_owned()
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        let process = self.postmaster();
        if !process.is_empty() && process != std::process::id().to_string() {
            signal("-QUIT", &process);
        }
        let ours = |dir: &&Path| dir.parent() == Some(&std::env::temp_dir());
        if let Some(dir) = self.0.ancestors().find(ours) {
            // What a dying server still writes may stay; a temporary directory is cleared by the system.
            let _ = fs::remove_dir_all(dir);
        }
    }
}
