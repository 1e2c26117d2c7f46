//! Leases webhooks, and separates the due deliveries of each: those to attempt, and stale ones, whose webhook no longer
//! exists or was enabled after their events.

use std::collections::BTreeMap;

use sqlx::PgConnection;
use tokio::time::Instant;

use crate::domain::caller::Tenant;
use crate::domain::timestamp::Timestamp;
use crate::jobs::STEP_LIMIT;
use crate::store::delivery_queue::{self, Outgoing};
use crate::store::pool::Pool;
use crate::store::webhook_queues::{self, QueueId};
use crate::store::webhooks::{self, Target};
use crate::store::{StoreError, server};

/// Maximum number of concurrent attempts for one webhook.
const OF_WEBHOOK_MAX: i64 = 4;
/// Maximum number of rows that one statement deletes or cancels.
const RETIRED_MAX: i64 = 1000;

/// A leased webhook and its due deliveries.
pub struct LeasedWebhook {
    pub queue: QueueId,
    /// `None` if the webhook no longer exists.
    pub target: Option<Target>,
    /// Deliveries to attempt.
    pub due: Vec<Outgoing>,
    /// Whether stale deliveries are due.
    pub has_stale: bool,
}

impl LeasedWebhook {
    fn new(queue: QueueId, target: Option<Target>, due: Vec<Outgoing>) -> Self {
        let from_position = from_position(target.as_ref());
        let is_sent = |outgoing: &Outgoing| {
            from_position.is_some_and(|from| outgoing.position >= from || (outgoing.is_requested && from < i64::MAX))
        };
        let (due, stale): (Vec<_>, Vec<_>) = due.into_iter().partition(is_sent);
        Self { queue, target, due, has_stale: !stale.is_empty() }
    }
}

/// The position of the first event that a webhook gets. `None` if the webhook no longer exists.
fn from_position(target: Option<&Target>) -> Option<i64> {
    target.map(|target| if target.is_enabled { target.from_position } else { i64::MAX })
}

/// Leases due webhooks until `until`. `turns` limits their number for each tenant.
pub async fn lease(
    pool: &Pool,
    turns: &[(Tenant, i64)],
    now: Timestamp,
    until: Timestamp,
) -> Result<Vec<LeasedWebhook>, StoreError> {
    let lease = async |connection: &mut PgConnection| {
        let mut transaction = server::begin_dispatch(connection).await?;
        let queues = webhook_queues::lease(&mut transaction, turns, now, until).await?;
        let targets = webhooks::targets(&mut transaction, &queues).await?;
        let mut due: BTreeMap<QueueId, Vec<Outgoing>> = BTreeMap::new();
        for outgoing in delivery_queue::due(&mut transaction, &queues, now, OF_WEBHOOK_MAX).await? {
            due.entry(outgoing.queue.clone()).or_default().push(outgoing);
        }
        transaction.commit().await?;
        let leased = queues.into_iter().zip(targets).map(|(queue, target)| {
            let due = due.remove(&queue).unwrap_or_default();
            LeasedWebhook::new(queue, target, due)
        });
        Ok(leased.collect())
    };
    pool.run(Instant::now() + STEP_LIMIT, lease).await
}

/// Lets the lease of a webhook until `until` end at `sooner`.
pub async fn shorten(pool: &Pool, queue: &QueueId, until: Timestamp, sooner: Timestamp) -> Result<(), StoreError> {
    let shorten = async |connection: &mut PgConnection| {
        let mut transaction = server::begin_dispatch(connection).await?;
        webhook_queues::shorten_lease(&mut transaction, queue, until, sooner).await?;
        transaction.commit().await?;
        Ok(())
    };
    pool.run(Instant::now() + STEP_LIMIT, shorten).await
}

/// Deletes pending deliveries of a webhook that no longer exists, or cancels those of events before it was enabled.
pub async fn retire(pool: &Pool, webhook: &LeasedWebhook, now: Timestamp) -> Result<(), StoreError> {
    let LeasedWebhook { queue, target, .. } = webhook;
    let retire = async |connection: &mut PgConnection| {
        let mut transaction = server::begin_dispatch(connection).await?;
        match from_position(target.as_ref()) {
            Some(from) => delivery_queue::cancel_before(&mut transaction, queue, from, now, RETIRED_MAX).await?,
            None => {
                delivery_queue::drop_of_webhook(&mut transaction, &queue.tenant, &queue.webhook, RETIRED_MAX).await?;
            }
        }
        transaction.commit().await?;
        Ok(())
    };
    pool.run(Instant::now() + STEP_LIMIT, retire).await
}
