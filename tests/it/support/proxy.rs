//! A proxy between the service and PostgreSQL that understands enough of the wire protocol to act at the moment when a
//! transaction commits that recorded usage or stored a response, either by COMMIT or by a statement that commits
//! implicitly.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::Notify;

/// Statements whose transactions can be interrupted.
const WRITES: [&str; 3] = ["INSERT INTO usage_counters", "INSERT INTO idempotency_keys", "UPDATE usage_counters"];

/// What to do at the next commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// Cuts the connection before PostgreSQL receives the commit: nothing commits.
    BeforeCommit,
    /// Cuts the connection after PostgreSQL has committed and before its response: the commit has no response.
    AfterCommit,
    /// Like `AfterCommit`, but the connection stays open and silent.
    AfterCommitSilent,
    /// Holds what would commit or begin a transaction, until [`Proxy::release`].
    Held,
    /// Holds what would commit until [`Proxy::release`], and then cuts the connection: nothing commits.
    HeldThenCut,
}

#[derive(Default)]
struct Plan {
    next: Option<Moment>,
    /// Refuses further connections from that moment on.
    then_closed: bool,
    is_closed: bool,
    moments: usize,
    /// SQLSTATEs of all errors, and ROLLBACK if the client rolled back.
    errors: Vec<String>,
}

/// The state that both directions of one connection share.
#[derive(Default)]
struct Session {
    statements: HashMap<Vec<u8>, bool>,
    portals: HashMap<Vec<u8>, bool>,
    in_transaction: bool,
    /// The transaction has executed one of these statements, and has neither failed nor been rolled back.
    has_written: bool,
}

#[derive(Clone)]
pub struct Proxy {
    plan: Arc<Mutex<Plan>>,
    happened: Arc<Notify>,
    released: Arc<Notify>,
    options: PgConnectOptions,
}

impl Proxy {
    pub async fn start(database: &PgConnectOptions) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let options = through(database, port);
        let proxy = Self { plan: Arc::default(), happened: Arc::default(), released: Arc::default(), options };
        tokio::spawn(proxy.clone().accept(listener, database.clone()));
        proxy
    }

    /// Connection options for the database through the proxy.
    pub fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    pub fn at_next_commit(&self, moment: Moment) {
        self.plan().next = Some(moment);
    }

    /// Like `at_next_commit`, and afterwards the database cannot be reached until [`Proxy::open`].
    pub fn at_next_commit_and_close(&self, moment: Moment) {
        let mut plan = self.plan();
        (plan.next, plan.then_closed) = (Some(moment), true);
    }

    pub fn open(&self) {
        self.plan().is_closed = false;
    }

    /// Refuses further connections until [`Proxy::open`].
    pub fn close(&self) {
        self.plan().is_closed = true;
    }

    /// Waits until the planned moment has occurred.
    pub async fn happened(&self) {
        self.happened.notified().await;
    }

    pub fn moments(&self) -> usize {
        self.plan().moments
    }

    /// Forwards what was held.
    pub fn release(&self) {
        self.released.notify_one();
    }

    /// The SQLSTATEs of the server's errors since the last call.
    pub fn take_errors(&self) -> Vec<String> {
        std::mem::take(&mut self.plan().errors)
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the current commit is to be interrupted in one of these ways.
    fn take(&self, ways: &[Moment]) -> Option<Moment> {
        let mut plan = self.plan();
        let moment = plan.next.filter(|moment| ways.contains(moment))?;
        plan.next = None;
        plan.moments += 1;
        plan.is_closed = std::mem::take(&mut plan.then_closed);
        Some(moment)
    }

    async fn accept(self, listener: TcpListener, database: PgConnectOptions) {
        while let Ok((client, _)) = listener.accept().await {
            if self.plan().is_closed {
                continue;
            }
            let (proxy, database) = (self.clone(), database.clone());
            tokio::spawn(async move {
                match database.get_socket() {
                    Some(dir) => {
                        let socket = dir.join(format!(".s.PGSQL.{}", database.get_port()));
                        proxy.serve(client, UnixStream::connect(socket).await.expect("the server")).await;
                    }
                    None => {
                        let address = (database.get_host(), database.get_port());
                        proxy.serve(client, TcpStream::connect(address).await.expect("the server")).await;
                    }
                }
            });
        }
    }

    /// Ends both directions when one ends.
    async fn serve<S: AsyncRead + AsyncWrite + Send + 'static>(self, client: TcpStream, server: S) {
        let _ = client.set_nodelay(true);
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = tokio::io::split(server);
        let session = Mutex::new(Session::default());
        tokio::select! {
            _ = self.forward_requests(&session, from_client, to_server) => {}
            _ = self.forward_answers(&session, from_server, to_client) => {}
        }
    }

    async fn forward_requests(
        &self,
        session: &Mutex<Session>,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
    ) -> std::io::Result<()> {
        // The first message has no type.
        let length = from.read_i32().await?;
        let mut startup = vec![0; usize::try_from(length - 4).unwrap_or(0)];
        from.read_exact(&mut startup).await?;
        to.write_i32(length).await?;
        to.write_all(&startup).await?;
        loop {
            let (kind, body) = read_message(&mut from).await?;
            let commits = lock(session).request(kind, &body);
            if commits && self.take(&[Moment::BeforeCommit]).is_some() {
                self.happened.notify_one();
                return Ok(());
            }
            if commits && self.take(&[Moment::HeldThenCut]).is_some() {
                self.happened.notify_one();
                self.released.notified().await;
                return Ok(());
            }
            // Only on the connections of lanes: jobs and reads have transactions, too.
            let begins = kind == b'Q' && body.starts_with(b"BEGIN") && lock(session).writes();
            if kind == b'Q' && body.starts_with(b"ROLLBACK") {
                self.plan().errors.push("ROLLBACK".to_owned());
            }
            if (commits || begins) && self.take(&[Moment::Held]).is_some() {
                self.happened.notify_one();
                self.released.notified().await;
            }
            to.write_all(&encode(kind, &body)).await?;
        }
    }

    async fn forward_answers(
        &self,
        session: &Mutex<Session>,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
    ) -> std::io::Result<()> {
        let mut is_ready = false;
        let mut held = Vec::new();
        loop {
            let (kind, body) = read_message(&mut from).await?;
            if kind == b'E' {
                self.plan().errors.extend(sqlstate(&body));
            }
            held.extend(encode(kind, &body));
            is_ready |= kind == b'Z';
            if is_ready && kind != b'Z' {
                // A response is forwarded completely or not at all.
                continue;
            }
            let committed = lock(session).answer(kind, &body);
            if committed && let Some(moment) = self.take(&[Moment::AfterCommit, Moment::AfterCommitSilent]) {
                self.happened.notify_one();
                if moment == Moment::AfterCommitSilent {
                    std::future::pending::<()>().await;
                }
                return Ok(());
            }
            to.write_all(&held).await?;
            held.clear();
        }
    }
}

/// Connection options for `database` through a proxy on `port`.
pub fn through(database: &PgConnectOptions, port: u16) -> PgConnectOptions {
    let options = PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(port);
    let options = options.username(database.get_username()).ssl_mode(PgSslMode::Disable);
    let options = options.database(database.get_database().expect("a database"));
    // A container has this password, and other servers need none. TEST_DATABASE_URL has its own.
    let url = std::env::var("TEST_DATABASE_URL").unwrap_or_default();
    let own = url.split_once("://").and_then(|(_, rest)| rest.rsplit_once('@')?.0.split_once(':').map(|pair| pair.1));
    options.password(own.unwrap_or("test"))
}

fn lock(session: &Mutex<Session>) -> MutexGuard<'_, Session> {
    session.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    /// Whether the session has prepared a statement that can be interrupted.
    fn writes(&self) -> bool {
        self.statements.values().any(|writes| *writes)
    }

    /// Processes a message of the client. Returns whether it would commit such a statement.
    fn request(&mut self, kind: u8, body: &[u8]) -> bool {
        let mut fields = body.split(|byte| *byte == 0);
        let mut next = || fields.next().unwrap_or_default();
        match kind {
            b'P' => {
                let name = next().to_vec();
                self.statements.insert(name, is_write(next()));
                false
            }
            b'B' => {
                let portal = next().to_vec();
                let writes = self.statements.get(next()).copied().unwrap_or(false);
                self.portals.insert(portal, writes);
                false
            }
            b'E' => {
                let writes = self.portals.get(next()).copied().unwrap_or(false);
                self.has_written |= writes;
                writes && !self.in_transaction
            }
            b'Q' => {
                let text = next();
                if text.starts_with(b"ROLLBACK") {
                    self.has_written = false;
                }
                self.has_written |= is_write(text);
                self.has_written && (text.starts_with(b"COMMIT") || !self.in_transaction)
            }
            _ => false,
        }
    }

    /// Processes a message of the server. Returns whether it confirms such a commit.
    fn answer(&mut self, kind: u8, body: &[u8]) -> bool {
        if kind != b'Z' {
            return false;
        }
        self.in_transaction = body == b"T";
        if body == b"T" {
            return false;
        }
        let committed = self.has_written && body == b"I";
        self.has_written = false;
        committed
    }
}

/// The SQLSTATE of an error message, which is a list of fields with a letter and a text.
fn sqlstate(error: &[u8]) -> Option<String> {
    let code = error.split(|byte| *byte == 0).find(|field| field.first() == Some(&b'C'))?;
    Some(String::from_utf8_lossy(&code[1..]).into_owned())
}

fn is_write(text: &[u8]) -> bool {
    let text = String::from_utf8_lossy(text);
    WRITES.iter().any(|write| text.contains(write))
}

pub async fn read_message(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<(u8, Vec<u8>)> {
    let kind = from.read_u8().await?;
    let length = from.read_i32().await?;
    let mut body = vec![0; usize::try_from(length - 4).unwrap_or(0)];
    from.read_exact(&mut body).await?;
    Ok((kind, body))
}

pub fn encode(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut message = vec![kind];
    message.extend((body.len() as i32 + 4).to_be_bytes());
    message.extend(body);
    message
}
