//! Clients that repeat each operation with its key until it is acknowledged, at one replica or the other. An operation
//! depends on the seed and its number only, so that it can be sent a second time.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use tokio::task::JoinHandle;

use super::operation::{Operation, SERVICES};
use super::tally::Tally;
use super::{Answer, Client};

type Sent = JoinHandle<Result<Answer, reqwest::Error>>;

/// How long one operation may take, with all incidents that it meets.
const OPERATION_LIMIT: Duration = Duration::from_secs(180);
const RETRY_PAUSE: Duration = Duration::from_millis(10);

/// The operations of a load that goes on until it is stopped.
const ENDLESS: Range<u64> = 0..1 << 62;

/// How a client behaves.
#[derive(Clone, Copy)]
pub struct Pace {
    /// How long it waits for an answer before it sends the request to the other replica. The answer may still come.
    pub answer_limit: Duration,
    /// The pause after an operation.
    pub pause: Duration,
}

const FULL_SPEED: Pace = Pace { answer_limit: OPERATION_LIMIT, pause: Duration::ZERO };

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
    pace: Pace,
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
        Self::begin(operations, clients, seed, addresses, tenants, (false, FULL_SPEED))
    }

    /// Goes on until [`Self::stop`].
    pub fn start_endless(
        clients: u64,
        seed: u64,
        addresses: [SocketAddr; 2],
        tenants: Vec<Tenant>,
        pace: Pace,
    ) -> Self {
        Self::begin(ENDLESS, clients, seed, addresses, tenants, (false, pace))
    }

    /// Begins no more operations of an endless load. Returns those that were begun.
    pub fn stop(&self) -> Range<u64> {
        0..self.shared.next.fetch_add(ENDLESS.end, Ordering::Relaxed)
    }

    /// Sends the keyed ones of these operations a second time.
    pub fn send_again(
        operations: Range<u64>,
        clients: u64,
        seed: u64,
        addresses: [SocketAddr; 2],
        tenants: Vec<Tenant>,
    ) -> Self {
        Self::begin(operations, clients, seed, addresses, tenants, (true, FULL_SPEED))
    }

    fn begin(
        operations: Range<u64>,
        clients: u64,
        seed: u64,
        addresses: [SocketAddr; 2],
        tenants: Vec<Tenant>,
        (is_repetition, pace): (bool, Pace),
    ) -> Self {
        let http = addresses.map(Client::new);
        let (next, acknowledged) = (AtomicU64::new(operations.start), AtomicU64::new(0));
        let shared = Arc::new(Shared { operations, seed, is_repetition, pace, next, acknowledged, tenants });
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

/// An operation that was acknowledged before all of its answers came.
struct Late {
    number: u64,
    text: String,
    has_first_answer: bool,
    sent: Vec<Sent>,
}

async fn run(shared: Arc<Shared>, http: [Client; 2]) -> Tally {
    let (mut tally, mut late) = (Tally::default(), Vec::new());
    loop {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        if number >= shared.operations.end {
            await_late(late).await;
            return tally;
        }
        let mut rng = StdRng::seed_from_u64(shared.seed.wrapping_add(1 + number));
        let tenant = rng.random_range(0..shared.tenants.len());
        let clients = http.each_ref().map(|client| shared.tenants[tenant].client(client));
        let operation = Operation::choose(&mut rng);
        let first = rng.random_range(0..2);
        let (began, mut sent) = (Instant::now(), Vec::new());
        if let Operation::Unkeyed = operation {
            if !shared.is_repetition {
                sent.extend(send_once(&clients[first], shared.pace, &mut tally, tenant).await);
            }
            late.push(Late { number, text: String::new(), has_first_answer: false, sent });
        } else {
            let key = format!("op-{number}");
            let clients = clients.map(|client| client.key(&key));
            let (one, other) = (&clients[first], &clients[1 - first]);
            let mut answers = Vec::new();
            if rng.random_range(0..50) == 0 {
                // Two requests with one key, each with faults of its own.
                let mut own = Tally::default();
                let both = tokio::join!(
                    send_until_acknowledged(one, other, &operation, shared.pace, &mut tally),
                    send_until_acknowledged(other, one, &operation, shared.pace, &mut own)
                );
                tally.duplicates += 1;
                tally.add(own);
                answers.extend([both.0, both.1]);
            } else {
                answers.push(send_until_acknowledged(one, other, &operation, shared.pace, &mut tally).await);
            }
            tally.times.entry(tenant).or_default().push(began.elapsed());
            tally.note(number, tenant, &operation.effects(&answers[0].answer), &answers, shared.is_repetition);
            let has_first_answer = answers.iter().any(|one| !one.answer.replayed);
            let text = std::mem::take(&mut answers[0].answer.text);
            sent.extend(answers.into_iter().flat_map(|one| one.late));
            late.push(Late { number, text, has_first_answer, sent });
        }
        late.retain(|late: &Late| !late.sent.is_empty());
        shared.acknowledged.fetch_add(1, Ordering::AcqRel);
        tokio::time::sleep(shared.pace.pause).await;
    }
}

/// Late answers, too, are those of one execution.
async fn await_late(late: Vec<Late>) {
    for Late { number, text, mut has_first_answer, sent } in late {
        for sent in sent {
            let Ok(answer) = sent.await.expect("a task") else { continue };
            // An answer without a key has nothing to be compared with.
            if is_acknowledgement(&answer) && !text.is_empty() {
                assert_eq!(answer.text, text, "op-{number} was answered in two ways");
                assert!(answer.replayed || !has_first_answer, "op-{number} was executed twice");
                has_first_answer |= !answer.replayed;
            }
        }
    }
}

fn is_acknowledgement(answer: &Answer) -> bool {
    matches!(answer.status, 200 | 201 | 404)
}

/// An acknowledged answer. Whether the request may have been executed before, by a try without this answer: it got lost, or
/// the request reached its deadline while its COMMIT or that of its twin was in doubt.
pub struct Acknowledged {
    pub answer: Answer,
    pub may_be_repeated: bool,
    /// Tries that were not answered in time.
    late: Vec<Sent>,
}

async fn send_until_acknowledged(
    first: &Client,
    second: &Client,
    operation: &Operation,
    pace: Pace,
    tally: &mut Tally,
) -> Acknowledged {
    let began = Instant::now();
    let (mut may_be_repeated, mut late) = (false, Vec::new());
    for client in [first, second].into_iter().cycle() {
        let mut sent = send(client, operation);
        match tokio::time::timeout(pace.answer_limit, &mut sent).await.map(|ended| ended.expect("a task")) {
            Ok(Ok(answer)) if is_acknowledgement(&answer) => {
                tally.replays += u64::from(answer.replayed);
                return Acknowledged { answer, may_be_repeated, late };
            }
            Ok(Ok(answer)) if answer.status == 503 && answer.text.contains("unknown") => {
                may_be_repeated = true;
                tally.unknown += 1;
            }
            Ok(Ok(answer)) => {
                assert!(matches!(answer.status, 503 | 409) && answer.header("retry-after") == "1", "{answer:?}");
                may_be_repeated |= answer.status == 409;
                tally.refused += 1;
            }
            Ok(Err(_)) => {
                may_be_repeated = true;
                tally.lost += 1;
            }
            Err(_) => {
                may_be_repeated = true;
                tally.late += 1;
                late.push(sent);
            }
        }
        tally.retries += 1;
        assert!(began.elapsed() < OPERATION_LIMIT, "{:?} is never acknowledged", operation.request());
        tokio::time::sleep(RETRY_PAUSE).await;
    }
    unreachable!("a cycle has no end")
}

/// Sends a request in a task, so that it goes on when nobody waits for its answer.
fn send(client: &Client, operation: &Operation) -> Sent {
    let (method, path, body) = operation.request();
    let client = client.clone();
    tokio::spawn(async move { client.try_send(method, &path, Some(body.to_string().into_bytes())).await })
}

/// Without a key nothing is repeated, and an outcome may stay unknown. Returns a try that was not answered in time.
async fn send_once(client: &Client, pace: Pace, tally: &mut Tally, tenant: usize) -> Option<Sent> {
    let unkeyed = tally.unkeyed.entry(tenant).or_default();
    let mut sent = send(client, &Operation::Unkeyed);
    match tokio::time::timeout(pace.answer_limit, &mut sent).await.map(|ended| ended.expect("a task")) {
        Ok(Ok(answer)) if answer.status == 201 => unkeyed.acknowledged += 1,
        Ok(Ok(answer)) if answer.text.contains("nothing was changed") => tally.refused += 1,
        Ok(Ok(answer)) => {
            assert!(answer.status == 503 && answer.text.contains("unknown"), "{answer:?}");
            unkeyed.unknown += 1;
        }
        Ok(Err(_)) => unkeyed.unknown += 1,
        Err(_) => {
            unkeyed.unknown += 1;
            return Some(sent);
        }
    }
    None
}
