//! Three cells on three servers, two replicas that use them all, and what can be asked of them.

use std::net::SocketAddr;
use std::process::Stdio;

use agentpay_billing::local_postgres::LocalPostgres;
use agentpay_billing::store::MIGRATOR;
use futures_util::future::join_all;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection};

use crate::support::{Cells, Client, DataDir, Process, SERVER_SETTINGS, binary, free_port, kill, run, wait_until};

pub const IDS: [&str; 3] = ["home", "eu", "us"];

const ENVIRONMENT: &[(&str, &str)] = &[("LOG_LEVEL", "error"), ("REQUEST_TIMEOUT_MS", "10000")];

pub struct Server {
    postgres: LocalPostgres,
    dir: DataDir,
}

impl Server {
    async fn start() -> Self {
        let dir = DataDir::new();
        let postgres = LocalPostgres::start(dir.path(), &SERVER_SETTINGS).await.expect("a PostgreSQL");
        let database = postgres.connect_options("agentpay");
        let mut connection: PgConnection = database.connect().await.expect("a connection");
        MIGRATOR.run(&mut connection).await.expect("migrations");
        Self { postgres, dir }
    }

    fn database(&self) -> PgConnectOptions {
        self.postgres.connect_options("agentpay")
    }

    pub fn kill(&self) {
        if let Some(postmaster) = self.dir.postmaster() {
            kill(&postmaster);
        }
    }

    pub async fn start_again(&self) {
        self.postgres.start_again().await.expect("start");
    }
}

pub struct Fleet {
    pub replicas: [Process; 2],
    pub cells: Cells,
    pub servers: Vec<Server>,
}

impl Fleet {
    pub async fn start() -> Self {
        let servers = join_all(IDS.map(|_| Server::start())).await;
        let cells = Cells::of(&IDS.map(|id| (id, 1)), servers.iter().map(Server::database).collect()).await;
        let replicas = [0, 1].map(|_: u8| start_replica(&cells, free_port()));
        let fleet = Self { replicas, cells, servers };
        fleet.is_whole().await;
        fleet
    }

    pub fn addresses(&self) -> [SocketAddr; 2] {
        [self.replicas[0].address, self.replicas[1].address]
    }

    pub fn client(&self, number: usize) -> Client {
        self.replicas[number].client()
    }

    /// Waits until all replicas can use all cells.
    pub async fn is_whole(&self) {
        for replica in &self.replicas {
            let client = replica.client();
            let ask = async || client.try_send("GET", "/api/v1/health/ready", None).await;
            wait_until(async || {
                ask().await.is_ok_and(|ready| ready.status == 200 && !ready.text.contains("unavailableCells"))
            })
            .await;
        }
    }

    /// A tenant that lives in this cell.
    pub async fn tenant_in(&self, cell: usize) -> String {
        let tenant =
            sqlx::query_scalar("SELECT tenant_id FROM tenants WHERE residence = 'here' AND tenant_id <> 'public'");
        tenant.fetch_one(&self.cells.cells[cell].pool).await.expect("a tenant")
    }

    /// A key that one of the tenant's requests had.
    pub async fn some_key_of(&self, tenant: &str, cell: usize) -> String {
        let key = sqlx::query_scalar("SELECT key FROM idempotency_keys WHERE caller = 'tenant:' || $1 LIMIT 1");
        key.bind(tenant).fetch_one(&self.cells.cells[cell].pool).await.expect("a key")
    }

    /// Kills a replica, and starts it again with the same port.
    pub fn restart_replica(&mut self, number: usize) {
        let port = self.replicas[number].address.port();
        let _ = self.replicas[number].child.kill();
        self.replicas[number].child.wait().expect("an end");
        self.replicas[number] = start_replica(&self.cells, port);
    }

    /// Starts replicas again that ended by themselves, as they do without the home cell. How many.
    pub fn revive(&mut self) -> usize {
        let ended = |replica: &mut Process| replica.child.try_wait().expect("a process").is_some();
        let ended: Vec<usize> = (0..2).filter(|number| ended(&mut self.replicas[*number])).collect();
        for number in &ended {
            self.restart_replica(*number);
        }
        ended.len()
    }

    /// The directory, the residence in each cell and the rows say that the tenant lives there and nowhere else.
    pub async fn lives_only_in(&self, tenant: &str, cell: usize) {
        assert_eq!(self.cells.cell_of(tenant).await, cell);
        for (number, own) in self.cells.cells.iter().enumerate() {
            let residence = sqlx::query_scalar("SELECT residence FROM tenants WHERE tenant_id = $1").bind(tenant);
            let residence: Option<String> = residence.fetch_optional(&own.pool).await.expect("a residence");
            let lives_here = residence.as_deref() == Some("here");
            assert!(
                lives_here == (number == cell) && matches!(residence.as_deref(), None | Some("here" | "elsewhere"))
            );
            let rows = "SELECT (SELECT count(*) FROM usage_counters WHERE tenant_id = $1)
                + (SELECT count(*) FROM agents WHERE tenant_id = $1) + (SELECT count(*) FROM event_runs WHERE tenant_id = $1)
                + (SELECT count(*) FROM settlements WHERE tenant_id = $1)
                + (SELECT count(*) FROM services WHERE tenant_id = $1)
                + (SELECT count(*) FROM idempotency_keys WHERE caller = 'tenant:' || $1)
                + (SELECT count(*) FROM caller_totals WHERE caller = 'tenant:' || $1)";
            let rows: i64 = sqlx::query_scalar(rows).bind(tenant).fetch_one(&own.pool).await.expect("rows");
            assert_eq!(rows > 0, number == cell, "{rows} rows in {}", own.id);
        }
    }

    /// All cells add up, and no move is incomplete.
    pub async fn verify(&self) {
        let file = [("CELLS_FILE", self.cells.file())];
        let verified = run(&["cells", "verify"], &file).await;
        let found = String::from_utf8_lossy(&verified.stdout);
        assert!(verified.status.success(), "{found}{}", String::from_utf8_lossy(&verified.stderr));
        println!("cells verify: {found}");
        let listed = run(&["cells", "list", "--format", "json"], &file).await;
        let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).expect("JSON");
        assert_eq!(listed["moves"], serde_json::json!([]));
    }

    pub async fn end(self) {
        drop(self.replicas);
        for server in self.servers {
            server.postgres.stop().await.expect("stop");
        }
    }
}

/// Starts a replica, and does not wait for it.
fn start_replica(cells: &Cells, port: u16) -> Process {
    let mut command = binary(&[("CELLS_FILE", cells.file()), ("PORT", &port.to_string())]);
    command.envs(ENVIRONMENT.iter().copied()).stdout(Stdio::null());
    Process { child: command.spawn().expect("the binary"), address: SocketAddr::from(([127, 0, 0, 1], port)) }
}
