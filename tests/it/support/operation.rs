//! The operations of a load: records, bills, settlements and resets.

use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use super::tally::Effect;
use super::{Answer, usage};

/// Pairs that are only recorded, of which every total tells its place; and agents that are settled and cleared as well.
const PLAIN_AGENTS: u32 = 500;
const BILLED_AGENTS: u32 = 40;
pub const SERVICES: u32 = 3;

pub enum Operation {
    Record { agent: String, requests: i64 },
    Bulk(Vec<(String, i64)>),
    Bill { agent: String, service: u32, requests: i64 },
    Settle { agent: String, service: u32 },
    SettleAgent { agent: String },
    Clear { agent: String, service: u32 },
    Unkeyed,
}

impl Operation {
    pub fn choose(rng: &mut StdRng) -> Self {
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

    pub fn request(&self) -> (&'static str, String, Value) {
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
    pub fn effects(&self, answer: &Answer) -> Vec<Effect> {
        let body = answer.json();
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
            Self::Clear { .. } if answer.status == 404 => Vec::new(),
            Self::Clear { .. } => vec![Effect::Cleared(number(&body["clearedTotal"]))],
            Self::Unkeyed => Vec::new(),
        }
    }
}
