//! Changes the runtime configuration: the pause flag and the limits.

use serde_json::json;

use crate::command::context::{Stop, TransactionContext};
use crate::command::reply::Reply;
use crate::domain::runtime_config::Limit;
use crate::store::runtime_config;

pub async fn set_paused(context: &mut TransactionContext<'_>, paused: bool) -> Result<Reply, Stop> {
    runtime_config::lock(context.connection).await?;
    let config = runtime_config::read(context.connection).await?;
    runtime_config::write(context.connection, &config.limits, paused).await?;
    Ok(Reply::json(200, &json!({ "paused": paused })))
}

/// Applies all changes together. Without changes it returns the limits in force.
pub async fn change_limits(context: &mut TransactionContext<'_>, changes: &[(Limit, i64)]) -> Result<Reply, Stop> {
    if !changes.is_empty() {
        runtime_config::lock(context.connection).await?;
    }
    let mut config = runtime_config::read(context.connection).await?;
    for (limit, value) in changes {
        *(limit.of)(&mut config.limits) = *value;
    }
    if !changes.is_empty() {
        runtime_config::write(context.connection, &config.limits, config.paused).await?;
    }
    Ok(Reply::json(200, &json!({ "config": config.limits })))
}
