//! Deliveries: one event for one webhook. What is sent, and when it is retried.

use rand::{Rng, RngExt};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::caller::Tenant;
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

/// How long finished deliveries are kept.
pub const KEPT_MS: i64 = 7 * 24 * HOUR_MS;

/// The longest pause that a receiver can request.
pub const RETRY_AFTER_MAX_MS: i64 = 24 * HOUR_MS;

/// The id of the delivery of an event to a webhook. It is derived from the event, so that after a failover which lost
/// the delivery the new one has the same id, and receivers can discard the duplicate.
pub fn id(tenant: &Tenant, webhook: &str, recorded_at: Timestamp, position: i64) -> String {
    let named = format!("{tenant}\n{webhook}\n{}\n{position}", recorded_at.as_ms());
    format!("dlv_{}", hex::encode(&Sha256::digest(named)[..16]))
}

/// When a delivery is tried again, after `attempts` failures of which the latest ended at `now`. `None` if it is
/// abandoned. Each pause is up to a tenth shorter or longer, so that retries spread out, and at least `retry_after_ms`.
pub fn next_attempt_at(attempts: i16, now: Timestamp, retry_after_ms: i64, rng: &mut impl Rng) -> Option<Timestamp> {
    let pause_ms = *RETRY_PAUSES_MS.get(usize::try_from(attempts).ok()?.checked_sub(1)?)?;
    let tenth_ms = pause_ms / 10;
    let pause_ms = pause_ms + rng.random_range(-tenth_ms..=tenth_ms);
    Some(now.plus_ms(pause_ms.max(retry_after_ms)))
}

/// The delivery of one event to one webhook.
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

/// The body of every attempt: the event, with its payload as stored. `None` if the payload is not JSON.
pub fn body(event_id: Uuid, event_type: &str, recorded_at: Timestamp, payload: &str) -> Option<Vec<u8>> {
    let data = serde_json::from_str(payload).ok()?;
    serde_json::to_vec(&Message { id: event_id.to_string(), event_type, timestamp: recorded_at.to_rfc_3339(), data })
        .ok()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn a_body_has_its_members_in_a_fixed_order() {
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
        let mut rng = StdRng::seed_from_u64(7);
        for _ in 0..100 {
            let mut now = Timestamp::from_ms(0);
            for (attempts, pause_ms) in (1..).zip(RETRY_PAUSES_MS) {
                let next = next_attempt_at(attempts, now, 0, &mut rng).expect("a retry");
                let ratio = (next.as_ms() - now.as_ms()) as f64 / pause_ms as f64;
                assert!((0.9..=1.1).contains(&ratio), "{ratio}");
                now = next;
            }
            assert_eq!(next_attempt_at(10, now, 0, &mut rng), None);
            assert!((60 * HOUR_MS..90 * HOUR_MS).contains(&now.as_ms()));
        }
    }

    #[test]
    fn pauses_vary() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut pauses: Vec<i64> = (0..100)
            .map(|_| next_attempt_at(2, Timestamp::from_ms(0), 0, &mut rng).expect("a retry").as_ms())
            .collect();
        pauses.sort_unstable();
        pauses.dedup();
        assert!(pauses.len() > 90);
        assert!(pauses[0] < 285_000 && pauses[pauses.len() - 1] > 315_000);
    }

    #[test]
    fn a_receiver_may_ask_for_a_longer_pause_and_not_for_a_shorter_one() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut pause_ms = |attempts, retry_after_ms| {
            next_attempt_at(attempts, Timestamp::from_ms(0), retry_after_ms, &mut rng).map(Timestamp::as_ms)
        };
        assert_eq!(pause_ms(1, 120_000), Some(120_000));
        assert!(pause_ms(9, 120_000).is_some_and(|pause_ms| pause_ms > 20 * HOUR_MS));
        assert_eq!(pause_ms(10, 120_000), None);
    }

    #[test]
    fn a_delivery_has_an_id_of_its_own() {
        let id = |tenant: &str, webhook, ms, position| {
            id(&Tenant::from_stored(tenant.to_owned()), webhook, Timestamp::from_ms(ms), position)
        };
        let one = id("public", "wh_0123456789abcdef", 1_767_225_600_000, 1);
        assert_eq!(one, id("public", "wh_0123456789abcdef", 1_767_225_600_000, 1));
        assert!(one.len() == 36 && one.starts_with("dlv_"), "{one}");
        for other in [
            id("public", "wh_0123456789abcdef", 1_767_225_600_000, 2),
            id("public", "wh_0123456789abcdef", 1_767_225_600_001, 1),
            id("public", "wh_0123456789abcdee", 1_767_225_600_000, 1),
            id("other", "wh_0123456789abcdef", 1_767_225_600_000, 1),
        ] {
            assert_ne!(one, other);
        }
    }
}
