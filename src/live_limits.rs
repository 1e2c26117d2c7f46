//! What operators change while the service runs, as this process last read it: limits, pause flag, revisions. A job
//! keeps it fresh; whoever needs it takes a copy.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::domain::limits::{Controls, Limits};

/// A handle to the state in force; all clones show the same.
#[derive(Clone, Debug)]
pub struct LiveLimits(Arc<ArcSwap<Controls>>);

impl LiveLimits {
    pub fn new(controls: Controls) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(controls)))
    }

    /// The limits in force.
    pub fn now(&self) -> Limits {
        self.0.load().limits
    }

    pub fn is_paused(&self) -> bool {
        self.0.load().paused
    }

    /// What API keys are remembered by: whatever was looked up under another revision may be wrong.
    pub fn keys_revision(&self) -> i64 {
        self.0.load().keys_revision
    }

    /// Takes over what was read, unless something newer is in force already.
    pub fn replace(&self, read: Controls) {
        let read = Arc::new(read);
        self.0.rcu(|own| if own.revision > read.revision { own.clone() } else { read.clone() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_state_read_late_changes_nothing() {
        let live = LiveLimits::new(Controls { paused: true, revision: 7, ..Controls::default() });
        live.replace(Controls { paused: false, revision: 6, ..Controls::default() });
        assert!(live.is_paused());
        // The row changed by hand, without its revision.
        live.replace(Controls { paused: false, revision: 7, ..Controls::default() });
        assert!(!live.is_paused());
    }
}
