//! Parses the command line, runs it, and exits.

use std::process::ExitCode;
use std::time::Duration;

use agentpay_billing::cli::{self, Cli};
use agentpay_billing::telemetry;
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The lanes free memory that handlers allocated on other threads. mimalloc does that cheaply.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long the end of the process waits for the readers of the log and of standard error.
const LAST_LINES_LIMIT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let command = Cli::parse();
    allow_open_files();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            cli::print_error(&format!("the runtime cannot be started: {error}"), LAST_LINES_LIMIT);
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(command.run());
    // Dropping the runtime would wait for a blocked name lookup, or a write to a pipe that nobody reads.
    runtime.shutdown_background();
    telemetry::flush(LAST_LINES_LIMIT);
    match ended {
        Ok(code) => code.into(),
        Err(error) => {
            cli::print_error(&error.to_string(), LAST_LINES_LIMIT);
            ExitCode::FAILURE
        }
    }
}

/// Raises the soft limit on open files to the hard limit. Each connection is an open file, and the usual soft limit of
/// 1024 is below the limit on connections.
fn allow_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // If this fails, the limit stays, and further connections wait to be accepted.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}
