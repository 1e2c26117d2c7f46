//! The commit pipeline: exactly once, whatever fails or races.

mod batch;
mod capacity;
mod clocks;
mod commit_in_doubt;
mod endurance;
mod failover;
mod fence;
mod idempotency;
mod locks;
mod model;
mod races;
mod read_cache;
mod replicas;
mod reset_lock;
mod retries;
mod settle_many;
mod stale;
mod statement_limits;
