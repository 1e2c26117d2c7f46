//! Signal handling: the first signal stops the process, the second aborts it.

use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::telemetry;

/// How long an abort waits for its last log line.
const LAST_LINE_LIMIT: Duration = Duration::from_millis(200);

/// The stop that signals request.
#[derive(Clone, Default)]
pub struct Stop {
    requested: CancellationToken,
    signal: Arc<OnceLock<StopSignal>>,
    on_abort: Arc<Mutex<Option<AbortHook>>>,
}

type AbortHook = Box<dyn Fn() + Send>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopSignal {
    pub name: &'static str,
    pub number: u8,
}

const HANGUP: StopSignal = StopSignal { name: "SIGHUP", number: 1 };
const INTERRUPT: StopSignal = StopSignal { name: "SIGINT", number: 2 };
const TERMINATE: StopSignal = StopSignal { name: "SIGTERM", number: 15 };

impl Stop {
    /// From here on, signals do not end the process directly.
    pub fn listen() -> io::Result<Self> {
        let stop = Self::default();
        let signals = Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            // nohup ignores SIGHUP on purpose.
            hangup: if ignores_hangup() { None } else { Some(signal(SignalKind::hangup())?) },
        };
        tokio::spawn(stop.clone().watch(signals));
        Ok(stop)
    }

    /// Cancelled by the first signal.
    pub fn requested(&self) -> &CancellationToken {
        &self.requested
    }

    /// The first signal, if there was one.
    pub fn signal(&self) -> Option<StopSignal> {
        self.signal.get().copied()
    }

    /// Runs `work`, and cancels it at the first signal.
    pub async fn race<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.requested.run_until_cancelled(work).await
    }

    /// Sets what an abort does before it ends the process. It must not block.
    pub fn on_abort(&self, hook: impl Fn() + Send + 'static) {
        *self.on_abort.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(hook));
    }

    async fn watch(self, mut signals: Signals) {
        let first = signals.next().await;
        info!(signal = first.name, "shutdown signal received");
        // Nothing else sets it.
        let _ = self.signal.set(first);
        self.requested.cancel();
        let second = signals.next().await;
        info!(signal = second.name, "aborted by a second signal");
        if let Some(hook) = &*self.on_abort.lock().unwrap_or_else(PoisonError::into_inner) {
            hook();
        }
        telemetry::flush(LAST_LINE_LIMIT);
        // Acknowledged writes are committed, so an abort loses nothing.
        std::process::exit(1);
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Option<Signal>,
}

impl Signals {
    async fn next(&mut self) -> StopSignal {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => TERMINATE,
            _ = self.interrupt.recv() => INTERRUPT,
            _ = hangup => HANGUP,
        }
    }
}

/// Whether SIGHUP was ignored when the process started. Known only on Linux.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}
