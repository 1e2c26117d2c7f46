//! The cluster, and what befalls it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Mutex;
use std::time::Duration;

use agentpay_billing::local_postgres::LocalPostgres;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sqlx::Connection;
use sqlx::postgres::PgConnection;

use crate::support::{Client, DataDir, Forwarder, Load, Process, binary, free_port, kill, url};

/// Operations between two incidents, in a long run and in a short one.
const OPERATIONS_BETWEEN: u64 = 10_000;
const INCIDENTS_MIN: u64 = 8;

const ENVIRONMENT: &[(&str, &str)] = &[
    ("LOG_LEVEL", "error"),
    ("REQUEST_TIMEOUT_MS", "10000"),
    ("IDEMPOTENCY_CACHE_MAX_ENTRIES", "1000000000"),
    ("IDEMPOTENCY_MAX_ENTRIES_PER_CALLER", "1000000000"),
];

/// In a short run each of them happens once or more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Incident {
    KillReplica,
    KillServer,
    KillReplicaAndServer,
    KillBackend,
    CutConnections,
    TerminateBackends,
    FreezeConnections,
}

const INCIDENTS: [Incident; 7] = [
    Incident::KillReplica,
    Incident::KillServer,
    Incident::KillReplicaAndServer,
    Incident::KillBackend,
    Incident::CutConnections,
    Incident::TerminateBackends,
    Incident::FreezeConnections,
];

/// How often each incident happened, and a replica gave up by itself, as it does when the database goes away while it
/// starts.
#[derive(Default)]
pub struct Incidents(BTreeMap<Incident, usize>, usize);

impl fmt::Display for Incidents {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = self.0.iter().map(|(incident, count)| format!("{incident:?} {count}"));
        write!(formatter, "incidents: {}; starts given up {}", each.collect::<Vec<_>>().join(", "), self.1)
    }
}

pub struct Cluster<'a> {
    postgres: LocalPostgres,
    dir: &'a DataDir,
    forwarders: [Forwarder; 2],
    replicas: Mutex<[Process; 2]>,
}

impl<'a> Cluster<'a> {
    pub async fn start(postgres: LocalPostgres, dir: &'a DataDir) -> Self {
        let database = postgres.connect_options("agentpay");
        let forwarders = [Forwarder::start(&database).await, Forwarder::start(&database).await];
        let replicas = [0, 1].map(|number: usize| start_replica(&forwarders[number], free_port()));
        for replica in &replicas {
            replica.is_ready().await;
        }
        Self { postgres, dir, forwarders, replicas: Mutex::new(replicas) }
    }

    pub fn addresses(&self) -> [SocketAddr; 2] {
        let replicas = self.replicas.lock().expect("replicas");
        [replicas[0].address, replicas[1].address]
    }

    pub fn client(&self, number: usize) -> Client {
        Client::new(self.addresses()[number])
    }

    /// Lets incidents happen until all operations are acknowledged, and has everything run again then.
    pub async fn harass(&self, load: &Load, operations: u64, seed: u64) -> Incidents {
        let mut rng = StdRng::seed_from_u64(seed);
        let between = OPERATIONS_BETWEEN.min(operations / (INCIDENTS_MIN + 1)).max(1);
        let (mut goal, mut happened) = (between, Incidents::default());
        let mut due = INCIDENTS.to_vec();
        while load.reach(goal, || happened.1 += self.revive()).await {
            let incident = match due.pop() {
                Some(incident) => incident,
                // Frozen connections take seconds to be noticed, and would be most of a long run.
                None if rng.random_range(0..50) == 0 => Incident::FreezeConnections,
                None => INCIDENTS[rng.random_range(0..INCIDENTS.len() - 1)],
            };
            // A goal is reached when a batch is answered, which is when the next one has only begun.
            tokio::time::sleep(Duration::from_millis(rng.random_range(0..100))).await;
            self.befall(incident, rng.random_range(0..2), &mut rng).await;
            *happened.0.entry(incident).or_default() += 1;
            goal += between;
        }
        happened
    }

    async fn befall(&self, incident: Incident, replica: usize, rng: &mut StdRng) {
        match incident {
            Incident::KillReplica => self.restart_replica(replica),
            Incident::KillServer => self.restart_server().await,
            Incident::KillReplicaAndServer => {
                self.kill_server();
                self.restart_replica(replica);
                self.postgres.start_again().await.expect("start");
            }
            Incident::KillBackend => {
                // The server ends all other backends, and recovers.
                let processes = self.dir.servers();
                if let Some(children) = processes.len().checked_sub(1).filter(|children| *children > 0) {
                    kill(&processes[rng.random_range(0..children)]);
                }
            }
            Incident::CutConnections => self.forwarders[replica].cut(),
            Incident::TerminateBackends => self.terminate_backends().await,
            Incident::FreezeConnections => self.forwarders[replica].freeze(),
        }
    }

    /// Starts replicas again that ended by themselves. How many.
    fn revive(&self) -> usize {
        let mut replicas = self.replicas.lock().expect("replicas");
        let mut revived = 0;
        for (replica, forwarder) in replicas.iter_mut().zip(&self.forwarders) {
            if replica.child.try_wait().expect("a process").is_some() {
                *replica = start_replica(forwarder, replica.address.port());
                revived += 1;
            }
        }
        revived
    }

    fn restart_replica(&self, number: usize) {
        let mut replicas = self.replicas.lock().expect("replicas");
        let port = replicas[number].address.port();
        // It may have ended by itself.
        let _ = replicas[number].child.kill();
        replicas[number].child.wait().expect("an end");
        replicas[number] = start_replica(&self.forwarders[number], port);
    }

    fn kill_server(&self) {
        if let Some(postmaster) = self.dir.postmaster() {
            kill(&postmaster);
        }
    }

    async fn restart_server(&self) {
        self.kill_server();
        self.postgres.start_again().await.expect("start");
    }

    async fn terminate_backends(&self) {
        let Ok(mut connection) = PgConnection::connect_with(&self.postgres.connect_options("agentpay")).await else {
            return;
        };
        let terminate = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                         WHERE datname = current_database() AND pid <> pg_backend_pid()";
        // It may just be recovering.
        let _ = sqlx::query(terminate).execute(&mut connection).await;
    }

    pub async fn end(self) {
        drop(self.replicas);
        self.postgres.stop().await.expect("stop");
    }
}

/// Starts a replica, and does not wait for it.
fn start_replica(forwarder: &Forwarder, port: u16) -> Process {
    let mut command = binary(&[("DATABASE_URL", &url(&forwarder.options())), ("PORT", &port.to_string())]);
    command.envs(ENVIRONMENT.iter().copied()).stdout(Stdio::null());
    Process { child: command.spawn().expect("the binary"), address: SocketAddr::from(([127, 0, 0, 1], port)) }
}
