//! The dispatcher sends what the outbox holds: it leases due deliveries, attempts many at once but few of each webhook,
//! and notes how each ended. Replicas share the work by their leases. A crash loses nothing: the lease runs out and
//! the delivery is sent again, with the same id.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;
use tokio::sync::{Mutex, Notify};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::clock::Clock;
use crate::domain::caller::Tenant;
use crate::domain::delivery::KEPT_MS;
use crate::store::StoreError;
use crate::store::deliveries::{self, Leased, Wish};
use crate::store::pool::Pool;
use crate::store::server;
use crate::store::webhooks::{self, Target};

use super::STEP_LIMIT;
use super::delivery::{ATTEMPT_LIMIT, Failure, Sender};
use super::outcome::{Attempted, Outcome, record};
use crate::job_health::{Job, JobHealth};

/// Pause after which retries are looked for. New deliveries wake the dispatcher at once.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a delivery is in one dispatcher's hands: well over [`ATTEMPT_LIMIT`].
const LEASE_MS: i64 = 60_000;
/// Attempts at one time.
const IN_FLIGHT_MAX: usize = 128;
/// Deliveries of one webhook that are leased at a time. No more are leased while as many are in flight.
const OF_WEBHOOK_MAX: usize = 4;
/// How long a stop waits for attempts under way.
const STOP_LIMIT: Duration = Duration::from_secs(1);
/// Rows one statement deletes at most, and statements of one run.
const ROWS_MAX: i64 = 1000;
const STEPS_MAX: u32 = 1000;

#[derive(Clone, Debug)]
pub struct Dispatcher {
    pub pool: Pool,
    pub clock: Clock,
    pub sender: Sender,
    /// How long an attempt may take.
    pub attempt_limit: Duration,
    /// Notified when this process put something into the outbox.
    pub new_deliveries: Arc<Notify>,
    pub health: JobHealth,
    /// One run at a time.
    pub turn: Arc<Mutex<()>>,
}

/// What one run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub outcomes: BTreeMap<Outcome, u64>,
    /// Finished deliveries deleted for their age.
    pub pruned: i64,
}

/// How a test went; none if its webhook is gone.
pub type TestResult = Option<Result<u16, Failure>>;

impl Dispatcher {
    pub fn new(pool: Pool, clock: Clock, sender: Sender, new_deliveries: Arc<Notify>, health: JobHealth) -> Self {
        Self { pool, clock, sender, attempt_limit: ATTEMPT_LIMIT, new_deliveries, health, turn: Arc::default() }
    }

    pub async fn run(self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            // What failed is noted, and tried again.
            let _ = self.run_until(&stop).await;
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.new_deliveries.notified() => {}
                () = sleep(PAUSE) => {}
            }
        }
    }

    /// Attempts everything that is due, and prunes what is old.
    pub async fn run_once(&self) -> Result<Report, StoreError> {
        self.run_until(&CancellationToken::new()).await
    }

    async fn run_until(&self, stop: &CancellationToken) -> Result<Report, StoreError> {
        let _turn = self.turn.lock().await;
        let allowed = server::check_clock(&self.clock);
        if allowed.is_err() {
            self.health.note(Job::WebhookLease, &allowed);
            self.health.note(Job::WebhookPrune, &allowed);
            return allowed.map(|()| Report::default());
        }
        let in_flight = InFlight::default();
        let mut run = Run { dispatcher: self, in_flight, after: Default::default(), report: Report::default() };
        let mut taken = Ok(());
        while !stop.is_cancelled() {
            taken = run.take().await;
            if taken.is_err() || run.in_flight.attempts.is_empty() {
                break;
            }
            tokio::select! {
                () = stop.cancelled() => {}
                Some(ended) = run.in_flight.attempts.join_next() => run.note_all(ended).await,
                // While slow receivers are waited for, others may become due.
                () = self.new_deliveries.notified() => {}
                () = sleep(PAUSE) => {}
            }
        }
        run.finish(if stop.is_cancelled() { STOP_LIMIT } else { self.attempt_limit }).await;
        let pruned = self.prune(stop).await;
        self.health.note(Job::WebhookPrune, &pruned);
        taken?;
        run.report.pruned = pruned?;
        Ok(run.report)
    }

    /// Deletes what finished too long ago to be listed.
    async fn prune(&self, stop: &CancellationToken) -> Result<i64, StoreError> {
        let before = self.clock.now().plus_ms(-KEPT_MS);
        let mut sum = 0;
        for _ in 0..STEPS_MAX {
            let prune = async |connection: &mut PgConnection| deliveries::prune(connection, before, ROWS_MAX).await;
            let pruned = self.pool.run(Instant::now() + STEP_LIMIT, prune).await?;
            sum += pruned;
            if pruned < ROWS_MAX || stop.is_cancelled() {
                break;
            }
        }
        Ok(sum)
    }

    /// Makes the one attempt of a test that was recorded, whether its webhook is enabled or not, within `limit`.
    pub async fn attempt_test(
        &self,
        tenant: &Tenant,
        delivery: &str,
        limit: Duration,
    ) -> Result<TestResult, StoreError> {
        // No connection is held during the attempt: a pool of connections must not wait for receivers.
        let find = async |connection: &mut PgConnection| find_test(connection, tenant, delivery).await;
        let found = self.pool.run(Instant::now() + STEP_LIMIT, find).await?;
        let Some((leased, target)) = found else { return Ok(None) };
        let began_at = self.clock.now();
        let result = self.sender.send(&leased, &target, began_at, limit.min(self.attempt_limit)).await;
        let attempted = Attempted { leased, began_at, result };
        record(&self.pool, &attempted, self.clock.now()).await?;
        Ok(Some(result))
    }
}

async fn find_test(
    connection: &mut PgConnection,
    tenant: &Tenant,
    delivery: &str,
) -> Result<Option<(Leased, Target)>, StoreError> {
    let Some(leased) = deliveries::find_test(connection, tenant, delivery).await? else { return Ok(None) };
    let target = webhooks::targets(connection, &[(tenant, &leased.webhook)]).await?.pop().flatten();
    Ok(target.map(|target| (leased, target)))
}

/// Attempts under way, and how many of each webhook.
#[derive(Default)]
struct InFlight {
    attempts: JoinSet<Attempted>,
    of_webhook: BTreeMap<String, usize>,
}

/// One run of a dispatcher.
struct Run<'a> {
    dispatcher: &'a Dispatcher,
    in_flight: InFlight,
    /// The webhook whose delivery was leased last: the next lease begins after it.
    after: (String, String),
    report: Report,
}

impl Run<'_> {
    /// Leases and starts as much as there is room for: from the webhook after the last one, and once around.
    async fn take(&mut self) -> Result<(), StoreError> {
        let Dispatcher { pool, health, .. } = self.dispatcher;
        let lease = async |connection: &mut PgConnection| {
            let is_at_start = self.after == Default::default();
            if self.lease(connection).await? == 0 && !is_at_start {
                self.after = Default::default();
                self.lease(connection).await?;
            }
            Ok(())
        };
        let leased = pool.run(Instant::now() + STEP_LIMIT, lease).await;
        health.note(Job::WebhookLease, &leased);
        leased
    }

    async fn lease(&mut self, connection: &mut PgConnection) -> Result<usize, StoreError> {
        let room = IN_FLIGHT_MAX - self.in_flight.attempts.len();
        if room == 0 {
            return Ok(0);
        }
        let busy = self.in_flight.of_webhook.iter().filter(|(_, count)| **count >= OF_WEBHOOK_MAX);
        let busy: Vec<String> = busy.map(|(webhook, _)| webhook.clone()).collect();
        let now = self.dispatcher.clock.now();
        let wish = Wish {
            now,
            until: now.plus_ms(LEASE_MS),
            after: (&self.after.0, &self.after.1),
            busy: &busy,
            of_webhook_max: OF_WEBHOOK_MAX as i64,
            rows_max: room as i64,
        };
        let mut transaction = server::begin_lease(connection).await?;
        let leased = deliveries::lease(&mut transaction, &wish).await?;
        transaction.commit().await?;
        let ids: Vec<(&Tenant, &str)> = leased.iter().map(|leased| (&leased.tenant, leased.webhook.as_str())).collect();
        if let Some((tenant, webhook)) = ids.iter().max() {
            self.after = (tenant.as_str().to_owned(), (*webhook).to_owned());
        }
        let targets = if ids.is_empty() { Vec::new() } else { webhooks::targets(connection, &ids).await? };
        let count = leased.len();
        for (leased, target) in leased.into_iter().zip(targets) {
            match target {
                Some(target) if target.is_enabled => self.start(leased, target),
                // Written while the webhook was being disabled or deleted.
                Some(_) => {
                    deliveries::cancel_of_webhook(connection, &leased.tenant, &leased.webhook, now).await?;
                }
                None => {
                    deliveries::drop_of_webhook(connection, &leased.tenant, &leased.webhook, ROWS_MAX).await?;
                }
            }
        }
        Ok(count)
    }

    fn start(&mut self, leased: Leased, target: Target) {
        *self.in_flight.of_webhook.entry(leased.webhook.clone()).or_default() += 1;
        let Dispatcher { sender, clock, attempt_limit, .. } = self.dispatcher.clone();
        self.in_flight.attempts.spawn(async move {
            let began_at = clock.now();
            let result = sender.send(&leased, &target, began_at, attempt_limit).await;
            Attempted { leased, began_at, result }
        });
    }

    /// Notes this end, and whatever else ended meanwhile: one lease then fills all the room there is.
    async fn note_all(&mut self, ended: Result<Attempted, JoinError>) {
        self.note(ended).await;
        while let Some(ended) = self.in_flight.attempts.try_join_next() {
            self.note(ended).await;
        }
    }

    /// Notes the end of an attempt. If that fails, or the attempt broke, the lease runs out and it is tried again.
    async fn note(&mut self, ended: Result<Attempted, JoinError>) {
        let attempted = match ended {
            Ok(attempted) => attempted,
            Err(error) => return error!(%error, "an attempt broke"),
        };
        let webhook = &attempted.leased.webhook;
        if let Some(count) = self.in_flight.of_webhook.get_mut(webhook) {
            *count -= 1;
            if *count == 0 {
                self.in_flight.of_webhook.remove(webhook);
            }
        }
        let Dispatcher { pool, clock, health, .. } = self.dispatcher;
        let outcome = record(pool, &attempted, clock.now()).await;
        health.note(Job::WebhookRecord, &outcome);
        if let Ok(outcome) = outcome {
            *self.report.outcomes.entry(outcome).or_default() += 1;
        }
    }

    /// Waits for what is under way, for a while. What takes longer is sent again when its lease runs out.
    async fn finish(&mut self, limit: Duration) {
        let limit = Instant::now() + limit;
        while let Ok(Some(ended)) = timeout_at(limit, self.in_flight.attempts.join_next()).await {
            self.note(ended).await;
        }
    }
}
