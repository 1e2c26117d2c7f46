//! What one attempt at a batch works with and gathers. It begins and ends with the attempt: a command that runs twice
//! before it counts once starts from a new one.

use std::collections::{BTreeMap, HashMap};

use rand::rngs::StdRng;
use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::event::Event;
use crate::domain::limits::Limits;
use crate::domain::names::ServiceId;
use crate::domain::refusal::Refusal;
use crate::domain::service::Terms;
use crate::domain::settlement::Settlement;
use crate::domain::timestamp::Timestamp;
use crate::store::totals::TenantChange;

use super::ledger::{self, Ledger};
use super::reply::Reply;

/// What applying a command comes to: a reply, or a refusal that changes nothing.
pub type Outcome = Result<Reply, Refusal>;

/// A webhook's test: the place of its event among the gathered ones, and its delivery.
pub struct WebhookTest {
    pub event: usize,
    pub webhook: String,
    pub delivery: String,
}

pub struct Work<'a> {
    /// In a transaction, if a command of the batch needs it.
    pub connection: &'a mut PgConnection,
    pub now: Timestamp,
    pub limits: Limits,
    /// Services without a price take no usage and are not settled.
    pub require_registered_services: bool,
    pub dice: &'a mut StdRng,
    pub ledger: Ledger<'a>,
    /// Price and state of the services whose pairs are on the ledger.
    pub terms: HashMap<Tenant, HashMap<ServiceId, Terms>>,
    /// How many more pairs each tenant may bring above zero.
    pub room: BTreeMap<Tenant, i64>,
    pub events: Vec<(Tenant, Event)>,
    pub webhook_tests: Vec<WebhookTest>,
    pub settlements: Vec<(Tenant, Settlement)>,
    /// The service of each settlement that had no price.
    pub unpriced: Vec<(Tenant, ServiceId)>,
    pub totals: BTreeMap<Tenant, TenantChange>,
}

impl Work<'_> {
    /// None for a service that is not registered.
    pub fn terms(&self, tenant: &Tenant, service_id: &ServiceId) -> Option<Terms> {
        self.terms.get(tenant)?.get(service_id).copied()
    }

    /// Makes room for one more pair above zero. False if there is none left.
    pub fn take_room(&mut self, tenant: &Tenant) -> bool {
        let room = self.room.get_mut(tenant).expect("every tenant's room was read");
        *room -= 1;
        if *room < 0 {
            *room = 0;
            return false;
        }
        true
    }

    pub fn totals_of(&mut self, tenant: &Tenant) -> &mut TenantChange {
        ledger::of_tenant(&mut self.totals, tenant)
    }
}
