//! Shared checks of strict bodies.

use serde_json::Value;

use crate::domain::api_key::{OVERLAP_SECONDS_DEFAULT, OVERLAP_SECONDS_MAX};
use crate::domain::refusal::Refusal;
use crate::domain::usage::integer;

/// Checks that a strict body is an object without unknown members.
pub fn check(body: &Value, known: &[&str]) -> Result<(), Refusal> {
    let members = body.as_object().ok_or(Refusal::BodyNotObject)?;
    match members.keys().find(|name| !known.contains(&name.as_str())) {
        Some(name) => Err(Refusal::UnexpectedField(name.clone())),
        None => Ok(()),
    }
}

/// `overlapSeconds`: how long what is rotated remains valid.
pub fn overlap_ms(body: &Value) -> Result<i64, Refusal> {
    let Some(value) = body.get("overlapSeconds") else { return Ok(OVERLAP_SECONDS_DEFAULT * 1000) };
    let seconds = integer(value).filter(|seconds| (0..=OVERLAP_SECONDS_MAX).contains(seconds));
    seconds.map(|seconds| seconds * 1000).ok_or(Refusal::Overlap)
}

/// Length in UTF-16 code units (HTTP contract, section 1.2).
pub fn length(text: &str) -> usize {
    text.encode_utf16().count()
}
