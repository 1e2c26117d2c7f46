//! API keys as the operator sees them. The key itself is never stored.

use schemars::JsonSchema;
use serde::Serialize;

use super::timestamp::Timestamp;

/// A live API key.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "ApiKey")]
pub struct ApiKeyInfo {
    pub prefix: String,
    pub label: String,
    pub created_at: Timestamp,
    pub tenant_id: String,
}
