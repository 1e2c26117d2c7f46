//! The runbooks of docs/operations.md, executed on servers of this machine while two replicas serve keyed load. Each drill
//! prints what it checked as rows of a table; `deploy/drills` runs them all and shows it. `DRILL_OPERATIONS` sets how many
//! operations are sent, `DRILL_CLIENTS` by how many clients, `DRILL_SEED` repeats the choices of a run.

mod cluster;
mod failover;
mod full_disk;
mod move_to_new_server;
mod restore;
mod upgrade;

use std::fmt::Display;
use std::net::SocketAddr;

use serde_json::json;
use sqlx::postgres::PgConnectOptions;

use crate::support::{Client, Load, Process, Tally, Tenant, pool, run, setting, url};

/// What all drills send, and to whom.
struct Drill {
    name: &'static str,
    /// Operations of each part of a drill.
    operations: u64,
    clients: u64,
    seed: u64,
    tenants: Vec<Tenant>,
}

impl Drill {
    /// Prepares the database behind these replicas: tenants with API keys, and services with prices.
    async fn prepare(name: &'static str, replicas: &[Process; 2]) -> Self {
        let client = replicas[0].client();
        let mut tenants = vec![Tenant { key: None }];
        for number in 1..3 {
            let made = client.post("/api/v1/api-keys", &json!({ "label": number.to_string() })).await.json();
            tenants.push(Tenant { key: Some(made["key"].as_str().expect("a key").to_owned()) });
        }
        Load::register_services(&client, &tenants).await;
        let seed = setting("DRILL_SEED", rand::random::<u32>().into());
        println!("DRILL_SEED={seed}");
        Self {
            name,
            operations: setting("DRILL_OPERATIONS", 1000),
            clients: setting("DRILL_CLIENTS", 24),
            seed,
            tenants,
        }
    }

    fn load(&self, part: u64, addresses: [SocketAddr; 2]) -> Load {
        let operations = part * self.operations..(part + 1) * self.operations;
        Load::start(operations, self.clients, self.seed, addresses, self.tenants.clone())
    }

    /// Sends all keyed operations of the first parts a second time, as clients that do not know the outcome.
    async fn send_again(&self, parts: u64, addresses: [SocketAddr; 2]) -> Tally {
        let operations = 0..parts * self.operations;
        Load::send_again(operations, self.clients, self.seed, addresses, self.tenants.clone()).end().await
    }

    /// A row of the table.
    fn report(&self, checked: &str, result: impl Display) {
        println!("| {} | {checked} | {result} |", self.name);
    }

    /// Every operation is answered as before, and everything that the clients were told is there exactly once.
    async fn retry_all_and_check(&self, told: &Tally, database: &PgConnectOptions, addresses: [SocketAddr; 2]) {
        let mut again = self.send_again(1, addresses).await;
        again.unkeyed = told.unkeyed.clone();
        assert_eq!(again.answered_like(told), told.keyed());
        assert_eq!(again.replays, again.keyed() + again.duplicates);
        self.report("all keyed operations sent again", format!("{} replayed with the same bytes", told.keyed()));
        again.check(&[&pool(database)], &Client::new(addresses[0])).await;
        self.report("acknowledged operations in the database", format!("{}, each exactly once", told.keyed()));
        self.verify(database).await;
    }

    async fn verify(&self, database: &PgConnectOptions) {
        let verified = run(&["verify"], &[("DATABASE_URL", &url(database))]).await;
        let found = String::from_utf8_lossy(&verified.stdout);
        assert!(verified.status.success(), "{found}{}", String::from_utf8_lossy(&verified.stderr));
        self.report("`agentpay-billing verify`", found.trim());
    }
}

/// How replicas run during a drill.
const ENVIRONMENT: [(&str, &str); 1] = [("REQUEST_TIMEOUT_MS", "10000")];

fn start_replicas(database: &PgConnectOptions) -> [Process; 2] {
    [0, 0].map(|_: u16| Process::start_on(database, &ENVIRONMENT))
}

fn addresses(replicas: &[Process; 2]) -> [SocketAddr; 2] {
    [replicas[0].address, replicas[1].address]
}
