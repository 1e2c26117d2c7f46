//! The callers that may not create idempotency records: they are over a cap, and none of their records may be evicted.
//! The janitor determines them, and commits check each request with a new key.

use std::collections::HashSet;
use std::sync::Arc;

use arc_swap::ArcSwap;

/// As this process last read them. All clones share it.
#[derive(Clone, Debug, Default)]
pub struct FullCallers(Arc<ArcSwap<HashSet<String>>>);

impl FullCallers {
    /// The current callers. An attempt to commit uses one snapshot.
    pub fn now(&self) -> Arc<HashSet<String>> {
        self.0.load_full()
    }

    pub fn count(&self) -> usize {
        self.0.load().len()
    }

    /// Returns whether they differ from those before.
    pub fn replace(&self, callers: HashSet<String>) -> bool {
        let callers = Arc::new(callers);
        self.0.swap(callers.clone()) != callers
    }
}
