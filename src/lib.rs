//! AgentPay Billing: exactly-once metering and settlement on PostgreSQL.

pub mod clock;
pub mod command;
pub mod domain;
pub mod jobs;
pub mod live_limits;
pub mod local_postgres;
pub mod store;
