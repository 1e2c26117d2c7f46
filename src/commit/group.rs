//! Requests that a lane commits together, and their spans in the log and in traces.

use std::collections::VecDeque;
use std::time::Instant;

use tracing::{Span, error_span};

use crate::telemetry::traces::BatchTrace;

use super::attempt::Locking;
use super::job::Job;

/// Requests that are committed together.
pub struct Group {
    pub jobs: Vec<Job>,
    pub locking: Locking,
    pub reruns: u32,
    pub reconnects: u32,
}

impl Group {
    pub fn of(jobs: Vec<Job>, locking: Locking) -> Self {
        Self { jobs, locking, reruns: 0, reconnects: 0 }
    }

    /// Splits jobs in order: consecutive batched commands form one group, and every other command is a group by itself.
    pub fn split(jobs: Vec<Job>, locking: Locking) -> VecDeque<Self> {
        let mut groups: VecDeque<Self> = VecDeque::new();
        for job in jobs {
            match groups.back_mut() {
                Some(group) if job.batched().is_some() && group.is_batch() => group.jobs.push(job),
                _ => {
                    let locking = if job.is_exclusive() { Locking::Exclusive } else { locking };
                    groups.push_back(Self::of(vec![job], locking));
                }
            }
        }
        groups
    }

    /// Batched commands share a group only with others of their kind.
    fn is_batch(&self) -> bool {
        self.jobs.first().is_some_and(|job| job.batched().is_some())
    }

    /// One group for each member.
    pub fn apart(self) -> impl Iterator<Item = Self> {
        self.jobs.into_iter().map(|job| {
            let locking = if job.is_exclusive() { Locking::Exclusive } else { Locking::PessimisticShortWait };
            Self::of(vec![job], locking)
        })
    }
}

/// Maximum number of requests that a span lists, so that log lines have a bounded length.
const NAMED_MAX: usize = 32;

/// Number of a batch in its lane, counted from the start of the process, and of the attempt to commit it.
#[derive(Clone, Copy, Debug)]
pub struct AttemptNumber {
    lane: usize,
    batch: u64,
    attempt: u32,
}

impl AttemptNumber {
    pub fn of_lane(lane: usize) -> Self {
        Self { lane, batch: 0, attempt: 0 }
    }

    pub fn next_batch(&mut self) {
        *self = Self { batch: self.batch + 1, attempt: 0, ..*self };
    }

    pub fn next_attempt(&mut self) {
        self.attempt += 1;
    }

    /// The span of log lines about `jobs`. Created only when something is logged, because most batches log nothing. Its
    /// level is the highest, so that no `LOG_LEVEL` hides it.
    pub fn span(self, jobs: &[Job]) -> Span {
        let Self { lane, batch, attempt } = self;
        let ids: Vec<&str> = jobs.iter().map(|job| job.request.request_id.as_str()).take(NAMED_MAX).collect();
        error_span!("batch", lane, batch, attempt, requests = jobs.len(), requestIds = ids.join(", "))
    }

    /// Adds the attempt, which has ended, to the traces of its requests. `error`: why it committed nothing.
    pub fn trace(self, jobs: &[Job], began: Instant, error: Option<&'static str>) {
        let Self { lane, batch, attempt } = self;
        let trace = BatchTrace { lane, batch, attempt, requests: jobs.len(), began, error };
        trace.end(jobs.iter().filter_map(|job| job.request.trace.as_deref()));
    }
}
