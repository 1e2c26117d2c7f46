//! Sends deliveries again that have finished. They keep their ids, so a receiver that has one already recognises it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::domain::audit_log::{Actor, Change, Operation, Origin};
use crate::domain::caller::Tenant;
use crate::domain::delivery::KEPT_MS;
use crate::domain::refusal::Refusal;
use crate::domain::timestamp::Timestamp;
use crate::domain::webhook::Webhook;
use crate::store::missed_events::{self, Missed};
use crate::store::redeliveries::{self, Resend};
use crate::store::webhook_queues::{self, QueueId};
use crate::store::webhooks;

use super::context::{Stop, TransactionContext};
use super::reply::Reply;

/// Deliveries that one command takes, so that its transaction is short.
const ROWS_MAX: i64 = 1000;
/// Ids that the audit log shows. The length of its rows is bounded.
const IDS_SHOWN_MAX: usize = 100;
/// More than the clocks of two replicas differ.
const CLOCK_MARGIN_MS: i64 = 60_000;

/// How many deliveries are sent again.
#[derive(Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "RequestedDeliveries")]
pub struct Resent {
    pub resent: i64,
    /// Whether there may be more: the same command takes them.
    pub has_more: bool,
}

/// Takes none while the webhook is disabled.
pub async fn resend(
    context: &mut TransactionContext<'_>,
    tenant: &Tenant,
    webhook: &str,
    which: &Resend,
    origin: &Origin,
) -> Result<Reply, Stop> {
    let queue = QueueId { tenant: tenant.clone(), webhook: webhook.to_owned() };
    let target = webhooks::targets(context.connection, std::slice::from_ref(&queue)).await?.pop().flatten();
    let Some(target) = target else { return Err(Refusal::WebhookNotFound(webhook.to_owned()).into()) };
    let resent = if target.is_enabled {
        redeliveries::resend(context.connection, &queue, which, target.from_position, context.now, ROWS_MAX).await?
    } else {
        0
    };
    let shown = match which {
        Resend::Deliveries(ids) => json!({ "deliveryIds": &ids[..ids.len().min(IDS_SHOWN_MAX)], "resent": resent }),
        Resend::FailedSince(since) => json!({ "failedSince": since, "resent": resent }),
    };
    note_resent(context, &queue, origin, resent, shown).await
}

/// Delivers the events from `since` on that happened before the webhook was created, or while it was disabled. Leaves out
/// those that have a delivery, and those that may have had one which was deleted. Events before the creation are not left
/// out: once their requested deliveries are deleted, they are sent again. Takes none while it is disabled.
pub async fn request_missed(
    context: &mut TransactionContext<'_>,
    tenant: &Tenant,
    webhook: &str,
    since: Timestamp,
    origin: &Origin,
) -> Result<Reply, Stop> {
    let Some(Webhook { events, created_at, disabled_at, .. }) =
        webhooks::lock(context.connection, tenant, webhook).await?
    else {
        return Err(Refusal::WebhookNotFound(webhook.to_owned()).into());
    };
    let queue = QueueId { tenant: tenant.clone(), webhook: webhook.to_owned() };
    let target = webhooks::targets(context.connection, std::slice::from_ref(&queue)).await?.pop().flatten();
    let Some(target) = target.filter(|_| disabled_at.is_none()) else {
        return note_resent(context, &queue, origin, 0, Value::Null).await;
    };
    let missed = Missed {
        since,
        from_position: target.from_position,
        kept_since: context.now.plus_ms(CLOCK_MARGIN_MS - KEPT_MS),
        created_at: created_at.plus_ms(-CLOCK_MARGIN_MS),
    };
    let missed = missed_events::find(context.connection, &queue, &events, missed, ROWS_MAX).await?;
    let added = missed_events::deliver(context.connection, &queue, &missed, context.now).await?;
    let shown = json!({ "missedSince": since, "resent": added });
    note_resent(context, &queue, origin, added, shown).await
}

/// `shown`: what the audit log shows of the request.
async fn note_resent(
    context: &mut TransactionContext<'_>,
    queue: &QueueId,
    origin: &Origin,
    resent: i64,
    shown: Value,
) -> Result<Reply, Stop> {
    if resent > 0 {
        // A tenant's own requests change nothing that an operator must account for. Without an admin key, the operator
        // is anonymous.
        if !matches!(origin.actor, Actor::ApiKey(_)) {
            let change = Change::of(Operation::DeliveriesRequested, &queue.tenant, queue.webhook.as_str());
            context.changes.push(change.to(shown));
        }
        webhook_queues::note_due(context.connection, &queue.tenant, &[queue.webhook.as_str()], context.now).await?;
    }
    Ok(Reply::json(200, &Resent { resent, has_more: resent == ROWS_MAX }))
}
