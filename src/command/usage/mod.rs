//! Commands that record and clear usage.

pub mod record;
pub mod reset;
