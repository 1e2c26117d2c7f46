//! Directories in which the data cannot lie as they are, and users who cannot run the server.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use agentpay_billing::local_postgres::{LocalPostgres, LocalPostgresError};
use sqlx::{Connection, PgConnection};

use super::{SETTINGS, TestDir, keep_a_row, rows, start};
use crate::support::free_port;

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
async fn a_link_out_of_the_data_dir_is_not_followed() {
    let dir = TestDir::new("");
    start(&dir).await.stop().await.expect("stop");
    let (home, elsewhere) = (dir.0.join("postgres"), dir.0.join("elsewhere"));
    fs::rename(&home, &elsewhere).expect("move");
    symlink(&elsewhere, &home).expect("a link");
    let error = LocalPostgres::start(&dir.0, SETTINGS).await.expect_err("a link");
    let line = error.to_string();
    assert!(matches!(error, LocalPostgresError::Linked { .. }) && line.contains("elsewhere"), "{line}");
    fs::remove_file(&home).expect("remove the link");
    fs::rename(&elsewhere, &home).expect("what the line says");
    start(&dir).await.stop().await.expect("stop");
}

#[tokio::test]
async fn a_data_dir_that_the_server_could_not_enter_is_refused() {
    if !we_are_root("another user runs the server") {
        return;
    }
    let dir = TestDir::new("closed/data");
    let closed = dir.0.parent().expect("a directory");
    fs::create_dir_all(closed).expect("directories");
    fs::set_permissions(closed, fs::Permissions::from_mode(0o700)).expect("closed");
    let line = LocalPostgres::start(&dir.0, SETTINGS).await.expect_err("out of reach").to_string();
    let closed = fs::canonicalize(closed).expect("a path");
    assert!(line.contains(&format!("cannot enter {} (mode 0700)", closed.display())) && !line.contains('\n'), "{line}");
    assert!(line.contains(&format!("`chmod o+x {}`", closed.display())), "{line}");
    assert!(!dir.0.join("postgres").exists());
    assert_eq!(fs::metadata(&closed).expect("metadata").permissions().mode() & 0o777, 0o700, "it is not ours to open");
    // The remedy that the line names.
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o701)).expect("chmod o+x");
    start(&dir).await.stop().await.expect("stop");
}

#[tokio::test]
async fn data_of_a_user_without_a_name_are_served() {
    if !we_are_root("only root can give files away") {
        return;
    }
    let dir = TestDir::new("");
    let postgres = start(&dir).await;
    keep_a_row(&postgres).await;
    postgres.stop().await.expect("stop");
    let given = Command::new("chown").arg("-R").arg(NAMELESS).arg(dir.0.join("postgres")).status();
    assert!(given.expect("chown").success());
    let postgres = start(&dir).await;
    assert_eq!(rows(&postgres).await, 1);
    postgres.stop().await.expect("stop");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_a_name_is_told_how_to_get_one() {
    if !we_are_root("only root can become another user") {
        return;
    }
    let dir = TestDir::new("");
    fs::create_dir(&dir.0).expect("a directory");
    let program = dir.0.join("program");
    fs::copy(env!("CARGO_BIN_EXE_agentpay-billing"), &program).expect("a copy that everybody reaches");
    assert!(Command::new("chown").arg(NAMELESS).arg(&dir.0).status().expect("chown").success());
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::var_os("PATH").expect("PATH")).uid(12345).gid(12345).current_dir(&dir.0);
    command.env("DATA_DIR", dir.0.join("data")).env("PORT", free_port().to_string());
    let output = tokio::task::spawn_blocking(move || command.output().expect("the binary")).await.expect("a thread");
    let line = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), line.lines().count()), (Some(1), 1), "{line}");
    assert!(line.contains("user with id 12345") && line.contains("/etc/passwd"), "{line}");
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

/// A user and a group that no machine has a name for.
const NAMELESS: &str = "12345:12345";

/// Whether this test can provoke its case; says so if it cannot.
fn we_are_root(why: &str) -> bool {
    let is_root = fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0);
    if !is_root {
        eprintln!("skipped: it has to be root, because {why}");
    }
    is_root
}
