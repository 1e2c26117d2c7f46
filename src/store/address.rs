//! Where the database of a cell is. On Citus that is the node that has the schema, which can change at any time.

use std::sync::Arc;

use arc_swap::ArcSwap;
use sqlx::postgres::PgConnectOptions;

use crate::domain::cell::Dialect;

/// All clones share the target.
#[derive(Clone, Debug)]
pub struct Address {
    pub dialect: Dialect,
    target: Arc<ArcSwap<Target>>,
}

#[derive(Debug)]
pub struct Target {
    pub options: PgConnectOptions,
    /// Counts the changes of the address. A connection that was made for another one is not used again.
    pub generation: u64,
}

impl From<PgConnectOptions> for Address {
    fn from(options: PgConnectOptions) -> Self {
        Self::new(options, Dialect::PostgreSql)
    }
}

impl Address {
    pub fn new(options: PgConnectOptions, dialect: Dialect) -> Self {
        Self { dialect, target: Arc::new(ArcSwap::from_pointee(Target { options, generation: 0 })) }
    }

    pub fn target(&self) -> Arc<Target> {
        self.target.load_full()
    }

    pub fn is_current(&self, generation: u64) -> bool {
        self.target.load().generation == generation
    }

    /// Leads new connections elsewhere. Existing ones are closed instead of being used again.
    pub fn lead_to(&self, options: PgConnectOptions) {
        let generation = self.target().generation + 1;
        self.target.store(Arc::new(Target { options, generation }));
    }
}
