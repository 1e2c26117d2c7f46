//! What a lane remembers of its latest batches, so that the next one need not read it again. Nothing of it is trusted:
//! the statement that writes compares all of it with what is stored, writes nothing where something has moved, and the
//! batch reads. How much is remembered is bounded; what was not used for long is forgotten.

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

/// Most keys that are remembered, of which only a hash is kept.
const KEYS_MAX: usize = 65_536;

/// Batches that read everything after one that relied on its memory in vain.
const DOUBTFUL_BATCHES: u32 = 64;

pub struct Memory {
    counters: Cache<CounterId, Counter>,
    /// None: the service is not registered.
    offers: Cache<(Tenant, ServiceId), Option<Terms>>,
    webhooks: Cache<Tenant, i64>,
    keys: Cache<u64, ()>,
    hasher: RandomState,
    /// Batches that still read everything, until what is remembered has proved true again.
    doubt: u32,
    relied: bool,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            counters: Cache::new(REMEMBERED_MAX),
            offers: Cache::new(REMEMBERED_MAX),
            webhooks: Cache::new(REMEMBERED_MAX),
            keys: Cache::new(KEYS_MAX),
            hasher: RandomState::new(),
            doubt: 0,
            relied: false,
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
    /// What is remembered; nothing while in doubt.
    pub fn recall(&mut self, wanted: &Wanted<'_>) -> Recalled {
        self.relied = self.doubt == 0;
        if !self.relied {
            return Recalled {
                keys: vec![true; wanted.keys.len()],
                counters: vec![None; wanted.pairs.len()],
                terms: vec![None; wanted.offers.len()],
                webhooks: vec![None; wanted.tenants.len()],
            };
        }
        let keys = wanted.keys.iter().map(|key| self.keys.get(&self.hasher.hash_one(key)).is_some()).collect();
        let counters: Vec<Option<Counter>> = wanted.pairs.iter().map(|id| self.counters.get(*id).copied()).collect();
        let offers = wanted.offers.iter();
        let terms = offers.map(|(tenant, id)| self.offers.get(&((*tenant).clone(), (*id).clone())).copied()).collect();
        let mut webhooks: Vec<Option<i64>> =
            wanted.tenants.iter().map(|tenant| self.webhooks.get(*tenant).copied()).collect();
        // A pair that may rise above zero needs to know how many of its tenant there are already.
        let rising = wanted.pairs.iter().zip(&counters);
        for (id, _) in rising.filter(|(_, counter)| counter.is_none_or(|counter| counter.outstanding == 0)) {
            if let Ok(place) = wanted.tenants.binary_search(&&id.tenant) {
                webhooks[place] = None;
            }
        }
        Recalled { keys, counters, terms, webhooks }
    }

    /// Whether the latest attempt may have failed because it relied on this memory; the next ones then read.
    pub fn misled(&mut self) -> bool {
        if self.relied {
            self.doubt = DOUBTFUL_BATCHES;
        }
        std::mem::take(&mut self.relied)
    }

    /// Compares what was read in doubt with what would have been relied on.
    pub fn compare(&mut self, wanted: &Wanted<'_>, known: &Known) {
        if self.doubt == 0 {
            return;
        }
        let is_news = |(key, reply): (&&CallerKey, &Option<_>)| {
            reply.is_some() && self.keys.get(&self.hasher.hash_one(key)).is_none()
        };
        let a_key_was_known = wanted.keys.iter().zip(&known.replies).any(is_news);
        let moved = |(id, counter): (&&CounterId, &Option<Counter>)| {
            self.counters.get(*id).is_some_and(|remembered| Some(*remembered) != *counter)
        };
        let a_counter_moved = wanted.pairs.iter().zip(&known.counters).any(moved);
        self.doubt = if a_key_was_known || a_counter_moved { DOUBTFUL_BATCHES } else { self.doubt - 1 };
    }

    /// Notes what was read; the counters only once they are written.
    pub fn note(&mut self, wanted: &Wanted<'_>, known: &Known) {
        for ((tenant, service_id), terms) in wanted.offers.iter().zip(&known.terms) {
            self.offers.insert(((*tenant).clone(), (*service_id).clone()), *terms);
        }
        for (tenant, webhooks) in wanted.tenants.iter().zip(&known.webhooks) {
            self.webhooks.insert((*tenant).clone(), *webhooks);
        }
        for key in &wanted.keys {
            self.keys.insert(self.hasher.hash_one(key), ());
        }
    }

    pub fn note_written(&mut self, written: impl Iterator<Item = (CounterId, Counter)>) {
        written.for_each(|(id, counter)| self.counters.insert(id, counter));
    }

    /// Forgets all but keys and counters: a command that may have changed the rest was executed.
    pub fn forget_terms(&mut self) {
        self.offers = Cache::new(REMEMBERED_MAX);
        self.webhooks = Cache::new(REMEMBERED_MAX);
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
