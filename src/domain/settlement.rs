//! Settlements. They are permanent.

use schemars::JsonSchema;
use serde::Serialize;

use super::money::{Count, Price, Stroops};
use super::names::{AgentId, ServiceId};
use super::timestamp::Timestamp;

/// A settlement that billed at least one request.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Settlement {
    pub id: String,
    pub agent: AgentId,
    pub service_id: ServiceId,
    pub requests: Count,
    pub price_stroops: Price,
    pub billed_stroops: Stroops,
    pub settled_at: Timestamp,
    pub idempotency_key: Option<String>,
    pub request_id: String,
}
