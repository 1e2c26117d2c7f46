//! The read side: the data that handlers need. Reads that are polled in production are coalesced. Every other read is
//! one function. HTTP is unknown here.

pub mod agents;
pub mod api_keys;
pub mod audit_log;
pub mod coalescer;
pub mod events;
pub mod exports;
pub mod gauges;
pub mod health;
pub mod idempotency;
pub mod key_outcome;
pub mod page;
pub mod reader;
pub mod service_usage;
pub mod services;
pub mod settlements;
pub mod stats;
pub mod tenants;
pub mod usage;
pub mod webhooks;

pub use reader::Reader;

use events::EventLog;
use health::Readiness;
use stats::Stats;
use usage::{DueTotals, Quotes};

use crate::store::server::DatabaseSize;

/// The coalesced reads. `R` is a rendered page of events.
#[derive(Debug)]
pub struct PolledReads<R> {
    pub quotes: Quotes,
    pub due: DueTotals,
    pub stats: Stats,
    pub events: EventLog<R>,
    pub readiness: Readiness,
    pub database_size: DatabaseSize,
}

impl<R> Default for PolledReads<R> {
    fn default() -> Self {
        Self {
            quotes: Quotes::default(),
            due: DueTotals::default(),
            stats: Stats::default(),
            events: EventLog::default(),
            readiness: Readiness::default(),
            database_size: DatabaseSize::default(),
        }
    }
}
