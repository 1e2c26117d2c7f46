//! The model: what one tenant has, and what each request does to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::sequence::{KEYS, Operation};
use super::{Sent, key_name};
use crate::support::Client;

pub fn agent(number: u8) -> String {
    format!("a{number}")
}

pub fn service(number: u8) -> String {
    format!("s{number}")
}

/// An amount of money as it is written.
pub fn amount(stroops: i128) -> Value {
    match i64::try_from(stroops) {
        Ok(number) if number < 1 << 53 => json!(number),
        _ => json!(stroops.to_string()),
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Service {
    price: i64,
    is_disabled: bool,
}

/// A keyed request and its answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Stored {
    method: &'static str,
    path: String,
    body: String,
    status: u16,
    text: Arc<str>,
    request_id: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    services: BTreeMap<u8, Service>,
    /// The outstanding requests of every pair that was ever recorded.
    pairs: BTreeMap<(u8, u8), i64>,
    keys: BTreeMap<u8, Stored>,
    webhooks: BTreeSet<String>,
}

/// What a request that runs is answered.
enum Outcome {
    Body(u16, Value),
    /// The same, but the members of this list are in an order that the model does not know.
    Unordered(u16, Value, &'static str),
    Empty,
    Refused(u16, &'static str, String),
    /// A webhook with an id and a secret that the service chose.
    Webhook,
}

impl State {
    pub fn without_keys(mut self) -> Self {
        self.keys.clear();
        self
    }

    /// The state after a request, if its answer is what this state makes it.
    pub fn after(&self, sent: &Sent) -> Option<Self> {
        let answer = sent.answer();
        if let Some(stored) = sent.key.and_then(|key| self.keys.get(&key)) {
            let is_the_same = (stored.method, &stored.path, &stored.body) == (sent.method, &sent.path, &sent.body);
            let is_right = if is_the_same {
                answer.replayed && answer.status == stored.status && *answer.text == *stored.text
            } else {
                let message = "Idempotency-Key was already used with a different request body or route".to_owned();
                Outcome::Refused(409, "idempotency_conflict", message).is(sent)
            };
            return is_right.then(|| self.clone());
        }
        let mut after = self.clone();
        if !after.run(&sent.operation, &answer.text).is(sent) {
            return None;
        }
        if let Some(key) = sent.key {
            let stored = Stored {
                method: sent.method,
                path: sent.path.clone(),
                body: sent.body.clone(),
                status: answer.status,
                text: answer.text.as_str().into(),
                request_id: sent.request_id.clone(),
            };
            after.keys.insert(key, stored);
        }
        Some(after)
    }

    fn price(&self, service: u8) -> i64 {
        self.services.get(&service).map_or(0, |service| service.price)
    }

    fn is_disabled(&self, service: u8) -> bool {
        self.services.get(&service).is_some_and(|service| service.is_disabled)
    }

    fn record(&mut self, pair: (u8, u8), requests: i64) -> i64 {
        let outstanding = self.pairs.entry(pair).or_default();
        *outstanding += requests;
        *outstanding
    }

    /// What is due of a pair, and its price; nothing is due afterwards.
    fn bill(&mut self, pair: (u8, u8)) -> (i64, i128, Value) {
        let requests = self.pairs.get_mut(&pair).map_or(0, std::mem::take);
        let price = self.price(pair.1);
        let billed = i128::from(requests) * i128::from(price);
        let shown = json!({ "requests": requests, "priceStroops": price, "billedStroops": amount(billed) });
        (requests, billed, shown)
    }

    fn run(&mut self, operation: &Operation, answer: &str) -> Outcome {
        let not_found = |service: u8| {
            Outcome::Refused(404, "not_found", format!("service {} is not registered", self::service(service)))
        };
        match operation {
            Operation::Record { requests: ..=0, .. } => {
                Outcome::Refused(400, "invalid_request", "requests must be a positive integer".to_owned())
            }
            Operation::Record { service, .. } if self.is_disabled(*service) => {
                let message = format!("service {} is currently disabled", self::service(*service));
                Outcome::Refused(409, "service_disabled", message)
            }
            Operation::Record { agent, service, requests } => {
                let total = self.record((*agent, *service), *requests);
                let body =
                    json!({ "agent": self::agent(*agent), "serviceId": self::service(*service), "total": total });
                Outcome::Body(201, body)
            }
            Operation::Bulk(items) => {
                let results = items.iter().enumerate().map(|(index, (agent, service, requests))| {
                    let refused = |error: &str| json!({ "index": index, "ok": false, "error": error });
                    match requests {
                        ..=0 => refused("invalid_item"),
                        _ if self.is_disabled(*service) => refused("service_disabled"),
                        _ => json!({ "index": index, "ok": true, "total": self.record((*agent, *service), *requests) }),
                    }
                });
                Outcome::Body(201, json!({ "results": results.collect::<Vec<_>>() }))
            }
            Operation::Settle { agent, service } => {
                let (.., shown) = self.bill((*agent, *service));
                let mut body = json!({ "agent": self::agent(*agent), "serviceId": self::service(*service) });
                body.as_object_mut().expect("an object").extend(shown.as_object().expect("an object").clone());
                Outcome::Body(200, body)
            }
            Operation::SettleAgent { agent } => {
                let pairs: Vec<(u8, u8)> = self.pairs.keys().copied().filter(|(own, _)| own == agent).collect();
                let (mut items, mut sum) = (Vec::new(), 0);
                for pair in pairs {
                    let (_, billed, shown) = self.bill(pair);
                    sum += billed;
                    let mut item = json!({ "serviceId": service(pair.1) });
                    item.as_object_mut().expect("an object").extend(shown.as_object().expect("an object").clone());
                    items.push(item);
                }
                let body = json!({ "agent": self::agent(*agent), "items": items, "totalBilledStroops": amount(sum) });
                Outcome::Unordered(200, body, "items")
            }
            Operation::Reset { agent, service } => match self.pairs.get_mut(&(*agent, *service)) {
                None => {
                    let message = format!("no usage recorded for {}/{}", self::agent(*agent), self::service(*service));
                    Outcome::Refused(404, "not_found", message)
                }
                Some(outstanding) => {
                    let cleared = std::mem::take(outstanding);
                    let names = (self::agent(*agent), self::service(*service));
                    Outcome::Body(200, json!({ "agent": names.0, "serviceId": names.1, "clearedTotal": cleared }))
                }
            },
            Operation::Register { service, price } => {
                let is_disabled = self.is_disabled(*service);
                let before = self.services.insert(*service, Service { price: *price, is_disabled });
                let body = json!({ "serviceId": self::service(*service), "priceStroops": price });
                Outcome::Body(if before.is_some() { 200 } else { 201 }, body)
            }
            Operation::Reprice { service, price } => match self.services.get_mut(service) {
                None => not_found(*service),
                Some(known) => {
                    known.price = *price;
                    Outcome::Body(200, json!({ "serviceId": self::service(*service), "priceStroops": price }))
                }
            },
            Operation::Disable { service } | Operation::Enable { service } => match self.services.get_mut(service) {
                None => not_found(*service),
                Some(known) => {
                    known.is_disabled = matches!(operation, Operation::Disable { .. });
                    let body = json!({ "serviceId": self::service(*service), "disabled": known.is_disabled });
                    Outcome::Body(200, body)
                }
            },
            Operation::Remove { service } => match self.services.remove(service) {
                None => not_found(*service),
                Some(_) => Outcome::Empty,
            },
            Operation::CreateWebhook { .. } => {
                let body: Value = serde_json::from_str(answer).unwrap_or_default();
                self.webhooks.insert(body["id"].as_str().unwrap_or_default().to_owned());
                Outcome::Webhook
            }
            Operation::DeleteWebhook { id } => {
                if self.webhooks.remove(id) {
                    Outcome::Empty
                } else {
                    Outcome::Refused(404, "not_found", format!("webhook {id} not registered"))
                }
            }
            Operation::ReadPair { agent, service } => {
                let total = self.pairs.get(&(*agent, *service)).copied().unwrap_or_default();
                let body =
                    json!({ "agent": self::agent(*agent), "serviceId": self::service(*service), "total": total });
                Outcome::Body(200, body)
            }
            Operation::ReadAgent { agent } => {
                let own = self.pairs.iter().filter(|((own, _), _)| own == agent);
                let items =
                    own.map(|((_, service), total)| json!({ "serviceId": self::service(*service), "total": total }));
                let body = json!({ "agent": self::agent(*agent), "items": items.collect::<Vec<_>>() });
                Outcome::Unordered(200, body, "items")
            }
        }
    }
}

impl Outcome {
    /// Whether this is what was answered, and not as a replay.
    fn is(self, sent: &Sent) -> bool {
        let answer = sent.answer();
        let (status, text) = (answer.status, answer.text.as_str());
        let is_right = match self {
            Self::Body(expected, body) => (status, text) == (expected, body.to_string().as_str()),
            Self::Unordered(expected, body, list) => {
                let Ok(mut seen) = serde_json::from_str::<Value>(text) else { return false };
                if let Some(items) = seen[list].as_array_mut() {
                    items.sort_by_key(|item| item["serviceId"].as_str().unwrap_or_default().to_owned());
                }
                (status, seen.to_string()) == (expected, body.to_string())
            }
            Self::Empty => (status, text) == (204, ""),
            Self::Refused(expected, error, message) => {
                let body = json!({ "error": error, "message": message, "requestId": sent.request_id });
                (status, text) == (expected, body.to_string().as_str())
            }
            Self::Webhook => {
                let Operation::CreateWebhook { url, events } = &sent.operation else { return false };
                let body: Value = serde_json::from_str(text).unwrap_or_default();
                (status, &body["url"], &body["events"]) == (201, &json!(url), &json!(events))
            }
        };
        is_right && !answer.replayed
    }
}

/// Comparisons at the end of a case.
impl State {
    pub fn has_services(&self, list: &Value) -> bool {
        let seen = list["services"].as_array().expect("services").iter().map(|shown| {
            let service = Service {
                price: shown["priceStroops"].as_i64().expect("a price"),
                is_disabled: shown["disabled"].as_bool().expect("a flag"),
            };
            (shown["serviceId"].as_str().expect("an id").to_owned(), service)
        });
        let own = self.services.iter().map(|(number, known)| (service(*number), known.clone()));
        seen.collect::<BTreeMap<_, _>>() == own.collect()
    }

    /// Every key has the record that it has to have, and is replayed; the others have none.
    pub async fn check_keys(&self, client: &Client) {
        for key in KEYS {
            let record = client.get(&format!("/api/v1/idempotency/{}", key_name(key))).await;
            let Some(stored) = self.keys.get(&key) else {
                assert_eq!(record.status, 404, "{key}: {record:?}");
                continue;
            };
            let record = record.json();
            let seen = ["key", "method", "path", "status", "requestId"].map(|name| &record[name]);
            let expected = [
                &json!(key_name(key)),
                &json!(stored.method),
                &json!(stored.path),
                &json!(stored.status),
                &json!(stored.request_id),
            ];
            assert_eq!(seen, expected, "{key}");
            let body = (stored.body != "null").then_some(stored.body.as_str());
            let again = client.key(&key_name(key)).send(stored.method, &stored.path, body).await;
            assert_eq!((again.replayed, again.status, &*again.text), (true, stored.status, &*stored.text), "{key}");
        }
    }

    pub fn webhooks(&self) -> &BTreeSet<String> {
        &self.webhooks
    }

    pub fn services_count(&self) -> usize {
        self.services.len()
    }

    pub fn pairs(&self) -> &BTreeMap<(u8, u8), i64> {
        &self.pairs
    }
}
