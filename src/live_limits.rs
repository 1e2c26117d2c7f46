//! The limits in force, as this process last read them. A job keeps them fresh; whoever needs them takes a copy.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::domain::limits::Limits;

/// A handle to the limits in force; all clones show the same.
#[derive(Clone, Debug)]
pub struct LiveLimits(Arc<ArcSwap<Limits>>);

impl LiveLimits {
    pub fn new(limits: Limits) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(limits)))
    }

    pub fn now(&self) -> Limits {
        **self.0.load()
    }

    pub fn replace(&self, limits: Limits) {
        self.0.store(Arc::new(limits));
    }
}
