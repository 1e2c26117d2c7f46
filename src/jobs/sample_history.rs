//! Takes a sample of the metrics every ten seconds, for the history of the last hour. It only reads counters that exist,
//! so requests cost no more.

use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::history::{History, INTERVAL};
use crate::metrics::snapshot::Snapshot;

#[derive(Clone, Debug)]
pub struct HistorySampler {
    pub history: History,
    pub clock: Clock,
}

impl HistorySampler {
    /// `queue_depth` returns how many commands wait for a commit.
    pub async fn run(self, queue_depth: impl Fn() -> usize, stop: CancellationToken) {
        loop {
            self.run_once(queue_depth());
            if !super::pause(INTERVAL, &stop).await {
                return;
            }
        }
    }

    pub fn run_once(&self, queue_depth: usize) {
        self.history.add(self.clock.now(), Snapshot::take(), queue_depth);
    }
}
