//! Standard output of commands. A blocked write does not delay a signal, and a failed write is an error. A closed pipe,
//! as after `head`, has its own error.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::sync::Arc;

use tokio::task::spawn_blocking;

use crate::telemetry::write_all_retrying;

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

    /// Writes one line without buffering.
    pub async fn line(&self, mut line: String) -> Result<(), OutputError> {
        line.push('\n');
        self.write(line.into_bytes()).await
    }

    /// The same for a part of a file.
    pub async fn write(&self, bytes: Vec<u8>) -> Result<(), OutputError> {
        let output = self.0.clone();
        let written = spawn_blocking(move || write_all_retrying(&mut &*output, &bytes)).await;
        match written.map_err(io::Error::other).flatten() {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(OutputError::Closed),
            Err(error) => Err(OutputError::Failed(error)),
        }
    }
}
