//! The statements of a commit: reading what a batch must know, and writing its changes. The data may change in between.
//! The write compares it, and writes nothing if it differs.

mod changes;
mod citus;
mod lookup;
mod rare;
mod rows;
mod write;

pub use changes::{Changes, NewPair, RareTotals};
pub use lookup::{Known, TenantTerms, Wanted, lookup};
pub use rows::{CallerChange, CounterChange, NewEventRun, NewIdempotencyKey, TotalsChange};
pub use write::write;
