//! The HTTP interface, route by route and rule by rule.

mod admin;
mod agents;
mod api_keys;
mod audit_log;
mod billing;
mod bodies;
mod browser;
mod callers;
mod changelog;
mod client_limits;
mod compression;
mod config;
mod connections;
mod cors;
mod docs_page;
mod error_bodies;
mod events;
mod export_streams;
mod exports;
mod health;
mod identifiers;
mod key_lifetimes;
mod key_lookups;
mod keyless;
mod methods;
mod openapi;
mod operator;
mod paths;
mod pause;
mod pipeline;
mod query_parameters;
mod rate_limit;
mod reads;
mod refusals;
mod refused_bodies;
mod registered_services;
mod request_heads;
mod request_ids;
mod response_headers;
mod rights;
mod scopes;
mod services;
mod settlements;
mod stats;
mod tenancy;
mod webhooks;

/// The error of an invalid request: status, code and message.
fn invalid(message: &str) -> (u16, String, String) {
    (400, "invalid_request".to_owned(), message.to_owned())
}
