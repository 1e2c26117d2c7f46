//! Logs: JSON lines, or lines for people. Panics are logged, too. And traces, in [`traces`].

mod log_writer;
pub mod process;
mod request_line;
mod request_span;
pub mod traces;

use std::io;
use std::os::fd::AsFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tracing::{error, info};
use tracing_subscriber::EnvFilter;

use crate::clock;
use crate::settings::Settings;

use log_writer::LogWriter;
pub use log_writer::write_all_retrying;
pub use request_line::{Milliseconds, RequestLine};
use request_span::InRequestSpan;
pub use request_span::RequestSpan;

static LOG: OnceLock<LogWriter> = OnceLock::new();
/// Whether the request line is written as JSON.
static REQUEST_LINES_AS_JSON: AtomicBool = AtomicBool::new(false);

/// Sends the log of the service to standard output.
pub fn start(settings: &Settings) -> io::Result<()> {
    let level = match settings.log_level.as_str() {
        "silent" => "off".to_owned(),
        "fatal" => "error".to_owned(),
        // Other crates log only errors, so that no data of statements gets into the log.
        level => format!("error,agentpay_billing={level}"),
    };
    install(level, settings.log_json, io::stdout().as_fd())?;
    let has_request_lines = matches!(settings.log_level.as_str(), "info" | "debug" | "trace");
    REQUEST_LINES_AS_JSON.store(settings.log_json && has_request_lines, Ordering::Relaxed);
    Ok(())
}

/// Logs a completed request.
pub fn request_completed(line: RequestLine<'_>) {
    match LOG.get() {
        Some(log) if REQUEST_LINES_AS_JSON.load(Ordering::Relaxed) => {
            log.write_line(line.to_json(clock::machine_now()));
        }
        _ => {
            let RequestLine { request_id, method, path, status, took, trace_id } = line;
            let trace_id = trace_id.map(tracing::field::display);
            let duration_ms = took.tenths() as f64 / 10.0;
            info!(target: "agentpay_billing::api::request::pipeline", requestId = request_id, method, path, status,
                durationMs = duration_ms, traceId = trace_id, "request completed");
        }
    }
}

/// Logs errors of a command to standard error, for the person at the terminal.
pub fn start_for_command() -> io::Result<()> {
    install("off,agentpay_billing=warn".to_owned(), false, io::stderr().as_fd())
}

fn install(level: String, as_json: bool, output: std::os::fd::BorrowedFd<'_>) -> io::Result<()> {
    // Unbuffered, and without the lock of the standard library's handle, which a blocked write would keep.
    let output = std::fs::File::from(output.try_clone_to_owned()?);
    let writer = LOG.get_or_init(|| LogWriter::start(output));
    let log = tracing_subscriber::fmt().with_env_filter(EnvFilter::new(level)).with_writer(writer);
    if as_json {
        log.json().with_span_list(false).map_event_format(InRequestSpan).init();
    } else {
        log.map_event_format(InRequestSpan).init();
    }
    // The default hook writes to standard error, and would block the thread if nobody reads it.
    std::panic::set_hook(Box::new(|panic| {
        let text = panic.payload_as_str().unwrap_or("unknown");
        error!(panic = text, location = panic.location().map(ToString::to_string), "a thread panicked");
    }));
    Ok(())
}

/// Waits until all lines are written, but at most `limit`, because the reader may have stopped reading.
pub fn flush(limit: Duration) {
    if let Some(writer) = LOG.get() {
        writer.flush(limit);
    }
}
