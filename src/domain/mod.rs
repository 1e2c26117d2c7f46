//! Values and rules that all other modules share. No async, no SQL, no HTTP, no clock, no random numbers.

pub mod api_key;
pub mod audit_log;
pub mod caller;
pub mod cell;
pub mod csv_field;
pub mod delivery;
mod echo;
mod error_body;
pub mod event;
pub mod fingerprint;
pub mod identifiers;
pub mod keyring;
pub mod money;
pub mod names;
pub mod refusal;
pub mod runtime_config;
pub mod service;
pub mod settlement;
pub mod target;
pub mod timestamp;
pub mod trace_context;
pub mod usage;
pub mod webhook;
