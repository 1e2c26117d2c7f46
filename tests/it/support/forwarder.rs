//! A TCP forwarder in front of PostgreSQL that can freeze. Frozen connections swallow every byte and stay open, as
//! behind a firewall that has dropped their state. It can also cut connections.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use sqlx::postgres::PgConnectOptions;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Notify;

use super::proxy::through;

#[derive(Clone)]
pub struct Forwarder {
    options: PgConnectOptions,
    shared: Arc<Shared>,
}

struct Shared {
    /// Where new connections lead.
    database: Mutex<PgConnectOptions>,
    /// Connections from before the latest freeze are frozen.
    freezes: AtomicU64,
    /// New connections are frozen from their first byte on.
    is_silent: AtomicBool,
    /// Number of bytes from clients that were swallowed.
    swallowed: AtomicUsize,
    cut: Notify,
}

impl Forwarder {
    pub async fn start(database: &PgConnectOptions) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let shared = Shared {
            database: Mutex::new(database.clone()),
            freezes: AtomicU64::default(),
            is_silent: AtomicBool::default(),
            swallowed: AtomicUsize::default(),
            cut: Notify::default(),
        };
        let forwarder = Self { options: through(database, port), shared: Arc::new(shared) };
        tokio::spawn(accept(listener, forwarder.shared.clone()));
        forwarder
    }

    /// Connection options for the database through the forwarder.
    pub fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// Leads new connections to another database.
    pub fn lead_to(&self, database: &PgConnectOptions) {
        *self.shared.database.lock().expect("a database") = database.clone();
    }

    /// Freezes all existing connections. New ones work.
    pub fn freeze(&self) {
        self.shared.freezes.fetch_add(1, Ordering::AcqRel);
    }

    /// Closes all existing connections.
    pub fn cut(&self) {
        self.shared.cut.notify_waiters();
    }

    /// Freezes all existing connections, and every new one.
    pub fn freeze_for_ever(&self) {
        self.shared.is_silent.store(true, Ordering::Release);
        self.freeze();
    }

    /// Number of bytes from clients that were swallowed.
    pub fn swallowed(&self) -> usize {
        self.shared.swallowed.load(Ordering::Acquire)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((client, _)) = listener.accept().await {
        let shared = shared.clone();
        let database = shared.database.lock().expect("a database").clone();
        tokio::spawn(async move {
            let _ = client.set_nodelay(true);
            match database.get_socket() {
                Some(dir) => {
                    let socket = dir.join(format!(".s.PGSQL.{}", database.get_port()));
                    // Without a server, the connection is closed.
                    let Ok(server) = UnixStream::connect(socket).await else { return };
                    serve(client, server, &shared).await;
                }
                None => {
                    let address = (database.get_host(), database.get_port());
                    let Ok(server) = TcpStream::connect(address).await else { return };
                    serve(client, server, &shared).await;
                }
            }
        });
    }
}

/// Ends when one side ends. If the connection is frozen, the other side is not closed.
async fn serve<S: AsyncRead + AsyncWrite>(client: TcpStream, server: S, shared: &Shared) {
    let born = shared.freezes.load(Ordering::Acquire);
    let is_frozen = || shared.is_silent.load(Ordering::Acquire) || shared.freezes.load(Ordering::Acquire) > born;
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let up = async {
        let mut bytes = vec![0; 65_536];
        while let Ok(count) = from_client.read(&mut bytes).await
            && count > 0
        {
            if is_frozen() {
                shared.swallowed.fetch_add(count, Ordering::AcqRel);
            } else if to_server.write_all(&bytes[..count]).await.is_err() {
                break;
            }
        }
        if is_frozen() {
            std::future::pending::<()>().await;
        }
    };
    let down = async {
        let mut bytes = vec![0; 65_536];
        loop {
            match from_server.read(&mut bytes).await {
                Ok(count) if count > 0 && !is_frozen() => {
                    if to_client.write_all(&bytes[..count]).await.is_err() {
                        break;
                    }
                }
                Ok(count) if count > 0 => {}
                _ if is_frozen() => std::future::pending().await,
                _ => break,
            }
        }
    };
    tokio::select! { () = up => {}, () = down => {}, () = shared.cut.notified() => {} }
}
