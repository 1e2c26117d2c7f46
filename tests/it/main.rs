//! All integration tests in one binary, against real PostgreSQL servers.

mod local_postgres;
