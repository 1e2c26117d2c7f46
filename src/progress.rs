//! The steps of a start, for the log and for readiness checks.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tracing::warn;

/// A step that takes longer is logged, and logged again periodically.
const FIRST_LINE_AFTER: Duration = Duration::from_secs(2);
const NEXT_LINE_AFTER: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Mutex<Current>>);

#[derive(Debug, Default)]
struct Current {
    step: &'static str,
    last_error: Option<String>,
}

impl Progress {
    /// Runs one step of the start. `name` says what the start waits for.
    pub async fn step<T>(&self, name: &'static str, work: impl Future<Output = T>) -> T {
        *self.current() = Current { step: name, last_error: None };
        let began = Instant::now();
        let mut work = pin!(work);
        let mut pause = FIRST_LINE_AFTER;
        loop {
            match timeout(pause, work.as_mut()).await {
                Ok(done) => return done,
                Err(_) => {
                    let last_error = self.current().last_error.clone();
                    warn!(
                        waitsFor = name,
                        seconds = began.elapsed().as_secs(),
                        lastError = last_error,
                        "the start waits for {name}"
                    );
                    pause = NEXT_LINE_AFTER;
                }
            }
        }
    }

    /// Records why the current step is tried again.
    pub fn note_error(&self, error: String) {
        self.current().last_error = Some(error);
    }

    /// The current step.
    pub fn waits_for(&self) -> &'static str {
        self.current().step
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
