//! The counters of a batch in memory, as they were read and as they will be written. All changes of usage are made
//! here, and the sums over pairs are derived from them.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use crate::domain::caller::Tenant;
use crate::domain::money::Count;
use crate::domain::names::{AgentId, ServiceId};
use crate::domain::usage::Pair;
use crate::store::commit::{CounterChange, NewPair};
use crate::store::usage::{Counter, CounterId};

pub struct BatchCounters<'a> {
    /// Sorted by id.
    entries: Vec<Entry<'a>>,
    arrivals: i64,
}

/// The place of a pair among the counters of a batch.
#[derive(Clone, Copy, Debug)]
pub struct CounterIndex(usize);

struct Entry<'a> {
    id: &'a CounterId,
    /// As it was read; `None` if the pair does not exist.
    before: Option<Counter>,
    agent_is_known: bool,
    outstanding: i64,
    settled: i64,
    reset: i64,
    /// Order of its first record among the new pairs of the batch.
    arrival: Option<i64>,
}

/// How a pair changes the sums over pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PairSums {
    pub pairs: i64,
    pub pairs_above_zero: i64,
    pub outstanding: i64,
    pub recorded: i64,
    /// Only in the sums of a tenant.
    pub agents: i64,
}

impl AddAssign for PairSums {
    fn add_assign(&mut self, other: Self) {
        self.pairs += other.pairs;
        self.pairs_above_zero += other.pairs_above_zero;
        self.outstanding += other.outstanding;
        self.recorded += other.recorded;
        self.agents += other.agents;
    }
}

impl Entry<'_> {
    fn is_changed(&self) -> bool {
        let before = self.before.unwrap_or_default();
        (before.outstanding, before.settled, before.reset) != (self.outstanding, self.settled, self.reset)
    }
}

impl<'a> BatchCounters<'a> {
    /// `ids` are sorted and distinct. `counters` and `agents` have one entry for each id.
    pub fn new(ids: &'a [CounterId], counters: Vec<Option<Counter>>, agents: Vec<bool>) -> Self {
        let known = counters.into_iter().zip(agents);
        let entries = ids.iter().zip(known).map(|(id, (before, agent_is_known))| {
            let Counter { outstanding, settled, reset, .. } = before.unwrap_or_default();
            Entry { id, before, agent_is_known, outstanding, settled, reset, arrival: None }
        });
        Self { entries: entries.collect(), arrivals: 0 }
    }

    pub fn find(&self, tenant: &Tenant, pair: &Pair) -> CounterIndex {
        let index = self.entries.binary_search_by(|entry| (&entry.id.tenant, &entry.id.pair).cmp(&(tenant, pair)));
        CounterIndex(index.expect("every pair of the batch was looked up"))
    }

    /// Whether the pair exists, before this batch or because of it.
    pub fn exists(&self, counter: CounterIndex) -> bool {
        let entry = &self.entries[counter.0];
        entry.before.is_some() || entry.arrival.is_some()
    }

    /// Outstanding requests of the pair; 0 if it does not exist.
    pub fn outstanding(&self, counter: CounterIndex) -> Count {
        Count(self.entries[counter.0].outstanding)
    }

    /// Adds requests, and returns the outstanding total.
    pub fn record(&mut self, counter: CounterIndex, requests: Count) -> Count {
        let exists = self.exists(counter);
        let entry = &mut self.entries[counter.0];
        entry.outstanding += requests.0;
        if !exists {
            self.arrivals += 1;
            entry.arrival = Some(self.arrivals);
        }
        Count(entry.outstanding)
    }

    /// Moves the outstanding requests to settled, and returns their number.
    pub fn settle(&mut self, counter: CounterIndex) -> Count {
        let entry = &mut self.entries[counter.0];
        entry.settled += entry.outstanding;
        Count(std::mem::take(&mut entry.outstanding))
    }

    /// Moves the outstanding requests to reset, and returns their number. `None` if the pair does not exist.
    pub fn reset(&mut self, counter: CounterIndex) -> Option<Count> {
        if !self.exists(counter) {
            return None;
        }
        let entry = &mut self.entries[counter.0];
        entry.reset += entry.outstanding;
        Some(Count(std::mem::take(&mut entry.outstanding)))
    }

    /// Services of the agent's new pairs, in the order of their first records.
    pub fn new_services(&self, tenant: &Tenant, agent: &AgentId) -> Vec<ServiceId> {
        if self.arrivals == 0 {
            return Vec::new();
        }
        let of_agent = self.entries.iter().filter(|entry| entry.id.tenant == *tenant && entry.id.pair.agent == *agent);
        let mut new: Vec<(i64, &ServiceId)> =
            of_agent.filter_map(|entry| Some((entry.arrival?, &entry.id.pair.service_id))).collect();
        new.sort_unstable();
        new.into_iter().map(|(_, service_id)| service_id.clone()).collect()
    }

    /// New values of existing pairs, sorted by number: every writer locks them in this order.
    pub fn changes(&self) -> Vec<CounterChange> {
        let changed = self.entries.iter().filter(|entry| entry.is_changed());
        let mut changes: Vec<CounterChange> = changed
            .filter_map(|entry| {
                let Counter { pair_id, version, .. } = entry.before?;
                let Entry { outstanding, settled, reset, .. } = *entry;
                Some(CounterChange { pair_id, version, outstanding, settled, reset })
            })
            .collect();
        changes.sort_unstable_by_key(|change| change.pair_id);
        changes
    }

    /// New pairs, sorted by name.
    pub fn new_pairs(&self) -> Vec<NewPair<'a>> {
        if self.arrivals == 0 {
            return Vec::new();
        }
        let mut agents: BTreeMap<(&Tenant, &AgentId), i64> = BTreeMap::new();
        for entry in self.entries.iter().filter(|entry| !entry.agent_is_known) {
            let Some(arrival) = entry.arrival else { continue };
            let first = agents.entry((&entry.id.tenant, &entry.id.pair.agent)).or_insert(arrival);
            *first = arrival.min(*first);
        }
        // The order has gaps where an agent has several new pairs.
        let mut arrivals: Vec<&mut i64> = agents.values_mut().collect();
        arrivals.sort_unstable();
        for (rank, arrival) in (1..).zip(arrivals) {
            *arrival = rank;
        }
        let new = self.entries.iter().filter_map(|entry| Some((entry, entry.arrival?)));
        new.map(|(entry, arrival)| NewPair {
            id: entry.id,
            outstanding: entry.outstanding,
            settled: entry.settled,
            reset: entry.reset,
            arrival,
            agent_arrival: agents.get(&(&entry.id.tenant, &entry.id.pair.agent)).copied(),
        })
        .collect()
    }

    /// The counters after the batch, with `version`. New pairs are left out, because they have no number yet.
    pub fn written(&self, version: i64) -> impl Iterator<Item = (&'a CounterId, Counter)> {
        self.entries.iter().filter(|entry| entry.is_changed()).filter_map(move |entry| {
            let pair_id = entry.before?.pair_id;
            let Entry { outstanding, settled, reset, .. } = *entry;
            Some((entry.id, Counter { pair_id, outstanding, settled, reset, version }))
        })
    }

    /// How each pair changes the sums that include it.
    pub fn sums(&self) -> impl Iterator<Item = (&'a CounterId, PairSums)> {
        self.entries.iter().filter(|entry| entry.is_changed() || entry.arrival.is_some()).map(|entry| {
            let before = entry.before.unwrap_or_default();
            let of_all = |outstanding, settled, reset| outstanding + settled + reset;
            let sums = PairSums {
                pairs: i64::from(entry.arrival.is_some()),
                pairs_above_zero: i64::from(entry.outstanding > 0) - i64::from(before.outstanding > 0),
                outstanding: entry.outstanding - before.outstanding,
                recorded: of_all(entry.outstanding, entry.settled, entry.reset)
                    - of_all(before.outstanding, before.settled, before.reset),
                agents: 0,
            };
            (entry.id, sums)
        })
    }
}
