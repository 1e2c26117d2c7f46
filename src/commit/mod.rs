//! The commit pipeline: takes whatever is waiting, commits it in one PostgreSQL transaction with the idempotency records
//! and the stored responses, and answers it then. What arrives during one commit forms the next batch.

mod attempt;
mod batch;
mod cache;
pub mod committer;
mod dedup;
mod effects;
mod group;
mod in_flight;
mod job;
mod lane;
mod plan;
mod queue;
mod shared;
mod transaction;
mod unpriced;

pub use committer::Committer;
