//! The fuzz targets. Each takes any bytes, and panics if what it states does not hold.

mod bodies;
mod canonical_json;
mod cursors;
mod forwarded;
mod keys;
mod query;

/// Panics if what it states does not hold for the input.
pub type Target = fn(&[u8]);

/// All targets, by the name of their corpus.
pub const TARGETS: [(&str, Target); 6] = [
    ("bodies", bodies::run),
    ("canonical_json", canonical_json::run),
    ("cursors", cursors::run),
    ("forwarded", forwarded::run),
    ("keys", keys::run),
    ("query", query::run),
];
