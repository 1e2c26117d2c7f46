//! What runs in the background: the janitor, the outbox and the deliveries.

mod deliveries;
pub mod egress;
mod janitor;
pub mod janitor_cost;
mod outbox;
mod tenant_move;
mod verifier;
