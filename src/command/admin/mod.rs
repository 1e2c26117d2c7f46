//! The operator's commands.

pub mod config;
pub mod reset;
