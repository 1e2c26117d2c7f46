//! One PostgreSQL for the whole test binary: TEST_DATABASE_URL if set, else a throw-away server of this machine.

use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};

use agentpay_billing::local_postgres::LocalPostgres;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions};
use tokio::sync::OnceCell;

static SERVER: OnceCell<Server> = OnceCell::const_new();

struct Server {
    options: PgConnectOptions,
    /// Kept, not used: the server and the process that ends it after us.
    _local: Option<(LocalPostgres, Child)>,
}

async fn start() -> Server {
    if let Ok(url) = std::env::var("TEST_DATABASE_URL") {
        return Server { options: PgConnectOptions::from_str(&url).expect("TEST_DATABASE_URL"), _local: None };
    }
    let dir = std::env::temp_dir().join(format!("agentpay-it-{}", uuid::Uuid::new_v4()));
    let settings = [("fsync", "off"), ("full_page_writes", "off"), ("max_connections", "300")];
    let local = LocalPostgres::start(&dir, &settings).await.expect("a PostgreSQL");
    // Statics are never dropped, and a test may be killed: a shell waits for our end of its input to close.
    let script =
        r#"read -r _; kill -QUIT "$(head -n 1 "$0/postgres/data/postmaster.pid")"; rm -rf "$0"/postgres/ "$0""#;
    let watcher = Command::new("sh").args(["-c", script]).arg(&dir).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
    let options = local.connect_options("agentpay");
    Server { options, _local: Some((local, watcher.expect("sh"))) }
}

/// An empty database.
pub async fn new_database() -> PgConnectOptions {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let server = SERVER.get_or_init(start).await;
    let name = format!("it_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let mut connection = server.options.connect().await.expect("connect");
    let create = format!("CREATE DATABASE {name}");
    sqlx::query(AssertSqlSafe(create)).execute(&mut connection).await.expect("a database");
    server.options.clone().database(&name)
}

/// The same as a DATABASE_URL, for processes.
pub fn url(options: &PgConnectOptions) -> String {
    options.to_url_lossy().to_string()
}
