//! Changes the runtime configuration: the pause flag and the limits.

use serde_json::json;

use crate::command::context::{Stop, TransactionContext};
use crate::command::reply::Reply;
use crate::domain::limits::Limit;
use crate::store::limits;

pub async fn set_paused(context: &mut TransactionContext<'_>, paused: bool) -> Result<Reply, Stop> {
    limits::lock(context.connection).await?;
    let controls = limits::read(context.connection).await?;
    limits::write(context.connection, &controls.limits, paused).await?;
    Ok(Reply::json(200, &json!({ "paused": paused })))
}

/// All of the changes together; none only shows what is in force.
pub async fn change_limits(context: &mut TransactionContext<'_>, changes: &[(Limit, i64)]) -> Result<Reply, Stop> {
    if !changes.is_empty() {
        limits::lock(context.connection).await?;
    }
    let mut controls = limits::read(context.connection).await?;
    for (limit, value) in changes {
        *(limit.of)(&mut controls.limits) = *value;
    }
    if !changes.is_empty() {
        limits::write(context.connection, &controls.limits, controls.paused).await?;
    }
    Ok(Reply::json(200, &json!({ "config": controls.limits })))
}
