//! The result of an attempt: what is recorded, when the delivery is tried again, and when its webhook is disabled.

use rand::rngs::StdRng;
use sqlx::PgConnection;
use tokio::time::Instant;
use tracing::{debug, info};

use crate::domain::audit_log::{Change, Operation, Origin};
use crate::domain::delivery::next_attempt_at;
use crate::domain::timestamp::Timestamp;
use crate::jobs::STEP_LIMIT;
use crate::metrics::CellCounters;
use crate::store::delivery_queue::{self, Ended, Outgoing};
use crate::store::pool::Pool;
use crate::store::webhook_queues::{self, QueueId};
use crate::store::{StoreError, audit_log, server, webhooks};

use super::sender::Failure;

/// Maximum number of deliveries that are cancelled together with the webhook. The dispatcher cancels the others when
/// they are due.
const CANCELLED_MAX: i64 = 1000;

const GONE: u16 = 410;

/// The result of an attempt, as the metrics count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Delivered,
    /// Failed, and will be tried again.
    Retry,
    /// Failed for the last time.
    Failed,
    /// Not sent, because the target is not a public address. Tried again like other failures.
    Refused,
}

impl Outcome {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Retry => "retry",
            Self::Failed => "failed",
            Self::Refused => "refused",
        }
    }
}

/// An attempt that has ended.
pub struct Attempted {
    pub outgoing: Outgoing,
    /// End of the lease of its webhook. `None` for a test, whose webhook is not leased.
    pub leased_until: Option<Timestamp>,
    pub began_at: Timestamp,
    pub ended_at: Timestamp,
    pub result: Result<u16, Failure>,
}

/// The consequences of an attempt.
struct Conclusion<'a> {
    outcome: Outcome,
    ended: Ended<'a>,
    leased_until: Option<Timestamp>,
    gives_up: bool,
}

impl<'a> Conclusion<'a> {
    fn of(attempted: &'a Attempted) -> Self {
        let Attempted { outgoing, leased_until, began_at, ended_at, result } = attempted;
        let is_test = leased_until.is_none();
        let (response_status, retry_after_ms) = match *result {
            Ok(status) => (Some(status), 0),
            Err(Failure::Status { status, retry_after_ms }) => (Some(status), retry_after_ms),
            Err(_) => (None, 0),
        };
        let is_gone = result.is_err() && response_status == Some(GONE);
        let next_attempt_at = match result {
            Err(_) if !is_gone && !is_test => {
                let rng = &mut rand::make_rng::<StdRng>();
                next_attempt_at(outgoing.attempts + 1, *ended_at, retry_after_ms, rng)
            }
            _ => None,
        };
        let (status, outcome) = match result {
            Ok(_) => ("delivered", Outcome::Delivered),
            Err(Failure::PrivateAddress) if next_attempt_at.is_some() => ("pending", Outcome::Refused),
            Err(Failure::PrivateAddress) => ("failed", Outcome::Refused),
            Err(_) if next_attempt_at.is_some() => ("pending", Outcome::Retry),
            Err(_) => ("failed", Outcome::Failed),
        };
        let ended = Ended {
            queue: &outgoing.queue,
            position: outgoing.position,
            status,
            began_at: *began_at,
            ended_at: *ended_at,
            next_attempt_at,
            response_status,
            error: result.err().map(|failure| failure.to_string()),
        };
        let gives_up = is_gone || (status == "failed" && !is_test);
        Self { outcome, ended, leased_until: *leased_until, gives_up }
    }
}

/// Records attempts, disables webhooks after their last attempt, and releases `done`, the webhooks whose attempts have
/// all ended, each with the end of its lease. Skips webhooks that another dispatcher has leased since.
pub async fn record(
    pool: &Pool,
    counters: &CellCounters,
    attempts: &[Attempted],
    done: &[(QueueId, Timestamp)],
    now: Timestamp,
) -> Result<Vec<Outcome>, StoreError> {
    let conclusions: Vec<Conclusion<'_>> = attempts.iter().map(Conclusion::of).collect();
    let (last, others): (Vec<_>, Vec<_>) = conclusions.iter().partition(|conclusion| conclusion.gives_up);
    for conclusion in last {
        let write = async |connection: &mut PgConnection| give_up(connection, conclusion).await;
        pool.run(Instant::now() + STEP_LIMIT, write).await?;
    }
    let write = async |connection: &mut PgConnection| record_others(connection, &others, done, now).await;
    pool.run(Instant::now() + STEP_LIMIT, write).await?;
    for Conclusion { outcome, ended, .. } in &conclusions {
        counters.webhook_attempt(outcome.as_str());
        debug!(webhook = ended.queue.webhook, position = ended.position, outcome = outcome.as_str(), "attempt ended");
    }
    Ok(conclusions.iter().map(|conclusion| conclusion.outcome).collect())
}

async fn record_others(
    connection: &mut PgConnection,
    conclusions: &[&Conclusion<'_>],
    done: &[(QueueId, Timestamp)],
    now: Timestamp,
) -> Result<(), StoreError> {
    let mut transaction = server::begin_dispatch(connection).await?;
    let of_attempts =
        conclusions.iter().filter_map(|conclusion| Some((conclusion.ended.queue, conclusion.leased_until?)));
    let mut leases: Vec<_> = of_attempts.chain(done.iter().map(|(queue, until)| (queue, *until))).collect();
    leases.sort_unstable();
    leases.dedup();
    let is_held = webhook_queues::lock(&mut transaction, &leases).await?;
    let is_held =
        |queue: &QueueId, until: Timestamp| leases.binary_search(&(queue, until)).is_ok_and(|index| is_held[index]);
    let ours = conclusions
        .iter()
        .filter(|conclusion| conclusion.leased_until.is_none_or(|until| is_held(conclusion.ended.queue, until)));
    let ended: Vec<&Ended<'_>> = ours.map(|conclusion| &conclusion.ended).collect();
    if !ended.is_empty() {
        delivery_queue::record(&mut transaction, &ended).await?;
    }
    let released: Vec<&QueueId> =
        done.iter().filter(|(queue, until)| is_held(queue, *until)).map(|(queue, _)| queue).collect();
    if !released.is_empty() {
        webhook_queues::release(&mut transaction, &released, now).await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// Records the last attempt, disables the webhook and cancels its pending deliveries.
async fn give_up(connection: &mut PgConnection, conclusion: &Conclusion<'_>) -> Result<(), StoreError> {
    let Conclusion { ended, leased_until, .. } = conclusion;
    let mut transaction = server::begin_dispatch(connection).await?;
    // The webhook is locked first, as in every change of a webhook.
    let webhook = webhooks::lock(&mut transaction, &ended.queue.tenant, &ended.queue.webhook).await?;
    if let Some(until) = leased_until {
        let is_held = webhook_queues::lock(&mut transaction, &[(ended.queue, *until)]).await?;
        if is_held != [true] {
            return Ok(());
        }
    }
    delivery_queue::record(&mut transaction, &[ended]).await?;
    if let Some(mut webhook) = webhook {
        if webhook.disabled_at.is_none() {
            let before = webhook.without_credentials();
            webhook.disabled_at = Some(ended.ended_at);
            webhooks::update(&mut transaction, &ended.queue.tenant, &webhook, None).await?;
            let change = Change::of(Operation::WebhookDisabled, &ended.queue.tenant, &webhook.id);
            let change = change.from(before).to(webhook.without_credentials());
            audit_log::append(&mut transaction, &Origin::SERVICE, None, ended.ended_at, &[change]).await?;
            info!(webhook = webhook.id, "a webhook was disabled: its receiver does not take deliveries");
        }
        delivery_queue::cancel_before(&mut transaction, ended.queue, i64::MAX, ended.ended_at, CANCELLED_MAX).await?;
    }
    transaction.commit().await?;
    Ok(())
}
