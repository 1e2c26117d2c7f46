//! The entrance to the commit pipeline. A request waits in a lane until it is committed or its deadline passes. Lanes
//! run concurrently. Within a lane, the requests that arrive during one commit form the next batch.

use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
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
use crate::store::address::Address;
use crate::store::totals::SHARDS;

use super::group::AttemptNumber;
use super::in_flight::InFlight;
use super::job::Job;
use super::lane::Lane;
use super::queue::{Entrance, Queue};
use super::session::Session;
use super::shared::Shared;
use super::unpriced::UnpricedServices;

/// How long past its deadline a request waits for a commit that has begun. The lane cancels the statement at the
/// deadline, and nearly always knows the outcome a moment later.
const END_LIMIT: Duration = Duration::from_secs(2);

/// The entrance to all lanes. When its last clone is dropped, the lanes empty their queues and end.
#[derive(Clone, Debug)]
pub struct Committer {
    lanes: Arc<[Entrance]>,
    queue: Arc<Queue>,
    in_flight: InFlight,
    deliveries: Arc<Notify>,
}

impl Committer {
    /// Starts the lanes, in `tasks`. They end only after the last clone of the committer was dropped.
    pub fn start(
        settings: &CommitterSettings,
        address: impl Into<Address>,
        clock: Clock,
        runtime_config: SharedRuntimeConfig,
        health: JobHealth,
        full: FullCallers,
        tasks: &mut JoinSet<()>,
    ) -> Self {
        let deliveries = Arc::new(Notify::new());
        let shared = Arc::new(Shared {
            address: address.into(),
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
            keyring: settings.keyring.clone(),
        });
        // The last lane takes requests that another transaction's row lock blocks, and settlements of many pairs, so
        // that they do not delay the other lanes.
        let queue = Queue::new(settings.lanes + 1, settings.queue_max);
        // Replicas begin at random shards, so that they seldom use the same one.
        let first_shard = rand::random_range(0..SHARDS);
        let mut start = |number: usize, blocked_lane| {
            let (entrance, arrivals) = queue.lane(number);
            let shard = (first_shard + (number % usize::from(SHARDS.unsigned_abs())) as i16) % SHARDS;
            let lane = Lane {
                shared: shared.clone(),
                arrivals,
                blocked_lane,
                session: Session::new(shared.clone(), shard),
                pessimistic_batches: 0,
                number: AttemptNumber::of_lane(number),
            };
            tasks.spawn(lane.run());
            entrance
        };
        let blocked_lane = start(settings.lanes, None);
        let lanes = (0..settings.lanes).map(|number| start(number, Some(blocked_lane.clone()))).collect();
        let in_flight = InFlight::default();
        Self { lanes, queue, in_flight, deliveries }
    }

    /// Executes a request exactly once, or returns what an earlier execution stored. Returns at the request's deadline
    /// or, if the commit has begun, when the outcome is known, at most `END_LIMIT` later.
    pub async fn submit(&self, request: Box<Request>) -> Answer {
        let deadline = Instant::from_std(request.deadline);
        let lane = self.lane_of(&request);
        let entered = request.keyed.as_ref().map(|keyed| self.in_flight.enter(&keyed.id));
        let (presence, met_twin) = entered.map_or((None, false), |(presence, met)| (Some(presence), met));
        let (job, mut answered) = Job::new(request, presence);
        let progress = job.progress.clone();
        if met_twin {
            progress.meet_twin();
        }
        // A lane that has ended drops the job, and the receiver notices at once.
        self.lanes[lane].put(job);
        let mut ended = tokio::time::timeout_at(deadline, &mut answered).await;
        if ended.is_err() && !progress.withdraw() {
            ended = tokio::time::timeout_at(deadline + END_LIMIT, answered).await;
        }
        let answer = match ended {
            Ok(Ok(answer)) => answer,
            // The deadline passed, or the lane dropped the job.
            Ok(Err(_)) | Err(_) => Answer::Refused(progress.refusal()),
        };
        count(&answer, progress.has_met_twin());
        answer
    }

    pub fn earliest_deadline(&self) -> Option<std::time::Instant> {
        self.queue.earliest_deadline()
    }

    pub fn queue_max(&self) -> usize {
        self.queue.jobs_max()
    }

    /// Notified after each commit that wrote to the outbox.
    pub fn new_deliveries(&self) -> Arc<Notify> {
        self.deliveries.clone()
    }

    /// Number of commands that wait for a lane.
    pub fn queue_depth(&self) -> usize {
        self.queue.depth()
    }

    /// Reads [`Self::queue_depth`] without keeping the lanes open, unlike a clone of the committer.
    pub fn queue_gauge(&self) -> impl Fn() -> usize + Send + 'static {
        let queue = self.queue.clone();
        move || queue.depth()
    }

    /// The lane of a request, by tenant and agent: requests with one key, or for one pair, are in one lane, and a large
    /// tenant uses all lanes.
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
        let hash = FixedState::default().hash_one((&request.tenant, agent));
        (hash % self.lanes.len() as u64) as usize
    }
}

/// Counts the result of a request.
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
