//! What a case consists of: random rounds of requests, and how each is sent.

use std::ops::Range;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::state;

pub const TENANTS: usize = 3;
pub const NAMES: Range<u8> = 0..3;
pub const KEYS: Range<u8> = 0..12;
const IN_FLIGHT_MAX: usize = 8;

/// How far the time of the second replica may be off. Nothing may depend on it.
pub const SKEW_MS: Range<i64> = -20_000..20_000;

/// The second replica.
#[derive(Clone, Copy, Debug)]
pub enum Second {
    /// In this process, with a time that is wrong by some milliseconds.
    Here(i64),
    /// A process of its own, on a machine whose clock is wrong.
    Elsewhere(&'static str),
}

/// What webhooks subscribe to. Records of usage are left out: there are too many.
pub const SUBSCRIPTIONS: [&[&str]; 3] =
    [&["usage.settled"], &["usage.reset", "service.deleted"], &["service.disabled", "service.enabled", "usage.reset"]];

#[derive(Clone, Debug)]
pub enum Operation {
    Record { agent: u8, service: u8, requests: i64 },
    Bulk(Vec<(u8, u8, i64)>),
    Settle { agent: u8, service: u8 },
    SettleAgent { agent: u8 },
    Reset { agent: u8, service: u8 },
    Register { service: u8, price: i64 },
    Reprice { service: u8, price: i64 },
    Disable { service: u8 },
    Enable { service: u8 },
    Remove { service: u8 },
    CreateWebhook { url: String, events: &'static [&'static str] },
    DeleteWebhook { id: String },
    ReadPair { agent: u8, service: u8 },
    ReadAgent { agent: u8 },
}

/// What a case asks for. What it means may depend on what was sent before.
#[derive(Clone, Debug)]
pub enum Wish {
    Do(Option<u8>, Operation),
    /// A keyed request of the tenant again: one of its latest.
    Again(usize),
    CreateWebhook(usize),
    /// One of those that were made before.
    DeleteWebhook(usize),
}

#[derive(Clone, Debug)]
pub enum Step {
    /// Tenant, replica and wish of requests that are in flight together. They meet at a locked table if `is_held_up`;
    /// a replica may prune meanwhile.
    Round { wishes: Vec<(usize, usize, Wish)>, is_held_up: bool, prunes: Option<usize> },
    /// All idempotency records expire.
    Expire,
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation::{Bulk, Disable, Enable, ReadAgent, ReadPair, Record, Register, Remove, Reprice, Reset, Settle};
    let price = || prop_oneof![Just(0), Just(5), Just(7), Just(9_007_199_254)];
    let requests = || prop_oneof![1 => Just(0), 6 => 1..4_i64, 1 => Just(1_000_000)];
    let pair = || (NAMES, NAMES);
    prop_oneof![
        8 => (pair(), requests()).prop_map(|((agent, service), requests)| Record { agent, service, requests }),
        4 => proptest::collection::vec((NAMES, NAMES, requests()), 1..6).prop_map(Bulk),
        3 => pair().prop_map(|(agent, service)| Settle { agent, service }),
        3 => NAMES.prop_map(|agent| Operation::SettleAgent { agent }),
        2 => pair().prop_map(|(agent, service)| Reset { agent, service }),
        2 => (NAMES, price()).prop_map(|(service, price)| Register { service, price }),
        2 => (NAMES, price()).prop_map(|(service, price)| Reprice { service, price }),
        1 => NAMES.prop_map(|service| Disable { service }),
        2 => NAMES.prop_map(|service| Enable { service }),
        1 => NAMES.prop_map(|service| Remove { service }),
        1 => pair().prop_map(|(agent, service)| ReadPair { agent, service }),
        1 => NAMES.prop_map(|agent| ReadAgent { agent }),
    ]
}

pub fn step() -> impl Strategy<Value = Step> {
    let wish = prop_oneof![
        12 => (proptest::option::of(KEYS), operation()).prop_map(|(key, operation)| Wish::Do(key, operation)),
        4 => (0..4_usize).prop_map(Wish::Again),
        1 => (0..SUBSCRIPTIONS.len()).prop_map(Wish::CreateWebhook),
        1 => (0..8_usize).prop_map(Wish::DeleteWebhook),
    ];
    let wishes = proptest::collection::vec((0..TENANTS, 0..2_usize, wish), 1..=IN_FLIGHT_MAX);
    let prunes = proptest::option::weighted(0.05, 0..2_usize);
    let round = (wishes, proptest::bool::weighted(0.1), prunes).prop_map(|(wishes, is_held_up, prunes)| Step::Round {
        wishes,
        is_held_up,
        prunes,
    });
    prop_oneof![30 => round, 1 => Just(Step::Expire)]
}

pub fn second() -> impl Strategy<Value = Second> {
    let elsewhere = prop_oneof![Just("+25h"), Just("-25h")].prop_map(Second::Elsewhere);
    prop_oneof![3 => SKEW_MS.prop_map(Second::Here), 1 => elsewhere]
}

impl Operation {
    pub fn request(&self) -> (&'static str, String, Value) {
        let (agent, service) = (state::agent, state::service);
        let pair = |a: u8, s: u8| json!({ "agent": agent(a), "serviceId": service(s) });
        let record = |a: u8, s: u8, requests: i64| crate::support::usage(&agent(a), &service(s), requests);
        let post = |path: &str, body: Value| ("POST", format!("/api/v1/{path}"), body);
        match self {
            Self::Record { agent, service, requests } => post("usage", record(*agent, *service, *requests)),
            Self::Bulk(items) => {
                let items = items.iter().map(|(agent, service, requests)| record(*agent, *service, *requests));
                post("usage/bulk", json!({ "items": items.collect::<Vec<_>>() }))
            }
            Self::Settle { agent, service } => post("settle", pair(*agent, *service)),
            Self::SettleAgent { agent: a } => post("settle/bulk", json!({ "agent": agent(*a) })),
            Self::Reset { agent: a, service: s } => {
                ("DELETE", format!("/api/v1/usage/{}/{}", agent(*a), service(*s)), Value::Null)
            }
            Self::Register { service: s, price } => {
                post("services", json!({ "serviceId": service(*s), "priceStroops": price }))
            }
            Self::Reprice { service: s, price } => {
                ("PATCH", format!("/api/v1/services/{}/price", service(*s)), json!({ "priceStroops": price }))
            }
            Self::Disable { service: s } => post(&format!("services/{}/disable", service(*s)), json!({})),
            Self::Enable { service: s } => post(&format!("services/{}/enable", service(*s)), json!({})),
            Self::Remove { service: s } => ("DELETE", format!("/api/v1/services/{}", service(*s)), Value::Null),
            Self::CreateWebhook { url, events } => post("webhooks", json!({ "url": url, "events": events })),
            Self::DeleteWebhook { id } => ("DELETE", format!("/api/v1/webhooks/{id}"), Value::Null),
            Self::ReadPair { agent: a, service: s } => {
                ("GET", format!("/api/v1/usage/{}/{}", agent(*a), service(*s)), Value::Null)
            }
            Self::ReadAgent { agent: a } => ("GET", format!("/api/v1/agents/{}/usage", agent(*a)), Value::Null),
        }
    }
}
