//! A connection pooler in front of PostgreSQL, as far as a failover needs one. When a server disappears, it keeps the
//! connections of clients and continues them on another server, where it repeats the settings and prepared statements
//! of the session. Only clients within a transaction or a statement are disconnected.

use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Result};
use std::sync::Arc;

use sqlx::postgres::PgConnectOptions;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::{mpsc, watch};

use super::proxy::{encode, read_message, through};

type Message = (u8, Vec<u8>);

/// The server that clients are connected to; `None` while there is none.
#[derive(Clone)]
struct Target {
    /// Connections to a server with another number are not used any more.
    number: u32,
    server: Option<PgConnectOptions>,
}

pub struct Pooler {
    options: PgConnectOptions,
    target: Arc<watch::Sender<Target>>,
}

impl Pooler {
    /// For a server on a Unix socket that needs no password.
    pub async fn start(server: PgConnectOptions) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let options = through(&server, port);
        let target = Arc::new(watch::Sender::new(Target { number: 0, server: Some(server) }));
        let pooler = Self { options, target: target.clone() };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // If it ends with an error, its client notices.
                tokio::spawn(serve(client, target.subscribe()));
            }
        });
        pooler
    }

    pub fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// Holds what clients send until there is a server again.
    pub fn pause(&self) {
        self.target.send_modify(|target| target.server = None);
    }

    pub fn lead_to(&self, server: PgConnectOptions) {
        self.target.send_modify(|target| *target = Target { number: target.number + 1, server: Some(server) });
    }
}

struct Server {
    number: u32,
    requests: OwnedWriteHalf,
    answers: mpsc::Receiver<Message>,
}

/// What a new server must be sent.
struct Session {
    startup: Vec<u8>,
    settings: Vec<Vec<u8>>,
    statements: BTreeMap<Vec<u8>, Vec<u8>>,
}

async fn serve(client: TcpStream, mut target: watch::Receiver<Target>) -> Result<()> {
    client.set_nodelay(true)?;
    let (mut from_client, mut to_client) = client.into_split();
    // The first message has no type.
    let length = from_client.read_i32().await?;
    let mut startup = length.to_be_bytes().to_vec();
    startup.resize(usize::try_from(length).unwrap_or(4), 0);
    from_client.read_exact(&mut startup[4..]).await?;
    let mut requests = messages(from_client);
    let mut session = Session { startup, settings: Vec::new(), statements: BTreeMap::new() };
    let (server, greeting) = session.connect(&mut target).await?;
    to_client.write_all(&greeting).await?;
    let (mut server, mut in_transaction) = (Some(server), false);
    loop {
        let unasked = async {
            match &mut server {
                Some(server) => server.answers.recv().await,
                None => std::future::pending().await,
            }
        };
        let request = tokio::select! {
            request = requests.recv() => request.ok_or(ErrorKind::UnexpectedEof)?,
            // For example a notification. The last error of a server that ends is dropped.
            unasked = unasked => match unasked {
                Some((b'E', _)) => continue,
                Some((kind, body)) => {
                    to_client.write_all(&encode(kind, &body)).await?;
                    continue;
                }
                None if in_transaction => return Err(ErrorKind::UnexpectedEof.into()),
                None => {
                    server = None;
                    continue;
                }
            },
        };
        let is_current = |server: &Server| server.number == target.borrow().number && target.borrow().server.is_some();
        let open = match server.take().filter(is_current) {
            Some(open) => open,
            None if in_transaction => return Err(ErrorKind::UnexpectedEof.into()),
            None => session.connect(&mut target).await?.0,
        };
        let open = server.insert(open);
        in_transaction = session.exchange(request, &mut requests, open, &mut to_client).await?;
    }
}

impl Session {
    /// Opens a session like this one at the current server. Also returns the server's first messages.
    async fn connect(&self, target: &mut watch::Receiver<Target>) -> Result<(Server, Vec<u8>)> {
        let Target { number, server } =
            target.wait_for(|target| target.server.is_some()).await.map_err(Error::other)?.clone();
        let server = server.expect("waited for");
        let socket = server.get_socket().expect("a Unix socket").join(format!(".s.PGSQL.{}", server.get_port()));
        let (from_server, requests) = UnixStream::connect(socket).await?.into_split();
        let mut server = Server { number, requests, answers: messages(from_server) };
        server.requests.write_all(&self.startup).await?;
        let greeting = server.answer().await?;
        for setting in &self.settings {
            server.requests.write_all(&encode(b'Q', setting)).await?;
            server.answer().await?;
        }
        for statement in self.statements.values() {
            server.requests.write_all(&encode(b'P', statement)).await?;
        }
        server.requests.write_all(&encode(b'S', &[])).await?;
        server.answer().await?;
        Ok((server, greeting))
    }

    /// Forwards a request and its response. Returns whether a transaction is then open.
    async fn exchange(
        &mut self,
        first: Message,
        requests: &mut mpsc::Receiver<Message>,
        server: &mut Server,
        to_client: &mut (impl AsyncWriteExt + Unpin),
    ) -> Result<bool> {
        let mut next = Some(first);
        loop {
            let (kind, body) = next.ok_or(ErrorKind::UnexpectedEof)?;
            self.note(kind, &body);
            server.requests.write_all(&encode(kind, &body)).await?;
            if matches!(kind, b'S' | b'Q') {
                break;
            }
            next = requests.recv().await;
        }
        let answer = server.answer().await?;
        to_client.write_all(&answer).await?;
        Ok(answer.last() != Some(&b'I'))
    }

    fn note(&mut self, kind: u8, body: &[u8]) {
        match kind {
            b'P' if body.first() != Some(&0) => {
                let name = body.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
                self.statements.insert(name, body.to_vec());
            }
            b'C' if body.first() == Some(&b'S') => {
                self.statements.remove(body[1..].strip_suffix(&[0]).unwrap_or_default());
            }
            b'Q' if body.starts_with(b"SET ") => self.settings.push(body.to_vec()),
            _ => {}
        }
    }
}

impl Server {
    /// Returns all messages up to ReadyForQuery.
    async fn answer(&mut self) -> Result<Vec<u8>> {
        let mut answer = Vec::new();
        loop {
            let (kind, body) = self.answers.recv().await.ok_or(ErrorKind::UnexpectedEof)?;
            answer.extend(encode(kind, &body));
            if kind == b'Z' {
                return Ok(answer);
            }
        }
    }
}

/// Sends incoming messages to a channel until the connection ends.
fn messages(mut from: impl AsyncRead + Send + Unpin + 'static) -> mpsc::Receiver<Message> {
    let (sender, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        while let Ok(message) = read_message(&mut from).await {
            if sender.send(message).await.is_err() {
                return;
            }
        }
    });
    receiver
}
