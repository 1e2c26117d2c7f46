//! Floor 2, beside the commands: what happens in the background. A job is `run_once` and a pause, over and over; tests
//! call `run_once` by hand.

pub mod delivery;
pub mod dispatcher;
pub mod follow_controls;
pub mod janitor;
pub mod outcome;

use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// Waits for `pause`. False if the service stops meanwhile.
pub async fn pause(pause: Duration, stop: &CancellationToken) -> bool {
    stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some()
}
