//! Step 2 of a batch: takes what the lane has cached, and reads the rest with at most one statement of each kind.
//!
//! The statement that writes compares everything that was cached. If anything is stale, nothing is written, and the
//! next attempt reads. What that statement cannot compare is therefore always read: a counter at zero, the number of a
//! tenant's pairs above zero, and the absence of a key whose request leaves no record.

use std::collections::HashSet;
use std::hash::BuildHasher;

use foldhash::fast::RandomState;
use hashlink::LruCache;
use sqlx::PgConnection;

use crate::command::context::AgentsToSettle;
use crate::domain::caller::Tenant;
use crate::domain::names::ServiceId;
use crate::domain::service::Terms;
use crate::domain::usage::Pair;
use crate::store::commit::{Known, TenantTerms, Wanted, lookup};
use crate::store::idempotency::CallerKey;
use crate::store::usage::{Counter, CounterId};
use crate::store::{Conflict, StoreError};

use super::plan::Plan;

/// Maximum number of entries of each kind.
const ENTRIES_MAX: usize = 16_384;

/// At least this many of the latest keys are remembered, and at most twice as many.
const KEYS_MIN: usize = 32_768;

/// Number of batches that do not use cached data, after the start and after cached data was stale.
const COOLDOWN_BATCHES: u32 = 64;

/// foldhash has a random seed, like the standard library's hasher, and takes a tenth of the time.
type Cache<K, V> = LruCache<K, V, RandomState>;

pub struct ReadCache {
    /// As last read or written. All of them are above zero.
    counters: Cache<CounterId, Counter>,
    /// With the revision of the tenant's terms at which they were read. `None`: the service is not registered.
    services: Cache<(Tenant, ServiceId), (i64, Option<Terms>)>,
    tenants: Cache<Tenant, TenantTerms>,
    keys: LatestKeys,
    /// Number of batches that still have to read.
    cooldown: ByKind<u32>,
    /// Whether the current attempt uses cached data.
    used: ByKind<bool>,
}

/// One value for each kind of cached data. A write reports which kind was stale; the others may still be valid.
#[derive(Clone, Copy)]
struct ByKind<T> {
    counters: T,
    terms: T,
    /// The absence of a record.
    keys: T,
}

impl Default for ReadCache {
    fn default() -> Self {
        Self {
            counters: LruCache::with_hasher(ENTRIES_MAX, RandomState::default()),
            services: LruCache::with_hasher(ENTRIES_MAX, RandomState::default()),
            tenants: LruCache::with_hasher(ENTRIES_MAX, RandomState::default()),
            keys: LatestKeys::default(),
            cooldown: ByKind { counters: COOLDOWN_BATCHES, terms: COOLDOWN_BATCHES, keys: COOLDOWN_BATCHES },
            used: ByKind { counters: false, terms: false, keys: false },
        }
    }
}

/// Hashes of the latest keys in two generations. When the young one is full, it replaces the old one.
#[derive(Default)]
struct LatestKeys {
    young: HashSet<u64, RandomState>,
    old: HashSet<u64, RandomState>,
    hasher: RandomState,
}

impl LatestKeys {
    /// A hash collision only causes a needless read.
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

impl ReadCache {
    /// Whether the latest attempt assumed keys to be new without reading them.
    pub fn presumed_keys(&self) -> bool {
        self.used.keys
    }

    /// Whether the latest attempt may have failed because cached data was stale. If so, the next batches read it.
    pub fn was_stale(&mut self, conflict: Conflict) -> bool {
        let (used, cooldown) = match conflict {
            Conflict::Version => (self.used.counters, &mut self.cooldown.counters),
            Conflict::Terms => (self.used.terms, &mut self.cooldown.terms),
            Conflict::Key => (self.used.keys, &mut self.cooldown.keys),
        };
        if used {
            *cooldown = COOLDOWN_BATCHES;
        }
        used
    }

    /// The batch runs again, and must read its keys.
    pub fn read_keys_next_time(&mut self) {
        self.cooldown.keys = self.cooldown.keys.max(1);
    }

    /// Returns everything that the plan needs. `locked` are the counters, if the attempt has locked them.
    pub async fn complete(
        &mut self,
        connection: &mut PgConnection,
        plan: &Plan<'_>,
        pairs: &[CounterId],
        locked: Option<Vec<Option<Counter>>>,
        agents: &AgentsToSettle,
    ) -> Result<Known, StoreError> {
        let is_locked = locked.is_some();
        self.used = ByKind {
            counters: self.cooldown.counters == 0 && !is_locked,
            terms: self.cooldown.terms == 0,
            keys: self.cooldown.keys == 0,
        };
        let mut cached = self.lookup(plan, pairs, locked);
        if !is_locked {
            cached.set_agents(pairs, agents);
        }
        let missing = cached.missing(plan, pairs);
        let read = lookup(connection, &missing).await?;
        self.note_read(&missing, &read, is_locked);
        plan.keys.iter().for_each(|key| self.keys.insert(key));
        Ok(cached.with(&missing, read))
    }

    fn lookup(&mut self, plan: &Plan<'_>, pairs: &[CounterId], locked: Option<Vec<Option<Counter>>>) -> Cached {
        let counters = match locked {
            Some(locked) => locked,
            None if self.used.counters => pairs.iter().map(|id| self.counters.get(id).copied()).collect(),
            None => vec![None; pairs.len()],
        };
        let keys = plan.keys.iter().zip(&plan.uncertain);
        let may_be_stored =
            |(key, uncertain): (&&CallerKey, &bool)| !self.used.keys || *uncertain || self.keys.contains(key);
        let mut services = plan.services.iter().peekable();
        let mut terms = Vec::with_capacity(plan.services.len());
        let tenants = plan.tenants.iter().map(|tenant| {
            let begin = terms.len();
            let mut known = self.used.terms.then(|| self.tenants.get(*tenant).copied()).flatten();
            while let Some((_, service_id)) = services.next_if(|(of, _)| of == tenant) {
                let entry = known.and_then(|_| self.services.get(&((*tenant).clone(), (*service_id).clone())).copied());
                known = known.filter(|known| entry.is_some_and(|(revision, _)| revision == known.revision));
                terms.push(entry.map(|(_, terms)| terms));
            }
            // Data read at different revisions is never combined.
            if known.is_none() {
                terms[begin..].fill(None);
            }
            known
        });
        let tenants = tenants.collect();
        Cached { keys: keys.map(may_be_stored).collect(), counters, tenants, services: terms }
    }

    /// Caches what was read, and compares it with what was cached before.
    fn note_read(&mut self, wanted: &Wanted<'_>, read: &Known, is_locked: bool) {
        let mut stored = wanted.keys.iter().zip(&read.responses).filter(|(_, stored)| stored.is_some());
        count_down(&mut self.cooldown.keys, || stored.any(|(key, _)| !self.keys.contains(key)));
        count_down(&mut self.cooldown.terms, || false);
        if !is_locked {
            let mut counters = wanted.pairs.iter().zip(&read.counters);
            let is_other = |known: &Counter, counter: &Option<Counter>| Some(*known) != *counter;
            count_down(&mut self.cooldown.counters, || {
                counters.any(|(id, counter)| self.counters.peek(*id).is_some_and(|known| is_other(known, counter)))
            });
        }
        for (id, counter) in wanted.pairs.iter().zip(&read.counters) {
            match counter {
                Some(counter) => self.note_counter(id, *counter),
                None => {
                    self.counters.remove(*id);
                }
            }
        }
        for (tenant, terms) in wanted.tenants.iter().zip(&read.tenants) {
            if terms.residence.executes() {
                self.tenants.insert((*tenant).clone(), *terms);
            } else {
                // Its requests are refused, so no write would find that this is stale.
                self.tenants.remove(*tenant);
            }
        }
        for ((tenant, service_id), terms) in wanted.services.iter().zip(&read.services) {
            if let Some(known) = self.tenants.peek(*tenant) {
                self.services.insert(((*tenant).clone(), (*service_id).clone()), (known.revision, *terms));
            }
        }
    }

    /// Caches a counter as it is certainly stored.
    pub fn note_counter(&mut self, id: &CounterId, counter: Counter) {
        if counter.outstanding > 0 {
            self.counters.insert(id.clone(), counter);
        } else {
            self.counters.remove(id);
        }
    }
}

/// Counts one more batch that has read. Starts over if using the cache would have failed.
fn count_down(cooldown: &mut u32, would_have_failed: impl FnOnce() -> bool) {
    if *cooldown > 0 {
        *cooldown = if would_have_failed() { COOLDOWN_BATCHES } else { *cooldown - 1 };
    }
}

/// What is known without reading. `None`: it must be read.
struct Cached {
    /// Whether the key may have a record.
    keys: Vec<bool>,
    counters: Vec<Option<Counter>>,
    tenants: Vec<Option<TenantTerms>>,
    services: Vec<Option<Option<Terms>>>,
}

impl Cached {
    /// Uses the pairs of an agent as they were read together. A pair created since then is later than the settlement.
    fn set_agents(&mut self, pairs: &[CounterId], agents: &AgentsToSettle) {
        for ((tenant, agent), of_agent) in &agents.0 {
            for (service_id, counter) in &of_agent.pairs {
                let pair = Pair { agent: agent.clone(), service_id: service_id.clone() };
                let id = CounterId { tenant: tenant.clone(), pair };
                let index = pairs.binary_search(&id).expect("the pairs of the agents are among them");
                self.counters[index] = Some(*counter);
            }
        }
    }

    /// What must be read.
    fn missing<'a>(&self, plan: &Plan<'a>, pairs: &'a [CounterId]) -> Wanted<'a> {
        fn missing<T: Copy, M>(items: impl Iterator<Item = T>, found: &[Option<M>]) -> Vec<T> {
            items.zip(found).filter(|(_, found)| found.is_none()).map(|(item, _)| item).collect()
        }
        let keys = plan.keys.iter().zip(&self.keys);
        let at_zero =
            pairs.iter().zip(&self.counters).filter(|(_, counter)| counter.is_none_or(|known| known.outstanding == 0));
        let mut rising: Vec<&Tenant> = at_zero.map(|(id, _)| &id.tenant).collect();
        rising.dedup();
        Wanted {
            keys: keys.filter(|(_, may_be_stored)| **may_be_stored).map(|(key, _)| *key).collect(),
            pairs: missing(pairs.iter(), &self.counters),
            tenants: missing(plan.tenants.iter().copied(), &self.tenants),
            services: missing(plan.services.iter().copied(), &self.services),
            rising,
        }
    }

    /// Everything that the batch must know, in the order of its plan: cached data, and what was read of `missing`.
    fn with(self, missing: &Wanted<'_>, read: Known) -> Known {
        debug_assert_eq!(missing.keys.len(), read.responses.len());
        let mut responses = read.responses.into_iter();
        let mut counters = read.counters.into_iter().zip(read.agents);
        let (counters, agents) = self
            .counters
            .into_iter()
            // An agent with a pair exists.
            .map(|cached| cached.map_or_else(|| counters.next().unwrap_or_default(), |counter| (Some(counter), true)))
            .unzip();
        let mut tenants = read.tenants.into_iter();
        let mut services = read.services.into_iter();
        let read_key = |may_be_stored| if may_be_stored { responses.next().flatten() } else { None };
        Known {
            responses: self.keys.into_iter().map(read_key).collect(),
            counters,
            agents,
            tenants: self
                .tenants
                .into_iter()
                .map(|known| known.or_else(|| tenants.next()).unwrap_or_default())
                .collect(),
            services: self
                .services
                .into_iter()
                .map(|known| known.unwrap_or_else(|| services.next().flatten()))
                .collect(),
            pairs_above_zero: read.pairs_above_zero,
        }
    }
}
