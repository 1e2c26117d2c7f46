//! What operators change while the service runs, as this process last read it: limits, pause flag, revisions. A job
//! keeps it fresh; its readers take a copy.

use std::sync::Arc;
use std::time::Instant;

use arc_swap::ArcSwap;

use crate::domain::limits::{Controls, Limits};

/// A handle to the state in force; all clones show the same.
#[derive(Clone, Debug)]
pub struct LiveLimits(Arc<ArcSwap<Known>>);

/// What was read, and when: a moment of this process before the read began.
#[derive(Debug)]
struct Known {
    controls: Controls,
    read_at: Instant,
}

impl LiveLimits {
    pub fn new(controls: Controls) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(Known { controls, read_at: Instant::now() })))
    }

    /// The limits in force.
    pub fn now(&self) -> Limits {
        self.0.load().controls.limits
    }

    pub fn is_paused(&self) -> bool {
        self.0.load().controls.paused
    }

    /// What API keys are remembered by: whatever was looked up under another revision may be wrong.
    pub fn keys_revision(&self) -> i64 {
        self.0.load().controls.keys_revision
    }

    /// Takes over what a read that began at `read_at` found, unless a later read is in force. The row's own revision
    /// orders nothing: after a failover or a restore it may be lower than what this process has seen.
    pub fn replace(&self, controls: Controls, read_at: Instant) {
        let read = Arc::new(Known { controls, read_at });
        self.0.rcu(|own| if own.read_at > read.read_at { own.clone() } else { read.clone() });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_latest_read_counts_whatever_its_revision() {
        let paused = |paused, revision| Controls { paused, revision, ..Controls::default() };
        let live = LiveLimits::new(paused(true, 7));
        let began = Instant::now();
        // A restored database begins at an earlier revision.
        live.replace(paused(false, 0), began);
        assert!(!live.is_paused());
        // A read that began earlier and ended late.
        let earlier = began.checked_sub(Duration::from_nanos(1)).expect("the machine runs for longer");
        live.replace(paused(true, 8), earlier);
        assert!(!live.is_paused());
    }
}
