//! All changes of a commit, as values.

use crate::domain::caller::Tenant;
use crate::domain::money::Stroops;
use crate::domain::settlement::Settlement;
use crate::domain::timestamp::Timestamp;
use crate::store::idempotency::CallerKey;
use crate::store::outbox;
use crate::store::positions::CommitNumbers;
use crate::store::usage::CounterId;

use super::rows::{CallerChange, CounterChange, NewEventRun, NewIdempotencyKey, TotalsChange};

/// A pair with its first record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewPair<'a> {
    pub id: &'a CounterId,
    pub outstanding: i64,
    pub settled: i64,
    pub reset: i64,
    /// Order of its first record among the new pairs of the commit, from 1. Lists show pairs in this order.
    pub arrival: i64,
    /// Order of its agent among the new agents. `None` if the agent has other pairs.
    pub agent_arrival: Option<i64>,
}

/// Changes of totals that few commits make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RareTotals<'a> {
    pub tenant_id: &'a str,
    /// Empty for the totals of the tenant.
    pub service_id: &'a str,
    pub pairs: i64,
    pub settlements: i64,
    pub settled_stroops: Stroops,
    pub agents: i64,
    pub services: i64,
    pub webhooks: i64,
    pub api_keys: i64,
}

/// All changes of a commit. Lists are sorted by primary key where concurrent commits may write the same rows, so that
/// they cannot deadlock.
#[derive(Debug)]
pub struct Changes<'a> {
    /// A random number: the new version of every counter, and the `attempt_id` of every record.
    pub attempt_id: i64,
    pub now: Timestamp,
    pub expires_at: Timestamp,
    /// The shard of the totals that is written.
    pub shard: i16,
    /// Existing pairs, sorted by `pair_id`.
    pub counters: Vec<CounterChange>,
    /// Sorted by name.
    pub new_pairs: Vec<NewPair<'a>>,
    /// Of the new agents and pairs, in the order of their arrival, on Citus. Elsewhere the statements draw them.
    pub numbers: CommitNumbers,
    pub totals: Vec<TotalsChange<'a>>,
    pub rare_totals: Vec<RareTotals<'a>>,
    pub callers: Vec<CallerChange<'a>>,
    pub settlements: &'a [(Tenant, Settlement)],
    pub event_runs: Vec<NewEventRun<'a>>,
    pub outbox: Vec<outbox::Entry<'a>>,
    pub keys: Vec<NewIdempotencyKey<'a>>,
    /// Expired records that are replaced.
    pub expired: Vec<&'a CallerKey>,
    /// The revision of the terms of each tenant that the commit is based on.
    pub terms: Vec<(&'a Tenant, i64)>,
}

impl Changes<'_> {
    /// Whether one statement writes everything, so that no transaction is needed.
    pub fn is_one_statement(&self) -> bool {
        self.new_pairs.is_empty()
            && self.rare_totals.is_empty()
            && self.settlements.is_empty()
            && self.outbox.is_empty()
            && self.expired.is_empty()
    }
}
