//! The callers that get no new idempotency record for now: they have more than they may, and nothing of it may be evicted
//! yet. The janitor finds them; the commit asks for each request whose key is new.

use std::collections::HashSet;
use std::sync::Arc;

use arc_swap::ArcSwap;

/// As this process last read them; all clones share it.
#[derive(Clone, Debug, Default)]
pub struct FullCallers(Arc<ArcSwap<HashSet<String>>>);

impl FullCallers {
    /// Who is full now: one attempt to commit decides by one answer.
    pub fn now(&self) -> Arc<HashSet<String>> {
        self.0.load_full()
    }

    pub fn count(&self) -> usize {
        self.0.load().len()
    }

    pub fn replace(&self, callers: HashSet<String>) {
        self.0.store(Arc::new(callers));
    }
}
