//! Caches which tenant an API key belongs to, for less than a second. A key that was never recognised is looked up only
//! while its address has quota left, and for a few more guesses, so that invented keys cost no queries. Caches from
//! crates coalesce concurrent misses of one key; here, different keys that arrive together also share one query.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hashlink::LruCache;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::domain::caller::Caller;
use crate::domain::identifiers::KeyPrefix;
use crate::domain::refusal::Refusal;
use crate::domain::runtime_config::Limits;
use crate::job_health::{Job, JobHealth};
use crate::query::reader::{Reader, Reads};
use crate::runtime_config::SharedRuntimeConfig;
use crate::store::api_keys::{self, KnownKey};

use crate::api::http::rate_limit::RateLimiter;

/// Maximum number of cached keys. Unknown keys cannot evict recognised ones.
const RECOGNISED_MAX: usize = 10_000;
const UNKNOWN_MAX: usize = 1000;
/// How long an entry is valid: a revocation must reach every replica within a second.
const KEY_MEMORY: Duration = Duration::from_millis(900);
/// How long a lookup of such a key waits for the home cell, while it is not known to be down.
const HOME_WAIT: Duration = Duration::from_secs(1);
/// Maximum number of keys in one query.
const KEYS_OF_QUERY_MAX: usize = 256;
/// How long the recording of a use waits for a connection.
const USE_LIMIT: Duration = Duration::from_secs(5);
/// How many unrecognised keys per window are looked up for an address without quota. A tenant may share its address
/// with a client that sends too many requests.
const GUESSES_MAX: i64 = 10;

type KeyHash = [u8; 32];

/// The result of looking up a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presented {
    Recognised(KnownKey),
    Unknown,
    /// Not looked up, because its address has no quota left.
    NotLookedUp,
}

/// Entries from before the latest change of API keys, on any replica, are not used.
pub struct KnownKeys {
    recognised: Cache<KnownKey>,
    unknown: Cache<()>,
    /// For keys that were recognised before. Other keys wait for separate queries.
    refreshes: Reads<KeyHash, Option<KnownKey>>,
    lookups: Reads<KeyHash, Option<KnownKey>>,
    /// Keys whose use is to be recorded.
    uses: Arc<Reads<KeyPrefix, ()>>,
    /// Counts keys that were looked up although their address had no quota left.
    guesses: RateLimiter,
    changes: AtomicU64,
    reader: Reader,
    clock: Clock,
    home_health: JobHealth,
    /// How long a key whose tenant lives in another cell may be used while the home cell does not answer.
    home_outage_max: Duration,
    runtime_config: SharedRuntimeConfig,
    /// `None` if RATE_LIMIT is off.
    limiter: Option<Arc<RateLimiter>>,
}

#[derive(Clone)]
struct Known<T> {
    looked_up: Instant,
    /// [`KEY_MEMORY`], or less for a key that expires sooner.
    valid_for: Duration,
    /// That of the moment when the key was looked up.
    version: Version,
    what: T,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Version {
    /// The number of changes by this process.
    own: u64,
    /// The revision of all changes, as this process last read it in the home cell.
    all: i64,
}

impl<T> Known<T> {
    fn is_fresh(&self, now: Instant, version: Version) -> bool {
        self.version == version && now - self.looked_up < self.valid_for
    }
}

impl Known<KnownKey> {
    /// Whether the key may be used although the home cell does not answer: its tenant lives in another cell, and as far as
    /// this process knows no key was changed since. Requests of this process do not count: during the outage, one of them
    /// would end the use of all keys. What they changed is forgotten key by key.
    fn may_be_kept(&self, now: Instant, all: i64, home_outage_max: Duration) -> bool {
        let age = now - self.looked_up;
        self.what.cell.is_some()
            && self.version.all == all
            && age < home_outage_max
            && self.what.lifetime.is_none_or(|lifetime| age < lifetime)
    }
}

struct Cache<T>(Mutex<LruCache<KeyHash, Known<T>>>);

impl<T: Clone> Cache<T> {
    fn new(keys_max: usize) -> Self {
        Self(Mutex::new(LruCache::new(keys_max)))
    }

    fn get(&self, hash: &KeyHash) -> Option<Known<T>> {
        self.lock().get(hash).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, LruCache<KeyHash, Known<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KnownKeys {
    pub fn new(
        home_outage_max: Duration,
        reader: Reader,
        clock: Clock,
        home_health: JobHealth,
        runtime_config: SharedRuntimeConfig,
        limiter: Option<Arc<RateLimiter>>,
    ) -> Self {
        Self {
            recognised: Cache::new(RECOGNISED_MAX),
            unknown: Cache::new(UNKNOWN_MAX),
            refreshes: Reads::new(KEYS_OF_QUERY_MAX),
            lookups: Reads::new(KEYS_OF_QUERY_MAX),
            uses: Arc::new(Reads::new(KEYS_OF_QUERY_MAX)),
            guesses: RateLimiter::default(),
            changes: AtomicU64::new(0),
            reader,
            clock,
            home_health,
            home_outage_max,
            runtime_config,
            limiter,
        }
    }

    /// Must be called after this process may have changed API keys. While the home cell does not answer, keys of other cells
    /// are still used.
    pub fn invalidate(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// Must be called after this process may have revoked or rotated a key: it is not used until it has been looked up.
    pub fn forget(&self, prefix: &str) {
        self.invalidate();
        let mut recognised = self.recognised.lock();
        let found = recognised.iter().find(|(_, known)| known.what.prefix.as_str() == prefix);
        if let Some(hash) = found.map(|(hash, _)| *hash) {
            recognised.remove(&hash);
        }
    }

    /// Looks the key up again when it is next presented, because its tenant has left the cell.
    pub fn expire(&self, hash: &KeyHash) {
        if let Some(known) = self.recognised.lock().get_mut(hash) {
            known.valid_for = Duration::ZERO;
        }
    }

    /// Whether a key is known that may be used while the home cell does not answer.
    pub fn has_any_without_home(&self) -> bool {
        let (now, all) = (Instant::now(), self.runtime_config.keys_revision());
        // The keys used last are the likeliest.
        self.recognised.lock().iter().rev().any(|(_, known)| known.may_be_kept(now, all, self.home_outage_max))
    }

    /// Looks up the key with this hash, presented by a client at `address`.
    pub async fn look_up(
        &self,
        hash: KeyHash,
        address: &Caller,
        deadline: std::time::Instant,
    ) -> Result<Presented, Refusal> {
        // Taken before the lookup, so that a change during the lookup makes its result stale.
        let (now, own) = (Instant::now(), self.changes.load(Ordering::Acquire));
        let version = Version { own, all: self.runtime_config.keys_revision() };
        let recognised = self.recognised.get(&hash);
        let was_recognised = recognised.is_some();
        if let Some(known) = recognised.as_ref().filter(|known| known.is_fresh(now, version)) {
            return Ok(Presented::Recognised(known.what.clone()));
        }
        if self.unknown.get(&hash).is_some_and(|known| known.is_fresh(now, version)) {
            return Ok(Presented::Unknown);
        }
        if !was_recognised && !self.may_guess(address) {
            return Ok(Presented::NotLookedUp);
        }
        let reads = if was_recognised { &self.refreshes } else { &self.lookups };
        // Boxed, because few requests need a lookup and every request would otherwise have its size.
        let kept = recognised.filter(|known| known.may_be_kept(now, version.all, self.home_outage_max));
        if let Some(kept) = &kept
            && self.home_health.state(Job::Config).failing_ms.is_some()
        {
            return Ok(Presented::Recognised(kept.what.clone()));
        }
        let deadline = if kept.is_some() { deadline.min((now + HOME_WAIT).into_std()) } else { deadline };
        let key = match Box::pin(self.reader.load(reads, hash, deadline, api_keys::find_all)).await {
            Ok(key) => key,
            Err(refusal) => return kept.map(|kept| Presented::Recognised(kept.what)).ok_or(refusal),
        };
        match key {
            Some(key) => {
                // The database compared the expiry with its own clock.
                let valid_for = key.lifetime.map_or(KEY_MEMORY, |lifetime| lifetime.min(KEY_MEMORY));
                let mut recognised = self.recognised.lock();
                // After a change in the meantime, it may be a key that was forgotten.
                if self.changes.load(Ordering::Acquire) == own {
                    recognised.insert(hash, Known { looked_up: now, valid_for, version, what: key.clone() });
                }
                drop(recognised);
                if key.is_use_due {
                    self.note_use(key.prefix);
                }
                Ok(Presented::Recognised(key))
            }
            None => {
                self.recognised.lock().remove(&hash);
                let known = Known { looked_up: now, valid_for: KEY_MEMORY, version, what: () };
                self.unknown.lock().insert(hash, known);
                Ok(Presented::Unknown)
            }
        }
    }

    /// Records the use of a key while its request continues. If that fails, the next lookup of the key tries again.
    fn note_use(&self, prefix: KeyPrefix) {
        let (uses, reader) = (self.uses.clone(), self.reader.clone());
        tokio::spawn(async move {
            let deadline = std::time::Instant::now() + USE_LIMIT;
            let _ = reader.load(&uses, prefix, deadline, api_keys::note_used).await;
        });
    }

    fn may_guess(&self, address: &Caller) -> bool {
        let Some(limiter) = &self.limiter else { return true };
        let (now_ms, limits) = (self.clock.elapsed_ms(), self.runtime_config.limits());
        if limiter.has_quota(address, now_ms, &limits) {
            return true;
        }
        let limits = Limits { rate_limit_per_window: GUESSES_MAX, ..limits };
        self.guesses.check(address, now_ms, &limits).allowed
    }
}
