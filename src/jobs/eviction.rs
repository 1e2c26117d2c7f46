//! Which records go when callers have more than they may: each caller's oldest, and none younger than was promised.
//! There is no index by caller. The records are walked in the order of their expiry, and a cursor for each caller keeps
//! where its walk stands, so that no record is passed twice for one caller.

use std::collections::{BTreeMap, HashMap};

use crate::domain::timestamp::StoredMoment;
use crate::store::retention::Walked;

/// Callers whose cursors are kept.
const CURSORS_MAX: usize = 100_000;

/// What a caller has more than it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Surplus {
    pub records: i64,
    pub bytes: i64,
    /// Which cap it is over, as the metrics name it: `caller` or `total`.
    pub cap: &'static str,
}

impl Surplus {
    fn is_left(&self) -> bool {
        self.records > 0 || self.bytes > 0
    }
}

/// The callers that have a surplus left. Once all have been walked to the horizon, they have nothing that may be evicted.
pub fn with_surplus(surpluses: &BTreeMap<String, Surplus>) -> Vec<&str> {
    surpluses.iter().filter(|(_, surplus)| surplus.is_left()).map(|(caller, _)| caller.as_str()).collect()
}

/// Where the walk of each caller stands: it has no evictable record that expires at its cursor or before. A caller that is
/// no longer over its cap soon is again, so its cursor stays.
#[derive(Debug, Default)]
pub struct Cursors(HashMap<String, StoredMoment>);

/// A part of the walk: the records that expire after `from` and until `until`, both for the same callers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    pub from: StoredMoment,
    pub until: StoredMoment,
    pub callers: Vec<String>,
}

impl Cursors {
    /// Forgets cursors at which everything has expired, and all if there are too many.
    pub fn tidy(&mut self, start: StoredMoment) {
        self.0.retain(|_, cursor| *cursor > start);
        if self.0.len() > CURSORS_MAX {
            self.0.clear();
        }
    }

    /// The next stretch for callers that have a surplus: from the earliest cursor to the next one, where its callers are
    /// joined by those, or to `horizon`. None: all have been walked to there.
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

    /// Chooses what goes of a walked stretch: of each caller the first until its surplus is gone, and at most
    /// `records_max`. Takes that off the surpluses, and moves the cursors. Returns the places of the records.
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

    /// Undoes the moves of a stretch whose removal failed.
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
        // One has enough, the other goes on alone.
        let alone = cursors.next(&over, start, horizon).expect("a stretch");
        assert_eq!(alone, Stretch { from: at(30), until: at(100), callers: vec!["b".into()] });
        // The first is over its cap again: it starts before what it left, and ends where the other one is.
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
        // As time goes on, there is more to walk.
        assert_eq!(cursors.next(&over, start, at(101)).map(|stretch| stretch.from), Some(at(100)));
    }

    #[test]
    fn what_one_step_may_not_take_is_left_to_the_next() {
        let mut cursors = Cursors::default();
        let mut over = surpluses(&[("a", 3)]);
        let stretch = cursors.next(&over, at(0), at(100)).expect("a stretch");
        // All expire together.
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
