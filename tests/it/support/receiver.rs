//! A webhook receiver on a real socket. It stores what it receives, and responds as the test wants.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::serve::Listener;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Issued, LIMIT};

/// How a receiver responds.
#[derive(Clone, Copy, Debug)]
pub enum Behaviour {
    Status(u16),
    /// A status, and the value of `Retry-After`.
    RetryAfter(u16, &'static str),
    /// No response.
    Silence,
}

/// A request that was received.
#[derive(Clone, Debug)]
pub struct Received {
    pub method: Method,
    pub path: String,
    pub headers: HeaderMap,
    pub body: String,
}

impl Received {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }
}

#[derive(Clone)]
pub struct Receiver {
    pub url: String,
    shared: Arc<Shared>,
}

struct Shared {
    received: watch::Sender<Vec<Received>>,
    /// The next responses. After them, 200.
    script: Mutex<VecDeque<Behaviour>>,
    usual: Mutex<Behaviour>,
}

impl Receiver {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        Self { url: format!("http://{address}/hook"), shared: serve(listener) }
    }

    /// The same with TLS, by the name `localhost`.
    pub async fn start_tls(issued: &Issued) -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = tcp.local_addr().expect("its address").port();
        let certificate = CertificateDer::from_pem_file(&issued.certificate).expect("a certificate");
        let key = PrivateKeyDer::from_pem_file(&issued.key).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the default versions")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .expect("a certificate with its key");
        let listener = TlsListener { tcp, acceptor: TlsAcceptor::from(Arc::new(config)) };
        Self { url: format!("https://localhost:{port}/hook"), shared: serve(listener) }
    }

    /// Sets the next responses, before the usual one.
    pub fn answer(&self, behaviours: &[Behaviour]) {
        self.shared.script.lock().expect("script").extend(behaviours);
    }

    pub fn usually(&self, behaviour: Behaviour) {
        *self.shared.usual.lock().expect("usual") = behaviour;
    }

    pub fn received(&self) -> Vec<Received> {
        self.shared.received.borrow().clone()
    }

    /// Waits until `count` requests have arrived, and returns them.
    pub async fn reach(&self, count: usize) -> Vec<Received> {
        let mut received = self.shared.received.subscribe();
        let reached = received.wait_for(|received| received.len() >= count);
        let reached = tokio::time::timeout(LIMIT, reached).await;
        assert!(reached.is_ok(), "{} of {count} deliveries arrived", self.received().len());
        self.received()
    }
}

fn serve(listener: impl Listener<Addr = SocketAddr>) -> Arc<Shared> {
    let shared = Arc::new(Shared {
        received: watch::Sender::new(Vec::new()),
        script: Mutex::default(),
        usual: Mutex::new(Behaviour::Status(200)),
    });
    let router = Router::new().fallback(receive).with_state(shared.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    shared
}

struct TlsListener {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    /// The next client that agrees on TLS: others have found fault with the certificate.
    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.tcp).await;
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.tcp.local_addr()
    }
}

async fn receive(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let body = String::from_utf8(body.to_vec()).expect("UTF-8");
    let received = Received { method, path: uri.path().to_owned(), headers, body };
    shared.received.send_modify(|all| all.push(received));
    let scripted = shared.script.lock().expect("script").pop_front();
    match scripted.unwrap_or_else(|| *shared.usual.lock().expect("usual")) {
        Behaviour::Status(status) => {
            let status = StatusCode::from_u16(status).expect("a status");
            (status, [(header::LOCATION, "/elsewhere")], "never read").into_response()
        }
        Behaviour::RetryAfter(status, value) => {
            (StatusCode::from_u16(status).expect("a status"), [(header::RETRY_AFTER, value)]).into_response()
        }
        Behaviour::Silence => std::future::pending().await,
    }
}
