//! The database session of a lane: its connection, the cache of what it has read, and one attempt at a time.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::warn;

use crate::command::Command;
use crate::store::server::{CommitTransaction, Interrupt};
use crate::store::totals::SHARDS;
use crate::store::{StoreError, server};

use super::attempt::{AttemptError, AttemptState, Done, Locking, Phase, Settings};
use super::batch::BatchAttempt;
use super::cache::ReadCache;
use super::group::{AttemptNumber, Group};
use super::job::Job;
use super::queue::Arrivals;
use super::shared::{LaneConnection, Shared};
use super::transaction::TransactionAttempt;

/// Time limit for opening a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);

/// An attempt may take this much longer than one statement before its connection is dropped.
const ATTEMPT_MARGIN: Duration = Duration::from_secs(1);

/// How long a lane waits for a cancelled statement to end, and for the server to accept the cancellation.
const INTERRUPT_LIMIT: Duration = Duration::from_secs(1);

/// A connection that was idle for longer is pinged before use.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);

pub struct Session {
    shared: Arc<Shared>,
    connection: Option<LaneConnection>,
    pub cache: ReadCache,
    rng: StdRng,
    /// The shard of the totals that this lane writes.
    shard: i16,
    last_used: Instant,
}

impl Session {
    pub fn new(shared: Arc<Shared>, shard: i16) -> Self {
        Self {
            shared,
            connection: None,
            cache: ReadCache::default(),
            rng: rand::make_rng(),
            shard,
            last_used: Instant::now(),
        }
    }

    /// Makes one attempt, which ends in bounded time. Before its commit it may take slightly longer than one statement;
    /// its commit must end at the first deadline of the group. A statement that is still running then is cancelled. If
    /// it does not end, the server process is terminated and the connection dropped. Requests join from `arrivals`.
    pub async fn attempt(
        &mut self,
        group: &mut Group,
        state: &AttemptState,
        number: AttemptNumber,
        pairs_max: usize,
        arrivals: Option<&Arrivals>,
    ) -> Result<Done, AttemptError> {
        self.ensure_connected().await?;
        let shared = self.shared.clone();
        let LaneConnection { connection, backend, .. } = self.connection.as_mut().expect("it was just made");
        let backend = *backend;
        let deadlines = || group.jobs.iter().map(|job| Instant::from_std(job.request.deadline));
        let earliest = deadlines().min().expect("a group is never empty");
        let latest = deadlines().max().expect("a group is never empty");
        let limit = match group.locking {
            Locking::Exclusive => latest,
            _ => latest.min(Instant::now() + shared.statement_limit + ATTEMPT_MARGIN),
        };
        let settings = Settings {
            dialect: shared.address.dialect,
            now: shared.clock.now(),
            limits: shared.runtime_config.limits(),
            ttl_ms: shared.ttl_ms,
            require_registered_services: shared.require_registered_services,
            shard: self.shard,
            locking: group.locking,
            pairs_max,
        };
        let arrivals = arrivals.map(|arrivals| (arrivals, shared.batch_max));
        let (rng, cache) = (&mut self.rng, &mut self.cache);
        let full = &*shared.full.now();
        let began = std::time::Instant::now();
        let (ended, cancelled) = {
            let run = async {
                state.set(Phase::Read);
                let mut transaction = CommitTransaction::on(connection);
                let ended = if let [job] = group.jobs.as_slice()
                    && let Command::Transactional(command) = &job.request.command
                {
                    let exclusive = job.is_exclusive().then(|| latest.saturating_duration_since(Instant::now()));
                    TransactionAttempt { settings, rng, state, exclusive, full, keyring: &shared.keyring }
                        .run(&mut transaction, job, command)
                        .await
                } else {
                    BatchAttempt { settings, rng, state, cache, full, arrivals }
                        .run(&mut transaction, &mut group.jobs)
                        .await
                };
                transaction.roll_back().await;
                ended
            };
            let mut run = pin!(run);
            let mut ended = timeout_at(earliest.min(limit), &mut run).await;
            if ended.is_err() && state.phase() != Phase::Commit {
                // The commit leaves out requests whose deadline has passed.
                ended = timeout_at(limit, &mut run).await;
            }
            let mut cancelled = Ok(());
            if ended.is_err() {
                let cancel = shared.interrupt(backend, Interrupt::Cancel, INTERRUPT_LIMIT);
                (ended, cancelled) = tokio::join!(timeout(INTERRUPT_LIMIT, &mut run), cancel);
            }
            (ended, cancelled)
        };
        note_interrupt(cancelled, number, &group.jobs);
        if let Ok(ended) = ended {
            return ended.inspect(|done| self.note(done, began.elapsed()));
        }
        // The server process may still execute what it received, and may keep the rows of this shard locked until it
        // ends.
        let terminated = shared.interrupt(backend, Interrupt::Terminate, INTERRUPT_LIMIT).await;
        note_interrupt(terminated, number, &group.jobs);
        self.disconnect();
        self.shard = (self.shard + 1) % SHARDS;
        Err(StoreError::TimedOut.into())
    }

    /// Drops the connection. The next attempt opens another one.
    pub fn disconnect(&mut self) {
        self.connection = None;
    }

    async fn ensure_connected(&mut self) -> Result<(), StoreError> {
        if self.last_used.elapsed() > TRUSTED_IDLE {
            self.disconnect_if_dead().await;
        }
        self.last_used = Instant::now();
        if self.connection.as_ref().is_some_and(|live| !self.shared.address.is_current(live.generation)) {
            self.disconnect();
        }
        if self.connection.is_none() {
            // A new connection may lead to another server, for which the cached data may be wrong.
            self.cache = ReadCache::default();
            self.connection = Some(self.shared.connect(CONNECT_LIMIT).await?);
        }
        Ok(())
    }

    /// A connection may have died while it was idle. Finding that out with a statement that commits would leave its
    /// requests in doubt needlessly.
    async fn disconnect_if_dead(&mut self) {
        if let Some(LaneConnection { connection, .. }) = &mut self.connection {
            let answer = timeout(CONNECT_LIMIT, server::ping(connection)).await;
            if !matches!(answer, Ok(Ok(()))) {
                self.disconnect();
            }
        }
    }

    /// Records a committed attempt. Only now is it certain what is stored.
    fn note(&mut self, done: &Done, took: Duration) {
        done.written.iter().for_each(|(id, counter)| self.cache.note_counter(id, *counter));
        if done.executed > 0 {
            self.shared.health.counters.committed(done.executed, took);
        }
    }
}

fn note_interrupt(interrupted: Result<(), StoreError>, number: AttemptNumber, jobs: &[Job]) {
    if let Err(error) = interrupted {
        number.span(jobs).in_scope(|| warn!(%error, "a statement that took too long could not be ended"));
    }
}
