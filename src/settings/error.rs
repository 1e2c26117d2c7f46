//! Why a start refuses the environment.

/// A setting that is not accepted. One line, without secrets.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(pub(super) String);
