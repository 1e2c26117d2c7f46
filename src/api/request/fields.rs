//! Shared checks of strict bodies.

use serde_json::Value;

use crate::domain::refusal::Refusal;

/// Checks that a strict body is an object without unknown members.
pub fn check(body: &Value, known: &[&str]) -> Result<(), Refusal> {
    let members = body.as_object().ok_or(Refusal::BodyNotObject)?;
    match members.keys().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(Refusal::UnexpectedField(name.clone())),
        None => Ok(()),
    }
}

/// Length in UTF-16 code units (HTTP contract, section 1.2).
pub fn length(text: &str) -> usize {
    text.encode_utf16().count()
}
