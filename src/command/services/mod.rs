//! Commands that register, change and delete services.

pub mod change;
pub mod delete;
pub mod register;
pub mod register_bulk;
pub mod set_enabled;
