//! The rate limiter: a sliding log per caller. The available crates implement GCRA or fixed windows, which cannot tell
//! how many requests remain in the last window or when the oldest one leaves it.
//!
//! Memory is bounded: at most `CALLERS_MAX` callers, of which the longest idle is dropped first, and `EXACT_MAX` + 1024
//! slots for each.

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hashlink::LinkedHashMap;
use hashlink::linked_hash_map::RawEntryMut;

use crate::domain::caller::Caller;
use crate::domain::runtime_config::Limits;

/// Maximum number of callers that are remembered.
const CALLERS_MAX: usize = 100_000;
/// Up to this many slots, a log keeps the exact millisecond of each hit. Further hits are rounded up to 1/1024 of the
/// window and share slots. Rounding up never allows more than the limit.
const EXACT_MAX: usize = 2048;
const COARSE_PARTS: u64 = 1024;
const SHARDS: usize = 16;

/// The quota of a caller after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimitStatus {
    pub allowed: bool,
    pub limit: u64,
    pub remaining: u64,
    /// Time until the oldest hit leaves the window, rounded up.
    pub reset_seconds: u64,
    pub window_ms: u64,
}

/// `K` is what has a quota: a caller, or one API key.
pub struct RateLimiter<K = Caller> {
    shards: Vec<Shard<K>>,
    hasher: RandomState,
    /// Callers in all shards together.
    callers: AtomicUsize,
    callers_max: usize,
}

/// Ordered by the latest hit; the longest idle is first.
type Logs<K> = LinkedHashMap<K, Log, RandomState>;

struct Shard<K> {
    logs: Mutex<Logs<K>>,
    /// When the first of them was last allowed; [`u64::MAX`] if there is none. Read without the lock.
    idle_since_ms: AtomicU64,
}

impl<K: Eq + Hash + Clone> Default for RateLimiter<K> {
    fn default() -> Self {
        Self::new(CALLERS_MAX)
    }
}

impl<K: Eq + Hash + Clone> RateLimiter<K> {
    fn new(callers_max: usize) -> Self {
        // All shards use one hasher, so that a caller is hashed once.
        let hasher = RandomState::new();
        let logs = || Mutex::new(LinkedHashMap::with_hasher(hasher.clone()));
        let shard = || Shard { logs: logs(), idle_since_ms: AtomicU64::new(u64::MAX) };
        Self { shards: (0..SHARDS).map(|_| shard()).collect(), hasher, callers: AtomicUsize::new(0), callers_max }
    }

    /// Counts a request of `caller` if it is allowed. `now_ms` must never decrease.
    pub fn check(&self, caller: &K, now_ms: u64, limits: &Limits) -> RateLimitStatus {
        let window_ms = limits.rate_limit_window_ms.unsigned_abs();
        let limit = limits.rate_limit_per_window.unsigned_abs();
        let hash = self.hasher.hash_one(caller);
        // Other bits than those that the map in the shard uses.
        let shard = &self.shards[(hash >> 32) as usize % SHARDS];
        let mut logs = shard.lock();
        self.evict_expired(&mut logs, now_ms, window_ms, 2);
        let status = match logs.raw_entry_mut().from_key_hashed_nocheck(hash, caller) {
            RawEntryMut::Occupied(mut entry) => {
                let status = entry.get_mut().check(now_ms, limit, window_ms);
                if status.allowed {
                    entry.to_back();
                }
                status
            }
            RawEntryMut::Vacant(entry) => {
                let mut log = Log::default();
                let status = log.check(now_ms, limit, window_ms);
                entry.insert_hashed_nocheck(hash, caller.clone(), log);
                self.callers.fetch_add(1, Ordering::Relaxed);
                status
            }
        };
        shard.note_idle(&logs);
        drop(logs);
        if self.callers.load(Ordering::Relaxed) > self.callers_max {
            self.evict_least_recent();
        }
        status
    }

    /// Whether a request of `caller` would be allowed now. Counts nothing.
    pub fn has_quota(&self, caller: &K, now_ms: u64, limits: &Limits) -> bool {
        let hash = self.hasher.hash_one(caller);
        let mut logs = self.shards[(hash >> 32) as usize % SHARDS].lock();
        match logs.raw_entry_mut().from_key_hashed_nocheck(hash, caller) {
            RawEntryMut::Occupied(mut entry) => {
                let log = entry.get_mut();
                log.leave(now_ms, limits.rate_limit_window_ms.unsigned_abs());
                log.hits < limits.rate_limit_per_window.unsigned_abs()
            }
            RawEntryMut::Vacant(_) => true,
        }
    }

    /// Number of callers with a hit in the window.
    pub fn callers(&self, now_ms: u64, window_ms: u64) -> u64 {
        for shard in &self.shards {
            let mut logs = shard.lock();
            self.evict_expired(&mut logs, now_ms, window_ms, usize::MAX);
            shard.note_idle(&logs);
        }
        self.callers.load(Ordering::Relaxed) as u64
    }

    /// Forgets all callers.
    pub fn clear(&self) {
        for shard in &self.shards {
            let mut logs = shard.lock();
            self.callers.fetch_sub(logs.len(), Ordering::Relaxed);
            *logs = LinkedHashMap::with_hasher(self.hasher.clone());
            shard.note_idle(&logs);
        }
    }

    /// Removes at most `count` callers without a hit in the window.
    fn evict_expired(&self, logs: &mut Logs<K>, now_ms: u64, window_ms: u64, count: usize) {
        for _ in 0..count {
            match logs.front() {
                Some((_, log)) if now_ms.saturating_sub(log.newest_ms) >= window_ms => {
                    logs.pop_front();
                    self.callers.fetch_sub(1, Ordering::Relaxed);
                }
                _ => return,
            }
        }
    }

    fn evict_least_recent(&self) {
        let longest = self.shards.iter().min_by_key(|shard| shard.idle_since_ms.load(Ordering::Relaxed));
        if let Some(shard) = longest {
            let mut logs = shard.lock();
            if logs.pop_front().is_some() {
                self.callers.fetch_sub(1, Ordering::Relaxed);
            }
            shard.note_idle(&logs);
        }
    }
}

impl<K> Shard<K> {
    fn lock(&self) -> MutexGuard<'_, Logs<K>> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note_idle(&self, logs: &Logs<K>) {
        let idle_since_ms = logs.front().map_or(u64::MAX, |(_, log)| log.newest_ms);
        self.idle_since_ms.store(idle_since_ms, Ordering::Relaxed);
    }
}

/// The hits of one caller, oldest first, as (moment, number of hits). Moments are milliseconds in 32 bits, which wrap
/// after 49 days. The longest window is one day, and `newest_ms` empties a log that was idle for longer.
#[derive(Debug, Default)]
struct Log {
    slots: VecDeque<(u32, u32)>,
    hits: u64,
    newest_ms: u64,
}

impl Log {
    fn check(&mut self, now_ms: u64, limit: u64, window_ms: u64) -> RateLimitStatus {
        self.leave(now_ms, window_ms);
        let allowed = self.hits < limit;
        if allowed {
            self.enter(now_ms, window_ms);
        }
        let oldest_ms = self.slots.front().map_or(0, |(moment, _)| age_ms(*moment, now_ms));
        RateLimitStatus {
            allowed,
            limit,
            remaining: limit.saturating_sub(self.hits),
            reset_seconds: window_ms.saturating_sub(oldest_ms).div_ceil(1000).max(1),
            window_ms,
        }
    }

    /// Drops the hits that are outside the window.
    fn leave(&mut self, now_ms: u64, window_ms: u64) {
        if now_ms.saturating_sub(self.newest_ms) >= window_ms {
            self.slots.clear();
            self.hits = 0;
        }
        while let Some((moment, hits)) = self.slots.front()
            && age_ms(*moment, now_ms) >= window_ms
        {
            self.hits -= u64::from(*hits);
            self.slots.pop_front();
        }
        if self.slots.capacity() > 64 && self.slots.len() < self.slots.capacity() / 4 {
            self.slots.shrink_to(self.slots.len() * 2);
        }
    }

    fn enter(&mut self, now_ms: u64, window_ms: u64) {
        let step_ms = if self.slots.len() < EXACT_MAX { 1 } else { (window_ms / COARSE_PARTS).max(1) };
        let rounded = (now_ms.div_ceil(step_ms) * step_ms) as u32;
        self.hits += 1;
        self.newest_ms = now_ms;
        match self.slots.back_mut() {
            // A rounded moment may be slightly ahead of the clock.
            Some((moment, hits)) if rounded.wrapping_sub(*moment) as i32 <= 0 => *hits += 1,
            _ => self.slots.push_back((rounded, 1)),
        }
    }
}

/// Age of a moment; 0 if it was rounded up beyond `now_ms`.
fn age_ms(moment: u32, now_ms: u64) -> u64 {
    let age = (now_ms as u32).wrapping_sub(moment);
    // No age is above one day, far below half of 32 bits. A larger difference is a moment ahead of the clock.
    if age > u32::MAX / 2 { 0 } else { u64::from(age) }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use crate::domain::caller::Tenant;
    use crate::telemetry::process::Process;

    use super::*;

    fn limits(limit: i64, window_ms: i64) -> Limits {
        Limits { rate_limit_per_window: limit, rate_limit_window_ms: window_ms, ..Limits::default() }
    }

    fn caller(number: u32) -> Caller {
        Caller::Address(IpAddr::V4(Ipv4Addr::from(number)).into())
    }

    #[test]
    fn a_window_slides_hit_by_hit() {
        let limiter = RateLimiter::default();
        let hit = |now_ms| {
            let status = limiter.check(&caller(1), now_ms, &limits(3, 10_000));
            (status.allowed, status.remaining, status.reset_seconds)
        };
        assert_eq!(hit(1000), (true, 2, 10));
        assert_eq!(hit(2000), (true, 1, 9));
        assert_eq!(hit(2000), (true, 0, 9));
        assert_eq!(hit(10_999), (false, 0, 1));
        assert_eq!(hit(11_000), (true, 0, 1));
        assert_eq!(hit(11_999), (false, 0, 1));
        assert_eq!(hit(12_000), (true, 1, 9));
        // After such a long idle time the log is empty, whatever the 32 bits are.
        assert_eq!(hit(12_000 + (1 << 32)), (true, 2, 10));
    }

    #[test]
    fn asking_for_quota_uses_none() {
        let limiter = RateLimiter::default();
        let has_quota = |now_ms| limiter.has_quota(&caller(1), now_ms, &limits(1, 1000));
        assert!(has_quota(1) && has_quota(1));
        assert_eq!(limiter.callers(1, 1000), 0);
        assert!(limiter.check(&caller(1), 1, &limits(1, 1000)).allowed);
        assert!(!has_quota(1) && !has_quota(1000));
        assert!(has_quota(1001) && limiter.check(&caller(1), 1001, &limits(1, 1000)).allowed);
    }

    #[test]
    fn changed_limits_hold_from_the_next_request() {
        let limiter = RateLimiter::default();
        for now_ms in 0..5 {
            assert!(limiter.check(&caller(1), 1000 + now_ms, &limits(5, 60_000)).allowed);
        }
        let lower = limiter.check(&caller(1), 1010, &limits(2, 60_000));
        assert_eq!((lower.allowed, lower.remaining), (false, 0));
        let higher = limiter.check(&caller(1), 1010, &limits(7, 60_000));
        assert_eq!((higher.allowed, higher.remaining), (true, 1));
        assert!(limiter.check(&caller(1), 1100, &limits(1, 50)).allowed);
    }

    #[test]
    fn the_longest_idle_caller_leaves_first() {
        let limiter = RateLimiter::new(50);
        let limits = limits(2, 60_000);
        for number in 0..50 {
            limiter.check(&caller(number), 1000 + u64::from(number), &limits);
        }
        limiter.check(&caller(0), 2000, &limits);
        // The 51st caller evicts number 1, because number 0 had another hit.
        limiter.check(&caller(50), 2001, &limits);
        assert_eq!(limiter.callers(2001, 60_000), 50);
        assert_eq!(limiter.check(&caller(0), 2002, &limits).remaining, 0);
        assert_eq!(limiter.check(&caller(2), 2002, &limits).remaining, 0);
        assert_eq!(limiter.check(&caller(1), 2003, &limits).remaining, 1);
        assert_eq!(limiter.callers(70_000, 60_000), 0);
    }

    #[test]
    fn a_tenant_and_an_address_share_nothing() {
        let limiter = RateLimiter::default();
        let limits = limits(1, 60_000);
        assert!(limiter.check(&caller(1), 1, &limits).allowed);
        assert!(limiter.check(&Caller::Tenant(Tenant::public()), 1, &limits).allowed);
        assert!(!limiter.check(&Caller::Tenant(Tenant::public()), 1, &limits).allowed);
        limiter.clear();
        assert!(limiter.check(&caller(1), 1, &limits).allowed);
    }

    #[test]
    fn a_long_log_keeps_its_limit_in_bounded_memory() {
        let limiter = RateLimiter::default();
        let limits = limits(1_000_000, 86_400_000);
        let mut allowed = 0;
        for number in 0..1_500_000_u64 {
            allowed += u64::from(limiter.check(&caller(1), 1 + number * 40, &limits).allowed);
        }
        assert_eq!(allowed, 1_000_000);
        let slots: usize = limiter
            .shards
            .iter()
            .flat_map(|shard| shard.lock().values().map(|log| log.slots.len()).collect::<Vec<_>>())
            .sum();
        assert!(slots <= EXACT_MAX + COARSE_PARTS as usize + 1, "{slots}");
        // All of them leave the window again, none of them early.
        assert!(!limiter.check(&caller(1), 86_400_000, &limits).allowed);
        assert!(limiter.check(&caller(1), 86_400_001, &limits).allowed);
    }

    /// Also prints the memory used.
    #[test]
    fn no_more_than_100_000_callers_are_remembered() {
        let resident = || Process::read().map_or(0, |process| process.resident_bytes) / 1024;
        let (limiter, limits, before) = (RateLimiter::default(), limits(60, 60_000), resident());
        for number in 0..300_000 {
            limiter.check(&caller(number), 1000 + u64::from(number / 100), &limits);
        }
        println!("300 000 callers, one hit each: {} KiB", resident().saturating_sub(before));
        assert_eq!(limiter.callers(30_000, 60_000), 100_000);
    }
}
