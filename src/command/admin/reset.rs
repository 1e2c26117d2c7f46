//! Resets everything.

use rand::RngExt;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;
use uuid::Builder;

use crate::command::context::{Stop, TransactionContext};
use crate::command::reply::Reply;
use crate::domain::audit_log::{Change, Operation};
use crate::domain::caller::Tenant;
use crate::domain::runtime_config::Limits;
use crate::domain::timestamp::Timestamp;
use crate::store::{reset, runtime_config, server};

/// What a reset deleted, and the flag and configuration before it.
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
#[schemars(rename = "ResetResult")]
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

/// Runs in its own transaction, while no other commit and no janitor runs.
pub async fn apply(context: &mut TransactionContext<'_>, rate_buckets: u64) -> Result<Reply, Stop> {
    server::lock_out_janitors(context.connection, context.dialect).await?;
    runtime_config::lock(context.connection).await?;
    let before = runtime_config::read(context.connection).await?;
    let inventory = reset::inventory(context.connection, before.limits.event_log_cap).await?;
    let deleted = reset::delete_all(context.connection).await?;
    let config = Limits::default();
    runtime_config::write(context.connection, &config, false).await?;
    runtime_config::note_keys(context.connection).await?;
    // The only tenant that remains. It has no services any more.
    context.changed_terms.push(Tenant::public());
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
    let after = json!({ "paused": false, "config": config });
    context.changes.push(Change::of_service(Operation::DataReset).from(cleared).to(after));
    let audit_event = AuditEvent {
        id: Builder::from_random_bytes(context.rng.random()).into_uuid().to_string(),
        ts: context.now,
        type_name: "admin.reset",
        payload: Payload { cleared },
    };
    Ok(Reply::json(200, &Answer { reset: true, cleared, paused: false, config, audit_event }))
}
