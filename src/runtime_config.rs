//! The runtime configuration as this process last read it. A job keeps it current.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;

use crate::domain::runtime_config::{Limits, RuntimeConfig};

/// A handle to the configuration. All clones share it.
#[derive(Clone, Debug)]
pub struct SharedRuntimeConfig(Arc<ArcSwap<Known>>);

/// The configuration, and a moment before the read of it began.
#[derive(Debug)]
struct Known {
    config: RuntimeConfig,
    read_at: Instant,
}

impl SharedRuntimeConfig {
    pub fn new(config: RuntimeConfig) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Known { config, read_at: Instant::now() })))
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.0.load().config.limits
    }

    pub fn is_paused(&self) -> bool {
        self.0.load().config.paused
    }

    /// Cached API keys of another revision may be stale.
    pub fn keys_revision(&self) -> i64 {
        self.0.load().config.keys_revision
    }

    /// Applies the result of a read that began at `read_at`, unless a later read was applied. Revisions are not
    /// compared: after a failover or a restore the revision may be lower than before. Returns whether it differs from the
    /// configuration that was in force.
    pub fn replace(&self, config: RuntimeConfig, read_at: Instant) -> bool {
        let read = Arc::new(Known { config, read_at });
        let own = self.0.rcu(|own| if own.read_at > read.read_at { own.clone() } else { read.clone() });
        own.read_at <= read_at && own.config != read.config
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_latest_read_counts_whatever_its_revision() {
        let paused = |paused, revision| RuntimeConfig { paused, revision, ..RuntimeConfig::default() };
        let config = SharedRuntimeConfig::new(paused(true, 7));
        let began = Instant::now();
        // A restored database has an earlier revision.
        assert!(config.replace(paused(false, 0), began));
        assert!(!config.is_paused());
        assert!(!config.replace(paused(false, 0), began), "nothing has changed");
        // A read that began earlier and ended later.
        let earlier = began.checked_sub(Duration::from_nanos(1)).expect("the machine runs for longer");
        assert!(!config.replace(paused(true, 8), earlier));
        assert!(!config.is_paused());
    }
}
