//! Readers of the tenant that moves. They may be refused, and what they are told is never older than what was told before.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::support::{Answer, Client, pause};

/// A frozen replica does not answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

pub struct Readers {
    stop: Arc<AtomicBool>,
    reader: JoinHandle<u64>,
}

impl Readers {
    /// `key`: a request of the tenant had it.
    pub fn start(tenant: &Client, addresses: [SocketAddr; 2], key: String) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let api_key = tenant.header("x-api-key").expect("a key");
        let replicas = addresses.map(|address| Client::new(address).with("x-api-key", &api_key));
        let reader = tokio::spawn(read(replicas, key, stop.clone()));
        Self { stop, reader }
    }

    /// The number of reads that were answered.
    pub async fn end(self) -> u64 {
        self.stop.store(true, Ordering::Release);
        self.reader.await.expect("a reader")
    }
}

async fn read(replicas: [Client; 2], key: String, stop: Arc<AtomicBool>) -> u64 {
    let (mut answered, mut latest, mut known) = (0, 0, None);
    for client in replicas.iter().cycle().take_while(|_| !stop.load(Ordering::Acquire)) {
        if let Some(answer) = get(client, &format!("/api/v1/idempotency/{key}")).await {
            let text = known.get_or_insert_with(|| answer.text.clone());
            assert!(answer.status == 200 && answer.text == *text, "{answer:?}, before: {text}");
            answered += 1;
        }
        // This pair is recorded only.
        if let Some(answer) = get(client, "/api/v1/usage/plain-0/s0").await {
            let total = answer.json()["total"].as_u64().expect("a total");
            assert!(total >= latest, "{total} after {latest}");
            latest = total;
            answered += 1;
        }
        pause().await;
    }
    answered
}

/// An answer that is not a refusal.
async fn get(client: &Client, path: &str) -> Option<Answer> {
    let answer = tokio::time::timeout(ANSWER_LIMIT, client.try_send("GET", path, None)).await.ok()?.ok()?;
    if answer.status != 503 {
        return Some(answer);
    }
    pause().await;
    None
}
