//! The only place that reads the wall clock. Everything else is told what time it is.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::domain::timestamp::Timestamp;

/// Where [`Clock::elapsed_ms`] counts from.
static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The wall clock. All clones can be moved forward together, which is how tests let records expire.
#[derive(Clone, Debug, Default)]
pub struct Clock {
    ahead_ms: Arc<AtomicI64>,
}

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub fn now(&self) -> Timestamp {
        // A clock set before 1970 reads 1970.
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX);
        Timestamp::from_ms(now_ms).plus_ms(self.ahead_ms.load(Ordering::Relaxed))
    }

    /// Milliseconds that passed since some moment in the life of this process: never steps back, as the wall clock may.
    pub fn elapsed_ms(&self) -> u64 {
        let elapsed_ms = u64::try_from(ORIGIN.elapsed().as_millis()).unwrap_or(u64::MAX);
        elapsed_ms.saturating_add_signed(self.ahead_ms.load(Ordering::Relaxed))
    }

    pub fn advance_ms(&self, ms: i64) {
        self.ahead_ms.fetch_add(ms, Ordering::Relaxed);
    }
}
