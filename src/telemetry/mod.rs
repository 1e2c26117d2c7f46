//! Logs: JSON lines, or lines for people on a terminal. Panics are log lines too.

mod log_writer;

use std::io;
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::time::Duration;

use tracing::error;
use tracing_subscriber::EnvFilter;

use crate::settings::Settings;

use log_writer::LogWriter;
pub use log_writer::write_patiently;

static LOG: OnceLock<LogWriter> = OnceLock::new();

/// Sends the log of the service to standard output.
pub fn start(settings: &Settings) -> io::Result<()> {
    let level = match settings.log_level.as_str() {
        "silent" => "off".to_owned(),
        "fatal" => "error".to_owned(),
        // The drivers below us stay at their own errors, so that no statement's data gets into the log.
        level => format!("error,agentpay_billing={level}"),
    };
    install(level, settings.log_json, io::stdout().as_fd())
}

/// Sends what goes wrong in a command to standard error, for the person at the terminal.
pub fn start_for_command() -> io::Result<()> {
    install("off,agentpay_billing=warn".to_owned(), false, io::stderr().as_fd())
}

fn install(level: String, as_json: bool, output: std::os::fd::BorrowedFd<'_>) -> io::Result<()> {
    // Unbuffered, and not the handle of the standard library, whose lock a blocked write would keep.
    let output = std::fs::File::from(output.try_clone_to_owned()?);
    let writer = LOG.get_or_init(|| LogWriter::start(output));
    let log = tracing_subscriber::fmt().with_env_filter(EnvFilter::new(level)).with_writer(writer);
    if as_json {
        log.json().init();
    } else {
        log.init();
    }
    // The default hook writes to standard error, and would block the thread if nobody reads that.
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.payload_as_str().unwrap_or("unknown");
        error!(panic = text, location = panic.location().map(ToString::to_string), "a thread panicked");
    }));
    Ok(())
}

/// Waits until all lines are written, but no longer than `limit`: a reader that has stopped reading must not keep the
/// process from ending.
pub fn flush(limit: Duration) {
    if let Some(writer) = LOG.get() {
        writer.flush(limit);
    }
}
