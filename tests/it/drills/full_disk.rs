//! A full disk: writes are refused until there is space again, and nothing is lost. The disk is a small file system in memory,
//! which needs the right to mount one.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use sqlx::Executor;

use super::cluster::{Server, run_to_success};
use super::{Drill, addresses, start_replicas};
use crate::support::{DataDir, Load, Process, is_alive, usage, wait_until};

/// A file system of `megabytes`, unmounted when dropped.
struct SmallDisk(String);

impl SmallDisk {
    fn mount(path: &Path, megabytes: u32) -> Option<Self> {
        fs::create_dir(path).expect("a directory");
        let directory = path.to_str().expect("UTF-8").to_owned();
        let options = format!("size={megabytes}m,mode=0711");
        as_root(&["mount", "-t", "tmpfs", "-o", &options, "tmpfs", &directory]).then_some(Self(directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        as_root(&["umount", &self.0]);
        let _ = fs::remove_dir(&self.0);
    }
}

fn as_root(command: &[&str]) -> bool {
    let succeeds = |command: &[&str]| {
        Command::new(command[0]).args(&command[1..]).output().is_ok_and(|output| output.status.success())
    };
    succeeds(command) || succeeds(&[&["sudo", "-n"], command].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_writes_and_loses_nothing() {
    let dir = DataDir::new();
    let Some(disk) = SmallDisk::mount(dir.path(), 160) else {
        println!("| full disk | not run: it needs the right to mount a file system | |");
        return;
    };
    let server = Server::start(dir, &[("max_wal_size", "48MB"), ("min_wal_size", "32MB")]).await;
    let replicas = start_replicas(&server.database());
    let drill = Drill::prepare("full disk", &replicas).await;

    let load = drill.load(0, addresses(&replicas));
    load.reach(drill.operations / 3, || {}).await;
    let ballast = server.dir.path().join("ballast");
    let filled_at = Instant::now();
    fill(&ballast);
    let client = replicas[0].client();
    let refuses = async || client.post("/api/v1/usage", &usage("full", "s0", 1)).await.status == 503;
    wait_until(refuses).await;
    drill.report("a write on a full disk", "503 after some writes that still had space");
    fs::remove_file(&ballast).expect("the file");
    recover_and_check(&drill, load, server, replicas, filled_at).await;
    drop(disk);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_the_wal_ends_the_server_and_loses_nothing() {
    let wal = DataDir::new();
    let Some(disk) = SmallDisk::mount(wal.path(), 96) else {
        println!("| full WAL disk | not run: it needs the right to mount a file system | |");
        return;
    };
    let server = start_with_wal_on(&wal).await;
    let replicas = start_replicas(&server.database());
    let drill = Drill::prepare("full WAL disk", &replicas).await;

    let load = drill.load(0, addresses(&replicas));
    load.reach(drill.operations / 3, || {}).await;
    let ballast = wal.path().join("ballast");
    let filled_at = Instant::now();
    fill(&ballast);
    // Uses up the files that there are. The server needs another one, cannot write it, ends, and cannot recover.
    let has_ended = async || {
        let _ = server.pool.execute("SELECT pg_switch_wal()").await;
        !server.dir.servers().iter().any(|process| is_alive(process))
    };
    wait_until(has_ended).await;
    drill.report("the server without space for its WAL", "ended");
    let client = replicas[0].client();
    let write = async || client.post("/api/v1/usage", &usage("full", "s0", 1)).await.status;
    let read = async || client.get("/api/v1/usage/full/s0").await.status;
    wait_until(async || (write().await, read().await) == (503, 503)).await;
    drill.report("writes and reads meanwhile", "503");
    fs::remove_file(&ballast).expect("the file");
    recover_and_check(&drill, load, server, replicas, filled_at).await;
    drop(disk);
}

/// Starts the server again, which ends without space for its log, and checks that nothing was lost.
async fn recover_and_check(drill: &Drill, load: Load, server: Server, replicas: [Process; 2], filled_at: Instant) {
    server.postgres.start_again().await.expect("start");
    let before = load.acknowledged();
    load.reach(before + 1, || {}).await;
    drill.report("writes stopped for at most", format!("{:.1} s", filled_at.elapsed().as_secs_f64()));
    let told = load.end().await;
    drill.report(
        "answers while the disk was full",
        format!("{} refused, {} unknown, {} lost", told.refused, told.unknown, told.lost),
    );
    drill.retry_all_and_check(&told, &server.database(), addresses(&replicas)).await;
    drop(replicas);
    server.stop().await;
}

/// A server whose `pg_wal` is a link to a directory there.
async fn start_with_wal_on(disk: &DataDir) -> Server {
    let settings = [("max_wal_size", "48MB"), ("min_wal_size", "32MB")];
    let server = Server::start(DataDir::new(), &settings).await;
    let (data, wal) = (server.data(), disk.path().join("pg_wal"));
    let dir = server.stop_and_keep().await;
    let mut copy = Command::new("cp");
    copy.arg("-a").arg(data.join("pg_wal")).arg(&wal);
    run_to_success(copy).await;
    fs::remove_dir_all(data.join("pg_wal")).expect("the directory");
    symlink(&wal, data.join("pg_wal")).expect("a link");
    Server::start(dir, &settings).await
}

/// Takes all the space there is.
fn fill(path: &Path) {
    let mut file = File::create(path).expect("a file");
    let bytes = vec![0; 1 << 16];
    while file.write_all(&bytes).is_ok() {}
}
