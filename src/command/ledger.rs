//! The counters a batch touches, as they were read and as they will be written. Every change of what is owed is made
//! here, in memory; sums over pairs are derived from it in one place.

use std::collections::BTreeMap;
use std::ops::Range;

use rand::RngExt;
use rand::rngs::StdRng;

use crate::domain::caller::Tenant;
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::usage::Pair;
use crate::store::batch::ChangedCounter;
use crate::store::totals::{ServiceChange, TenantChange};
use crate::store::usage::{Counter, CounterId};

/// Where the version of a new counter may begin.
const FIRST_VERSIONS: Range<i64> = 1..1 << 48;

pub struct Ledger<'a> {
    /// Sorted by id.
    entries: Vec<Entry<'a>>,
    arrivals: i64,
}

struct Entry<'a> {
    id: &'a CounterId,
    /// As it was read; none for a pair never seen.
    before: Option<Counter>,
    agent_is_known: bool,
    now: Counter,
    /// Rank among the new pairs of the batch.
    arrival: Option<i64>,
}

impl Entry<'_> {
    fn is_changed(&self) -> bool {
        self.before.unwrap_or_default() != self.now
    }
}

impl<'a> Ledger<'a> {
    /// `ids` are sorted and distinct; `counters` and `agents` are what was read of them.
    pub fn new(ids: &'a [CounterId], counters: Vec<Option<Counter>>, agents: Vec<bool>) -> Self {
        let known = counters.into_iter().zip(agents);
        let entries = ids.iter().zip(known).map(|(id, (before, agent_is_known))| Entry {
            id,
            before,
            agent_is_known,
            now: before.unwrap_or_default(),
            arrival: None,
        });
        Self { entries: entries.collect(), arrivals: 0 }
    }

    /// Whether the pair was ever recorded.
    pub fn contains(&mut self, tenant: &Tenant, pair: &Pair) -> bool {
        let entry = self.entry(tenant, pair);
        entry.before.is_some() || entry.arrival.is_some()
    }

    /// What is outstanding of a pair now; 0 if it was never seen.
    pub fn outstanding(&mut self, tenant: &Tenant, pair: &Pair) -> i64 {
        self.entry(tenant, pair).now.outstanding
    }

    /// Adds requests. Returns what is outstanding then.
    pub fn record(&mut self, tenant: &Tenant, pair: &Pair, requests: i64) -> i64 {
        let next_arrival = self.arrivals + 1;
        let entry = self.entry(tenant, pair);
        entry.now.outstanding += requests;
        let total = entry.now.outstanding;
        if entry.before.is_none() && entry.arrival.is_none() {
            entry.arrival = Some(next_arrival);
            self.arrivals = next_arrival;
        }
        total
    }

    /// Moves what is outstanding to settled. Returns how much that was.
    pub fn settle(&mut self, tenant: &Tenant, pair: &Pair) -> i64 {
        let counter = &mut self.entry(tenant, pair).now;
        counter.settled += counter.outstanding;
        std::mem::take(&mut counter.outstanding)
    }

    /// Moves what is outstanding to reset. Returns how much that was; none for a pair never seen.
    pub fn reset(&mut self, tenant: &Tenant, pair: &Pair) -> Option<i64> {
        if !self.contains(tenant, pair) {
            return None;
        }
        let entry = self.entry(tenant, pair);
        entry.now.reset += entry.now.outstanding;
        Some(std::mem::take(&mut entry.now.outstanding))
    }

    /// The pairs of an agent that came with this batch, in the order of their first records.
    pub fn new_pairs(&self, tenant: &Tenant, agent: &AgentId) -> Vec<Pair> {
        if self.arrivals == 0 {
            return Vec::new();
        }
        let of_agent = self.entries.iter().filter(|Entry { id, .. }| id.tenant == *tenant && id.pair.agent == *agent);
        let mut new: Vec<(i64, &Pair)> = of_agent.filter_map(|entry| Some((entry.arrival?, &entry.id.pair))).collect();
        new.sort_unstable();
        new.into_iter().map(|(_, pair)| pair.clone()).collect()
    }

    fn entry(&mut self, tenant: &Tenant, pair: &Pair) -> &mut Entry<'a> {
        let place = self
            .entries
            .binary_search_by(|entry| (&entry.id.tenant, &entry.id.pair).cmp(&(tenant, pair)))
            .expect("every pair of the batch was read");
        &mut self.entries[place]
    }

    /// The counters to be written, in sorted order. A new one begins at a version of its own, so that nobody takes it for
    /// one of the same name that a reset has deleted.
    pub fn changed_counters(&self, dice: &mut StdRng) -> Vec<ChangedCounter<'a>> {
        let changed = self.entries.iter().filter(|entry| entry.is_changed());
        changed
            .map(|entry| {
                let version =
                    if entry.before.is_some() { entry.now.version + 1 } else { dice.random_range(FIRST_VERSIONS) };
                ChangedCounter { id: entry.id, counter: Counter { version, ..entry.now }, arrival: entry.arrival }
            })
            .collect()
    }

    /// The agents that are new with this batch, in sorted order, ranked by their first record.
    pub fn new_agents(&self) -> Vec<(&'a Tenant, &'a AgentId, i64)> {
        let mut first_arrivals: BTreeMap<(&'a Tenant, &'a AgentId), i64> = BTreeMap::new();
        for entry in self.entries.iter().filter(|entry| !entry.agent_is_known) {
            let Some(arrival) = entry.arrival else { continue };
            let first = first_arrivals.entry((&entry.id.tenant, &entry.id.pair.agent)).or_insert(arrival);
            *first = arrival.min(*first);
        }
        let mut agents: Vec<_> =
            first_arrivals.into_iter().map(|((tenant, agent), first)| (tenant, agent, first)).collect();
        // The ranks of pairs have gaps where an agent brought several.
        agents.sort_unstable_by_key(|(.., first)| *first);
        for (rank, agent) in (1..).zip(&mut agents) {
            agent.2 = rank;
        }
        agents.sort_unstable();
        agents
    }

    /// What the batch changes of the services' sums.
    pub fn service_changes(&self) -> BTreeMap<(&'a Tenant, &'a ServiceId), ServiceChange> {
        let mut changes: BTreeMap<_, ServiceChange> = BTreeMap::new();
        for entry in self.entries.iter().filter(|entry| entry.is_changed()) {
            let (outstanding, above_zero) = entry.difference();
            let change = changes.entry((&entry.id.tenant, &entry.id.pair.service_id)).or_default();
            change.outstanding += outstanding;
            change.pairs_above_zero += above_zero;
        }
        changes.retain(|_, change| *change != ServiceChange::default());
        changes
    }

    /// Adds what the batch changes of the tenants' sums over pairs.
    pub fn add_tenant_changes(&self, changes: &mut BTreeMap<Tenant, TenantChange>) {
        for entry in self.entries.iter().filter(|entry| entry.is_changed()) {
            let (outstanding, above_zero) = entry.difference();
            let before = entry.before.unwrap_or_default();
            let change = of_tenant(changes, &entry.id.tenant);
            change.pairs += i64::from(entry.arrival.is_some());
            change.pairs_above_zero += above_zero;
            change.outstanding += outstanding;
            change.lifetime += outstanding + entry.now.settled - before.settled + entry.now.reset - before.reset;
        }
        for (tenant, ..) in self.new_agents() {
            of_tenant(changes, tenant).agents += 1;
        }
    }
}

impl Entry<'_> {
    /// By how much what is outstanding changes, and whether the pair rises above zero (1) or falls to it (-1).
    fn difference(&self) -> (i64, i64) {
        let before = self.before.unwrap_or_default().outstanding;
        let above_zero = i64::from(self.now.outstanding > 0) - i64::from(before > 0);
        (self.now.outstanding - before, above_zero)
    }
}

/// The change of one tenant. Looked up before it is cloned: most batches are of few tenants.
pub fn of_tenant<'a>(changes: &'a mut BTreeMap<Tenant, TenantChange>, tenant: &Tenant) -> &'a mut TenantChange {
    if !changes.contains_key(tenant) {
        changes.insert(tenant.clone(), TenantChange::default());
    }
    changes.get_mut(tenant).expect("it was just inserted")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(agent: &str, service: &str) -> Pair {
        Pair { agent: AgentId::parse(agent).expect("agent"), service_id: ServiceId::parse(service).expect("service") }
    }

    #[test]
    fn sums_follow_from_the_pairs() {
        let tenant = Tenant::public();
        let ids: Vec<CounterId> = [pair("a", "s"), pair("a", "t"), pair("b", "s"), pair("c", "s")]
            .into_iter()
            .map(|pair| CounterId { tenant: tenant.clone(), pair })
            .collect();
        let known = Counter { outstanding: 5, settled: 1, reset: 0, version: 7 };
        let mut ledger = Ledger::new(&ids, vec![Some(known), None, None, None], vec![false, true, false, false]);
        // New pairs rank by their first record, not by their place in the order of locks.
        assert_eq!(ledger.record(&tenant, &pair("b", "s"), 2), 2);
        assert_eq!(ledger.record(&tenant, &pair("a", "t"), 3), 3);
        assert_eq!(ledger.settle(&tenant, &pair("a", "s")), 5);
        assert_eq!(ledger.reset(&tenant, &pair("b", "s")), Some(2));
        assert_eq!(ledger.reset(&tenant, &pair("c", "s")), None);
        let changed: Vec<_> = ledger
            .changed_counters(&mut rand::make_rng())
            .iter()
            .map(|ChangedCounter { counter: Counter { outstanding, settled, reset, version }, arrival, .. }| {
                ((*outstanding, *settled, *reset), arrival.map_or(Ok(*version), Err))
            })
            .collect();
        assert_eq!(changed, [((0, 6, 0), Ok(8)), ((3, 0, 0), Err(2)), ((0, 0, 2), Err(1))]);
        let agents: Vec<_> =
            ledger.new_agents().into_iter().map(|(_, agent, rank)| (agent.to_string(), rank)).collect();
        assert_eq!(agents, [("b".to_owned(), 1)]);
        let mut tenants = BTreeMap::new();
        ledger.add_tenant_changes(&mut tenants);
        let expected = TenantChange {
            pairs: 2,
            pairs_above_zero: 0,
            outstanding: -2,
            lifetime: 5,
            agents: 1,
            ..TenantChange::default()
        };
        assert_eq!(tenants[&tenant], expected);
        let services: Vec<_> = ledger.service_changes().into_values().collect();
        assert_eq!(
            services,
            [
                ServiceChange { outstanding: -5, pairs_above_zero: -1 },
                ServiceChange { outstanding: 3, pairs_above_zero: 1 }
            ]
        );
    }
}
