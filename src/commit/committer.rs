//! The way in: a request is put into the lane of what it locks, and waits there until it is committed or its deadline
//! passes. Lanes run side by side; within one lane, requests that arrive during a commit form the next batch.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::clock::Clock;
use crate::command::{Answer, BatchedCommand, Command, Request};
use crate::domain::refusal::Refusal;
use crate::full_callers::FullCallers;
use crate::job_health::JobHealth;
use crate::metrics;
use crate::runtime_config::SharedRuntimeConfig;
use crate::settings::committer::CommitterSettings;
use crate::store::totals::SHARDS;

use super::cache::ReadCache;
use super::group::AttemptNumber;
use super::in_flight::InFlight;
use super::job::Job;
use super::lane::Lane;
use super::queue::{Entrance, Queue};
use super::shared::Shared;
use super::unpriced::UnpricedServices;

/// How long past its deadline a request waits for the end of a commit that is under way: the lane cancels it then, and a
/// moment later what came of it is nearly always known.
const END_LIMIT: Duration = Duration::from_secs(2);

/// The entrance to all lanes. When its last clone is dropped, the lanes finish what was sent, and end.
#[derive(Clone, Debug)]
pub struct Committer {
    lanes: Arc<[Entrance]>,
    queue: Arc<Queue>,
    in_flight: InFlight,
    deliveries: Arc<Notify>,
}

impl Committer {
    /// Starts the lanes. The tasks end after the last clone of the committer was dropped, and not before.
    pub fn start(
        settings: &CommitterSettings,
        connect_options: PgConnectOptions,
        clock: Clock,
        runtime_config: SharedRuntimeConfig,
        health: JobHealth,
        full: FullCallers,
    ) -> (Self, JoinSet<()>) {
        let deliveries = Arc::new(Notify::new());
        let shared = Arc::new(Shared {
            connect_options,
            clock,
            runtime_config,
            batch_max: settings.batch_max,
            ttl_ms: settings.ttl_ms,
            require_registered_services: settings.require_registered_services,
            unpriced: UnpricedServices::default(),
            statement_limit: settings.statement_limit,
            deliveries: deliveries.clone(),
            health,
            full,
        });
        // The last one is the waiting room: for requests that the row lock of another transaction keeps from committing, and
        // for settlements of many pairs. There they hold up no lane.
        let queue = Queue::new(settings.lanes + 1, settings.queue_max);
        let mut tasks = JoinSet::new();
        // Replicas begin at different shards, so that they seldom meet in one.
        let first_shard = rand::random_range(0..SHARDS);
        let mut start = |number: usize, waiting_room| {
            let (entrance, arrivals) = queue.lane(number);
            let lane = Lane {
                shared: shared.clone(),
                arrivals,
                waiting_room,
                shard: (first_shard + (number % usize::from(SHARDS.unsigned_abs())) as i16) % SHARDS,
                rng: rand::make_rng(),
                connection: None,
                cache: ReadCache::default(),
                pessimistic_batches: 0,
                last_used: Instant::now(),
                number: AttemptNumber::of_lane(number),
            };
            tasks.spawn(lane.run());
            entrance
        };
        let waiting_room = start(settings.lanes, None);
        let lanes = (0..settings.lanes).map(|number| start(number, Some(waiting_room.clone()))).collect();
        let in_flight = InFlight::default();
        let committer = Self { lanes, queue, in_flight, deliveries };
        (committer, tasks)
    }

    /// Executes a request exactly once, or finds what came of it earlier. Returns at the request's deadline; if its commit
    /// is under way then, as soon as that has ended or was cancelled, `END_LIMIT` later at the latest.
    pub async fn submit(&self, request: Request) -> Answer {
        let deadline = Instant::from_std(request.deadline);
        let lane = self.lane_of(&request);
        let entered = request.keyed.as_ref().map(|keyed| self.in_flight.enter(&keyed.id));
        let (presence, met_twin) = entered.map_or((None, false), |(presence, met)| (Some(presence), met));
        let (job, mut answered) = Job::new(request, presence);
        let progress = job.progress.clone();
        if met_twin {
            progress.meet_twin();
        }
        // A lane that died lets go of the job at once.
        self.lanes[lane].put(job);
        let mut ended = tokio::time::timeout_at(deadline, &mut answered).await;
        if ended.is_err() && !progress.withdraw() {
            ended = tokio::time::timeout_at(deadline + END_LIMIT, answered).await;
        }
        let answer = match ended {
            Ok(Ok(answer)) => answer,
            // The time is over, or the lane let go of the job.
            Ok(Err(_)) | Err(_) => Answer::Refused(progress.refusal()),
        };
        count(&answer, progress.has_met_twin());
        answer
    }

    pub fn queue_max(&self) -> usize {
        self.queue.jobs_max()
    }

    /// Notified after each commit that put deliveries into the outbox.
    pub fn new_deliveries(&self) -> Arc<Notify> {
        self.deliveries.clone()
    }

    /// Commands that wait for a lane.
    pub fn queue_depth(&self) -> usize {
        self.queue.depth()
    }

    /// The lane of what the request locks: twins meet in one, as do all requests for a hot pair, while a large tenant
    /// still uses them all.
    fn lane_of(&self, request: &Request) -> usize {
        let agent = match &request.command {
            Command::Batched(command) => match command {
                BatchedCommand::RecordUsage(record) => Some(&record.pair.agent),
                BatchedCommand::RecordUsageBulk(items) => items.iter().flatten().next().map(|item| &item.pair.agent),
                BatchedCommand::Settle(pair) | BatchedCommand::ResetUsage(pair) => Some(&pair.agent),
                BatchedCommand::SettleAgent(agent) => Some(agent),
                BatchedCommand::Refuse(_) => None,
            },
            Command::Transactional(_) => None,
        };
        let mut hasher = DefaultHasher::new();
        (&request.tenant, agent).hash(&mut hasher);
        (hasher.finish() % self.lanes.len() as u64) as usize
    }
}

/// Notes what came of a request.
fn count(answer: &Answer, met_twin: bool) {
    let outcome = match answer {
        Answer::Fresh(_) => Some("executed"),
        Answer::Replayed(_) => {
            metrics::idempotency_replayed();
            Some("replayed")
        }
        Answer::Refused(Refusal::KeyConflict) => {
            metrics::idempotency_conflicted();
            Some("conflict")
        }
        Answer::Refused(Refusal::KeyInFlight) => Some("timed_out"),
        Answer::Refused(_) => None,
    };
    if let Some(outcome) = outcome.filter(|_| met_twin) {
        metrics::twin_waited(outcome);
    }
}
