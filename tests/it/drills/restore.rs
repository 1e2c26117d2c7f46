//! Point-in-time restore: a base backup and archived WAL bring back a moment. Keys of requests before it are replayed; those
//! of later requests are unknown, and a repetition is executed.

use std::fs;
use std::process::Command;

use super::cluster::{Server, give_to_owner_of, run_to_success};
use super::{Drill, addresses, start_replicas};
use crate::support::{Client, DataDir, pool, program, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restore_earlier_keys_are_replayed_and_later_requests_can_be_sent_again() {
    let archive = DataDir::new();
    let directory = archive.as_str().to_owned();
    let command = format!("test ! -f {directory}/%f && cp %p {directory}/%f");
    let server = Server::start(DataDir::new(), &[("archive_mode", "on"), ("archive_command", &command)]).await;
    fs::create_dir(archive.path()).expect("a directory");
    give_to_owner_of(&server.data(), archive.path());
    let replicas = start_replicas(&server.database());
    let drill = Drill::prepare("restore", &replicas).await;

    let load = drill.load(0, addresses(&replicas));
    load.reach(drill.operations / 3, || {}).await;
    let backup = server.base_backup(&[]).await;
    let mut verified = Command::new(program("pg_verifybackup"));
    verified.arg(backup.path().join("postgres/data"));
    run_to_success(verified).await;
    let before = load.end().await;
    let moment = server.text("SELECT clock_timestamp()::text").await;
    let after = drill.load(1, addresses(&replicas)).end().await;
    // The mistake that the restore is for.
    server.execute("ALTER TABLE settlements RENAME TO lost").await;
    drop(replicas);
    let last = server.text("SELECT pg_walfile_name(pg_switch_wal())").await;
    let archived = "SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver";
    wait_until(async || server.text(archived).await >= last).await;
    server.stop().await;

    let data = backup.path().join("postgres/data");
    let recovery = format!(
        "restore_command = 'cp {directory}/%f %p'\nrecovery_target_time = '{moment}'\nrecovery_target_action = 'promote'\n"
    );
    let own = fs::read_to_string(data.join("postgresql.auto.conf")).expect("the configuration");
    fs::write(data.join("postgresql.auto.conf"), own + &recovery).expect("the configuration");
    fs::write(data.join("recovery.signal"), "").expect("a file");
    give_to_owner_of(archive.path(), &data.join("recovery.signal"));
    let restored = Server::start(backup, &[]).await;
    wait_until(async || restored.text("SELECT pg_is_in_recovery()::text").await == "false").await;
    // As long as the service was away.
    restored.execute("UPDATE idempotency_keys SET expires_at = expires_at + interval '1 hour'").await;
    let replicas = start_replicas(&restored.database());
    let client = Client::new(replicas[0].address);
    drill.report("base backup under load, WAL archive, restore to", &moment);

    let keyed = restored.text("SELECT count(*)::text FROM idempotency_keys").await;
    assert_eq!(keyed, before.keyed().to_string());
    drill.report(
        "keys of acknowledged operations",
        format!("{} from before the moment, {} later ones are lost", before.keyed(), after.keyed()),
    );
    let mut again = drill.send_again(2, addresses(&replicas)).await;
    assert_eq!((again.answered_like(&before), again.keyed()), (before.keyed(), before.keyed() + after.keyed()));
    drill.report("earlier operations sent again", format!("{} replayed with the same bytes", before.keyed()));
    drill.report("later operations sent again", format!("{} executed, each exactly once", after.keyed()));
    again.unkeyed = before.unkeyed;
    again.check(&[&pool(&restored.database())], &client).await;
    drill.verify(&restored.database()).await;
    drop(replicas);
    restored.stop().await;
}
