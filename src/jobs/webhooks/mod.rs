//! Sends events to webhooks: expands the outbox to deliveries, attempts those that are due, and records the results.

pub mod dispatcher;
mod expansion;
mod in_flight;
mod leasing;
pub mod outcome;
mod secrets;
pub mod sender;
mod test_attempt;
