//! What commands read and what they produce. A context belongs to one attempt: a batch that is decided again starts
//! with a new context.

use std::collections::{BTreeMap, HashMap};

use rand::rngs::StdRng;
use sqlx::PgConnection;

use crate::domain::audit_log::Change;
use crate::domain::caller::Tenant;
use crate::domain::cell::Dialect;
use crate::domain::event::Event;
use crate::domain::keyring::Keyring;
use crate::domain::money::Stroops;
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::refusal::Refusal;
use crate::domain::runtime_config::Limits;
use crate::domain::service::Terms;
use crate::domain::settlement::Settlement;
use crate::domain::timestamp::Timestamp;
use crate::store::{StoreError, usage};

use super::counters::BatchCounters;

/// Why a command has no response of its own.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// For the caller. Nothing has changed.
    #[error("the request was refused")]
    Refuse(Refusal),
    /// Internal: the database failed.
    #[error(transparent)]
    Fault(#[from] StoreError),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refuse(refusal)
    }
}

/// Changes of rare counts of a tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantCounts {
    pub settlements: i64,
    pub settled_stroops: Stroops,
    pub services: i64,
    pub webhooks: i64,
    pub api_keys: i64,
}

/// Effects that every kind of command can have.
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

/// Context of the commands in a batch, which are decided in memory.
pub struct BatchContext<'r, 'c> {
    pub now: Timestamp,
    /// Refuse usage of services without a price, and do not settle them.
    pub require_registered_services: bool,
    pub rng: &'r mut StdRng,
    pub counters: BatchCounters<'c>,
    pub pricing: Pricing,
    pub agents: AgentsToSettle,
    /// How many more pairs above zero each tenant may have.
    pub capacity_left: BTreeMap<Tenant, i64>,
    pub settlements: Vec<(Tenant, Settlement)>,
    /// The service of each settlement that had no price.
    pub unpriced: Vec<(Tenant, ServiceId)>,
    pub effects: Effects,
}

impl BatchContext<'_, '_> {
    /// Reserves one more pair above zero. False if the tenant may have no more.
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

/// Prices and flags of the services in a batch.
#[derive(Debug, Default)]
pub struct Pricing(HashMap<Tenant, HashMap<ServiceId, Terms>>);

impl Pricing {
    pub fn insert(&mut self, tenant: &Tenant, service_id: &ServiceId, terms: Terms) {
        self.0.entry(tenant.clone()).or_default().insert(service_id.clone(), terms);
    }

    /// `None` if the service is not registered.
    pub fn of(&self, tenant: &Tenant, service_id: &ServiceId) -> Option<Terms> {
        self.0.get(tenant)?.get(service_id).copied()
    }
}

/// The pairs that the settlement of an agent covers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentPairs {
    /// In the order of their first records, all read at one moment.
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

/// Context of a command that runs in its own transaction.
pub struct TransactionContext<'a> {
    pub connection: &'a mut PgConnection,
    pub dialect: Dialect,
    pub now: Timestamp,
    pub limits: Limits,
    pub rng: &'a mut StdRng,
    /// Encrypts the secrets that the command stores.
    pub keyring: &'a Keyring,
    /// Tenants whose terms the command changed: services, prices, flags, or whether they have webhooks.
    pub changed_terms: Vec<Tenant>,
    pub webhook_test: Option<WebhookTest>,
    /// For the audit log.
    pub changes: Vec<Change>,
    pub effects: Effects,
}

/// The delivery of a webhook test. Its event is the only one of the command.
#[derive(Clone, Debug)]
pub struct WebhookTest {
    pub webhook: String,
    pub delivery: String,
}
