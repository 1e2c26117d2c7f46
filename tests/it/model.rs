//! Random operations against a small model and the real service: every answer, every total and every bill agree.
//! `MODEL_CASES` sets how many sequences of 60 operations are tried.

use std::collections::HashMap;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};

use crate::support::{Answer, Client, Service, usage};

/// An hour: the wall clock goes on during a case, and no record may expire but when the case says so.
const TTL_MS: i64 = 3_600_000;

#[derive(Clone, Debug)]
enum Operation {
    Record { agent: u8, service: u8, requests: i64 },
    Bulk(Vec<(u8, u8, i64)>),
    Settle { agent: u8, service: u8 },
    SettleAgent { agent: u8 },
    Expire,
    Prune,
}

/// An operation under one of a few keys, so that replays and conflicts are common.
fn step() -> impl Strategy<Value = (Option<u8>, Operation)> {
    let operation = prop_oneof![
        4 => (0..3_u8, 0..3_u8, 1..4_i64).prop_map(|(agent, service, requests)| Operation::Record { agent, service, requests }),
        2 => proptest::collection::vec((0..3_u8, 0..3_u8, 0..4_i64), 1..6).prop_map(Operation::Bulk),
        2 => (0..3_u8, 0..3_u8).prop_map(|(agent, service)| Operation::Settle { agent, service }),
        2 => (0..3_u8).prop_map(|agent| Operation::SettleAgent { agent }),
        1 => Just(Operation::Expire),
        1 => Just(Operation::Prune),
    ];
    (proptest::option::of(0..6_u8), operation)
}

#[derive(Default)]
struct Model {
    /// In the order of their first record.
    pairs: Vec<((u8, u8), i64)>,
    settled: i64,
    /// Requests and their answers, by key.
    keys: HashMap<u8, (String, String)>,
}

/// Prices of the services 0, 1, 2.
const PRICES: [i64; 3] = [0, 5, 7];

impl Model {
    fn outstanding(&mut self, pair: (u8, u8)) -> &mut i64 {
        let place = self.pairs.iter().position(|(own, _)| *own == pair).unwrap_or_else(|| {
            self.pairs.push((pair, 0));
            self.pairs.len() - 1
        });
        &mut self.pairs[place].1
    }

    fn bill(&mut self, (agent, service): (u8, u8)) -> (i64, i64) {
        let due = self.pairs.iter_mut().find(|(own, _)| *own == (agent, service));
        let requests = due.map_or(0, |(_, outstanding)| std::mem::take(outstanding));
        self.settled += requests;
        (requests, requests * PRICES[usize::from(service)])
    }

    /// The body of the answer to a request that runs.
    fn run(&mut self, operation: &Operation) -> Value {
        match operation {
            Operation::Record { agent, service, requests } => {
                let total = self.outstanding((*agent, *service));
                *total += requests;
                json!({ "agent": format!("a{agent}"), "serviceId": format!("s{service}"), "total": *total })
            }
            Operation::Bulk(items) => {
                let results = items.iter().enumerate().map(|(index, (agent, service, requests))| {
                    if *requests == 0 {
                        return json!({ "index": index, "ok": false, "error": "invalid_item" });
                    }
                    let total = self.outstanding((*agent, *service));
                    *total += requests;
                    json!({ "index": index, "ok": true, "total": *total })
                });
                json!({ "results": results.collect::<Vec<_>>() })
            }
            Operation::Settle { agent, service } => {
                let (requests, billed) = self.bill((*agent, *service));
                json!({ "agent": format!("a{agent}"), "serviceId": format!("s{service}"), "requests": requests,
                        "priceStroops": PRICES[usize::from(*service)], "billedStroops": billed })
            }
            Operation::SettleAgent { agent } => {
                let pairs: Vec<(u8, u8)> =
                    self.pairs.iter().map(|(pair, _)| *pair).filter(|(own, _)| own == agent).collect();
                let mut sum = 0;
                let items = pairs.into_iter().map(|pair| {
                    let (requests, billed) = self.bill(pair);
                    sum += billed;
                    json!({ "serviceId": format!("s{}", pair.1), "requests": requests,
                            "priceStroops": PRICES[usize::from(pair.1)], "billedStroops": billed })
                });
                let items: Vec<Value> = items.collect();
                json!({ "agent": format!("a{agent}"), "items": items, "totalBilledStroops": sum })
            }
            Operation::Expire | Operation::Prune => unreachable!("no request"),
        }
    }
}

fn request(operation: &Operation) -> (&'static str, Value) {
    match operation {
        Operation::Record { agent, service, requests } => {
            ("/api/v1/usage", usage(&format!("a{agent}"), &format!("s{service}"), *requests))
        }
        Operation::Bulk(items) => {
            let items = items.iter().map(|(agent, service, n)| usage(&format!("a{agent}"), &format!("s{service}"), *n));
            ("/api/v1/usage/bulk", json!({ "items": items.collect::<Vec<_>>() }))
        }
        Operation::Settle { agent, service } => {
            ("/api/v1/settle", json!({ "agent": format!("a{agent}"), "serviceId": format!("s{service}") }))
        }
        Operation::SettleAgent { agent } => ("/api/v1/settle/bulk", json!({ "agent": format!("a{agent}") })),
        Operation::Expire | Operation::Prune => unreachable!("no request"),
    }
}

async fn play(steps: Vec<(Option<u8>, Operation)>) {
    let service = Service::start(&[("IDEMPOTENCY_CACHE_TTL_MS", "3600000"), ("JANITOR_INTERVAL_MS", "3600000")]).await;
    let client = service.client();
    for number in [1, 2] {
        let body = json!({ "serviceId": format!("s{number}"), "priceStroops": PRICES[number] });
        client.post("/api/v1/services", &body).await;
    }
    let mut model = Model::default();
    for (key, operation) in steps {
        match operation {
            Operation::Expire => {
                service.age_records(TTL_MS).await;
                model.keys.clear();
            }
            Operation::Prune => {
                service.janitor.run_once().await.expect("janitor");
            }
            _ => check(&client, &mut model, key, &operation).await,
        }
    }
    for ((agent, service_id), outstanding) in &model.pairs {
        let answer = client.get(&format!("/api/v1/usage/a{agent}/s{service_id}")).await.json();
        assert_eq!(answer["total"], *outstanding);
    }
    assert_eq!(service.number("SELECT coalesce(sum(requests), 0)::bigint FROM settlements").await, model.settled);
    service.verify().await;
}

async fn check(client: &Client, model: &mut Model, key: Option<u8>, operation: &Operation) {
    let (path, body) = request(operation);
    let sent = format!("{path} {body}");
    let keyed = key.map_or(client.clone(), |key| client.key(&format!("key-{key}")));
    let answer: Answer = keyed.post(path, &body).await;
    match key.and_then(|key| model.keys.get(&key)) {
        Some((first, text)) if *first == sent => assert!(answer.replayed && answer.text == *text, "{sent}: {answer:?}"),
        Some(_) => assert_eq!(answer.error().1, "idempotency_conflict", "{sent}"),
        None => {
            let expected = model.run(operation).to_string();
            assert_eq!((answer.text.as_str(), answer.replayed), (expected.as_str(), false), "{sent}");
            if let Some(key) = key {
                model.keys.insert(key, (sent, expected));
            }
        }
    }
}

#[test]
fn the_service_does_what_a_small_model_does() {
    let cases = std::env::var("MODEL_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(20);
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 50, ..Config::default() };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    TestRunner::new(config)
        .run(&proptest::collection::vec(step(), 60), |steps| {
            runtime.block_on(play(steps));
            Ok(())
        })
        .expect("the model and the service agree");
}
