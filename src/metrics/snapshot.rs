//! The counters of this process at one moment, for the history of the last hour. A request costs nothing: what is read
//! here is counted for Prometheus.

use prometheus::core::Collector;

use super::FAMILIES;
use super::families::Families;

/// Counters since the start, or since a reset.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Requests answered.
    pub requests: u64,
    /// Of these, with a 5xx.
    pub failures: u64,
    /// Answered from an idempotency record.
    pub replays: u64,
    /// Commands in confirmed commits.
    pub commands: u64,
    /// Upper bounds of durations in seconds, and the requests that took at most as long.
    pub durations: Vec<(f64, u64)>,
}

/// In all cells.
fn commands(families: &Families) -> f64 {
    let collected = families.batch_size.collect();
    let histograms = collected.iter().flat_map(|family| family.get_metric()).map(|metric| metric.get_histogram());
    histograms.map(|histogram| histogram.get_sample_sum()).sum()
}

impl Snapshot {
    pub fn take() -> Self {
        let families = FAMILIES.load();
        let mut snapshot =
            Self { replays: families.replays.get(), commands: commands(&families) as u64, ..Self::default() };
        for family in families.http_seconds.collect() {
            for metric in family.get_metric() {
                let histogram = metric.get_histogram();
                let count = histogram.get_sample_count();
                snapshot.requests += count;
                let status = metric.get_label().iter().find(|label| label.name() == "status");
                if status.is_some_and(|status| status.value().starts_with('5')) {
                    snapshot.failures += count;
                }
                for (index, bucket) in histogram.get_bucket().iter().enumerate() {
                    if snapshot.durations.len() == index {
                        snapshot.durations.push((bucket.upper_bound(), 0));
                    }
                    snapshot.durations[index].1 += bucket.cumulative_count();
                }
            }
        }
        snapshot
    }

    /// What was counted since `earlier`. Everything, if the counters were reset meanwhile.
    pub fn since(&self, earlier: &Self) -> Self {
        let was_reset = earlier.requests > self.requests || earlier.commands > self.commands;
        if was_reset || earlier.durations.len() > self.durations.len() {
            return self.clone();
        }
        let before = |index: usize| earlier.durations.get(index).map_or(0, |(_, count)| *count);
        let durations = self.durations.iter().enumerate();
        Self {
            requests: self.requests - earlier.requests,
            failures: self.failures.saturating_sub(earlier.failures),
            replays: self.replays.saturating_sub(earlier.replays),
            commands: self.commands - earlier.commands,
            durations: durations.map(|(index, (bound, count))| (*bound, count.saturating_sub(before(index)))).collect(),
        }
    }

    /// The duration in seconds within which a `share` of the requests was answered, interpolated within its bucket. At
    /// most the largest bound. `None` without requests.
    pub fn quantile(&self, share: f64) -> Option<f64> {
        if self.requests == 0 {
            return None;
        }
        let wanted = share * self.requests as f64;
        let (mut lower, mut below) = (0.0, 0.0);
        for (bound, count) in &self.durations {
            let count = *count as f64;
            if count >= wanted && count > below {
                return Some(lower + (bound - lower) * (wanted - below) / (count - below));
            }
            (lower, below) = (*bound, count);
        }
        Some(lower)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(requests: u64, durations: &[(f64, u64)]) -> Snapshot {
        Snapshot { requests, durations: durations.to_vec(), ..Snapshot::default() }
    }

    #[test]
    fn a_quantile_is_interpolated_within_its_bucket() {
        let durations = of(100, &[(0.01, 50), (0.1, 90), (1.0, 90)]);
        assert_eq!(durations.quantile(0.25), Some(0.005));
        assert_eq!(durations.quantile(0.5), Some(0.01));
        assert_eq!(durations.quantile(0.7).map(|seconds| (seconds * 1000.0).round()), Some(55.0));
        // Beyond the largest bound.
        assert_eq!(durations.quantile(0.99), Some(1.0));
        assert_eq!(of(0, &[(0.01, 0)]).quantile(0.5), None);
    }

    #[test]
    fn a_difference_counts_everything_after_a_reset() {
        let (first, second) = (of(10, &[(1.0, 4)]), of(15, &[(1.0, 6)]));
        assert_eq!(second.since(&first), of(5, &[(1.0, 2)]));
        assert_eq!(first.since(&second), first);
        assert_eq!(first.since(&Snapshot::default()), first);
    }
}
