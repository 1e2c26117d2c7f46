//! Detects concurrent requests with the same idempotency key in this process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use foldhash::fast::RandomState;

use crate::store::idempotency::CallerKey;

/// Counts the requests in progress for each key.
#[derive(Clone, Debug, Default)]
pub struct InFlight {
    requests: Arc<Mutex<HashMap<Arc<CallerKey>, usize, RandomState>>>,
}

/// A request in progress. Dropping it ends the request.
#[derive(Debug)]
pub struct Presence {
    in_flight: InFlight,
    id: Arc<CallerKey>,
}

impl InFlight {
    /// Adds a request. Returns whether another one with the same key is in progress.
    pub fn enter(&self, id: &Arc<CallerKey>) -> (Presence, bool) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let count = requests.entry(id.clone()).or_default();
        *count += 1;
        let met_twin = *count > 1;
        (Presence { in_flight: self.clone(), id: id.clone() }, met_twin)
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut requests = self.in_flight.requests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = requests.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                requests.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twins_are_met_while_one_is_under_way_and_forgotten_after() {
        let in_flight = InFlight::default();
        let id = CallerKey { caller: "ip:192.0.2.1".into(), key: "k".into() }.into();
        let (first, met) = in_flight.enter(&id);
        assert!(!met);
        let (second, met) = in_flight.enter(&id);
        assert!(met);
        drop((first, second));
        assert!(!in_flight.enter(&id).1);
        assert!(in_flight.requests.lock().expect("lock").is_empty());
    }
}
