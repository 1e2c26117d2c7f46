//! What this process did in the last hour, in samples of ten seconds. Memory is bounded: the oldest sample makes room for
//! the newest. The job `sample_history` adds samples, and the operator reads them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use schemars::JsonSchema;
use serde::Serialize;

use crate::domain::timestamp::Timestamp;
use crate::metrics::snapshot::Snapshot;

/// The time that a sample covers.
pub const INTERVAL: Duration = Duration::from_secs(10);
/// An hour of samples.
const SAMPLES_MAX: usize = 360;

/// What happened in one interval.
#[derive(Clone, Debug, PartialEq, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "HistorySample")]
pub struct Sample {
    /// The end of the interval.
    pub at: Timestamp,
    /// Requests answered.
    pub requests: u64,
    /// Of these, with a 5xx.
    pub failures: u64,
    /// Commands committed.
    pub commands: u64,
    /// Requests answered from an idempotency record.
    pub replays: u64,
    /// Median duration of the requests in milliseconds. Null without requests.
    pub p50_ms: Option<f64>,
    /// Duration within which 99 % of the requests were answered. Null without requests.
    pub p99_ms: Option<f64>,
    /// Commands that waited for a commit at the end of the interval.
    pub queue_depth: usize,
}

/// The samples of this process. All clones share them.
#[derive(Clone, Debug, Default)]
pub struct History(Arc<Mutex<Series>>);

#[derive(Debug, Default)]
struct Series {
    samples: VecDeque<Sample>,
    /// The counters at the end of the last sample.
    last: Option<Snapshot>,
}

impl History {
    /// Adds what was counted since the last call. The first call only begins.
    pub fn add(&self, at: Timestamp, snapshot: Snapshot, queue_depth: usize) {
        let mut series = self.series();
        let Some(last) = series.last.replace(snapshot.clone()) else { return };
        let counted = snapshot.since(&last);
        if series.samples.len() == SAMPLES_MAX {
            series.samples.pop_front();
        }
        series.samples.push_back(Sample {
            at,
            requests: counted.requests,
            failures: counted.failures,
            commands: counted.commands,
            replays: counted.replays,
            p50_ms: counted.quantile(0.5).map(milliseconds),
            p99_ms: counted.quantile(0.99).map(milliseconds),
            queue_depth,
        });
    }

    /// The samples that end at `since` or later, oldest first.
    pub fn since(&self, since: Timestamp) -> Vec<Sample> {
        self.series().samples.iter().filter(|sample| sample.at >= since).cloned().collect()
    }

    fn series(&self) -> MutexGuard<'_, Series> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// With two decimals.
fn milliseconds(seconds: f64) -> f64 {
    (seconds * 100_000.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_what_was_counted_since_the_last_one_and_the_last_hour_is_kept() {
        let history = History::default();
        let at = |second: i64| Timestamp::from_ms(second * 1000);
        let counted = |requests| Snapshot { requests, durations: vec![(0.01, requests)], ..Snapshot::default() };
        history.add(at(0), counted(100), 0);
        assert_eq!(history.since(at(0)), []);
        history.add(at(10), counted(103), 2);
        history.add(at(20), counted(103), 0);
        let samples = history.since(at(0));
        assert_eq!(samples.iter().map(|sample| sample.requests).collect::<Vec<_>>(), [3, 0]);
        assert_eq!((samples[0].p50_ms, samples[0].queue_depth, samples[1].p50_ms), (Some(5.0), 2, None));
        assert_eq!(history.since(at(20)).len(), 1);
        for second in 3..1000 {
            history.add(at(second * 10), counted(103), 0);
        }
        let samples = history.since(at(0));
        assert_eq!((samples.len(), samples[0].at), (SAMPLES_MAX, at(6400)));
    }
}
