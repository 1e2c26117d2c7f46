//! Moving to another server or a newer major version of PostgreSQL, while the service is stopped: with pg_dump and pg_restore,
//! and with pg_upgrade. `DRILL_NEWER_POSTGRES` is the directory of the newer programs. Without it, the version stays the same and
//! pg_upgrade is not run.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::cluster::{Server, give_to_owner_of, run_to_success};
use super::{Drill, addresses, start_replicas};
use crate::support::{DataDir, Tally, program};

const VERSION: &str = "SELECT current_setting('server_version')";

/// A server with the data of all operations, and what its clients were told.
async fn used_server(name: &'static str) -> (Server, Drill, Tally) {
    let server = Server::start(DataDir::new(), &[]).await;
    let replicas = start_replicas(&server.database());
    let drill = Drill::prepare(name, &replicas).await;
    let told = drill.load(0, addresses(&replicas)).end().await;
    (server, drill, told)
}

fn newer_programs() -> Option<PathBuf> {
    std::env::var_os("DRILL_NEWER_POSTGRES").map(PathBuf::from)
}

/// Has a server in `dir` find the newer programs. Returns its home, which belongs to the user that runs `old`.
fn prepare_home(dir: &DataDir, newer: &Path, old: &Server) -> PathBuf {
    let home = dir.path().join("postgres");
    fs::create_dir_all(&home).expect("a directory");
    // Where the private PostgreSQL keeps programs that it has fetched.
    symlink(newer.parent().expect("a directory"), home.join("server")).expect("a link");
    give_to_owner_of(&old.data(), &home);
    home
}

async fn check(drill: &Drill, told: &Tally, server: Server) {
    let replicas = start_replicas(&server.database());
    drill.retry_all_and_check(told, &server.database(), addresses(&replicas)).await;
    drop(replicas);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_restored_elsewhere_replays_all_keys() {
    let (old, drill, told) = used_server("dump and restore").await;
    let dump = DataDir::new();
    let mut command = old.command("pg_dump");
    command.args(["-Fd", "-j", "2", "-d", "agentpay", "-f", dump.as_str()]);
    run_to_success(command).await;
    let new = DataDir::new();
    if let Some(newer) = newer_programs() {
        prepare_home(&new, &newer, &old);
    }
    let new = Server::start(new, &[]).await;
    let mut command = new.command("pg_restore");
    command.args(["-j", "2", "--no-owner", "--exit-on-error", "-d", "agentpay", dump.as_str()]);
    run_to_success(command).await;
    new.execute("ANALYZE").await;
    drill.report("PostgreSQL", format!("from {} to {}", old.text(VERSION).await, new.text(VERSION).await));
    old.stop().await;
    check(&drill, &told, new).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_upgraded_in_place_replays_all_keys() {
    let Some(newer) = newer_programs() else {
        println!("| pg_upgrade | not run: it needs DRILL_NEWER_POSTGRES | |");
        return;
    };
    let older = fs::canonicalize(program("initdb")).expect("initdb");
    let (old, drill, told) = used_server("pg_upgrade").await;
    let version = old.text(VERSION).await;
    let new = DataDir::new();
    let home = prepare_home(&new, &newer, &old);
    let mut command = old.as_its_user(&newer.join("initdb"), &home);
    command.args(["-D", "data", "-U", "agentpay", "-A", "trust", "-E", "UTF8", "--locale=C", "--data-checksums"]);
    run_to_success(command).await;
    let mut command = old.as_its_user(&newer.join("pg_upgrade"), &home);
    command.arg("-b").arg(older.parent().expect("a directory")).arg("-B").arg(&newer);
    command.arg("-d").arg(old.data()).args(["-D", "data", "-U", "agentpay"]);
    let old_dir = old.stop_and_keep().await;
    run_to_success(command).await;
    drop(old_dir);
    let new = Server::start(new, &[]).await;
    drill.report("PostgreSQL", format!("from {version} to {}", new.text(VERSION).await));
    check(&drill, &told, new).await;
}
