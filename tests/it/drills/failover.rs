//! Failover to a synchronous standby: the primary is killed under load, the standby is promoted, and the former primary comes
//! back as a standby.

use std::time::Instant;

use super::cluster::Server;
use super::{Drill, addresses, start_replicas};
use crate::support::{DataDir, Forwarder, wait_until};

const STREAMS: &str = "SELECT coalesce(string_agg(sync_state, ','), 'none') FROM pg_stat_replication";

/// Waits until a standby confirms commits of this server.
async fn is_replicated(server: &Server) {
    wait_until(async || server.text(STREAMS).await == "sync").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failover_to_a_synchronous_standby_loses_and_doubles_nothing() {
    let primary = Server::start(DataDir::new(), &[]).await;
    primary.execute("ALTER SYSTEM SET synchronous_standby_names = '*'").await;
    let standby = Server::start(primary.base_backup(&["-R"]).await, &[]).await;
    primary.execute("SELECT pg_reload_conf()").await;
    is_replicated(&primary).await;
    // Stands for the name or the pooler that follows the primary.
    let follower = Forwarder::start(&primary.database()).await;
    let replicas = start_replicas(&follower.options());
    let drill = Drill::prepare("failover", &replicas).await;

    let load = drill.load(0, addresses(&replicas));
    load.reach(drill.operations / 3, || {}).await;
    let killed_at = Instant::now();
    primary.kill().await;
    // The copy of the configuration says that it must have a standby, too.
    standby.execute("SELECT pg_promote()").await;
    standby.execute("ALTER SYSTEM SET synchronous_standby_names = ''").await;
    standby.execute("SELECT pg_reload_conf()").await;
    follower.lead_to(&standby.database());
    let before = load.acknowledged();
    load.reach(before + 1, || {}).await;
    drill.report("writes stopped for", format!("{:.1} s", killed_at.elapsed().as_secs_f64()));
    let told = load.end().await;
    drill.report(
        "answers while the primary was away",
        format!("{} refused, {} unknown, {} lost", told.refused, told.unknown, told.lost),
    );
    drill.retry_all_and_check(&told, &standby.database(), addresses(&replicas)).await;

    let returned = Server::start(standby.base_backup(&["-R"]).await, &[]).await;
    standby.execute("ALTER SYSTEM SET synchronous_standby_names = '*'").await;
    standby.execute("SELECT pg_reload_conf()").await;
    is_replicated(&standby).await;
    let answer = replicas[0].client().post("/api/v1/usage", &crate::support::usage("after", "s0", 1)).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let arrived = "SELECT count(*)::text FROM usage_counters WHERE agent_id = 'after'";
    wait_until(async || returned.text(arrived).await == "1").await;
    drill.report("the former primary", "is the synchronous standby");
    drop(replicas);
    returned.stop().await;
    standby.stop().await;
}
