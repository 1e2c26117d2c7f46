//! The statements of a commit: what a batch has to look up and does not remember, and all that it changes. What was looked
//! up may change before it is written. The write compares it, and changes nothing at all where it no longer holds.

mod changes;
mod lookup;
mod rare;
mod rows;
mod write;

pub use changes::{Changes, NewPair, RareTotals};
pub use lookup::{Known, TenantTerms, Wanted, lookup};
pub use rows::{CallerChange, CounterChange, EVENTS_PER_RUN_MAX, NewEventRun, NewIdempotencyKey, TotalsChange};
pub use write::write;
