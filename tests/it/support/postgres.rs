//! One PostgreSQL for the whole test binary: TEST_DATABASE_URL if set, otherwise a container if a Docker engine
//! responds, otherwise a temporary server of this machine's programs. One database is migrated once and cloned for each
//! test.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};

use agentpay_billing::local_postgres::LocalPostgres;
use agentpay_billing::store::MIGRATOR;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use tokio::sync::OnceCell;

use super::container;

/// A temporary server need not survive a power failure.
pub const SETTINGS: [(&str, &str); 3] = [("fsync", "off"), ("full_page_writes", "off"), ("max_connections", "300")];

static SERVER: OnceCell<Server> = OnceCell::const_new();

struct Server {
    options: PgConnectOptions,
    /// Keeps the temporary server, and the process that cleans up at the end.
    _kept: (Option<LocalPostgres>, Option<Child>),
}

async fn start() -> Server {
    let server = match std::env::var("TEST_DATABASE_URL") {
        Ok(url) => {
            Server { options: PgConnectOptions::from_str(&url).expect("TEST_DATABASE_URL"), _kept: (None, None) }
        }
        Err(_) => match container::start().await {
            Ok((options, watcher)) => Server { options, _kept: (None, Some(watcher)) },
            Err(reason) => {
                eprintln!("no container ({reason}): the tests use this machine's PostgreSQL");
                start_local().await
            }
        },
    };
    migrate_template(&server.options).await;
    server
}

async fn start_local() -> Server {
    let dir = std::env::temp_dir().join(format!("agentpay-it-{}", uuid::Uuid::new_v4()));
    let local = LocalPostgres::start(&dir, &SETTINGS).await.expect("a PostgreSQL");
    let script =
        r#"read -r _; kill -QUIT "$(head -n 1 "$0/postgres/data/postmaster.pid")"; rm -rf "$0"/postgres/ "$0""#;
    let watcher = after_us(script, &dir.to_string_lossy());
    Server { options: local.connect_options("agentpay"), _kept: (Some(local), Some(watcher)) }
}

/// Runs a shell script with `argument` as `$0` after this process has ended, even if it is killed: statics are never
/// dropped. The script begins by waiting until its standard input is closed.
pub fn after_us(script: &str, argument: &str) -> Child {
    let mut shell = Command::new("sh");
    shell.args(["-c", script, argument]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    shell.spawn().expect("sh")
}

async fn create_database(server: &PgConnectOptions, name: &str, template: &str) -> PgConnectOptions {
    let mut connection = server.connect().await.expect("connect");
    let create = format!("CREATE DATABASE {name} TEMPLATE {template}");
    sqlx::query(AssertSqlSafe(create)).execute(&mut connection).await.expect("a database");
    connection.close().await.expect("close");
    server.clone().database(name)
}

fn template() -> String {
    format!("it_{}_template", std::process::id())
}

async fn migrate_template(server: &PgConnectOptions) {
    let database = create_database(server, &template(), "template0").await;
    let mut connection: PgConnection = database.connect().await.expect("connect");
    MIGRATOR.run(&mut connection).await.expect("migrations");
    // A database can be cloned only while nobody is connected to it.
    connection.close().await.expect("close");
}

async fn clone_of(template: &str) -> PgConnectOptions {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let server = SERVER.get_or_init(start).await;
    let name = format!("it_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    create_database(&server.options, &name, template).await
}

/// A database of the server of all tests, whatever lies between it and `database`.
pub async fn directly(database: &PgConnectOptions) -> PgConnectOptions {
    let name = database.get_database().expect("a name");
    SERVER.get_or_init(start).await.options.clone().database(name)
}

/// A new database with the schema and without data.
pub async fn new_database() -> PgConnectOptions {
    clone_of(&template()).await
}

/// A new database without a schema.
pub async fn empty_database() -> PgConnectOptions {
    clone_of("template0").await
}

/// The options as a DATABASE_URL, for processes.
pub fn url(options: &PgConnectOptions) -> String {
    options.to_url_lossy().to_string()
}

/// A program of PostgreSQL: of the PATH, or of a server that is installed beside it.
pub fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let beside = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let dirs = std::env::split_paths(&path).chain(beside.map(|version| version.path().join("bin")));
    let mut programs = dirs.map(|dir| dir.join(name));
    programs.find(|program| program.exists()).unwrap_or_else(|| panic!("{name}, which comes with PostgreSQL"))
}
