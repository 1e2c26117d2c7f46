//! Why a measurement ended: whatever went wrong is told to the one who measures.

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
