//! The end of an attempt: what is noted of it, when the delivery is tried again, and when its webhook is given up.

use rand::rngs::StdRng;
use sqlx::{Connection, PgConnection};
use tokio::time::Instant;
use tracing::{debug, info};

use crate::domain::delivery::next_attempt_at;
use crate::domain::timestamp::Timestamp;
use crate::metrics;
use crate::store::deliveries::{self, Ended, Leased};
use crate::store::pool::Pool;
use crate::store::{StoreError, webhooks};

use super::STEP_LIMIT;
use super::delivery::Failure;

/// What came of an attempt, as metrics count it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Delivered,
    /// Failed, and tried again later.
    Retry,
    /// Failed for the last time.
    Failed,
    /// Not sent: the target is no public address. It is tried again like any other.
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

/// An attempt that ended.
pub struct Attempted {
    pub leased: Leased,
    pub began_at: Timestamp,
    pub result: Result<u16, Failure>,
}

/// Notes how an attempt ended, and gives up its webhook if that is what the end means.
pub async fn record(pool: &Pool, attempted: &Attempted, now: Timestamp) -> Result<Outcome, StoreError> {
    let Attempted { leased, began_at, result } = attempted;
    let is_test = leased.due_at.is_none();
    let is_gone = *result == Err(Failure::Status(410));
    let next_attempt_at = match result {
        Ok(_) => None,
        Err(_) if is_gone || is_test => None,
        Err(_) => next_attempt_at(leased.attempts + 1, now, &mut rand::make_rng::<StdRng>()),
    };
    let (status, outcome) = match result {
        Ok(_) => ("delivered", Outcome::Delivered),
        Err(Failure::PrivateAddress) if next_attempt_at.is_some() => ("pending", Outcome::Refused),
        Err(Failure::PrivateAddress) => ("failed", Outcome::Refused),
        Err(_) if next_attempt_at.is_some() => ("pending", Outcome::Retry),
        Err(_) => ("failed", Outcome::Failed),
    };
    let ended = Ended {
        status,
        began_at: *began_at,
        ended_at: now,
        next_attempt_at,
        response_status: match result {
            Ok(status) | Err(Failure::Status(status)) => Some(*status),
            Err(_) => None,
        },
        error: result.err().map(|failure| failure.to_string()),
    };
    let gives_up = is_gone || (status == "failed" && !is_test);
    let write = async |connection: &mut PgConnection| {
        if gives_up {
            give_up(connection, leased, &ended, now).await
        } else {
            deliveries::record(connection, leased, &ended).await
        }
    };
    let is_ours = pool.run(Instant::now() + STEP_LIMIT, write).await?;
    metrics::webhook_attempt(outcome.as_str());
    debug!(webhook = leased.webhook, delivery = leased.delivery, outcome = outcome.as_str(), is_ours, "attempt ended");
    Ok(outcome)
}

/// Notes the last attempt, disables the webhook and cancels what is pending for it. False if the lease was lost.
async fn give_up(
    connection: &mut PgConnection,
    leased: &Leased,
    ended: &Ended,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let mut transaction = connection.begin().await?;
    // The webhook first: two dispatchers that give it up at once must not hold each other's deliveries.
    let webhook = webhooks::lock(&mut transaction, &leased.tenant, &leased.webhook).await?;
    if !deliveries::record(&mut transaction, leased, ended).await? {
        transaction.rollback().await?;
        return Ok(false);
    }
    if let Some(mut webhook) = webhook {
        if webhook.disabled_at.is_none() {
            webhook.disabled_at = Some(now);
            webhooks::update(&mut transaction, &leased.tenant, &webhook).await?;
            info!(webhook = webhook.id, "a webhook was disabled: its receiver does not take deliveries");
        }
        deliveries::cancel_of_webhook(&mut transaction, &leased.tenant, &leased.webhook, now).await?;
    }
    transaction.commit().await?;
    Ok(true)
}
