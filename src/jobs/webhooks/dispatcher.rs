//! The dispatcher expands the outbox, leases due webhooks, one tenant in turn, attempts a few deliveries of each
//! concurrently, and records the results. Every step is bounded. Replicas divide the work by row locks and leases.
//! After a crash, deliveries in progress are sent again with the same id.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgConnection;
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinError;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, error};

use crate::clock::Clock;
use crate::domain::delivery::KEPT_MS;
use crate::domain::keyring::Keyring;
use crate::domain::timestamp::Timestamp;
use crate::job_health::{Job, JobHealth};
use crate::jobs::{self, STEP_LIMIT};
use crate::store::delivery_queue::{self, Outgoing};
use crate::store::pool::Pool;
use crate::store::webhook_queues::{self, QueueId};
use crate::store::{StoreError, outbox, server};

use super::expansion::expand;
use super::in_flight::InFlight;
use super::leasing::{self, LeasedWebhook};
use super::outcome::{Attempted, Outcome, record};
use super::secrets::SecretReader;
use super::sender::{Endpoint, Sender};

/// Time limit of an attempt.
pub const ATTEMPT_LIMIT: Duration = Duration::from_secs(10);
/// Pause between two searches for due retries. New events wake the dispatcher at once.
const PAUSE: Duration = Duration::from_secs(1);
/// Duration of a lease, well above [`ATTEMPT_LIMIT`].
const LEASE_MS: i64 = 60_000;
/// How long a webhook rests whose secrets cannot be decrypted. Then any replica may lease it: another one may have the key.
const UNREADABLE_MS: i64 = 10_000;
/// Maximum number of tenants whose events are expanded before the next search for due webhooks, and of tenants in one
/// search.
const EXPANDED_TENANTS_MAX: i64 = 16;
const CONSIDERED_TENANTS_MAX: i64 = 256;
/// How long a stop waits for attempts in progress.
const STOP_LIMIT: Duration = Duration::from_secs(1);
/// Maximum number of deliveries that one statement deletes.
const PRUNED_MAX: i64 = 1000;
/// Pause between two searches for finished deliveries that are too old.
const PRUNE_PAUSE_MS: u64 = 60_000;

#[derive(Clone, Debug)]
pub struct Dispatcher {
    pub pool: Pool,
    pub clock: Clock,
    pub sender: Sender,
    /// Time limit of an attempt.
    pub attempt_limit: Duration,
    /// Notified when this process has written to the outbox.
    pub new_deliveries: Arc<Notify>,
    pub health: JobHealth,
    pub secrets: SecretReader,
    /// Only one run at a time.
    pub turn: Arc<Mutex<()>>,
}

/// What one run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub outcomes: BTreeMap<Outcome, u64>,
    /// Old finished deliveries that were deleted.
    pub pruned: i64,
    /// Whether events were expanded, or deliveries cancelled.
    pub found_work: bool,
}

impl Report {
    fn is_idle(&self) -> bool {
        self.outcomes.is_empty() && self.pruned == 0 && !self.found_work
    }
}

impl Dispatcher {
    pub fn new(
        pool: Pool,
        clock: Clock,
        sender: Sender,
        new_deliveries: Arc<Notify>,
        health: JobHealth,
        keyring: Keyring,
    ) -> Self {
        let secrets = SecretReader::new(keyring, clock.clone(), health.clone());
        let turn = Arc::default();
        Self { pool, clock, sender, attempt_limit: ATTEMPT_LIMIT, new_deliveries, health, secrets, turn }
    }

    pub async fn run(self, stop: CancellationToken) {
        for run in (1..).take_while(|_| !stop.is_cancelled()) {
            // A step that fails is tried again.
            let turn = async { self.run_until(&stop).await.map(|report| !report.is_idle()) };
            jobs::as_run("webhooks", run, turn).await;
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.new_deliveries.notified() => {}
                () = sleep(PAUSE) => {}
            }
        }
    }

    /// Expands all events in the outbox, attempts everything that is due, and deletes old deliveries.
    pub async fn run_once(&self) -> Result<Report, StoreError> {
        self.run_until(&CancellationToken::new()).await
    }

    async fn run_until(&self, stop: &CancellationToken) -> Result<Report, StoreError> {
        let _turn = self.turn.lock().await;
        let mut run = Run::of(self);
        let result = run.until_idle(stop).await;
        run.finish(if stop.is_cancelled() { STOP_LIMIT } else { self.attempt_limit }).await;
        result.map(|()| run.report)
    }
}

/// The state of one run.
struct Run<'a> {
    dispatcher: &'a Dispatcher,
    in_flight: InFlight,
    /// Attempts that have ended and are not recorded, and webhooks to release.
    ended: Vec<Attempted>,
    done: Vec<(QueueId, Timestamp)>,
    /// The tenant whose events were expanded last, and the one last considered for leases. Each search continues after
    /// its tenant.
    expanded: String,
    considered: String,
    /// When to prune, in [`Clock::elapsed_ms`].
    prune_at_ms: u64,
    report: Report,
}

impl<'a> Run<'a> {
    fn of(dispatcher: &'a Dispatcher) -> Self {
        Self {
            dispatcher,
            in_flight: InFlight::default(),
            ended: Vec::new(),
            done: Vec::new(),
            expanded: String::new(),
            considered: String::new(),
            prune_at_ms: 0,
            report: Report::default(),
        }
    }

    /// Repeats the steps until nothing is left and no attempt is in progress. The steps are independent: a step that
    /// fails is tried again in the next round, if there is one.
    async fn until_idle(&mut self, stop: &CancellationToken) -> Result<(), StoreError> {
        loop {
            let steps = [self.record_ended().await, self.expand().await, self.take().await, self.prune(stop).await];
            if stop.is_cancelled() {
                return Ok(());
            }
            let has_more = steps.iter().any(|step| matches!(step, Ok(true)));
            if has_more {
                self.report.found_work = true;
                continue;
            }
            if self.in_flight.attempts.is_empty() && self.ended.is_empty() && self.done.is_empty() {
                return steps.into_iter().collect::<Result<Vec<bool>, _>>().map(|_| ());
            }
            tokio::select! {
                () = stop.cancelled() => {}
                Some(ended) = self.in_flight.attempts.join_next() => self.note_end(ended),
                // Other webhooks may become due while slow receivers are waited for.
                () = self.dispatcher.new_deliveries.notified() => {}
                () = sleep(PAUSE) => {}
            }
        }
    }

    /// An error, which is recorded, if one of the two clocks is wrong: then neither leases nor ages can be trusted.
    fn check_clock(&self, job: Job) -> Result<(), StoreError> {
        let checked = server::check_clock(&self.dispatcher.clock);
        if checked.is_err() {
            self.dispatcher.health.note(job, &checked);
        }
        checked
    }

    /// Expands events of the next tenants. True if there may be more.
    async fn expand(&mut self) -> Result<bool, StoreError> {
        let Dispatcher { pool, clock, health, .. } = self.dispatcher;
        let find = async |connection: &mut PgConnection| {
            outbox::tenants(connection, &self.expanded, EXPANDED_TENANTS_MAX).await
        };
        let tenants = pool.run(Instant::now() + STEP_LIMIT, find).await;
        health.note(Job::WebhookExpand, &tenants);
        let tenants = tenants?;
        let is_last = (tenants.len() as i64) < EXPANDED_TENANTS_MAX;
        let mut has_more = is_last && !self.expanded.is_empty();
        let mut failed = None;
        for tenant in tenants {
            let step = async |connection: &mut PgConnection| expand(connection, &tenant, clock.now()).await;
            // A failure for one tenant must not delay the others.
            match pool.run(Instant::now() + STEP_LIMIT, step).await {
                Ok(did_some) => has_more |= did_some,
                Err(error) => failed = Some(error),
            }
            self.expanded = tenant.as_str().to_owned();
        }
        if is_last {
            self.expanded.clear();
        }
        let result = failed.map_or(Ok(has_more), Err);
        health.note(Job::WebhookExpand, &result);
        result
    }

    /// Leases due webhooks while slots are free, beginning after the last tenant and going around once, and starts
    /// their attempts. True if it cancelled or deleted deliveries instead, of which there may be more.
    async fn take(&mut self) -> Result<bool, StoreError> {
        self.check_clock(Job::WebhookLease)?;
        let health = &self.dispatcher.health;
        let mut has_more = false;
        let mut result = Ok(());
        for _ in 0..2 {
            let began_at_start = self.considered.is_empty();
            match self.take_from_next().await {
                Ok(retired) => has_more |= retired,
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
            if began_at_start || self.in_flight.free() == 0 {
                break;
            }
        }
        health.note(Job::WebhookLease, &result);
        self.dispatcher.secrets.note_pass();
        result.map(|()| has_more)
    }

    /// Like [`Self::take`], from the next tenant to the last one.
    async fn take_from_next(&mut self) -> Result<bool, StoreError> {
        let Dispatcher { pool, clock, .. } = self.dispatcher;
        let mut has_retired = false;
        while self.in_flight.free() > 0 {
            let now = clock.now();
            let find = async |connection: &mut PgConnection| {
                webhook_queues::heads(connection, &self.considered, now, CONSIDERED_TENANTS_MAX).await
            };
            let heads = pool.run(Instant::now() + STEP_LIMIT, find).await?;
            let (turns, considered) = self.in_flight.share(&heads);
            if !turns.is_empty() {
                let until = now.plus_ms(LEASE_MS);
                let leased = leasing::lease(pool, &turns, now, until).await?;
                has_retired |= self.start(leased, now, until).await?;
            }
            if let Some(last) = considered.checked_sub(1).map(|index| &heads[index]) {
                self.considered = last.tenant.as_str().to_owned();
            }
            if considered == heads.len() && (heads.len() as i64) < CONSIDERED_TENANTS_MAX {
                self.considered.clear();
                break;
            }
        }
        Ok(has_retired)
    }

    /// Starts the attempts of leased webhooks. True if it cancelled or deleted deliveries instead, of which there may
    /// be more. The lease of a webhook whose secrets cannot be decrypted ends after `UNREADABLE_MS`.
    async fn start(
        &mut self,
        leased: Vec<LeasedWebhook>,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<bool, StoreError> {
        let (mut stale, mut unreadable) = (Vec::new(), Vec::new());
        for mut webhook in leased {
            let due = std::mem::take(&mut webhook.due);
            let count = due.len();
            match webhook.target.as_ref().filter(|_| count > 0) {
                None => self.in_flight.add(&webhook.queue, until, 0),
                Some(target) => {
                    if let Some(endpoint) = self.dispatcher.secrets.endpoint(&webhook.queue, target) {
                        self.in_flight.add(&webhook.queue, until, count);
                        due.into_iter().for_each(|outgoing| self.attempt(outgoing, endpoint.clone(), until));
                    } else {
                        unreadable.push(webhook.queue.clone());
                    }
                }
            }
            if webhook.has_stale {
                stale.push(webhook);
            }
        }
        let sooner = now.plus_ms(UNREADABLE_MS);
        for queue in &unreadable {
            leasing::shorten(&self.dispatcher.pool, queue, until, sooner).await?;
        }
        for webhook in &stale {
            leasing::retire(&self.dispatcher.pool, webhook, now).await?;
        }
        Ok(!stale.is_empty())
    }

    fn attempt(&mut self, outgoing: Outgoing, endpoint: Endpoint, until: Timestamp) {
        let Dispatcher { sender, clock, attempt_limit, .. } = self.dispatcher.clone();
        let attempt = async move {
            let began_at = clock.now();
            let result = sender.send(&outgoing, &endpoint, began_at, attempt_limit).await;
            Attempted { outgoing, leased_until: Some(until), began_at, ended_at: clock.now(), result }
        };
        self.in_flight.attempts.spawn(attempt.in_current_span());
    }

    fn note_end(&mut self, ended: Result<Attempted, JoinError>) {
        match ended {
            Ok(attempted) => {
                if let Some(until) = attempted.leased_until {
                    self.in_flight.note_end(&attempted.outgoing.queue, until);
                }
                self.ended.push(attempted);
            }
            // When its lease expires, the delivery is sent again.
            Err(error) => error!(%error, "an attempt broke"),
        }
    }

    /// Records all attempts that have ended, and releases their webhooks. What cannot be recorded is kept until its
    /// lease expires.
    async fn record_ended(&mut self) -> Result<bool, StoreError> {
        let Dispatcher { pool, clock, health, .. } = self.dispatcher;
        while let Some(ended) = self.in_flight.attempts.try_join_next() {
            self.note_end(ended);
        }
        let now = clock.now();
        self.done.extend(self.in_flight.take_done(now));
        if self.ended.is_empty() && self.done.is_empty() {
            return Ok(false);
        }
        let outcomes = record(pool, &health.counters, &self.ended, &self.done, now).await;
        health.note(Job::WebhookRecord, &outcomes);
        match outcomes {
            Ok(outcomes) => {
                outcomes.into_iter().for_each(|outcome| *self.report.outcomes.entry(outcome).or_default() += 1);
                self.ended.clear();
                self.done.clear();
                Ok(false)
            }
            Err(error) => {
                self.ended.retain(|attempted| attempted.leased_until.is_some_and(|until| until > now));
                self.done.retain(|(_, until)| *until > now);
                Err(error)
            }
        }
    }

    /// Waits for attempts in progress. Those that take longer are sent again when their lease expires.
    async fn finish(&mut self, limit: Duration) {
        let limit = Instant::now() + limit;
        while let Ok(Some(ended)) = timeout_at(limit, self.in_flight.attempts.join_next()).await {
            self.note_end(ended);
        }
        let _ = self.record_ended().await;
    }

    /// Deletes finished deliveries that are too old, once per `PRUNE_PAUSE_MS`. True if there may be more.
    async fn prune(&mut self, stop: &CancellationToken) -> Result<bool, StoreError> {
        let Dispatcher { pool, clock, health, .. } = self.dispatcher;
        let began_ms = clock.elapsed_ms();
        if stop.is_cancelled() || began_ms < self.prune_at_ms {
            return Ok(false);
        }
        self.check_clock(Job::WebhookPrune)?;
        let before = clock.now().plus_ms(-KEPT_MS);
        let prune = async |connection: &mut PgConnection| delivery_queue::prune(connection, before, PRUNED_MAX).await;
        let pruned = pool.run(Instant::now() + STEP_LIMIT, prune).await;
        health.note(Job::WebhookPrune, &pruned);
        let pruned = pruned?;
        self.report.pruned += pruned;
        let has_more = pruned == PRUNED_MAX;
        if !has_more {
            self.prune_at_ms = began_ms + PRUNE_PAUSE_MS;
        }
        Ok(has_more)
    }
}
