//! Signals: the first begins a drain, the second aborts.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Cancels `draining` at the first SIGTERM or SIGINT, and ends the process at the second. What was acknowledged is
/// committed, so an abort loses nothing.
pub async fn watch(mut signals: Signals, draining: CancellationToken) {
    let signal = signals.next().await;
    info!(signal, "shutdown signal received");
    draining.cancel();
    let signal = signals.next().await;
    info!(signal, "aborted by a second signal");
    std::process::exit(1);
}

pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From here on the signals no longer end the process by themselves.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
