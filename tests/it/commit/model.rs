//! Random requests of three tenants at two replicas on one database, several in flight at a time, against a small model:
//! for every round there is an order of its requests that explains all answers, byte for byte, and at the end everything
//! that can be read agrees with the model. `MODEL_CASES` sets how many sequences of about 500 requests are tried,
//! `MODEL_SEED` repeats a run.

mod expected;
mod sequence;
mod state;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::test_runner::{Config, RngSeed, TestRunner};
use serde_json::json;

use crate::support::{Answer, BLOCKED, Client, Process, Receiver, Service, foreign_clock, new_database, wait_until};

use expected::Expected;
use sequence::{NAMES, Operation, SKEW_MS, SUBSCRIPTIONS, Second, Step, TENANTS, Wish, second, step};
use state::State;

/// The machine takes a while for a case, and no record may expire but when the case says so.
const TTL_MS: i64 = 3_600_000;

const ROUNDS: usize = 120;

const ENVIRONMENT: &[(&str, &str)] =
    &[("IDEMPOTENCY_CACHE_TTL_MS", "3600000"), ("JANITOR_INTERVAL_MS", "3600000"), ("WEBHOOK_ALLOW_PRIVATE", "true")];

/// A request as it is sent, and what was answered.
#[derive(Clone, Debug)]
struct Sent {
    operation: Operation,
    key: Option<u8>,
    method: &'static str,
    path: String,
    body: String,
    request_id: String,
    answer: Option<Answer>,
}

impl Sent {
    fn new(operation: Operation, key: Option<u8>, request_id: String) -> Self {
        let (method, path, body) = operation.request();
        Self { operation, key, method, path, body: body.to_string(), request_id, answer: None }
    }

    fn answer(&self) -> &Answer {
        self.answer.as_ref().expect("an answer")
    }

    /// Whether the request was executed, and changed something.
    fn was_executed(&self) -> bool {
        !self.answer().replayed && self.answer().status < 300
    }
}

/// One tenant: its clients, one for each replica, and what is known of it.
struct Tenant {
    id: String,
    clients: Vec<Client>,
    /// All states that explain the answers so far: a request whose answer tells nothing of its place leaves a choice.
    states: HashSet<State>,
    expected: Expected,
    /// Keyed requests, to be sent again.
    keyed: Vec<Sent>,
    webhooks: Vec<String>,
}

impl Tenant {
    /// What is sent for a wish.
    fn prepare(&mut self, wish: &Wish, receiver: &Receiver, request_id: &str) -> Sent {
        let sent = |key: Option<u8>, operation: Operation| Sent::new(operation, key, request_id.to_owned());
        let latest = |len: usize, index: usize| len.checked_sub(1 + index.min(len.saturating_sub(1)));
        let sent = match wish {
            Wish::Do(_, read @ (Operation::ReadPair { .. } | Operation::ReadAgent { .. })) => sent(None, read.clone()),
            Wish::Do(key, operation) => sent(*key, operation.clone()),
            Wish::Again(index) => match latest(self.keyed.len(), *index) {
                Some(index) => Sent { request_id: request_id.to_owned(), ..self.keyed[index].clone() },
                None => sent(None, Operation::ReadAgent { agent: 0 }),
            },
            Wish::CreateWebhook(subscription) => {
                let url = format!("{}/{request_id}", receiver.url);
                sent(None, Operation::CreateWebhook { url, events: SUBSCRIPTIONS[*subscription] })
            }
            Wish::DeleteWebhook(index) => {
                let unknown = || "wh_0123456789abcdef".to_owned();
                let id = latest(self.webhooks.len(), *index).map_or_else(unknown, |index| self.webhooks[index].clone());
                sent(None, Operation::DeleteWebhook { id })
            }
        };
        if sent.key.is_some() {
            self.keyed.push(sent.clone());
        }
        sent
    }

    /// Finds the orders of a round's requests that explain their answers.
    fn judge(&mut self, round: usize, sent: &[Sent]) {
        let mut reached: HashSet<(u64, State)> = self.states.iter().map(|state| (0, state.clone())).collect();
        for _ in sent {
            let mut next = HashSet::new();
            for (done, state) in &reached {
                for (index, one) in sent.iter().enumerate().filter(|(index, _)| done >> index & 1 == 0) {
                    next.extend(state.after(one).map(|after| (done | 1 << index, after)));
                }
            }
            assert!(!next.is_empty(), "no order explains {}\nfrom one of {:#?}", told(sent), self.states);
            reached = next;
        }
        self.states = reached.into_iter().map(|(_, state)| state).collect();
        for one in sent.iter().filter(|one| one.was_executed()) {
            self.expected.note(round, one, &self.id);
            if let Operation::CreateWebhook { .. } = one.operation {
                self.webhooks.push(one.answer().json()["id"].as_str().expect("an id").to_owned());
            }
        }
    }
}

fn told(sent: &[Sent]) -> String {
    let line = |one: &Sent| {
        let answer = one.answer();
        let mark = if answer.replayed { " (replayed)" } else { "" };
        format!("  {} {} {} {:?}: {}{mark} {}", one.method, one.path, one.body, one.key, answer.status, answer.text)
    };
    format!("\n{}", sent.iter().map(line).collect::<Vec<_>>().join("\n"))
}

fn key_name(key: u8) -> String {
    format!("key-{key}")
}

async fn send(client: &Client, mut sent: Sent) -> Sent {
    let mut client = client.with("x-request-id", &sent.request_id);
    if let Some(key) = sent.key {
        client = client.key(&key_name(key));
    }
    let body = (sent.body != "null").then_some(sent.body.as_str());
    sent.answer = Some(client.send(sent.method, &sent.path, body).await);
    sent
}

struct Case {
    /// The first one, and the second one if it is in this process.
    replicas: Vec<Service>,
    _elsewhere: Option<Process>,
    tenants: Vec<Tenant>,
    receiver: Receiver,
    requests: usize,
}

impl Case {
    async fn start(second: Second) -> Self {
        let database = new_database().await;
        let mut replicas = vec![Service::start_on(database.clone(), ENVIRONMENT).await];
        let (mut clients, mut elsewhere) = (vec![replicas[0].client()], None);
        match second {
            Second::Here(skew_ms) => {
                let service = Service::start_on(database, ENVIRONMENT).await;
                service.clock.advance_ms(skew_ms);
                clients.push(service.client());
                replicas.push(service);
            }
            Second::Elsewhere(offset) => {
                let clock = foreign_clock(offset).unwrap_or_default();
                let environment = [ENVIRONMENT, &clock].concat();
                let process = match replicas[0].cells_file() {
                    Some(file) => Process::start_with(&[&environment[..], &[file]].concat(), 0),
                    None => Process::start_on(&database, &environment),
                };
                let client = process.client();
                let is_whole = async || !client.get("/api/v1/health/ready").await.text.contains("unavailableCells");
                wait_until(is_whole).await;
                clients.push(client);
                elsewhere = Some(process);
            }
        }
        let mut tenants = Vec::new();
        for number in 0..TENANTS {
            let (mut id, mut clients) = ("public".to_owned(), clients.clone());
            if number > 0 {
                // Each replica meets another key of the tenant.
                let mut label = json!({ "label": "l" });
                for client in &mut clients {
                    let made = client.post("/api/v1/api-keys", &label).await.json();
                    id = made["tenantId"].as_str().expect("an id").to_owned();
                    label["tenantId"] = json!(id);
                    *client = client.with("x-api-key", made["key"].as_str().expect("a key"));
                }
            }
            let (states, expected) = (HashSet::from([State::default()]), Expected::default());
            tenants.push(Tenant { id, clients, states, expected, keyed: Vec::new(), webhooks: Vec::new() });
        }
        Self { replicas, _elsewhere: elsewhere, tenants, receiver: Receiver::start().await, requests: 0 }
    }

    async fn round(&mut self, number: usize, wishes: &[(usize, usize, Wish)], is_held_up: bool, prunes: Option<usize>) {
        let mut tables = Vec::new();
        for pool in self.replicas[0].pools().into_iter().filter(|_| is_held_up) {
            let mut table = pool.begin().await.expect("begin");
            let lock = "LOCK TABLE usage_counters IN SHARE ROW EXCLUSIVE MODE";
            sqlx::query(lock).execute(&mut *table).await.expect("a lock");
            tables.push(table);
        }
        let mut tasks = Vec::new();
        for (tenant, replica, wish) in wishes {
            self.requests += 1;
            let request_id = format!("r{}", self.requests);
            let sent = self.tenants[*tenant].prepare(wish, &self.receiver, &request_id);
            let client = self.tenants[*tenant].clients[*replica].clone();
            tasks.push((*tenant, tokio::spawn(async move { send(&client, sent).await })));
        }
        if is_held_up {
            let is_met =
                async || tasks.iter().all(|(_, task)| task.is_finished()) || self.replicas[0].number(BLOCKED).await > 0;
            wait_until(is_met).await;
        }
        for table in tables {
            table.rollback().await.expect("rollback");
        }
        if let Some(replica) = prunes.and_then(|replica| self.replicas.get(replica)) {
            replica.run_janitors().await;
        }
        let mut answered: HashMap<usize, Vec<Sent>> = HashMap::new();
        for (tenant, task) in tasks {
            answered.entry(tenant).or_default().push(task.await.expect("a client"));
        }
        for (tenant, sent) in answered {
            self.tenants[tenant].judge(number, &sent);
        }
    }

    async fn expire(&mut self) {
        self.replicas[0].age_records(TTL_MS + SKEW_MS.end - SKEW_MS.start).await;
        for tenant in &mut self.tenants {
            tenant.states = tenant.states.drain().map(State::without_keys).collect();
        }
    }

    /// Compares everything that can be read.
    async fn end(mut self) {
        for (number, tenant) in self.tenants.iter_mut().enumerate() {
            let client = tenant.clients[number % 2].clone();
            let mut seen = Vec::new();
            for agent in NAMES {
                for service in NAMES {
                    let read = Sent::new(Operation::ReadPair { agent, service }, None, "end".to_owned());
                    seen.push(send(&client, read).await);
                }
                let read = Sent::new(Operation::ReadAgent { agent }, None, "end".to_owned());
                seen.push(send(&client, read).await);
            }
            tenant.judge(usize::MAX, &[]);
            tenant.states.retain(|state| seen.iter().all(|one| state.after(one).is_some()));
            let services = client.get("/api/v1/services?limit=1000").await.json();
            tenant.states.retain(|state| state.has_services(&services));
            let told = || format!("no state has {services} and {}", told(&seen));
            let state = tenant.states.iter().next().unwrap_or_else(|| panic!("{}", told()));
            state.check_keys(&client).await;
            tenant.expected.check(&client, state, &self.receiver).await;
        }
        let states =
            self.tenants.iter().map(|tenant| (tenant.states.iter().next().expect("a state"), &tenant.expected));
        let sums = expected::stats(&states.collect::<Vec<_>>());
        expected::check_stats(&self.replicas[0].client(), &sums).await;
        self.replicas[0].verify().await;
    }
}

async fn play(second: Second, steps: Vec<Step>) -> usize {
    let mut case = Case::start(second).await;
    for (number, step) in steps.iter().enumerate() {
        match step {
            Step::Round { wishes, is_held_up, prunes } => case.round(number, wishes, *is_held_up, *prunes).await,
            Step::Expire => case.expire().await,
        }
    }
    let requests = case.requests;
    case.end().await;
    requests
}

#[test]
fn the_service_does_what_a_small_model_does() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let cases = number("MODEL_CASES").unwrap_or(20);
    let seed = number("MODEL_SEED").unwrap_or_else(rand::random);
    println!("MODEL_SEED={seed} MODEL_CASES={cases} repeats this run");
    let requests = AtomicUsize::new(0);
    // A sequence waits more than it works.
    let halves = [(seed, cases.div_ceil(2)), (seed.wrapping_add(1), cases / 2)];
    std::thread::scope(|scope| {
        let played = &requests;
        let runs = halves.map(|(seed, cases)| scope.spawn(move || check(seed, cases, played)));
        for run in runs {
            run.join().expect("the model and the service agree");
        }
    });
    println!("{} requests", requests.into_inner());
}

/// Plays `cases` sequences that follow from `seed`.
fn check(seed: u64, cases: u64, requests: &AtomicUsize) {
    let config = Config {
        cases: cases.try_into().expect("a number of cases"),
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_iters: 30,
        ..Config::default()
    };
    let played =
        TestRunner::new(config).run(&(second(), proptest::collection::vec(step(), ROUNDS)), |(second, steps)| {
            // Its own runtime: with it everything of the case ends.
            let runtime = tokio::runtime::Runtime::new().expect("a runtime");
            requests.fetch_add(runtime.block_on(play(second, steps)), Ordering::Relaxed);
            runtime.shutdown_background();
            Ok(())
        });
    if let Err(error) = played {
        panic!("{error}");
    }
}
