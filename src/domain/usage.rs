//! Usage: requests that one agent made to one service.

use serde_json::Value;

use super::money::Count;
use super::names::{AgentId, ServiceId};

/// Maximum number of requests in one record.
pub const REQUESTS_MAX: i64 = 1_000_000;

/// One agent and one service: the unit that is counted and settled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pair {
    pub agent: AgentId,
    pub service_id: ServiceId,
}

/// Requests to add to a pair: 1 to [`REQUESTS_MAX`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UsageRecord {
    pub pair: Pair,
    pub requests: Count,
}

/// The integer value of JSON, whatever its notation: `3`, `3.0` and `3e0` are equal. `None` for other values, and for
/// integers that a double cannot hold exactly.
pub fn integer(value: &Value) -> Option<i64> {
    const EXACT_MAX: f64 = super::money::SAFE_MAX as f64;
    let double = value.as_f64()?;
    (double.fract() == 0.0 && double.abs() <= EXACT_MAX).then_some(double as i64)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn integers_are_read_whatever_their_spelling() {
        let read = |text| integer(&serde_json::from_str(text).expect("JSON"));
        for text in ["3", "3.0", "3e0", "0.3e1"] {
            assert_eq!(read(text), Some(3), "{text}");
        }
        assert_eq!(read("-0"), Some(0));
        for text in ["3.5", "1e300", "\"3\"", "true", "null", "[3]"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(integer(&json!(u64::MAX)), None);
    }
}
