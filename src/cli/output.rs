//! What commands write to standard output. A write that blocks keeps no signal waiting, and one that fails is an error:
//! the reader that went away, as `head` does, is told apart from everything else.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::sync::Arc;

use tokio::task::spawn_blocking;

use crate::telemetry::write_patiently;

#[derive(Clone, Debug)]
pub struct Output(Arc<File>);

#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    #[error("the reader of standard output is gone")]
    Closed,
    #[error("standard output cannot be written to: {0}")]
    Failed(io::Error),
}

impl Output {
    pub fn standard() -> Result<Self, OutputError> {
        let output = io::stdout().as_fd().try_clone_to_owned().map_err(OutputError::Failed)?;
        Ok(Self(Arc::new(output.into())))
    }

    /// Writes one line, unbuffered: once this returns, the line is where it belongs.
    pub async fn line(&self, mut line: String) -> Result<(), OutputError> {
        line.push('\n');
        let output = self.0.clone();
        let written = spawn_blocking(move || write_patiently(&mut &*output, line.as_bytes())).await;
        match written.map_err(io::Error::other).flatten() {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(OutputError::Closed),
            Err(error) => Err(OutputError::Failed(error)),
        }
    }
}
