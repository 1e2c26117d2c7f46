//! Crashes and stops under load: nothing acknowledged is lost, and nothing is counted twice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use agentpay_billing::local_postgres::LocalPostgres;
use sqlx::postgres::PgPool;

use crate::support::{Client, Process, Service, new_database, pause, pool, usage, verify, wait_until};

/// Clients that send keyed usage and repeat each request until it is acknowledged.
struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

impl Load {
    fn start(address: SocketAddr) -> Self {
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let clients = (0..16).map(|number| {
            let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
            tokio::spawn(async move {
                let client = Client::new(address);
                for round in 0.. {
                    if stop.load(Ordering::Acquire) {
                        return;
                    }
                    send_until_acknowledged(&client.key(&format!("{number}-{round}")), number % 4).await;
                    acknowledged.fetch_add(1, Ordering::AcqRel);
                }
            })
        });
        let clients = clients.collect();
        Self { stop, acknowledged, clients }
    }

    async fn reach(&self, more: u64) {
        let goal = self.acknowledged.load(Ordering::Acquire) + more;
        wait_until(async || self.acknowledged.load(Ordering::Acquire) >= goal).await;
    }

    /// Every acknowledged request counts exactly once, and nothing else does.
    async fn settle(self, pool: &PgPool) {
        self.stop.store(true, Ordering::Release);
        for client in self.clients {
            client.await.expect("a client");
        }
        let acknowledged = self.acknowledged.load(Ordering::Acquire) as i64;
        let count = |sql: &'static str| sqlx::query_scalar::<_, i64>(sql).fetch_one(pool);
        assert_eq!(
            count("SELECT sum(outstanding + settled + reset)::bigint FROM usage_counters").await.expect("sum"),
            acknowledged
        );
        assert_eq!(count("SELECT count(*) FROM idempotency_keys").await.expect("count"), acknowledged);
        verify(pool).await;
    }
}

async fn send_until_acknowledged(client: &Client, agent: u64) {
    let body = usage(&format!("agent-{agent}"), "s", 1).to_string().into_bytes();
    loop {
        match client.try_send("POST", "/api/v1/usage", Some(body.clone())).await {
            Ok(answer) if answer.status == 201 => return,
            Ok(answer) => assert!(matches!(answer.status, 503 | 409), "{answer:?}"),
            Err(_) => {}
        }
        pause().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_crashes_under_load_is_found_again() {
    let dir = std::env::temp_dir().join(format!("agentpay-crash-{}", uuid::Uuid::new_v4()));
    // fsync stays on: this server really crashes, again and again.
    let postgres = LocalPostgres::start(&dir, &[]).await.expect("a PostgreSQL");
    let service = Service::start_on(postgres.connect_options("agentpay"), &[]).await;
    let load = Load::start(service.address);
    for _ in 0..3 {
        load.reach(100).await;
        postgres.stop_immediately().await.expect("stop");
        let ready = service.client().get("/api/v1/health/ready").await;
        let unready = r#"{"ready":false,"reason":"the database does not answer"}"#;
        assert_eq!((ready.status, ready.text.as_str()), (503, unready));
        assert_eq!(service.client().get("/health").await.status, 200);
        let read = service.client().get("/api/v1/usage/a/s").await.error();
        assert_eq!((read.0, read.2.as_str()), (503, "the store is unavailable; nothing was changed"));
        // The key cannot be looked up either, which matters only on routes that look it up.
        let unknown = service.client().with("x-api-key", "apk_unknown");
        for (path, status) in [("/health", 200), ("/api/v1/version", 200), ("/api/v1/services", 503), ("/nowhere", 503)]
        {
            assert_eq!(unknown.get(path).await.status, status, "{path}");
        }
        postgres.start_again().await.expect("start");
    }
    load.reach(100).await;
    load.settle(&service.pool).await;
    service.pool.close().await;
    postgres.stop().await.expect("stop");
    std::fs::remove_dir_all(&dir).expect("remove");
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_finishes_what_was_acknowledged_and_exits_with_0() {
    let database = new_database().await;
    let mut process = Process::start(&database, 0);
    let load = Load::start(process.address);
    load.reach(200).await;
    process.signal("-TERM");
    // It would be 1 after the ten seconds that the requests in progress have.
    assert_eq!(process.exit().await.code(), Some(0));
    // The clients go on against the next process.
    let next = Process::start(&database, process.address.port());
    load.reach(20).await;
    load.settle(&pool(&database)).await;
    drop(next);
}
