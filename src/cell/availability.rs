//! Whether the database of a cell can be used, as this process last found. Requests to a cell that cannot be used are
//! refused at once, so that they do not use up connections and memory that the requests of other cells need.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::domain::cell::CellId;
use crate::domain::refusal::Refusal;

/// A cell that was usable is unavailable after it has failed for this long: one lost connection is not enough.
const TOLERATED: Duration = Duration::from_secs(2);

/// Clones share the state.
#[derive(Clone, Debug)]
pub struct Availability {
    cell: CellId,
    /// `None` while the cell can be used.
    reason: Arc<ArcSwapOption<String>>,
}

impl Availability {
    /// The state of a cell that can be used.
    pub fn available(cell: CellId) -> Self {
        Self { cell, reason: Arc::default() }
    }

    /// The state of a cell that has not been reached yet.
    pub fn starting(cell: CellId) -> Self {
        let reason = Arc::new("it has not been reached yet".to_owned());
        Self { cell, reason: Arc::new(ArcSwapOption::new(Some(reason))) }
    }

    pub fn cell(&self) -> &CellId {
        &self.cell
    }

    /// Why the cell cannot be used, without host names and secrets. `None` if it can.
    pub fn reason(&self) -> Option<Arc<String>> {
        self.reason.load_full()
    }

    /// Refuses a request to a cell that cannot be used.
    pub fn check(&self) -> Result<(), Refusal> {
        if self.reason.load().is_some() { Err(Refusal::StoreUnavailable) } else { Ok(()) }
    }

    /// Records that the cell can be used.
    pub fn recover(&self) {
        if self.reason.swap(None).is_some() {
            info!(cell = %self.cell, "a cell can be used");
        }
    }

    /// Records that the cell has been failing since `since`, and how it last failed.
    pub fn fail(&self, since: Instant, reason: String) {
        let was = self.reason.load_full();
        if was.is_none() && since.elapsed() < TOLERATED {
            return;
        }
        if was.is_none_or(|was| *was != reason) {
            warn!(cell = %self.cell, reason, "a cell cannot be used: its tenants are refused");
            self.reason.store(Some(Arc::new(reason)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_unavailable_when_it_has_failed_for_two_seconds() {
        let availability = Availability::available(CellId::from_stored("eu".to_owned()));
        let now = Instant::now();
        availability.fail(now, "a".to_owned());
        assert!(availability.check().is_ok());
        availability.fail(now.checked_sub(TOLERATED).expect("a moment"), "b".to_owned());
        assert_eq!(availability.check(), Err(Refusal::StoreUnavailable));
        assert_eq!(availability.reason().as_deref().map(String::as_str), Some("b"));
        availability.recover();
        assert!(availability.check().is_ok());
    }
}
