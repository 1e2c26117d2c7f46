//! Chooses the records to evict from callers over a cap: the oldest records of each caller, but none that is protected
//! by its age. There is no index by caller, so the records are read in the order of their expiry. A cursor for each
//! caller remembers how far they were read, so that no record is read twice for one caller.

use std::collections::{BTreeMap, HashMap};

use crate::domain::timestamp::StoredMoment;
use crate::store::retention::Walked;

/// Maximum number of cursors.
const CURSORS_MAX: usize = 100_000;

/// By how much a caller exceeds its caps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Surplus {
    pub records: i64,
    pub bytes: i64,
    /// The cap that it exceeds, as in the metrics: `caller` or `total`.
    pub cap: &'static str,
}

impl Surplus {
    fn is_left(&self) -> bool {
        self.records > 0 || self.bytes > 0
    }
}

/// The callers that still exceed a cap. Once all of them have been read up to the horizon, none of their records may be
/// evicted.
pub fn with_surplus(surpluses: &BTreeMap<String, Surplus>) -> Vec<&str> {
    surpluses.iter().filter(|(_, surplus)| surplus.is_left()).map(|(caller, _)| caller.as_str()).collect()
}

/// How far the records of each caller were read: it has no evictable record that expires at its cursor or earlier. A
/// caller that falls below its cap keeps its cursor, because it may soon exceed the cap again.
#[derive(Debug, Default)]
pub struct Cursors(HashMap<String, StoredMoment>);

/// A range to read: the records that expire after `from` and not after `until`, for the same callers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    pub from: StoredMoment,
    pub until: StoredMoment,
    pub callers: Vec<String>,
}

impl Cursors {
    /// Removes cursors before `start`, where all records have expired, and all cursors if there are too many.
    pub fn tidy(&mut self, start: StoredMoment) {
        self.0.retain(|_, cursor| *cursor > start);
        if self.0.len() > CURSORS_MAX {
            self.0.clear();
        }
    }

    /// The next range to read: from the earliest cursor of the callers over a cap to the next cursor, where the next
    /// callers join, or to `horizon`. `None` if all have been read up to the horizon.
    pub fn next(
        &self,
        surpluses: &BTreeMap<String, Surplus>,
        start: StoredMoment,
        horizon: StoredMoment,
    ) -> Option<Stretch> {
        let over = || surpluses.iter().filter(|(_, surplus)| surplus.is_left()).map(|(caller, _)| caller);
        let cursor = |caller: &String| self.0.get(caller).copied().unwrap_or(start).max(start);
        let from = over().map(cursor).min().filter(|from| *from < horizon)?;
        let until = over().map(cursor).filter(|cursor| *cursor > from).fold(horizon, StoredMoment::min);
        let callers = over().filter(|caller| cursor(caller) == from).cloned().collect();
        Some(Stretch { from, until, callers })
    }

    /// Chooses the records to evict from a range: the oldest of each caller until it no longer exceeds its caps, and at
    /// most `records_max` in all. Updates the surpluses and the cursors. Returns the row locations (`ctid`) of the
    /// records.
    pub fn choose(
        &mut self,
        stretch: &Stretch,
        walked: &Walked,
        surpluses: &mut BTreeMap<String, Surplus>,
        records_max: usize,
    ) -> Vec<String> {
        let mut chosen = Vec::new();
        let mut ends: HashMap<&str, StoredMoment> = HashMap::new();
        for candidate in &walked.candidates {
            let Some(surplus) = surpluses.get_mut(&candidate.caller) else { continue };
            if surplus.is_left() && chosen.len() < records_max {
                surplus.records -= 1;
                surplus.bytes -= candidate.bytes;
                chosen.push(candidate.place.clone());
            } else {
                ends.entry(&candidate.caller).or_insert(candidate.expires_at.before());
            }
        }
        for caller in &stretch.callers {
            let end = ends.get(caller.as_str()).copied().unwrap_or(walked.end);
            self.0.insert(caller.clone(), end);
        }
        chosen
    }

    /// Resets the cursors of a range after its eviction failed.
    pub fn rewind(&mut self, stretch: &Stretch) {
        for caller in &stretch.callers {
            self.0.insert(caller.clone(), stretch.from);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::store::retention::Candidate;

    use super::*;

    fn at(ms: i64) -> StoredMoment {
        StoredMoment::parse(&ms.to_string()).expect("a moment")
    }

    fn surpluses(of: &[(&str, i64)]) -> BTreeMap<String, Surplus> {
        of.iter().map(|(caller, records)| ((*caller).to_owned(), surplus(*records, 0))).collect()
    }

    fn surplus(records: i64, bytes: i64) -> Surplus {
        Surplus { records, bytes, cap: "caller" }
    }

    fn candidates(of: &[(&str, i64)]) -> Vec<Candidate> {
        let candidate = |(caller, expires_at): &(&str, i64)| Candidate {
            caller: (*caller).to_owned(),
            place: expires_at.to_string(),
            expires_at: at(*expires_at),
            bytes: 1,
        };
        of.iter().map(candidate).collect()
    }

    #[test]
    fn callers_walk_together_from_where_they_meet() {
        let mut cursors = Cursors::default();
        let mut over = surpluses(&[("a", 1), ("b", 2)]);
        let (start, horizon) = (at(0), at(100));
        let both = cursors.next(&over, start, horizon).expect("a stretch");
        assert_eq!(both, Stretch { from: at(0), until: at(100), callers: vec!["a".into(), "b".into()] });
        let walked = Walked { end: at(30), candidates: candidates(&[("a", 5), ("a", 10), ("b", 20)]) };
        assert_eq!(cursors.choose(&both, &walked, &mut over, 1000), ["5", "20"]);
        // One caller no longer exceeds its cap, so the other is read alone.
        let alone = cursors.next(&over, start, horizon).expect("a stretch");
        assert_eq!(alone, Stretch { from: at(30), until: at(100), callers: vec!["b".into()] });
        // The first caller exceeds its cap again. It is read from its cursor to that of the other.
        over.insert("a".into(), surplus(1, 0));
        let again = cursors.next(&over, start, horizon).expect("a stretch");
        assert_eq!((again.from, again.until, again.callers), (at(10).before(), at(30), vec!["a".to_owned()]));
    }

    #[test]
    fn who_was_walked_to_the_horizon_has_nothing_left() {
        let mut cursors = Cursors::default();
        let mut over = surpluses(&[("a", 5), ("b", 1)]);
        let (start, horizon) = (at(0), at(100));
        let stretch = cursors.next(&over, start, horizon).expect("a stretch");
        cursors.choose(&stretch, &Walked { end: at(100), candidates: candidates(&[("b", 7)]) }, &mut over, 1000);
        assert_eq!((cursors.next(&over, start, horizon), with_surplus(&over)), (None, vec!["a"]));
        // The horizon moves with time.
        assert_eq!(cursors.next(&over, start, at(101)).map(|stretch| stretch.from), Some(at(100)));
    }

    #[test]
    fn what_one_step_may_not_take_is_left_to_the_next() {
        let mut cursors = Cursors::default();
        let mut over = surpluses(&[("a", 3)]);
        let stretch = cursors.next(&over, at(0), at(100)).expect("a stretch");
        // All of them expire at the same time.
        let walked = Walked { end: at(100), candidates: candidates(&[("a", 7), ("a", 7), ("a", 7)]) };
        assert_eq!(cursors.choose(&stretch, &walked, &mut over, 2).len(), 2);
        assert_eq!(cursors.next(&over, at(0), at(100)).map(|stretch| stretch.from), Some(at(7).before()));
    }

    #[test]
    fn bytes_count_like_records() {
        let mut cursors = Cursors::default();
        let mut over = BTreeMap::from([("a".to_owned(), surplus(-5, 2))]);
        let stretch = cursors.next(&over, at(0), at(100)).expect("a stretch");
        let walked = Walked { end: at(100), candidates: candidates(&[("a", 1), ("a", 2), ("a", 3)]) };
        assert_eq!(cursors.choose(&stretch, &walked, &mut over, 1000), ["1", "2"]);
    }
}
