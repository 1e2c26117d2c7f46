//! Traces: spans of requests, batches, job runs and deliveries, exported with OTLP over HTTP. Spans are made by hand where
//! the work begins and ends. While traces are off, which is the default, that costs the load of one pointer.

mod exporter;
mod propagation;
mod provider;
mod spans;

pub use provider::{are_on, start, stop};
pub use spans::{BatchTrace, Delivery, DeliveryTrace, JobTrace, RequestTrace};
