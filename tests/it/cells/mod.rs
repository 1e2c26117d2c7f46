//! Several cells: where tenants live, how they move, and what happens when one of the cells is down.

mod citus;
mod identity;
mod moves;
mod operator;
mod outages;
mod residence;
