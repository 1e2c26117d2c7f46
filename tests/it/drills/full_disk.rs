//! A full disk: writes are refused until there is space again, and nothing is lost. The disk is a small file system in memory,
//! which needs the right to mount one.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use super::cluster::Server;
use super::{Drill, addresses, start_replicas};
use crate::support::{DataDir, usage, wait_until};

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
    // Out of space for its log, the server ends, and has to be started again.
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
    drop(disk);
}

/// Takes all the space there is.
fn fill(path: &Path) {
    let mut file = File::create(path).expect("a file");
    let bytes = vec![0; 1 << 16];
    while file.write_all(&bytes).is_ok() {}
}
