//! The schema, the migrations, and a PostgreSQL that fails, moves or grows.

mod constraints;
mod faults;
mod growth;
mod local_postgres;
mod migrations;
mod shape;
