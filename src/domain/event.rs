//! Events: what happened in a tenant, for its event log and its webhooks.

use std::ops::Not;

use serde::Serialize;
use uuid::{Builder, Uuid};

use super::money::{Count, Stroops};
use super::names::{AgentId, ServiceId};
use super::timestamp::Timestamp;

/// The data of an event. The JSON of a variant is the payload (HTTP contract, section 14).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Event {
    #[serde(rename_all = "camelCase")]
    UsageRecorded {
        agent: AgentId,
        service_id: ServiceId,
        requests: Count,
        total: Count,
        #[serde(skip_serializing_if = "Not::not")]
        bulk: bool,
    },
    #[serde(rename_all = "camelCase")]
    UsageSettled {
        agent: AgentId,
        service_id: ServiceId,
        requests: Count,
        billed_stroops: Stroops,
        #[serde(skip_serializing_if = "Not::not")]
        bulk: bool,
    },
    #[serde(rename_all = "camelCase")]
    UsageReset {
        agent: AgentId,
        service_id: ServiceId,
        cleared_total: Count,
    },
    ServiceDisabled(ServiceChange),
    ServiceEnabled(ServiceChange),
    #[serde(rename_all = "camelCase")]
    ServiceDeleted {
        service_id: ServiceId,
    },
    WebhookTest {
        id: String,
        url: String,
    },
}

/// The public id of an event: a UUID of version 8 (RFC 9562, section 5.8) made of its time and its position. The ids of
/// a tenant sort like its event log, unless the clock runs backwards.
pub fn event_id(recorded_at: Timestamp, position: i64) -> Uuid {
    let ms = recorded_at.as_ms().unsigned_abs();
    let position = position.unsigned_abs();
    // 48 bits of milliseconds, then 12 and 62 bits of the position. Version and variant are set afterwards.
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&ms.to_be_bytes()[2..]);
    bytes[6..8].copy_from_slice(&((position >> 62) as u16).to_be_bytes());
    bytes[8..].copy_from_slice(&(position & (u64::MAX >> 2)).to_be_bytes());
    Builder::from_custom_bytes(bytes).into_uuid()
}

/// Time and position of the event with this id. `None` if no event can have it.
pub fn decode_event_id(id: Uuid) -> Option<(Timestamp, i64)> {
    let (high, low) = id.as_u64_pair();
    let position = i64::try_from((high & 0xfff) << 62 | low & (u64::MAX >> 2)).ok()?;
    let recorded_at = Timestamp::from_ms(i64::try_from(high >> 16).ok()?);
    (event_id(recorded_at, position) == id).then_some((recorded_at, position))
}

/// The payload of events about enabling and disabling a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceChange {
    pub service_id: ServiceId,
    pub tenant_id: String,
}

impl Event {
    /// The payload as it is stored and shown.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("an event is plain data")
    }

    /// The name of the event type in JSON.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::UsageRecorded { .. } => "usage.recorded",
            Self::UsageSettled { .. } => "usage.settled",
            Self::UsageReset { .. } => "usage.reset",
            Self::ServiceDisabled(_) => "service.disabled",
            Self::ServiceEnabled(_) => "service.enabled",
            Self::ServiceDeleted { .. } => "service.deleted",
            Self::WebhookTest { .. } => "webhook.test",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_id_contains_time_and_position() {
        for (ms, position) in [(0, 1), (1_767_225_600_000, 42), ((1 << 48) - 1, i64::MAX)] {
            let id = event_id(Timestamp::from_ms(ms), position);
            assert_eq!(id.get_version_num(), 8);
            assert_eq!(decode_event_id(id), Some((Timestamp::from_ms(ms), position)));
        }
        assert_eq!(decode_event_id(Uuid::from_u128(u128::MAX)), None);
    }
}
