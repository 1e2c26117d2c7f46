//! Usage: recording it and clearing it.

pub mod record;
pub mod reset;
