//! Several cells: where tenants live, and what happens when one of the cells is down.

mod identity;
mod operator;
mod outages;
mod residence;
