//! Sends deliveries again that have finished. They keep their ids, so a receiver that has one already recognises it.

use serde::{Deserialize, Serialize};

use crate::domain::caller::Tenant;
use crate::domain::refusal::Refusal;
use crate::store::deliveries::{self, Resend};
use crate::store::webhook_queues::{self, QueueId};
use crate::store::webhooks;

use super::context::{Stop, TransactionContext};
use super::reply::Reply;

/// Deliveries that one command takes, so that its transaction is short.
const ROWS_MAX: i64 = 1000;

/// How many deliveries are sent again.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
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
) -> Result<Reply, Stop> {
    let queue = QueueId { tenant: tenant.clone(), webhook: webhook.to_owned() };
    let target = webhooks::targets(context.connection, std::slice::from_ref(&queue)).await?.pop().flatten();
    let Some(target) = target else { return Err(Refusal::WebhookNotFound(webhook.to_owned()).into()) };
    let resent = if target.is_enabled {
        deliveries::resend(context.connection, &queue, which, context.now, ROWS_MAX).await?
    } else {
        0
    };
    if resent > 0 {
        webhook_queues::note_due(context.connection, tenant, &[webhook], context.now).await?;
    }
    Ok(Reply::json(200, &Resent { resent, has_more: resent == ROWS_MAX }))
}
