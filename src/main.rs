//! Parses the command line, runs it, and exits.

use std::process::ExitCode;

use agentpay_billing::cli::Cli;
use clap::Parser;

/// A batch frees on one thread what handlers allocated on others, which this one does cheaply.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    match Cli::parse().run().await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
