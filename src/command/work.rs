//! What one transaction works with and gathers. It begins and ends with the transaction: a command that runs twice
//! before it counts once starts from a new one.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use sqlx::PgConnection;

use crate::domain::caller::Tenant;
use crate::domain::event::Event;
use crate::domain::limits::Limits;
use crate::domain::settlement::Settlement;
use crate::domain::timestamp::Timestamp;
use crate::store::usage::CounterId;
use crate::store::{StoreError, events, settlements, totals};

use super::{Request, outbox};
use crate::command::reply::Reply;
use crate::domain::refusal::Refusal;

/// What applying a command comes to: a reply, or a refusal that changes nothing.
pub type Outcome = Result<Reply, Refusal>;

/// A request of the batch, with its place among the outcomes.
pub type Numbered<'a> = (usize, &'a Request);

/// A webhook's test: the place of its event among the gathered ones, and its delivery.
pub struct WebhookTest {
    pub event: usize,
    pub webhook: String,
    pub delivery: String,
}

pub struct Work<'a> {
    pub connection: &'a mut PgConnection,
    pub now: Timestamp,
    pub limits: Limits,
    pub dice: &'a mut StdRng,
    /// What is outstanding of the pairs this transaction has locked or changed.
    pub held: BTreeMap<CounterId, i64>,
    pub events: Vec<(Tenant, Event)>,
    pub webhook_tests: Vec<WebhookTest>,
    /// Whether deliveries were written that a dispatcher should hear of.
    pub has_deliveries: bool,
    pub settlements: Vec<(Tenant, Settlement)>,
    pub totals: BTreeMap<Tenant, totals::Change>,
}

impl<'a> Work<'a> {
    pub fn new(connection: &'a mut PgConnection, now: Timestamp, limits: Limits, dice: &'a mut StdRng) -> Self {
        Self {
            connection,
            now,
            limits,
            dice,
            held: BTreeMap::new(),
            events: Vec::new(),
            webhook_tests: Vec::new(),
            has_deliveries: false,
            settlements: Vec::new(),
            totals: BTreeMap::new(),
        }
    }

    pub fn totals_of(&mut self, tenant: &Tenant) -> &mut totals::Change {
        // Looked up before it is cloned: most batches are of few tenants.
        if !self.totals.contains_key(tenant) {
            self.totals.insert(tenant.clone(), totals::Change::default());
        }
        self.totals.get_mut(tenant).expect("it was just inserted")
    }

    /// Writes what was gathered. The counters were written before; the replies follow.
    pub async fn write(&mut self, shard: i16) -> Result<(), StoreError> {
        if !self.totals.is_empty() {
            totals::add(self.connection, shard, &self.totals).await?;
        }
        if !self.settlements.is_empty() {
            settlements::append(self.connection, &self.settlements).await?;
        }
        if !self.events.is_empty() {
            let positions = outbox::write(self).await?;
            events::append(self.connection, &self.events, &positions, self.now).await?;
        }
        Ok(())
    }

    /// How many events each tenant gets.
    pub fn events_by_tenant(events: &[(Tenant, Event)]) -> BTreeMap<&Tenant, i64> {
        let mut counts = BTreeMap::new();
        for (tenant, _) in events {
            *counts.entry(tenant).or_default() += 1;
        }
        counts
    }
}
