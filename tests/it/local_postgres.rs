//! The private local PostgreSQL, against real servers in temporary directories.
//! Each test has a directory of its own and leaves neither a server nor a file behind, even when it fails.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use agentpay_billing::local_postgres::{LocalPostgres, LocalPostgresError};
use sqlx::{Connection, PgConnection, Row};
use uuid::Uuid;

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
async fn a_stale_process_id_that_now_belongs_to_something_else_is_no_server() {
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
async fn a_path_too_long_for_a_socket_gets_its_socket_elsewhere() {
    let dir = TestDir::new(&format!("{}/it's $HOME, \"quoted\"", "long".repeat(30)));
    let postgres = start(&dir).await;
    let socket_dir = postgres.socket_dir().to_owned();
    assert!(!socket_dir.starts_with(&dir.0));
    assert!(socket_dir.as_os_str().len() < 90);
    keep_a_row(&postgres).await;
    let connected = PgConnection::connect(&postgres.url("agentpay")).await;
    connected.expect("connect by URL").close().await.expect("close");
    postgres.stop().await.expect("stop");
    fs::remove_dir(&socket_dir).expect("an empty socket directory");
}

#[tokio::test]
async fn data_of_a_version_that_is_not_installed_is_a_clear_error() {
    let dir = TestDir::new("");
    start(&dir).await.stop().await.expect("stop");
    fs::write(dir.0.join("postgres/data/PG_VERSION"), "13\n").expect("write PG_VERSION");
    let error = LocalPostgres::start(&dir.0, SETTINGS).await.expect_err("other version");
    let line = error.to_string();
    assert!(line.contains("was made by PostgreSQL 13") && !line.contains('\n'), "{line}");
}

#[tokio::test]
async fn a_data_dir_that_cannot_be_made_is_a_clear_error() {
    let error = LocalPostgres::start(Path::new("/dev/null/data"), SETTINGS).await.expect_err("not writable");
    let line = error.to_string();
    assert!(line.starts_with("DATA_DIR /dev/null/data is not writable") && !line.contains('\n'), "{line}");
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
