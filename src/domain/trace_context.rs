//! The position in a trace, as W3C Trace Context writes it: what an event keeps of the request that caused it, and what is
//! sent with the event.

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The header of this name, 55 characters.
    pub traceparent: String,
    /// The header of this name, at most [`TRACESTATE_MAX`] characters.
    pub tracestate: Option<String>,
}

/// As long as a header `tracestate` has to be passed on. A longer one is left out.
pub const TRACESTATE_MAX: usize = 512;
