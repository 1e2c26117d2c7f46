//! The two ends of each lane's queue. [`Waiting`] decides which request is next, and which is refused if the queue is
//! full.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use crate::domain::refusal::Refusal;

use super::job::Job;
use super::waiting::Waiting;

#[derive(Debug)]
pub struct Queue {
    waiting: Mutex<Waiting>,
    /// One for each lane.
    news: Vec<Notify>,
    jobs_max: usize,
}

/// The sending end of one lane. When its last clone is dropped, the lane empties its queue and ends.
#[derive(Clone, Debug)]
pub struct Entrance(Arc<Door>);

#[derive(Debug)]
struct Door {
    queue: Arc<Queue>,
    lane: usize,
}

/// The receiving end of one lane. When it is dropped, waiting and later jobs are dropped, too.
#[derive(Debug)]
pub struct Arrivals {
    queue: Arc<Queue>,
    lane: usize,
}

impl Queue {
    pub fn new(lanes: usize, jobs_max: usize) -> Arc<Self> {
        let news = (0..lanes).map(|_| Notify::new()).collect();
        Arc::new(Self { waiting: Mutex::new(Waiting::new(lanes, jobs_max)), news, jobs_max })
    }

    /// Returns both ends of one lane.
    pub fn lane(self: &Arc<Self>, lane: usize) -> (Entrance, Arrivals) {
        let entrance = Entrance(Arc::new(Door { queue: self.clone(), lane }));
        (entrance, Arrivals { queue: self.clone(), lane })
    }

    pub fn jobs_max(&self) -> usize {
        self.jobs_max
    }

    /// Number of waiting requests over all lanes.
    pub fn depth(&self) -> usize {
        self.waiting().jobs()
    }

    pub fn earliest_deadline(&self) -> Option<Instant> {
        self.waiting().earliest_deadline()
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entrance {
    /// Adds a job to the queue. If the queue is full, refuses this job, or the latest one of a tenant with more waiting
    /// rows.
    pub fn put(&self, job: Job) {
        let Door { queue, lane } = &*self.0;
        let mut waiting = queue.waiting();
        if waiting.lanes[*lane].is_dead {
            // Dropping the job closes its channel, which the handler notices.
            return;
        }
        let refused = waiting.put(*lane, job);
        drop(waiting);
        queue.news[*lane].notify_one();
        refused.into_iter().for_each(|job| job.give_up(Refusal::QueueFull));
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.queue.waiting().lanes[self.lane].is_closed = true;
        self.queue.news[self.lane].notify_one();
    }
}

impl Arrivals {
    /// Waits for a job. False if no more jobs will arrive.
    pub async fn wait(&self) -> bool {
        loop {
            {
                let waiting = self.queue.waiting();
                let turns = &waiting.lanes[self.lane];
                if turns.peek().is_some() {
                    return true;
                }
                if turns.is_closed {
                    return false;
                }
            }
            self.queue.news[self.lane].notified().await;
        }
    }

    /// Moves waiting jobs to `batch`, in turns, until it has `rows_max` rows. A request with more rows than that is a
    /// batch by itself.
    pub fn take(&self, batch: &mut Vec<Job>, rows_max: usize) {
        self.take_while(batch, rows_max, |_| true);
    }

    /// Like [`Self::take`], but stops at the first job that is not wanted.
    pub fn take_while(&self, batch: &mut Vec<Job>, rows_max: usize, is_wanted: impl Fn(&Job) -> bool) {
        let mut rows: usize = batch.iter().map(Job::rows).sum();
        let mut waiting = self.queue.waiting();
        while let Some(next) = waiting.lanes[self.lane].peek() {
            if (rows > 0 && rows + next.rows() > rows_max) || !is_wanted(next) {
                break;
            }
            let Some(job) = waiting.take(self.lane) else { break };
            rows += job.rows();
            batch.push(job);
        }
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        let mut waiting = self.queue.waiting();
        waiting.lanes[self.lane].is_dead = true;
        let mut left = Vec::new();
        while let Some(job) = waiting.take(self.lane) {
            left.push(job);
        }
        drop(waiting);
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot::Receiver;

    use crate::command::context::AgentsToSettle;
    use crate::command::{Answer, BatchedCommand, Request};
    use crate::commit::plan;
    use crate::domain::audit_log::Origin;
    use crate::domain::caller::Tenant;
    use crate::domain::money::Count;
    use crate::domain::names::{AgentId, ServiceId};
    use crate::domain::usage::{Pair, UsageRecord};

    use super::*;

    /// A bulk request with this many items. Its path identifies it.
    fn job(tenant: &str, rows: usize, path: &str) -> (Job, Receiver<Answer>) {
        let pair = Pair { agent: AgentId::from_stored("a".into()), service_id: ServiceId::from_stored("s".into()) };
        let request = Request {
            tenant: Tenant::from_stored(tenant.to_owned()),
            origin: Origin::CLI,
            keyed: None,
            method: "POST",
            path: path.to_owned(),
            request_id: "r".to_owned(),
            trace: None,
            deadline: Instant::now(),
            command: BatchedCommand::RecordUsageBulk(vec![Some(UsageRecord { pair, requests: Count(1) }); rows]).into(),
        };
        Job::new(request.into(), None)
    }

    fn put(entrance: &Entrance, tenant: &str, rows: usize, path: &str) -> Receiver<Answer> {
        let (job, answer) = job(tenant, rows, path);
        entrance.put(job);
        answer
    }

    fn take(arrivals: &Arrivals, rows_max: usize) -> Vec<String> {
        let mut batch = Vec::new();
        arrivals.take(&mut batch, rows_max);
        batch.into_iter().map(|job| job.request.path).collect()
    }

    #[test]
    fn what_joins_a_batch_stays_within_its_pairs_and_its_rows_and_leaves_the_rest_in_order() {
        let queue = Queue::new(1, 100);
        let (entrance, arrivals) = queue.lane(0);
        let _answers: Vec<_> = [("a", 4, "a1"), ("a", 4, "a2"), ("b", 1, "b1"), ("a", 1, "a3")]
            .map(|(tenant, rows, path)| put(&entrance, tenant, rows, path))
            .into();
        let (first, _) = job("a", 1, "first");
        let pairs = plan::pairs(std::slice::from_ref(&first), &AgentsToSettle::default());
        let mut batch = vec![first];
        let join = |batch: &mut Vec<Job>, rows_max| {
            arrivals.take_while(batch, rows_max, |job| plan::is_within(&pairs, job));
            batch.iter().map(|job| job.request.path.clone()).collect::<Vec<_>>()
        };
        assert_eq!(join(&mut batch, 4), ["first"]);
        // The next one in turn belongs to another tenant, so it uses other pairs.
        assert_eq!(join(&mut batch, 100), ["first", "a1"]);
        assert_eq!(take(&arrivals, 100), ["b1", "a2", "a3"]);
        let (mut bill, _) = job("a", 1, "bill");
        bill.request.command = BatchedCommand::SettleAgent(AgentId::from_stored("a".into())).into();
        assert!(!plan::is_within(&pairs, &bill));
    }

    const FULL: Answer = Answer::Refused(Refusal::QueueFull);

    #[test]
    fn tenants_take_turns_and_a_batch_is_bounded_by_rows() {
        let queue = Queue::new(1, 100);
        let (entrance, arrivals) = queue.lane(0);
        let mut answers = Vec::new();
        for (tenant, rows, path) in
            [("a", 4, "a1"), ("a", 4, "a2"), ("a", 4, "a3"), ("b", 1, "b1"), ("c", 1, "c1"), ("c", 20, "c2")]
        {
            answers.push(put(&entrance, tenant, rows, path));
        }
        assert_eq!(take(&arrivals, 10), ["a1", "b1", "c1", "a2"]);
        // Larger than a batch, so it is alone.
        assert_eq!(take(&arrivals, 10), ["c2"]);
        assert_eq!(take(&arrivals, 10), ["a3"]);
        assert_eq!((queue.depth(), take(&arrivals, 10).len()), (0, 0));
    }

    #[test]
    fn the_tenant_with_the_most_waiting_gives_way_when_the_queue_is_full() {
        let queue = Queue::new(2, 4);
        let lanes = [queue.lane(0), queue.lane(1)];
        let flood: Vec<_> = ["a1", "a2", "a3", "a4"].map(|path| put(&lanes[1].0, "a", 1, path)).into();
        assert_eq!(put(&lanes[1].0, "a", 1, "a5").try_recv(), Ok(FULL));
        let others: Vec<_> = ["b1", "b2", "b3"].map(|path| put(&lanes[0].0, "b", 1, path)).into();
        let refused = |answers: Vec<Receiver<Answer>>| -> Vec<bool> {
            answers.into_iter().map(|mut answer| answer.try_recv() == Ok(FULL)).collect()
        };
        assert_eq!(refused(flood), [false, false, true, true]);
        assert_eq!(refused(others), [false, false, true]);
        assert_eq!(
            (take(&lanes[1].1, 9), take(&lanes[0].1, 9)),
            (vec!["a1".into(), "a2".into()], vec!["b1".into(), "b2".into()])
        );
        assert_eq!(queue.depth(), 0);
    }

    #[test]
    fn rows_that_wait_are_bounded_too() {
        let queue = Queue::new(1, 2);
        let (entrance, arrivals) = queue.lane(0);
        let mut large = put(&entrance, "a", 1000, "large");
        assert_eq!(put(&entrance, "a", 1, "small").try_recv(), Ok(FULL));
        let mut other = put(&entrance, "b", 1, "other");
        assert_eq!((large.try_recv(), other.try_recv().is_err()), (Ok(FULL), true));
        assert_eq!(take(&arrivals, 1), ["other"]);
    }

    #[tokio::test]
    async fn a_lane_ends_when_nobody_can_come_and_a_dead_lane_keeps_nobody() {
        let queue = Queue::new(1, 2);
        let (entrance, arrivals) = queue.lane(0);
        let mut answer = put(&entrance, "a", 1, "first");
        drop(entrance.clone());
        assert!(arrivals.wait().await);
        drop(arrivals);
        assert!(answer.try_recv().is_err_and(|error| error == tokio::sync::oneshot::error::TryRecvError::Closed));
        assert!(put(&entrance, "a", 1, "second").await.is_err());
        assert_eq!(queue.depth(), 0);
        let (entrance, arrivals) = Queue::new(1, 2).lane(0);
        drop(entrance);
        assert!(!arrivals.wait().await);
    }
}
