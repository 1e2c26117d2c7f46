//! Services: registering, changing and deleting them.

pub mod change;
pub mod delete;
pub mod register;
pub mod register_bulk;
pub mod set_enabled;
