//! Two real replicas on one PostgreSQL under load, while services, the server and its backends are killed and connections
//! are cut at random: every acknowledged operation is there exactly once, and what was not acknowledged at most once.
//! `FAULTS_OPERATIONS` sets how many operations are sent, `FAULTS_CLIENTS` by how many clients, `FAULTS_SEED` repeats the
//! choices of a run.

mod chaos;

use std::time::Instant;

use agentpay_billing::local_postgres::LocalPostgres;
use serde_json::json;

use crate::support::{DataDir, Load, Tenant, pool, run, setting, url};

use chaos::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn every_acknowledged_operation_survives_any_number_of_crashes_exactly_once() {
    let (operations, clients) = (setting("FAULTS_OPERATIONS", 3000), setting("FAULTS_CLIENTS", 48));
    let seed = setting("FAULTS_SEED", rand::random::<u32>().into());
    println!("FAULTS_SEED={seed} FAULTS_OPERATIONS={operations} FAULTS_CLIENTS={clients}");
    let dir = DataDir::new();
    // fsync stays on: the server really crashes, again and again.
    let postgres = LocalPostgres::start(dir.path(), &[("max_connections", "300")]).await.expect("a PostgreSQL");
    let database = postgres.connect_options("agentpay");
    let cluster = Cluster::start(postgres, &dir).await;
    let mut tenants = vec![Tenant { key: None }];
    for number in 1..4 {
        let made = cluster.client(0).post("/api/v1/api-keys", &json!({ "label": number.to_string() })).await.json();
        tenants.push(Tenant { key: Some(made["key"].as_str().expect("a key").to_owned()) });
    }
    Load::register_services(&cluster.client(0), &tenants).await;
    let load = Load::start(0..operations, clients, seed, cluster.addresses(), tenants);
    let began = Instant::now();
    let incidents = cluster.harass(&load, operations, seed).await;
    let tally = load.end().await;
    let elapsed = began.elapsed();
    println!("{operations} operations in {elapsed:.1?}, {:.0} a second", operations as f64 / elapsed.as_secs_f64());
    println!("{incidents}\n{tally}");
    tally.check(&[&pool(&database)], &cluster.client(1)).await;
    let verified = run(&["verify"], &[("DATABASE_URL", &url(&database))]).await;
    let told = String::from_utf8_lossy(&verified.stdout);
    assert!(verified.status.success(), "{told}{}", String::from_utf8_lossy(&verified.stderr));
    println!("verify: {told}");
    cluster.end().await;
}
