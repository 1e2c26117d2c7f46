//! Schemas of request bodies. Bodies are judged by hand, member by member, because the order of the checks and the
//! words of each refusal are normative (HTTP contract, section 5.3); the bounds here are the constants that are judged by.

use serde_json::{Map, Value, json};

use crate::domain::limits::LIMITS;
use crate::domain::money::PRICE_MAX;
use crate::domain::names::{AGENT_ID_MAX, IDENTIFIER, SERVICE_ID_MAX};
use crate::domain::service::METADATA_TEXT_MAX;
use crate::domain::usage::REQUESTS_MAX;
use crate::domain::webhook::{KNOWN_TYPES, URL_MAX};

/// Most items of a bulk request while `bulkMaxItems` has its default.
const ITEMS_MAX: i64 = 100;

fn agent() -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": AGENT_ID_MAX, "pattern": IDENTIFIER })
}

fn service_id() -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": SERVICE_ID_MAX, "pattern": IDENTIFIER })
}

fn price() -> Value {
    json!({ "type": "integer", "minimum": 0, "maximum": PRICE_MAX })
}

fn description() -> Value {
    json!({ "type": "string", "maxLength": METADATA_TEXT_MAX })
}

fn owner() -> Value {
    json!({ "type": "string", "minLength": 1, "maxLength": METADATA_TEXT_MAX })
}

/// An object that ignores members it does not know.
fn lenient(required: &[&str], properties: Value) -> Value {
    json!({ "type": "object", "required": required, "properties": properties })
}

fn strict(required: &[&str], properties: Value) -> Value {
    let mut schema = lenient(required, properties);
    schema["additionalProperties"] = Value::Bool(false);
    schema
}

fn items(item: Value) -> Value {
    json!({
        "type": "array",
        "minItems": 1,
        "maxItems": ITEMS_MAX,
        "description": "Up to `bulkMaxItems`. An item that is not valid is refused in its place; the others count.",
        "items": item,
        "x-lenient": true,
    })
}

pub fn usage_record() -> Value {
    let requests = json!({ "type": "integer", "minimum": 1, "maximum": REQUESTS_MAX });
    lenient(
        &["agent", "serviceId", "requests"],
        json!({ "agent": agent(), "serviceId": service_id(), "requests": requests }),
    )
}

pub fn usage_records() -> Value {
    strict(&["items"], json!({ "items": items(usage_record()) }))
}

pub fn pair() -> Value {
    lenient(&["agent", "serviceId"], json!({ "agent": agent(), "serviceId": service_id() }))
}

pub fn one_agent() -> Value {
    lenient(&["agent"], json!({ "agent": agent() }))
}

/// Description and owner come together or not at all.
pub fn registration() -> Value {
    let mut schema = strict(
        &["serviceId", "priceStroops"],
        json!({ "serviceId": service_id(), "priceStroops": price(), "description": description(), "owner": owner() }),
    );
    schema["dependentRequired"] = json!({ "description": ["owner"], "owner": ["description"] });
    schema
}

pub fn registrations() -> Value {
    let item = lenient(&["serviceId", "priceStroops"], json!({ "serviceId": service_id(), "priceStroops": price() }));
    lenient(&["items"], json!({ "items": items(item) }))
}

pub fn metadata() -> Value {
    lenient(&["description", "owner"], json!({ "description": description(), "owner": owner() }))
}

pub fn new_price() -> Value {
    lenient(&["priceStroops"], json!({ "priceStroops": price() }))
}

pub fn disabled() -> Value {
    strict(&["disabled"], json!({ "disabled": { "type": "boolean" } }))
}

pub fn api_key() -> Value {
    let label = json!({ "type": "string", "minLength": 1, "maxLength": 64, "pattern": "[^\\s]" });
    let tenant = json!({
        "type": "string",
        "minLength": 1,
        "maxLength": 64,
        "description": "The tenant the key joins; without it a new tenant is made.",
    });
    strict(&["label"], json!({ "label": label, "tenantId": tenant }))
}

fn url() -> Value {
    json!({
        "type": "string",
        "maxLength": URL_MAX,
        "pattern": "^https?://.",
        "description": "With a host that is neither private, loopback nor link-local.",
    })
}

fn events() -> Value {
    json!({
        "type": "array",
        "minItems": 1,
        "items": { "type": "string", "enum": KNOWN_TYPES },
        "description": "Repeated names count once.",
    })
}

pub fn webhook() -> Value {
    strict(&["url", "events"], json!({ "url": url(), "events": events() }))
}

pub fn webhook_change() -> Value {
    let mut schema = strict(&[], json!({ "url": url(), "events": events() }));
    schema["minProperties"] = json!(1);
    schema
}

pub fn limits() -> Value {
    let bounds = LIMITS
        .iter()
        .map(|limit| (limit.key.to_owned(), json!({ "type": "integer", "minimum": 1, "maximum": limit.max })));
    strict(&[], Value::Object(bounds.collect::<Map<_, _>>()))
}
