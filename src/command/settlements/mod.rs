//! Settlements: billing what is outstanding.

pub mod settle;
