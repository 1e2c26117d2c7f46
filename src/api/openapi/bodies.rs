//! Schemas of request bodies. Bodies are validated by hand, because the order of the checks and the text of each
//! refusal are normative (HTTP contract, section 5.3). The schemas use the constants of those checks.

use serde_json::{Map, Value, json};

use super::description::integer;
use crate::domain::api_key::{OVERLAP_SECONDS_DEFAULT, OVERLAP_SECONDS_MAX, RATE_LIMIT_MAX, Scope};
use crate::domain::money::{Price, SAFE_MAX};
use crate::domain::names::{AGENT_ID_MAX, IDENTIFIER, SERVICE_ID_MAX};
use crate::domain::runtime_config::LIMITS;
use crate::domain::service::METADATA_TEXT_MAX;
use crate::domain::timestamp::Timestamp;
use crate::domain::usage::REQUESTS_MAX;
use crate::domain::webhook::{KNOWN_TYPES, URL_MAX};

/// Maximum number of items in a bulk request while `bulkMaxItems` has its default.
const ITEMS_MAX: i64 = 100;

pub const USAGE: &str = "UsageInput";
pub const USAGE_BULK: &str = "UsageBulkInput";
pub const PAIR: &str = "SettlePairInput";
pub const AGENT: &str = "SettleAgentInput";
pub const SERVICE: &str = "ServiceInput";
pub const SERVICES: &str = "ServiceBulkInput";
pub const METADATA: &str = "ServiceMetadataInput";
pub const PRICE: &str = "ServicePriceInput";
pub const DISABLED: &str = "ServiceDisabledInput";
pub const API_KEY: &str = "ApiKeyInput";
pub const ROTATION: &str = "ApiKeyRotation";
pub const SECRET_ROTATION: &str = "WebhookSecretRotation";
pub const REDELIVERY: &str = "DeliveryRequest";
pub const WEBHOOK: &str = "WebhookInput";
pub const WEBHOOK_CHANGE: &str = "WebhookUpdate";
pub const CONFIG: &str = "ConfigUpdate";

const SERVICE_ITEM: &str = "ServiceBulkInputItem";
const EVENT_TYPE: &str = "WebhookEventType";

/// The named schemas of all request bodies.
pub fn schemas() -> Vec<(&'static str, Value)> {
    vec![
        (USAGE, usage()),
        (USAGE_BULK, strict(&["items"], json!({ "items": items(USAGE) }))),
        (PAIR, lenient(&["agent", "serviceId"], json!({ "agent": agent(), "serviceId": service_id() }))),
        (AGENT, lenient(&["agent"], json!({ "agent": agent() }))),
        (SERVICE, service()),
        (SERVICES, lenient(&["items"], json!({ "items": items(SERVICE_ITEM) }))),
        (SERVICE_ITEM, priced_service()),
        (METADATA, lenient(&["description", "owner"], json!({ "description": description(), "owner": owner() }))),
        (PRICE, lenient(&["priceStroops"], json!({ "priceStroops": price() }))),
        (DISABLED, strict(&["disabled"], json!({ "disabled": { "type": "boolean" } }))),
        (API_KEY, api_key()),
        (ROTATION, strict(&[], json!({ "overlapSeconds": overlap(), "expiresAt": expiry() }))),
        (SECRET_ROTATION, strict(&[], json!({ "overlapSeconds": overlap() }))),
        (WEBHOOK, strict(&["url", "events"], json!({ "url": url(), "events": events() }))),
        (WEBHOOK_CHANGE, webhook_change()),
        (REDELIVERY, redelivery()),
        (EVENT_TYPE, json!({ "type": "string", "enum": KNOWN_TYPES, "description": "`*` stands for all types." })),
        (CONFIG, config()),
    ]
}

pub fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// An object that ignores unknown members.
fn lenient(required: &[&str], properties: Value) -> Value {
    json!({ "type": "object", "required": required, "properties": properties })
}

fn strict(required: &[&str], properties: Value) -> Value {
    let mut schema = lenient(required, properties);
    schema["additionalProperties"] = Value::Bool(false);
    schema
}

fn items(item: &str) -> Value {
    json!({
        "type": "array",
        "minItems": 1,
        "maxItems": ITEMS_MAX,
        "description": "Up to `bulkMaxItems`. Only the invalid items are refused.",
        "items": reference(item),
        "x-lenient": true,
    })
}

fn usage() -> Value {
    let requests = integer(1, REQUESTS_MAX);
    lenient(
        &["agent", "serviceId", "requests"],
        json!({ "agent": agent(), "serviceId": service_id(), "requests": requests }),
    )
}

fn priced_service() -> Value {
    lenient(&["serviceId", "priceStroops"], json!({ "serviceId": service_id(), "priceStroops": price() }))
}

/// Description and owner are present together or not at all.
fn service() -> Value {
    let mut schema = strict(
        &["serviceId", "priceStroops"],
        json!({ "serviceId": service_id(), "priceStroops": price(), "description": description(), "owner": owner() }),
    );
    schema["dependentRequired"] = json!({ "description": ["owner"], "owner": ["description"] });
    schema
}

fn api_key() -> Value {
    let label = json!({ "type": "string", "minLength": 1, "maxLength": 64, "pattern": "[^\\s]" });
    let tenant = json!({
        "type": "string",
        "minLength": 1,
        "maxLength": 64,
        "description": "Tenant that the key belongs to. Without it a new tenant is created.",
    });
    let cell = json!({
        "type": "string",
        "pattern": "^[a-z0-9][a-z0-9-]{0,31}$",
        "description": "Cell in which the new tenant is created, if the service has several. Without it the service chooses \
                        one. Of a tenant that exists, it must be the cell where the tenant lives.",
    });
    let scopes = json!({
        "type": "array",
        "minItems": 1,
        "items": { "type": "string", "enum": Scope::ALL.map(Scope::as_str) },
        "description": "What the key may be used for. Without it: everything that the tenant may do.",
    });
    let mut rate_limit = integer(1, RATE_LIMIT_MAX);
    rate_limit["description"] = "Requests that the key may make in each window, beside the limit of its tenant.".into();
    let properties = json!({
        "label": label,
        "tenantId": tenant,
        "cell": cell,
        "scopes": scopes,
        "expiresAt": expiry(),
        "rateLimitPerWindow": rate_limit,
    });
    strict(&["label"], properties)
}

fn overlap() -> Value {
    let mut overlap = integer(0, OVERLAP_SECONDS_MAX);
    overlap["default"] = OVERLAP_SECONDS_DEFAULT.into();
    overlap["description"] = "How long the rotated key or secret remains valid.".into();
    overlap
}

fn expiry() -> Value {
    let mut moment = integer(0, Timestamp::LAST.as_ms());
    moment["description"] = "When the key expires, in milliseconds since the Unix epoch. In the future.".into();
    moment
}

/// Exactly one member.
fn redelivery() -> Value {
    let since = |what: &str| {
        let mut moment = integer(0, SAFE_MAX as i64);
        moment["description"] = what.into();
        moment
    };
    let ids = json!({ "type": "array", "minItems": 1, "maxItems": 100, "items": { "type": "string" } });
    let mut schema = strict(
        &[],
        json!({
            "deliveryIds": ids,
            "failedSince": since("Deliveries that failed or were cancelled at this moment or later."),
            "missedSince": since("Events of this moment or later that happened while the webhook was disabled."),
        }),
    );
    schema["minProperties"] = json!(1);
    schema["maxProperties"] = json!(1);
    schema
}

fn webhook_change() -> Value {
    let mut schema = strict(&[], json!({ "url": url(), "events": events() }));
    schema["minProperties"] = json!(1);
    schema
}

fn config() -> Value {
    let bounds = LIMITS.iter().map(|limit| (limit.key.to_owned(), integer(1, limit.max)));
    strict(&[], Value::Object(bounds.collect::<Map<_, _>>()))
}

fn agent() -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": AGENT_ID_MAX, "pattern": IDENTIFIER })
}

fn service_id() -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": SERVICE_ID_MAX, "pattern": IDENTIFIER })
}

fn price() -> Value {
    integer(0, Price::MAX.stroops())
}

fn description() -> Value {
    json!({ "type": "string", "maxLength": METADATA_TEXT_MAX })
}

fn owner() -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": METADATA_TEXT_MAX })
}

fn url() -> Value {
    json!({
        "type": "string",
        "maxLength": URL_MAX,
        "pattern": "^https?://.",
        "description": "The host must not be private, loopback or link-local.",
    })
}

fn events() -> Value {
    json!({
        "type": "array",
        "minItems": 1,
        "items": reference(EVENT_TYPE),
        "description": "Repeated names count once.",
    })
}
