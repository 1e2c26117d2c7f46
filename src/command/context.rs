//! What commands work with and gather. It begins and ends with one attempt: a command that is decided twice before it
//! commits starts from a new context.

use std::collections::{BTreeMap, HashMap};

use rand::rngs::StdRng;
use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::event::Event;
use crate::domain::money::Stroops;
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::refusal::Refusal;
use crate::domain::runtime_config::Limits;
use crate::domain::service::Terms;
use crate::domain::settlement::Settlement;
use crate::domain::timestamp::Timestamp;
use crate::store::{StoreError, usage};

use super::counters::BatchCounters;

/// Why a command gives no reply.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// For the caller. Nothing is changed.
    #[error("the request was refused")]
    Refuse(Refusal),
    /// Ours: the database failed.
    #[error(transparent)]
    Fault(#[from] StoreError),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refuse(refusal)
    }
}

/// Counts of rare things of a tenant, as a command changes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantCounts {
    pub settlements: i64,
    pub settled_stroops: Stroops,
    pub services: i64,
    pub webhooks: i64,
    pub api_keys: i64,
}

/// What every command gathers.
#[derive(Debug, Default)]
pub struct Effects {
    pub events: Vec<(Tenant, Event)>,
    pub counts: BTreeMap<Tenant, TenantCounts>,
}

impl Effects {
    pub fn counts_of(&mut self, tenant: &Tenant) -> &mut TenantCounts {
        self.counts.entry(tenant.clone()).or_default()
    }
}

/// For the commands of a batch, which are decided in memory.
pub struct BatchContext<'r, 'c> {
    pub now: Timestamp,
    /// Services without a price take no usage and are not settled.
    pub require_registered_services: bool,
    pub rng: &'r mut StdRng,
    pub counters: BatchCounters<'c>,
    pub pricing: Pricing,
    pub agents: AgentsToSettle,
    /// How many more pairs each tenant may bring above zero.
    pub capacity_left: BTreeMap<Tenant, i64>,
    pub settlements: Vec<(Tenant, Settlement)>,
    /// The service of each settlement that had no price.
    pub unpriced: Vec<(Tenant, ServiceId)>,
    pub effects: Effects,
}

impl BatchContext<'_, '_> {
    /// Counts one more pair above zero. False if the tenant may not have another.
    pub fn reserve(&mut self, tenant: &Tenant) -> bool {
        let left = self.capacity_left.get_mut(tenant).expect("it was looked up of each tenant with a pair at zero");
        *left -= 1;
        if *left < 0 {
            *left = 0;
            return false;
        }
        true
    }
}

/// Prices and flags of the services of a batch.
#[derive(Debug, Default)]
pub struct Pricing(HashMap<Tenant, HashMap<ServiceId, Terms>>);

impl Pricing {
    pub fn insert(&mut self, tenant: &Tenant, service_id: &ServiceId, terms: Terms) {
        self.0.entry(tenant.clone()).or_default().insert(service_id.clone(), terms);
    }

    /// None for a service that is not registered.
    pub fn of(&self, tenant: &Tenant, service_id: &ServiceId) -> Option<Terms> {
        self.0.get(tenant)?.get(service_id).copied()
    }
}

/// The pairs that an agent's settlement is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentPairs {
    /// In the order of their first records, all as of one moment.
    pub pairs: usage::AgentPairs,
    /// Whether more pairs are due than these.
    pub has_more: bool,
}

/// The agents that a batch settles.
#[derive(Debug, Default)]
pub struct AgentsToSettle(pub BTreeMap<(Tenant, AgentId), AgentPairs>);

impl AgentsToSettle {
    pub fn of(&self, tenant: &Tenant, agent: &AgentId) -> AgentPairs {
        self.0.get(&(tenant.clone(), agent.clone())).cloned().unwrap_or_default()
    }
}

/// For a command that runs in a transaction of its own.
pub struct TransactionContext<'a> {
    pub connection: &'a mut PgConnection,
    pub now: Timestamp,
    pub limits: Limits,
    pub rng: &'a mut StdRng,
    /// Tenants whose services, prices, flags or presence of webhooks the command changed.
    pub changed_terms: Vec<Tenant>,
    pub webhook_test: Option<WebhookTest>,
    pub effects: Effects,
}

/// The delivery of a test, whose event is the only one of its command.
#[derive(Clone, Debug)]
pub struct WebhookTest {
    pub webhook: String,
    pub delivery: String,
}
