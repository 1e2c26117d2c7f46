//! AgentPay Billing: exactly-once metering and settlement on PostgreSQL.

pub mod local_postgres;
