//! Deliveries: one event on its way to one webhook. What is sent, and when it is sent again.

use rand::{Rng, RngExt};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use uuid::Uuid;

use super::timestamp::Timestamp;

const SECOND_MS: i64 = 1000;
const MINUTE_MS: i64 = 60 * SECOND_MS;
const HOUR_MS: i64 = 60 * MINUTE_MS;

/// Pauses after the first, second, … failed attempt.
const RETRY_PAUSES_MS: [i64; 9] = [
    5 * SECOND_MS,
    5 * MINUTE_MS,
    30 * MINUTE_MS,
    2 * HOUR_MS,
    5 * HOUR_MS,
    10 * HOUR_MS,
    14 * HOUR_MS,
    20 * HOUR_MS,
    24 * HOUR_MS,
];

/// How long a finished delivery can be listed.
pub const KEPT_MS: i64 = 7 * 24 * HOUR_MS;

/// When a delivery whose latest attempt ended at `now` is tried again, after `attempts` failures in all; none when it
/// is given up. Each pause is up to a tenth shorter or longer, so that receivers are not hit by everything at once.
pub fn next_attempt_at(attempts: i16, now: Timestamp, dice: &mut impl Rng) -> Option<Timestamp> {
    let pause_ms = *RETRY_PAUSES_MS.get(usize::try_from(attempts).ok()?.checked_sub(1)?)?;
    let tenth_ms = pause_ms / 10;
    Some(now.plus_ms(pause_ms + dice.random_range(-tenth_ms..=tenth_ms)))
}

/// A delivery as lists show it.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Delivery {
    pub id: String,
    pub event_id: String,
    #[serde(rename = "type")]
    pub event_type: String,
    pub status: String,
    pub attempts: i16,
    pub created_at: Timestamp,
    pub last_attempt_at: Option<Timestamp>,
    pub next_attempt_at: Option<Timestamp>,
    pub response_status: Option<i16>,
    pub error: Option<String>,
}

#[derive(Serialize)]
struct Message<'a> {
    id: String,
    #[serde(rename = "type")]
    event_type: &'a str,
    timestamp: String,
    data: &'a RawValue,
}

/// The body of every attempt: the event, with its payload as stored. None if the payload is no JSON.
pub fn body(event_id: Uuid, event_type: &str, recorded_at: Timestamp, payload: &str) -> Option<Vec<u8>> {
    let data = serde_json::from_str(payload).ok()?;
    serde_json::to_vec(&Message { id: event_id.to_string(), event_type, timestamp: rfc_3339(recorded_at), data }).ok()
}

/// In UTC, with milliseconds.
fn rfc_3339(moment: Timestamp) -> String {
    let moment: OffsetDateTime = moment.to_date_time();
    let (year, month, day) = moment.to_calendar_date();
    let (hour, minute, second, ms) = moment.to_hms_milli();
    format!("{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z", u8::from(month))
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn a_body_has_its_members_in_the_contracts_order() {
        let id = Uuid::parse_str("6f1c1f0e-0000-4000-8000-000000000001").expect("an id");
        let data = r#"{"id":"wh_0123456789abcdef","url":"https://example.com/hook"}"#;
        let body = body(id, "webhook.test", Timestamp::from_ms(1_767_225_600_007), data).expect("JSON");
        let expected = format!(
            r#"{{"id":"6f1c1f0e-0000-4000-8000-000000000001","type":"webhook.test","timestamp":"2026-01-01T00:00:00.007Z","data":{data}}}"#
        );
        assert_eq!(String::from_utf8(body).expect("UTF-8"), expected);
    }

    #[test]
    fn ten_attempts_take_about_three_days() {
        let mut dice = StdRng::seed_from_u64(7);
        for _ in 0..100 {
            let mut now = Timestamp::from_ms(0);
            for (attempts, pause_ms) in (1..).zip(RETRY_PAUSES_MS) {
                let next = next_attempt_at(attempts, now, &mut dice).expect("a retry");
                let ratio = (next.as_ms() - now.as_ms()) as f64 / pause_ms as f64;
                assert!((0.9..=1.1).contains(&ratio), "{ratio}");
                now = next;
            }
            assert_eq!(next_attempt_at(10, now, &mut dice), None);
            assert!((60 * HOUR_MS..90 * HOUR_MS).contains(&now.as_ms()));
        }
    }

    #[test]
    fn pauses_vary() {
        let mut dice = StdRng::seed_from_u64(7);
        let mut pauses: Vec<i64> =
            (0..100).map(|_| next_attempt_at(2, Timestamp::from_ms(0), &mut dice).expect("a retry").as_ms()).collect();
        pauses.sort_unstable();
        pauses.dedup();
        assert!(pauses.len() > 90);
        assert!(pauses[0] < 285_000 && pauses[pauses.len() - 1] > 315_000);
    }
}
