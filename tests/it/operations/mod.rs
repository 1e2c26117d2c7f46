//! The process as operators meet it: start, stop, crashes, commands, logs, metrics and documents.

mod command_line;
mod commands;
mod compatibility;
mod crashes;
mod documents;
mod health_command;
mod logs;
mod metrics;
pub mod readme;
mod secrets;
mod start_errors;
mod start_stop;
mod tls;
mod traces;
