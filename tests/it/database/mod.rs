//! The schema, the migrations, and a PostgreSQL that fails, moves or grows.

mod comments;
mod constraints;
mod faults;
mod growth;
mod local_postgres;
mod migrations;
mod roles;
mod shape;
