//! Canonical JSON: stable, and equal for documents that differ only in notation.

use agentpay_billing::domain::fingerprint::{Fingerprint, canonical};
use serde_json::{Map, Value};

pub fn run(data: &[u8]) {
    // The parameter of a path, and the document.
    let split = data.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    let (parameter, document) = data.split_at(split);
    let Ok(value) = serde_json::from_slice::<Value>(document) else { return };
    let text = canonical(&value);
    let parsed: Value = serde_json::from_slice(&text).expect("the canonical form is JSON");
    assert_eq!(canonical(&parsed), text, "the canonical form of the canonical form");

    let pretty: Value = serde_json::from_slice(&serde_json::to_vec_pretty(&value).expect("JSON")).expect("JSON");
    assert_eq!(canonical(&pretty), text, "another notation");
    assert_eq!(canonical(&reversed(&value)), text, "another order");

    let parameter = String::from_utf8_lossy(parameter);
    let of = |value: &Value| Fingerprint::of("POST", "/api/v1/usage", &[("agent", &parameter)], value);
    assert_eq!(of(&value), of(&parsed));
    assert_eq!(of(&value), of(&reversed(&value)));
    assert_ne!(of(&value), of(&Value::Array(vec![value.clone()])));
    assert_ne!(of(&value), Fingerprint::of("POST", "/api/v1/usage", &[("serviceId", &parameter)], &value));
}

/// The same members in another order.
fn reversed(value: &Value) -> Value {
    match value {
        Value::Array(items) => items.iter().map(reversed).collect(),
        Value::Object(members) => Value::Object(
            members.iter().rev().map(|(name, value)| (name.clone(), reversed(value))).collect::<Map<_, _>>(),
        ),
        other => other.clone(),
    }
}
