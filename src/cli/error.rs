//! Why a command failed.

use std::io;

use crate::jobs::tenant_move::MoveError;
use crate::settings::SettingsError;
use crate::start::StartError;
use crate::store::StoreError;

use super::output::OutputError;

/// The message is one line.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Move(#[from] MoveError),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("{0}")]
    Refused(String),
}
