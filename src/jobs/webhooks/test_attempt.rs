//! The only attempt of a test, which the handler of its request makes.

use std::time::Duration;

use sqlx::PgConnection;
use tokio::time::Instant;

use crate::domain::caller::Tenant;
use crate::jobs::STEP_LIMIT;
use crate::store::StoreError;
use crate::store::delivery_queue::{self, Outgoing};
use crate::store::webhooks::{self, Target};

use super::dispatcher::Dispatcher;
use super::outcome::{Attempted, record};
use super::sender::Failure;

/// The result of a test. `None` if its webhook no longer exists.
pub type TestResult = Option<Result<u16, Failure>>;

impl Dispatcher {
    /// Makes the only attempt of a recorded test, even if its webhook is disabled, within `limit`.
    pub async fn attempt_test(
        &self,
        tenant: &Tenant,
        webhook: &str,
        delivery: &str,
        limit: Duration,
    ) -> Result<TestResult, StoreError> {
        // The connection is returned before the attempt, so that slow receivers do not use up the pool.
        let find = async |connection: &mut PgConnection| find_test(connection, tenant, webhook, delivery).await;
        let found = self.pool.run(Instant::now() + STEP_LIMIT, find).await?;
        let Some((outgoing, target)) = found else { return Ok(None) };
        let began_at = self.clock.now();
        let result = match self.secrets.endpoint(&outgoing.queue, &target) {
            Some(endpoint) => self.sender.send(&outgoing, &endpoint, began_at, limit.min(self.attempt_limit)).await,
            None => Err(Failure::Secret),
        };
        let ended_at = self.clock.now();
        let attempted = Attempted { outgoing, leased_until: None, began_at, ended_at, result };
        record(&self.pool, &self.health.counters, &[attempted], &[], ended_at).await?;
        Ok(Some(result))
    }
}

async fn find_test(
    connection: &mut PgConnection,
    tenant: &Tenant,
    webhook: &str,
    delivery: &str,
) -> Result<Option<(Outgoing, Target)>, StoreError> {
    let Some(outgoing) = delivery_queue::find_test(connection, tenant, webhook, delivery).await? else {
        return Ok(None);
    };
    let target = webhooks::targets(connection, std::slice::from_ref(&outgoing.queue)).await?.pop().flatten();
    Ok(target.map(|target| (outgoing, target)))
}
