//! What a lane remembers of its latest batches, so that the next one need not read it again. Nothing of it is trusted:
//! the statement that writes compares all that was relied on with what is stored, writes nothing where something has
//! moved, and the batch reads. Three things it could not compare are therefore never taken from here: a counter at zero,
//! which may decide something without being written; how many pairs a tenant has above zero; and the absence of a key
//! whose request leaves no record. How much is remembered is bounded.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

use quick_cache::unsync::Cache;

use crate::domain::caller::Tenant;
use crate::domain::names::ServiceId;
use crate::domain::service::Terms;
use crate::store::batch::{Known, Wanted};
use crate::store::idempotency::CallerKey;
use crate::store::usage::{Counter, CounterId};

/// Most that is remembered of each kind.
const REMEMBERED_MAX: usize = 16_384;

/// At least so many of the latest keys are remembered, and at most twice as many.
const KEYS_MIN: usize = 32_768;

/// Batches that read everything at the start, and after one that relied on its memory in vain.
const DOUBTFUL_BATCHES: u32 = 64;

pub struct Memory {
    /// As they were last read or written, all of them above zero.
    counters: Cache<CounterId, Counter>,
    /// None: the service is not registered.
    offers: Cache<(Tenant, ServiceId), Option<Terms>>,
    webhooks: Cache<Tenant, i64>,
    keys: LatestKeys,
    /// Batches that still read everything, until what is remembered has proved true again.
    doubt: u32,
    /// Whether the batch under way relies on this memory.
    relied: bool,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            counters: Cache::new(REMEMBERED_MAX),
            offers: Cache::new(REMEMBERED_MAX),
            webhooks: Cache::new(REMEMBERED_MAX),
            keys: LatestKeys::default(),
            doubt: DOUBTFUL_BATCHES,
            relied: false,
        }
    }
}

/// Hashes of the latest keys, in two generations: when the young one is full, the old one is forgotten.
#[derive(Default)]
struct LatestKeys {
    young: HashSet<u64>,
    old: HashSet<u64>,
    hasher: RandomState,
}

impl LatestKeys {
    /// Two keys of one hash only cost a lookup.
    fn contains(&self, key: &CallerKey) -> bool {
        let hash = self.hasher.hash_one(key);
        self.young.contains(&hash) || self.old.contains(&hash)
    }

    fn insert(&mut self, key: &CallerKey) {
        self.young.insert(self.hasher.hash_one(key));
        if self.young.len() >= KEYS_MIN {
            self.old = std::mem::take(&mut self.young);
        }
    }
}

/// What is remembered of all that a batch wants. None: it has to be read.
pub struct Recalled {
    /// Whether the key may have a record: one that was not seen lately is taken to be new.
    keys: Vec<bool>,
    counters: Vec<Option<Counter>>,
    terms: Vec<Option<Option<Terms>>>,
    webhooks: Vec<Option<i64>>,
}

impl Memory {
    /// An attempt begins. Unless it recalls, it relies on nothing.
    pub fn begin(&mut self) {
        self.relied = false;
    }

    pub fn is_relied_on(&self) -> bool {
        self.relied
    }

    /// What is remembered; nothing while in doubt. `uncertain` are the keys that have to be looked up in any case.
    pub fn recall(&mut self, wanted: &Wanted<'_>, uncertain: &[bool]) -> Recalled {
        self.relied = self.doubt == 0;
        if !self.relied {
            return Recalled {
                keys: vec![true; wanted.keys.len()],
                counters: vec![None; wanted.pairs.len()],
                terms: vec![None; wanted.offers.len()],
                webhooks: vec![None; wanted.tenants.len()],
            };
        }
        let keys = wanted.keys.iter().zip(uncertain);
        let counters: Vec<Option<Counter>> = wanted.pairs.iter().map(|id| self.counters.get(*id).copied()).collect();
        let offers = wanted.offers.iter();
        let terms = offers.map(|(tenant, id)| self.offers.get(&((*tenant).clone(), (*id).clone())).copied());
        let mut webhooks: Vec<Option<i64>> =
            wanted.tenants.iter().map(|tenant| self.webhooks.get(*tenant).copied()).collect();
        // A pair that may rise above zero needs to know how many of its tenant there are already.
        for (id, _) in wanted.pairs.iter().zip(&counters).filter(|(_, counter)| counter.is_none()) {
            if let Ok(place) = wanted.tenants.binary_search(&&id.tenant) {
                webhooks[place] = None;
            }
        }
        Recalled {
            keys: keys.map(|(key, uncertain)| *uncertain || self.keys.contains(key)).collect(),
            counters,
            terms: terms.collect(),
            webhooks,
        }
    }

    /// Whether the attempt under way may have failed because it relied on this memory; the next ones then read.
    pub fn misled(&mut self) -> bool {
        if self.relied {
            self.doubt = DOUBTFUL_BATCHES;
        }
        self.relied
    }

    /// The batch has to be decided again, on what is read.
    pub fn read_next_time(&mut self) {
        self.doubt = self.doubt.max(1);
    }

    /// Notes what was read, after comparing it with what would have been relied on.
    pub fn note_read(&mut self, wanted: &Wanted<'_>, read: &Known) {
        if self.doubt > 0 {
            let keys = wanted.keys.iter().zip(&read.replies);
            let a_key_was_stored = keys.filter(|(_, reply)| reply.is_some()).any(|(key, _)| !self.keys.contains(key));
            let mut counters = wanted.pairs.iter().zip(&read.counters);
            let a_counter_moved =
                counters.any(|(id, counter)| self.counters.get(*id).is_some_and(|known| Some(*known) != *counter));
            self.doubt = if a_key_was_stored || a_counter_moved { DOUBTFUL_BATCHES } else { self.doubt - 1 };
        }
        for (id, counter) in wanted.pairs.iter().zip(&read.counters) {
            self.note_counter(id, counter.unwrap_or_default());
        }
        for ((tenant, service_id), terms) in wanted.offers.iter().zip(&read.terms) {
            self.offers.insert(((*tenant).clone(), (*service_id).clone()), *terms);
        }
        for (tenant, webhooks) in wanted.tenants.iter().zip(&read.webhooks) {
            self.webhooks.insert((*tenant).clone(), *webhooks);
        }
    }

    pub fn note_keys(&mut self, keys: &[&CallerKey]) {
        keys.iter().for_each(|key| self.keys.insert(key));
    }

    /// What is stored of a counter, for certain.
    pub fn note_counter(&mut self, id: &CounterId, counter: Counter) {
        if counter.outstanding > 0 {
            self.counters.insert(id.clone(), counter);
        } else {
            self.counters.remove(id);
        }
    }

    /// A command that may have changed them was executed.
    pub fn forget_terms(&mut self) {
        self.offers.clear();
        self.webhooks.clear();
    }
}

impl Recalled {
    /// What still has to be read.
    pub fn rest<'a>(&self, wanted: &Wanted<'a>) -> Wanted<'a> {
        fn missing<T: Copy, M>(items: &[T], found: &[Option<M>]) -> Vec<T> {
            items.iter().zip(found).filter(|(_, found)| found.is_none()).map(|(item, _)| *item).collect()
        }
        let keys = wanted.keys.iter().zip(&self.keys);
        Wanted {
            keys: keys.filter(|(_, may_be_known)| **may_be_known).map(|(key, _)| *key).collect(),
            pairs: missing(&wanted.pairs, &self.counters),
            offers: missing(&wanted.offers, &self.terms),
            tenants: missing(&wanted.tenants, &self.webhooks),
        }
    }

    /// All that a batch has to know, with what was read of the rest.
    pub fn with(self, read: Known) -> Known {
        let mut replies = read.replies.into_iter();
        let mut read_counters = read.counters.into_iter().zip(read.agents);
        let (mut counters, mut agents) = (Vec::new(), Vec::new());
        for remembered in self.counters {
            let (counter, agent) = match remembered {
                // A pair's agent has at least that pair.
                Some(counter) => (Some(counter), true),
                None => read_counters.next().unwrap_or_default(),
            };
            counters.push(counter);
            agents.push(agent);
        }
        let mut terms = read.terms.into_iter();
        let mut totals = read.pairs_above_zero.into_iter().zip(read.webhooks);
        let totals = self.webhooks.into_iter().map(|remembered| match remembered {
            Some(webhooks) => (None, webhooks),
            None => totals.next().unwrap_or_default(),
        });
        let (pairs_above_zero, webhooks) = totals.unzip();
        Known {
            replies: self.keys.into_iter().map(|asked| if asked { replies.next().flatten() } else { None }).collect(),
            counters,
            agents,
            terms: self.terms.into_iter().map(|found| found.unwrap_or_else(|| terms.next().flatten())).collect(),
            pairs_above_zero,
            webhooks,
        }
    }
}
