//! The operator's commands: pause, limits, and the reset of everything.

use rand::RngExt;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;
use uuid::Builder;

use crate::domain::limits::{Limit, Limits};
use crate::domain::timestamp::Timestamp;
use crate::store::{StoreError, limits, reset, server};

use super::reply::Reply;
use super::work::{Outcome, Work};

pub async fn set_paused(work: &mut Work<'_>, paused: bool) -> Result<Outcome, StoreError> {
    limits::lock(work.connection).await?;
    let controls = limits::read(work.connection).await?;
    limits::write(work.connection, &controls.limits, paused).await?;
    Ok(Ok(Reply::json(200, &json!({ "paused": paused }))))
}

/// All of the changes together; none only shows what is in force.
pub async fn change_limits(work: &mut Work<'_>, changes: &[(Limit, i64)]) -> Result<Outcome, StoreError> {
    if !changes.is_empty() {
        limits::lock(work.connection).await?;
    }
    let mut controls = limits::read(work.connection).await?;
    for (limit, value) in changes {
        *(limit.of)(&mut controls.limits) = *value;
    }
    if !changes.is_empty() {
        limits::write(work.connection, &controls.limits, controls.paused).await?;
    }
    Ok(Ok(Reply::json(200, &json!({ "config": controls.limits }))))
}

/// What there was before a reset.
#[derive(Clone, Copy, Debug, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "ClearedByReset")]
struct Cleared {
    usage: u64,
    services: u64,
    services_metadata: i64,
    services_disabled: i64,
    api_keys: u64,
    webhooks: u64,
    event_log: i64,
    rate_buckets: u64,
    paused: bool,
    config: Limits,
}

#[derive(JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "Reset")]
pub struct Answer {
    reset: bool,
    cleared: Cleared,
    paused: bool,
    config: Limits,
    audit_event: AuditEvent,
}

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "ResetEvent")]
struct AuditEvent {
    id: String,
    ts: Timestamp,
    #[serde(rename = "type")]
    type_name: &'static str,
    payload: Payload,
}

#[derive(JsonSchema, Serialize)]
#[schemars(rename = "ResetEventPayload")]
struct Payload {
    cleared: Cleared,
}

/// Runs in a transaction of its own, while no other commit and no janitor is under way.
pub async fn reset(work: &mut Work<'_>, rate_buckets: u64) -> Result<Outcome, StoreError> {
    server::lock_out_janitors(work.connection).await?;
    limits::lock(work.connection).await?;
    let before = limits::read(work.connection).await?;
    let inventory = reset::inventory(work.connection, before.limits.event_log_cap).await?;
    let deleted = reset::delete_all(work.connection).await?;
    let config = Limits::default();
    limits::write(work.connection, &config, false).await?;
    limits::note_keys(work.connection).await?;
    let cleared = Cleared {
        usage: deleted.of("usage_counters"),
        services: deleted.of("services"),
        services_metadata: inventory.services_with_metadata,
        services_disabled: inventory.services_disabled,
        api_keys: deleted.of("api_keys"),
        webhooks: deleted.of("webhooks"),
        event_log: inventory.visible_events,
        rate_buckets,
        paused: before.paused,
        config: before.limits,
    };
    let audit_event = AuditEvent {
        id: Builder::from_random_bytes(work.dice.random()).into_uuid().to_string(),
        ts: work.now,
        type_name: "admin.reset",
        payload: Payload { cleared },
    };
    Ok(Ok(Reply::json(200, &Answer { reset: true, cleared, paused: false, config, audit_event })))
}
