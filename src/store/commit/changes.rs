//! All that a commit changes, as values.

use crate::domain::caller::Tenant;
use crate::domain::money::Stroops;
use crate::domain::settlement::Settlement;
use crate::domain::timestamp::Timestamp;
use crate::store::idempotency::CallerKey;
use crate::store::outbox;
use crate::store::usage::CounterId;

use super::rows::{CallerChange, CounterChange, NewEventRun, NewIdempotencyKey, TotalsChange};

/// A pair that is recorded for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewPair<'a> {
    pub id: &'a CounterId,
    pub outstanding: i64,
    pub settled: i64,
    pub reset: i64,
    /// Rank of its first record among the new pairs of the commit, from 1: lists show pairs in this order.
    pub arrival: i64,
    /// The same of its agent among the new agents. None: the agent has other pairs.
    pub agent_arrival: Option<i64>,
}

/// What is added to the totals of a tenant or a service by few commits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RareTotals<'a> {
    pub tenant_id: &'a str,
    /// Empty: of the tenant itself.
    pub service_id: &'a str,
    pub pairs: i64,
    pub settlements: i64,
    pub settled_stroops: Stroops,
    pub agents: i64,
    pub services: i64,
    pub webhooks: i64,
    pub api_keys: i64,
}

/// All that a commit changes. Lists are sorted by primary key where other commits may want the same rows, so that no two
/// wait for each other.
#[derive(Debug)]
pub struct Changes<'a> {
    /// Drawn at random. It becomes the version of every counter and the mark of every record.
    pub attempt_id: i64,
    pub now: Timestamp,
    pub expires_at: Timestamp,
    /// Which rows of the totals are written.
    pub shard: i16,
    /// Of pairs that exist, sorted by `pair_id`.
    pub counters: Vec<CounterChange>,
    /// Sorted by name.
    pub new_pairs: Vec<NewPair<'a>>,
    pub totals: Vec<TotalsChange<'a>>,
    pub rare_totals: Vec<RareTotals<'a>>,
    pub callers: Vec<CallerChange<'a>>,
    pub settlements: &'a [(Tenant, Settlement)],
    pub event_runs: Vec<NewEventRun<'a>>,
    pub outbox: Vec<outbox::Entry<'a>>,
    pub keys: Vec<NewIdempotencyKey<'a>>,
    /// Expired records that give way to new ones.
    pub expired: Vec<&'a CallerKey>,
    /// The revision of each tenant's terms that the commit was decided on.
    pub terms: Vec<(&'a Tenant, i64)>,
}

impl Changes<'_> {
    /// Whether one statement writes all of it, and needs no transaction around it.
    pub fn is_one_statement(&self) -> bool {
        self.new_pairs.is_empty()
            && self.rare_totals.is_empty()
            && self.settlements.is_empty()
            && self.outbox.is_empty()
            && self.expired.is_empty()
    }
}
