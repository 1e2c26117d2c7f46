//! AgentPay Billing: exactly-once metering and settlement on PostgreSQL.

pub mod domain;
pub mod local_postgres;
pub mod store;
