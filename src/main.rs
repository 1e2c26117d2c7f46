//! Parses the command line, runs it, and exits.

use std::process::ExitCode;
use std::time::Duration;

use agentpay_billing::cli::{self, Cli};
use agentpay_billing::telemetry;
use clap::Parser;

/// A batch frees on one thread what handlers allocated on others, which this one does cheaply.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long the end waits for a reader of the log or of standard error.
const LAST_LINES_LIMIT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let command = Cli::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            cli::complain(&format!("the runtime cannot be started: {error}"), LAST_LINES_LIMIT);
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(command.run());
    // Dropping the runtime would wait for the lookup of a name, or for a write to a pipe that nobody reads.
    runtime.shutdown_background();
    telemetry::flush(LAST_LINES_LIMIT);
    match ended {
        Ok(code) => code.into(),
        Err(error) => {
            cli::complain(&error.to_string(), LAST_LINES_LIMIT);
            ExitCode::FAILURE
        }
    }
}
