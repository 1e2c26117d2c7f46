//! The service as its users meet it: real sockets, a real PostgreSQL. The groups mirror the source.

mod api;
mod cells;
mod cli;
mod commit;
mod console;
mod database;
mod drills;
mod jobs;
mod operations;
mod support;
