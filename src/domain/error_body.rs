//! The body of a response that refuses a request (HTTP contract, section 5.1).

use serde::Serialize;

use super::echo::Echo;
use super::refusal::Refusal;

/// A refusal lists at most this many unknown configuration keys.
const UNKNOWN_KEYS_MAX: usize = 16;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Envelope<'a> {
    error: &'static str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    unknown_keys: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<&'a str>,
    request_id: &'a str,
}

impl Refusal {
    /// The body of the response. An internal error also names the method and the path.
    pub fn to_body(&self, method: &str, path: &str, request_id: &str) -> Vec<u8> {
        let is_fault = *self == Self::Internal;
        let envelope = Envelope {
            error: self.status_and_code().1,
            message: self.to_string(),
            unknown_keys: match self {
                Self::ConfigKeys(keys) => {
                    Some(keys.iter().take(UNKNOWN_KEYS_MAX).map(|key| Echo(key).to_string()).collect())
                }
                _ => None,
            },
            method: is_fault.then_some(method),
            path: is_fault.then_some(path),
            request_id,
        };
        serde_json::to_vec(&envelope).expect("an envelope is plain text")
    }
}
