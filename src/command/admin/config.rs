//! Changes the runtime configuration: the pause flag and the limits.

use serde_json::json;

use crate::command::context::{Stop, TransactionContext};
use crate::command::reply::Reply;
use crate::domain::audit_log::{Change, Operation};
use crate::domain::runtime_config::Limit;
use crate::store::runtime_config;

pub async fn set_paused(context: &mut TransactionContext<'_>, paused: bool) -> Result<Reply, Stop> {
    runtime_config::lock(context.connection).await?;
    let config = runtime_config::read(context.connection).await?;
    runtime_config::write(context.connection, &config.limits, paused).await?;
    let reply = |paused| json!({ "paused": paused });
    if paused != config.paused {
        let operation = if paused { Operation::WritesPaused } else { Operation::WritesResumed };
        context.changes.push(Change::of_service(operation).from(reply(config.paused)).to(reply(paused)));
    }
    Ok(Reply::json(200, &reply(paused)))
}

/// Applies all changes together. Without changes it returns the limits in force.
pub async fn change_limits(context: &mut TransactionContext<'_>, changes: &[(Limit, i64)]) -> Result<Reply, Stop> {
    if !changes.is_empty() {
        runtime_config::lock(context.connection).await?;
    }
    let before = runtime_config::read(context.connection).await?;
    let mut limits = before.limits;
    for (limit, value) in changes {
        *(limit.of)(&mut limits) = *value;
    }
    if !changes.is_empty() {
        runtime_config::write(context.connection, &limits, before.paused).await?;
    }
    if limits != before.limits {
        context.changes.push(Change::of_service(Operation::ConfigUpdated).from(before.limits).to(limits));
    }
    Ok(Reply::json(200, &json!({ "config": limits })))
}
