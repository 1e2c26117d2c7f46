//! The commit pipeline. It commits all waiting commands in one PostgreSQL transaction, together with their idempotency
//! records and stored responses, and then answers them. Commands that arrive during one commit form the next batch.

mod attempt;
mod batch;
mod cache;
pub mod committer;
mod dedup;
mod effects;
mod fence;
mod group;
mod in_flight;
mod job;
mod lane;
mod plan;
mod queue;
mod session;
mod shared;
mod transaction;
mod unpriced;
mod waiting;

pub use committer::Committer;
