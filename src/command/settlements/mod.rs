//! Commands that settle outstanding usage.

pub mod settle;
