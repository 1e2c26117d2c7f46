//! Clients that repeat each operation with its key until it is acknowledged, at one replica or the other. An operation
//! depends on the seed and its number only, so that it can be sent a second time.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::tally::{Effect, Tally};
use super::{Answer, Client, usage};

/// Pairs that are only recorded, of which every total tells its place; and agents that are settled and cleared as well.
const PLAIN_AGENTS: u32 = 500;
const BILLED_AGENTS: u32 = 40;
const SERVICES: u32 = 3;

/// How long one operation may take, with all incidents that it meets.
const OPERATION_LIMIT: Duration = Duration::from_secs(180);
const RETRY_PAUSE: Duration = Duration::from_millis(10);

#[derive(Clone)]
pub struct Tenant {
    pub key: Option<String>,
}

impl Tenant {
    pub fn client(&self, client: &Client) -> Client {
        self.key.as_ref().map_or_else(|| client.clone(), |key| client.with("x-api-key", key))
    }
}

struct Shared {
    operations: Range<u64>,
    seed: u64,
    /// All of them were sent before.
    is_repetition: bool,
    next: AtomicU64,
    acknowledged: AtomicU64,
    tenants: Vec<Tenant>,
}

pub struct Load {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<Tally>>,
}

impl Load {
    /// Registers the services that the operations use.
    pub async fn register_services(client: &Client, tenants: &[Tenant]) {
        for tenant in tenants {
            for service in 0..SERVICES {
                let body = json!({ "serviceId": format!("s{service}"), "priceStroops": service });
                assert_eq!(tenant.client(client).post("/api/v1/services", &body).await.status, 201);
            }
        }
    }

    pub fn start(
        operations: Range<u64>,
        clients: u64,
        seed: u64,
        addresses: [SocketAddr; 2],
        tenants: Vec<Tenant>,
    ) -> Self {
        Self::begin(operations, clients, seed, addresses, tenants, false)
    }

    /// Sends the keyed ones of these operations a second time.
    pub fn send_again(
        operations: Range<u64>,
        clients: u64,
        seed: u64,
        addresses: [SocketAddr; 2],
        tenants: Vec<Tenant>,
    ) -> Self {
        Self::begin(operations, clients, seed, addresses, tenants, true)
    }

    fn begin(
        operations: Range<u64>,
        clients: u64,
        seed: u64,
        addresses: [SocketAddr; 2],
        tenants: Vec<Tenant>,
        is_repetition: bool,
    ) -> Self {
        let http = addresses.map(Client::new);
        let (next, acknowledged) = (AtomicU64::new(operations.start), AtomicU64::new(0));
        let shared = Arc::new(Shared { operations, seed, is_repetition, next, acknowledged, tenants });
        let clients = (0..clients).map(|_| tokio::spawn(run(shared.clone(), http.clone())));
        Self { clients: clients.collect(), shared }
    }

    pub fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Acquire)
    }

    /// Waits until so many operations are acknowledged. False if all of them are.
    pub async fn reach(&self, goal: u64, mut meanwhile: impl FnMut()) -> bool {
        let limit = Instant::now() + 2 * OPERATION_LIMIT;
        loop {
            let acknowledged = self.acknowledged();
            let all = self.shared.operations.end - self.shared.operations.start;
            let is_over = acknowledged >= all || self.clients.iter().any(JoinHandle::is_finished);
            if is_over || acknowledged >= goal {
                return !is_over;
            }
            assert!(Instant::now() < limit, "nothing is acknowledged any more");
            meanwhile();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn end(self) -> Tally {
        let mut tally = Tally::default();
        for client in self.clients {
            tally.add(client.await.expect("a client"));
        }
        tally.tenants = Arc::into_inner(self.shared).expect("all clients are gone").tenants;
        tally
    }
}

async fn run(shared: Arc<Shared>, http: [Client; 2]) -> Tally {
    let mut tally = Tally::default();
    loop {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        if number >= shared.operations.end {
            return tally;
        }
        let mut rng = StdRng::seed_from_u64(shared.seed.wrapping_add(1 + number));
        let tenant = rng.random_range(0..shared.tenants.len());
        let clients = http.each_ref().map(|client| shared.tenants[tenant].client(client));
        let operation = Operation::choose(&mut rng);
        let first = rng.random_range(0..2);
        if let Operation::Unkeyed = operation {
            if !shared.is_repetition {
                send_once(&clients[first], &mut tally, tenant).await;
            }
        } else {
            let key = format!("op-{number}");
            let clients = clients.map(|client| client.key(&key));
            let answers = if rng.random_range(0..50) == 0 {
                // Two requests with one key, each with faults of its own.
                let mut other = Tally::default();
                let repeat = send_until_acknowledged(&clients[1 - first], &clients[first], &operation, &mut other);
                let both = tokio::join!(
                    send_until_acknowledged(&clients[first], &clients[1 - first], &operation, &mut tally),
                    repeat
                );
                tally.duplicates += 1;
                tally.add(other);
                vec![both.0, both.1]
            } else {
                vec![send_until_acknowledged(&clients[first], &clients[1 - first], &operation, &mut tally).await]
            };
            tally.note(number, tenant, &operation.effects(&answers[0]), &answers, shared.is_repetition);
        }
        shared.acknowledged.fetch_add(1, Ordering::AcqRel);
    }
}

/// An acknowledged answer. Whether the request may have been executed before, by a try without this answer: it got lost, or
/// the request reached its deadline while its COMMIT or that of its twin was in doubt.
pub struct Acknowledged {
    pub answer: Answer,
    pub may_be_repeated: bool,
}

async fn send_until_acknowledged(
    first: &Client,
    second: &Client,
    operation: &Operation,
    tally: &mut Tally,
) -> Acknowledged {
    let began = Instant::now();
    let (method, path, body) = operation.request();
    let body = body.to_string();
    let mut may_be_repeated = false;
    for client in [first, second].into_iter().cycle() {
        match client.try_send(method, &path, Some(body.clone().into_bytes())).await {
            Ok(answer) if matches!(answer.status, 200 | 201 | 404) => {
                tally.replays += u64::from(answer.replayed);
                return Acknowledged { answer, may_be_repeated };
            }
            Ok(answer) if answer.status == 503 && answer.text.contains("unknown") => {
                may_be_repeated = true;
                tally.unknown += 1;
            }
            Ok(answer) => {
                assert!(matches!(answer.status, 503 | 409) && answer.header("retry-after") == "1", "{answer:?}");
                may_be_repeated |= answer.status == 409;
                tally.refused += 1;
            }
            Err(_) => {
                may_be_repeated = true;
                tally.lost += 1;
            }
        }
        tally.retries += 1;
        assert!(began.elapsed() < OPERATION_LIMIT, "{method} {path} is never acknowledged");
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    unreachable!("a cycle has no end")
}

/// Without a key nothing is repeated, and an outcome may stay unknown.
async fn send_once(client: &Client, tally: &mut Tally, tenant: usize) {
    let body = Operation::Unkeyed.request().2.to_string().into_bytes();
    let unkeyed = tally.unkeyed.entry(tenant).or_default();
    match client.try_send("POST", "/api/v1/usage", Some(body)).await {
        Ok(answer) if answer.status == 201 => unkeyed.acknowledged += 1,
        Ok(answer) if answer.text.contains("nothing was changed") => tally.refused += 1,
        Ok(answer) => {
            assert!(answer.status == 503 && answer.text.contains("unknown"), "{answer:?}");
            unkeyed.unknown += 1;
        }
        Err(_) => unkeyed.unknown += 1,
    }
}

enum Operation {
    Record { agent: String, requests: i64 },
    Bulk(Vec<(String, i64)>),
    Bill { agent: String, service: u32, requests: i64 },
    Settle { agent: String, service: u32 },
    SettleAgent { agent: String },
    Clear { agent: String, service: u32 },
    Unkeyed,
}

impl Operation {
    fn choose(rng: &mut StdRng) -> Self {
        let plain = |rng: &mut StdRng| {
            // One agent in five records is hot.
            let number = if rng.random_range(0..5) == 0 { 0 } else { rng.random_range(0..PLAIN_AGENTS) };
            format!("plain-{number}")
        };
        let billed = |rng: &mut StdRng| {
            (format!("billed-{}", rng.random_range(0..BILLED_AGENTS)), rng.random_range(0..SERVICES))
        };
        match rng.random_range(0..100) {
            0..62 => Self::Record { agent: plain(rng), requests: rng.random_range(1..5) },
            62..70 => Self::Bulk((0..5).map(|_| (plain(rng), rng.random_range(1..5))).collect()),
            70..85 => {
                let (agent, service) = billed(rng);
                Self::Bill { agent, service, requests: rng.random_range(1..5) }
            }
            85..91 => {
                let (agent, service) = billed(rng);
                Self::Settle { agent, service }
            }
            91..94 => Self::SettleAgent { agent: billed(rng).0 },
            94..97 => {
                let (agent, service) = billed(rng);
                Self::Clear { agent, service }
            }
            _ => Self::Unkeyed,
        }
    }

    fn request(&self) -> (&'static str, String, Value) {
        let post = |path: &str, body: Value| ("POST", format!("/api/v1/{path}"), body);
        match self {
            Self::Record { agent, requests } => post("usage", usage(agent, "s0", *requests)),
            Self::Bulk(items) => {
                let items = items.iter().map(|(agent, requests)| usage(agent, "s0", *requests));
                post("usage/bulk", json!({ "items": items.collect::<Vec<_>>() }))
            }
            Self::Bill { agent, service, requests } => post("usage", usage(agent, &format!("s{service}"), *requests)),
            Self::Settle { agent, service } => {
                post("settle", json!({ "agent": agent, "serviceId": format!("s{service}") }))
            }
            Self::SettleAgent { agent } => post("settle/bulk", json!({ "agent": agent })),
            Self::Clear { agent, service } => ("DELETE", format!("/api/v1/usage/{agent}/s{service}"), Value::Null),
            Self::Unkeyed => post("usage", usage("unkeyed", "s0", 1)),
        }
    }

    /// What was done, as its answer tells.
    fn effects(&self, acknowledged: &Acknowledged) -> Vec<Effect> {
        let body = acknowledged.answer.json();
        let number = |value: &Value| value.as_i64().expect("a number");
        match self {
            Self::Record { agent, requests } => {
                vec![Effect::Total { agent: agent.clone(), requests: *requests, total: number(&body["total"]) }]
            }
            Self::Bulk(items) => {
                let results = body["results"].as_array().expect("results");
                let totals = items.iter().zip(results).map(|((agent, requests), result)| Effect::Total {
                    agent: agent.clone(),
                    requests: *requests,
                    total: number(&result["total"]),
                });
                totals.collect()
            }
            Self::Bill { requests, .. } => vec![Effect::Recorded(*requests)],
            Self::Settle { .. } => vec![Effect::Settled(number(&body["requests"]), number(&body["billedStroops"]))],
            Self::SettleAgent { .. } => {
                let due = body["items"].as_array().expect("items").iter().filter(|item| item["requests"] != 0);
                due.map(|item| Effect::Settled(number(&item["requests"]), number(&item["billedStroops"]))).collect()
            }
            // Of a pair that was never recorded there is nothing to clear.
            Self::Clear { .. } if acknowledged.answer.status == 404 => Vec::new(),
            Self::Clear { .. } => vec![Effect::Cleared(number(&body["clearedTotal"]))],
            Self::Unkeyed => Vec::new(),
        }
    }
}
