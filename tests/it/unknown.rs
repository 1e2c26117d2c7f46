//! Contract section 7.3, unknown commits: the database commits, and its answer never arrives.

use std::sync::Arc;

use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

use crate::support::{Service, new_database, usage, wait_until};

#[derive(Clone, Copy, Debug, Default)]
struct Line {
    /// Connections of an earlier line are cut.
    number: u32,
    /// What the server says is lost.
    is_mute: bool,
}

/// A way to the database that can be cut at the worst moment.
struct Wire {
    line: Arc<watch::Sender<Line>>,
    options: PgConnectOptions,
}

impl Wire {
    async fn to(database: &PgConnectOptions) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let line = Arc::new(watch::Sender::new(Line::default()));
        // Built anew, because options that name a socket prefer it.
        let url = database.to_url_lossy();
        let mut options = PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(port)
            .username(database.get_username())
            .database(database.get_database().expect("a database"))
            .ssl_mode(PgSslMode::Disable);
        if let Some(password) = url.password() {
            options = options.password(password);
        }
        let (server, lines) = (database.clone(), line.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, server.clone(), lines.subscribe()));
            }
        });
        Self { line, options }
    }
}

async fn carry(client: TcpStream, server: PgConnectOptions, line: watch::Receiver<Line>) {
    if let Some(directory) = server.get_socket() {
        let socket = directory.join(format!(".s.PGSQL.{}", server.get_port()));
        relay(client, UnixStream::connect(socket).await.expect("the server"), line).await;
    } else {
        let address = (server.get_host().to_owned(), server.get_port());
        relay(client, TcpStream::connect(address).await.expect("the server"), line).await;
    }
}

/// Ends with the connection, or when the line is cut.
async fn relay(client: TcpStream, server: impl AsyncRead + AsyncWrite, mut line: watch::Receiver<Line>) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let state = line.clone();
    let number = line.borrow().number;
    let questions = tokio::io::copy(&mut from_client, &mut to_server);
    let answers = async {
        let mut bytes = vec![0; 65_536];
        while let Ok(count @ 1..) = from_server.read(&mut bytes).await {
            if !state.borrow().is_mute && to_client.write_all(&bytes[..count]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        _ = questions => {}
        () = answers => {}
        _ = line.wait_for(|line| line.number != number) => {}
    }
}

/// Sends a record whose COMMIT takes place, but is not heard of. Its status, whether it was a replay, what it says, and
/// what is counted.
async fn record_unheard(key: Option<&str>) -> (u16, bool, String, i64) {
    let database = new_database().await;
    let wire = Wire::to(&database).await;
    let mut service = Service::start_on(wire.options.clone(), &[("COMMIT_LANES", "1")]).await;
    service.pool = sqlx::PgPool::connect_with(database).await.expect("connect");
    let client = service.client();
    client.post("/api/v1/usage", &usage("a", "s", 1)).await;
    // Held up in its one writing statement, it has read what it needs.
    let mut row = service.pool.begin().await.expect("begin");
    sqlx::query("SELECT FROM usage_counters FOR UPDATE").execute(&mut *row).await.expect("a lock");
    let client = key.map_or(client.clone(), |key| client.key(key));
    let answer = tokio::spawn(async move { client.post("/api/v1/usage", &usage("a", "s", 5)).await });
    service.blocked(1).await;
    wire.line.send_replace(Line { number: 0, is_mute: true });
    row.rollback().await.expect("rollback");
    let is_committed = async || service.number("SELECT outstanding + settled + reset FROM usage_counters").await == 6;
    wait_until(is_committed).await;
    wire.line.send_replace(Line { number: 1, is_mute: false });
    let answer = answer.await.expect("a task");
    service.verify().await;
    let lifetime = service.number("SELECT outstanding + settled + reset FROM usage_counters").await;
    let message = if answer.status == 201 { answer.text.clone() } else { answer.error().2 };
    assert_eq!(answer.header("retry-after"), if answer.status == 503 { "1" } else { "" });
    (answer.status, answer.replayed, message, lifetime)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keyed_write_is_found_again_and_gets_its_own_answer() {
    let total = r#"{"agent":"a","serviceId":"s","total":6}"#;
    // Not as a replay: nobody was told before.
    assert_eq!(record_unheard(Some("k")).await, (201, false, total.to_owned(), 6));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unkeyed_write_is_not_repeated_and_not_guessed() {
    let message = "the outcome of this write is unknown; \
                   repeat it with the same Idempotency-Key, or check before repeating it";
    assert_eq!(record_unheard(None).await, (503, false, message.to_owned(), 6));
}
