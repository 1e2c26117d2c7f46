//! What the answers of a tenant promise of its events, bills, sums and deliveries.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::{Value, json};

use super::sequence::Operation;
use super::state::{State, agent, service};
use super::{Sent, key_name};
use crate::support::{Client, Receiver, wait_until};

#[derive(Default)]
pub struct Expected {
    /// Type and payload of the events of each round.
    events: BTreeMap<usize, Vec<String>>,
    bills: Vec<String>,
    /// Rounds in which webhooks were made, their paths and what they subscribe to.
    webhooks: HashMap<String, (usize, String, &'static [&'static str])>,
    recorded: i64,
    settled_stroops: i128,
    settlements: i64,
}

fn stroops(amount: &Value) -> i128 {
    amount.as_str().map_or_else(|| amount.as_i64().map(i128::from), |digits| digits.parse().ok()).expect("an amount")
}

impl Expected {
    /// Notes what a request did, of which its answer tells.
    pub fn note(&mut self, round: usize, sent: &Sent, tenant: &str) {
        let body: Value = serde_json::from_str(&sent.answer().text).unwrap_or_default();
        let mut events: Vec<(&str, Value)> = Vec::new();
        match &sent.operation {
            Operation::Record { agent: a, service: s, requests } => {
                self.recorded += requests;
                let total = &body["total"];
                let payload =
                    json!({ "agent": agent(*a), "serviceId": service(*s), "requests": requests, "total": total });
                events.push(("usage.recorded", payload));
            }
            Operation::Bulk(items) => {
                let results = body["results"].as_array().expect("results");
                for ((a, s, requests), result) in items.iter().zip(results).filter(|(_, result)| result["ok"] == true) {
                    self.recorded += requests;
                    let (agent, service) = (agent(*a), service(*s));
                    let payload = json!({ "agent": agent, "serviceId": service, "requests": requests,
                                          "total": result["total"], "bulk": true });
                    events.push(("usage.recorded", payload));
                }
            }
            Operation::Settle { .. } => {
                self.bill(sent, body["agent"].as_str().expect("an agent"), &body);
                let names = ["agent", "serviceId", "requests", "billedStroops"];
                let payload = names.map(|name| (name.to_owned(), body[name].clone()));
                events.push(("usage.settled", Value::Object(payload.into_iter().collect())));
            }
            Operation::SettleAgent { agent: a } => {
                for item in body["items"].as_array().expect("items").iter().filter(|item| item["requests"] != 0) {
                    self.bill(sent, &agent(*a), item);
                    let payload = json!({ "agent": agent(*a), "serviceId": item["serviceId"],
                        "requests": item["requests"], "billedStroops": item["billedStroops"], "bulk": true });
                    events.push(("usage.settled", payload));
                }
            }
            Operation::Reset { .. } => events.push(("usage.reset", body)),
            Operation::Disable { service: s } => {
                events.push(("service.disabled", json!({ "serviceId": service(*s), "tenantId": tenant })));
            }
            Operation::Enable { service: s } => {
                events.push(("service.enabled", json!({ "serviceId": service(*s), "tenantId": tenant })));
            }
            Operation::Remove { service: s } => events.push(("service.deleted", json!({ "serviceId": service(*s) }))),
            Operation::CreateWebhook { url, events } => {
                let path = url.rsplit_once("/hook").map(|(_, path)| format!("/hook{path}")).expect("a path");
                let id = body["id"].as_str().expect("an id").to_owned();
                self.webhooks.insert(id, (round, path, events));
            }
            Operation::Register { .. }
            | Operation::Reprice { .. }
            | Operation::DeleteWebhook { .. }
            | Operation::ReadPair { .. }
            | Operation::ReadAgent { .. } => {}
        }
        let texts = events.into_iter().map(|(kind, payload)| format!("{kind} {payload}"));
        self.events.entry(round).or_default().extend(texts);
    }

    fn bill(&mut self, sent: &Sent, agent: &str, shown: &Value) {
        self.settlements += 1;
        self.settled_stroops += stroops(&shown["billedStroops"]);
        if shown["requests"] != 0 {
            let key = sent.key.map(key_name);
            self.bills.push(bill(agent, shown, &json!(key), &json!(sent.request_id)));
        }
    }

    pub async fn check(&self, client: &Client, state: &State, receiver: &Receiver) {
        self.check_bills(client).await;
        let rounds = self.check_events(client).await;
        for id in state.webhooks() {
            self.check_deliveries(id, &rounds, receiver).await;
        }
    }

    async fn check_bills(&self, client: &Client) {
        let mut path = "/api/v1/settlements?limit=1000".to_owned();
        let (mut seen, mut ids) = (Vec::new(), BTreeSet::new());
        loop {
            let page = client.get(&path).await.json();
            for item in page["items"].as_array().expect("items") {
                ids.insert(item["id"].to_string());
                let agent = item["agent"].as_str().expect("an agent");
                seen.push(bill(agent, item, &item["idempotencyKey"], &item["requestId"]));
            }
            let Some(cursor) = page["nextCursor"].as_str() else { break };
            path = format!("/api/v1/settlements?limit=1000&cursor={cursor}");
        }
        assert_eq!(ids.len(), seen.len());
        let mut bills = self.bills.clone();
        bills.sort_unstable();
        seen.sort_unstable();
        assert_eq!(seen, bills);
    }

    /// The events of each round are there, those of earlier rounds first. The round and type of each by its id.
    async fn check_events(&self, client: &Client) -> HashMap<String, (usize, String)> {
        let log = client.get("/api/v1/events?limit=10000").await.json();
        let mut items = log["items"].as_array().expect("items").iter();
        let mut rounds = HashMap::new();
        for (round, expected) in &self.events {
            let mut seen = Vec::new();
            for item in items.by_ref().take(expected.len()) {
                let (id, kind) = (item["id"].as_str().expect("an id"), item["type"].as_str().expect("a type"));
                rounds.insert(id.to_owned(), (*round, kind.to_owned()));
                seen.push(format!("{kind} {}", item["payload"]));
            }
            let mut expected = expected.clone();
            expected.sort_unstable();
            seen.sort_unstable();
            assert_eq!(seen, expected, "round {round}");
        }
        assert_eq!((items.next(), &log["total"]), (None, &json!(rounds.len())));
        rounds
    }

    /// A webhook is told of what happened after it was made, at least once, and of nothing that happened before.
    async fn check_deliveries(&self, id: &str, rounds: &HashMap<String, (usize, String)>, receiver: &Receiver) {
        let (made, path, types) = &self.webhooks[id];
        let events_of = |is_right: &dyn Fn(usize) -> bool| -> BTreeSet<&str> {
            let subscribed =
                rounds.iter().filter(|(_, (round, kind))| is_right(*round) && types.contains(&kind.as_str()));
            subscribed.map(|(id, _)| id.as_str()).collect()
        };
        let received = || -> BTreeSet<String> {
            let own = receiver.received().into_iter().filter(|delivery| delivery.path == *path);
            own.map(|delivery| delivery.json()["id"].as_str().expect("an id").to_owned()).collect()
        };
        let due = events_of(&|round| round > *made);
        wait_until(async || due.iter().all(|id| received().contains(*id))).await;
        let allowed = events_of(&|round| round >= *made);
        assert!(
            received().iter().all(|id| allowed.contains(id.as_str())),
            "{path} was told of more than it subscribed to"
        );
    }
}

/// What is known of a bill before it is read.
fn bill(agent: &str, shown: &Value, key: &Value, request_id: &Value) -> String {
    let [service, requests, price, billed] =
        ["serviceId", "requests", "priceStroops", "billedStroops"].map(|name| &shown[name]);
    format!("{agent} {service} {requests} {price} {billed} {key} {request_id}")
}

/// The sums over tenants, as the operator is told.
pub fn stats(tenants: &[(&State, &Expected)]) -> Value {
    let sum = |of: &dyn Fn(&State, &Expected) -> i64| tenants.iter().map(|(state, own)| of(state, own)).sum::<i64>();
    let agents = |state: &State| state.pairs().keys().map(|(agent, _)| *agent).collect::<BTreeSet<u8>>().len() as i64;
    let settled: i128 = tenants.iter().map(|(_, expected)| expected.settled_stroops).sum();
    json!({
        "totalServices": sum(&|state, _| state.services_count() as i64),
        "totalWebhooks": sum(&|state, _| state.webhooks().len() as i64),
        "usageKeys": sum(&|state, _| state.pairs().len() as i64),
        "totalRequests": sum(&|state, _| state.pairs().values().sum()),
        "lifetimeRequests": sum(&|_, expected| expected.recorded),
        "uniqueAgents": sum(&|state, _| agents(state)),
        "settledStroopsTotal": settled.to_string(),
        "settlementsTotal": sum(&|_, expected| expected.settlements),
    })
}

pub async fn check_stats(client: &Client, expected: &Value) {
    let seen = client.get("/api/v1/stats").await.json();
    for (name, value) in expected.as_object().expect("an object") {
        assert_eq!(&seen[name], value, "{name}");
    }
}
