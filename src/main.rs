//! Parses the command line, runs it, and exits.

use std::process::ExitCode;
use std::time::Duration;

use agentpay_billing::cli::{self, Cli};
use agentpay_billing::telemetry;
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// A batch frees on one thread what handlers allocated on others, which this one does cheaply.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How long the end waits for a reader of the log or of standard error.
const LAST_LINES_LIMIT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let command = Cli::parse();
    allow_open_files();
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

/// Each connection is an open file, and the usual soft limit of 1024 is below what is served at a time. The hard limit is
/// the administrator's.
fn allow_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // Refused, it stays as it is, and connections beyond it wait to be accepted.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}
