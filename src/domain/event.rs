//! Events: what happened to a tenant, as told to its log and its webhooks.

use serde::Serialize;

use super::money::{Count, Stroops};
use super::names::{AgentId, ServiceId};

/// One event's facts. The JSON of a variant is the event's payload, members in the contract's order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Event {
    #[serde(rename_all = "camelCase")]
    UsageRecorded {
        agent: AgentId,
        service_id: ServiceId,
        requests: i64,
        total: Count,
        #[serde(skip_serializing_if = "is_false")]
        bulk: bool,
    },
    #[serde(rename_all = "camelCase")]
    UsageSettled {
        agent: AgentId,
        service_id: ServiceId,
        requests: Count,
        billed_stroops: Stroops,
        #[serde(skip_serializing_if = "is_false")]
        bulk: bool,
    },
    ServiceDisabled(ServiceChange),
    ServiceEnabled(ServiceChange),
}

/// Payload of the events that switch a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceChange {
    pub service_id: ServiceId,
    pub tenant_id: String,
}

impl Event {
    /// The contract's name of the event's type.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::UsageRecorded { .. } => "usage.recorded",
            Self::UsageSettled { .. } => "usage.settled",
            Self::ServiceDisabled(_) => "service.disabled",
            Self::ServiceEnabled(_) => "service.enabled",
        }
    }
}

fn is_false(flag: &bool) -> bool {
    !flag
}
