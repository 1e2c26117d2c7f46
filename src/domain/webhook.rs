//! Webhooks: the endpoint, the event types that it receives, and the secret that signs deliveries. Only
//! [`Secret::reveal`] shows the secret; [`fmt::Debug`] does not.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use rand::Rng;
use schemars::JsonSchema;
use serde::Serialize;
use sha2::Sha256;
use url::Url;

use super::refusal::Refusal;
use super::target;
use super::timestamp::Timestamp;

/// Maximum length of a URL, in UTF-16 code units.
pub const URL_MAX: usize = 2048;
/// Length of a secret in bytes.
pub const SECRET_LENGTH: usize = 32;
/// Subscribes to every type.
pub const EVERY_TYPE: &str = "*";

pub const KNOWN_TYPES: [&str; 8] = [
    "usage.recorded",
    "usage.settled",
    "usage.reset",
    "service.disabled",
    "service.enabled",
    "service.deleted",
    "webhook.test",
    EVERY_TYPE,
];

/// A webhook without its secret.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Webhook {
    pub id: String,
    pub url: String,
    pub events: Vec<String>,
    pub created_at: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disabled_at: Option<Timestamp>,
}

impl Webhook {
    /// The webhook as the audit log shows it: user, password and query of its URL, which may be secrets, are replaced.
    pub fn without_credentials(&self) -> Self {
        let mut shown = self.clone();
        let Ok(mut url) = Url::parse(&self.url) else { return shown };
        if url.username().is_empty() && url.password().is_none() && url.query().is_none() {
            return shown;
        }
        if !url.username().is_empty() || url.password().is_some() {
            // A URL with a host takes both.
            let _ = url.set_username("***").and_then(|()| url.set_password(None));
        }
        if url.query().is_some() {
            url.set_query(Some("***"));
        }
        shown.url = url.into();
        shown
    }
}

/// The content of a PATCH request. The event types are validated after the webhook was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub url: Option<String>,
    pub events: Option<Vec<String>>,
}

/// Every name must be a known event type.
pub fn check_types(events: &[String]) -> Result<(), Refusal> {
    match events.iter().find(|name| !KNOWN_TYPES.contains(&name.as_str())) {
        Some(unknown) => Err(Refusal::WebhookEventType(unknown.clone())),
        None => Ok(()),
    }
}

/// Checks a URL for deliveries. If its host is a name, the addresses are checked at each attempt.
pub fn check_url(text: &str, allow_private: bool) -> Result<(), Refusal> {
    let has_scheme = text.starts_with("http://") || text.starts_with("https://");
    // A parser would remove or escape control characters. They are not valid in a URL, and in JSON each takes six
    // characters.
    if !has_scheme || text.encode_utf16().count() > URL_MAX || text.contains(char::is_control) {
        return Err(Refusal::WebhookUrl);
    }
    let url = Url::parse(text).map_err(|_| Refusal::WebhookUrl)?;
    let host = url.host().ok_or(Refusal::WebhookUrl)?;
    if allow_private || target::is_public_host(&host) { Ok(()) } else { Err(Refusal::WebhookTarget) }
}

/// The key of a webhook's signatures: 32 random bytes. Its text is `whsec_` and their base64.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret([u8; SECRET_LENGTH]);

impl Secret {
    /// `rng` must be a cryptographic source.
    pub fn draw(rng: &mut impl Rng) -> Self {
        let mut bytes = [0; SECRET_LENGTH];
        rng.fill_bytes(&mut bytes);
        Self(bytes)
    }

    pub fn from_stored(bytes: [u8; SECRET_LENGTH]) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; SECRET_LENGTH] {
        &self.0
    }

    /// The text of the secret. Shown only once.
    pub fn reveal(&self) -> String {
        format!("whsec_{}", STANDARD.encode(self.0))
    }

    /// The value of `webhook-signature` according to Standard Webhooks 1.0.0.
    pub fn sign(&self, delivery: &str, timestamp_seconds: i64, body: &[u8]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(format!("{delivery}.{timestamp_seconds}.").as_bytes());
        mac.update(body);
        format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
    }
}

/// The value of `webhook-signature` while several secrets are valid: one signature of each.
pub fn signatures(secrets: &[Secret], delivery: &str, timestamp_seconds: i64, body: &[u8]) -> String {
    let signatures: Vec<String> = secrets.iter().map(|secret| secret.sign(delivery, timestamp_seconds, body)).collect();
    signatures.join(" ")
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// HTTP contract, section 21.4.
    #[test]
    fn signatures_are_those_of_the_test_vector() {
        let secret = Secret::from_stored(*b"0123456789abcdef0123456789abcdef");
        assert_eq!(secret.reveal(), "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=");
        let body = concat!(
            r#"{"id":"6f1c1f0e-0000-4000-8000-000000000001","type":"webhook.test","timestamp":"2026-01-01T00:00:00.000Z","#,
            r#""data":{"id":"wh_0123456789abcdef","url":"https://example.com/hook"}}"#
        );
        let delivery = "dlv_0123456789abcdef0123456789abcdef";
        let signature = secret.sign(delivery, 1_767_225_600, body.as_bytes());
        assert_eq!(signature, "v1,c2/5+/qk/NC7KKIehJP96kkU5wML/DOW09Ja5X+0d7U=");
        let foreign = standardwebhooks::Webhook::new(&secret.reveal()).expect("a secret");
        assert_eq!(foreign.sign(delivery, 1_767_225_600, body.as_bytes()).expect("a signature"), signature);
    }

    #[test]
    fn a_secret_is_not_printed() {
        assert_eq!(format!("{:?}", Secret::from_stored([b'x'; 32])), "Secret");
    }

    #[test]
    fn credentials_in_a_url_are_not_shown() {
        for (url, shown) in [
            ("https://example.com/hook", "https://example.com/hook"),
            ("https://example.com", "https://example.com"),
            ("https://user:secret@example.com/hook?token=secret", "https://***@example.com/hook?***"),
            ("https://:secret@example.com/", "https://***@example.com/"),
            ("https://example.com/?token=secret#part", "https://example.com/?***#part"),
        ] {
            let webhook = Webhook {
                id: "wh_0123456789abcdef".to_owned(),
                url: url.to_owned(),
                events: vec![EVERY_TYPE.to_owned()],
                created_at: Timestamp::from_ms(0),
                disabled_at: None,
            };
            assert_eq!(webhook.without_credentials().url, shown);
        }
    }

    #[test]
    fn urls_are_http_with_a_host() {
        for text in
            ["http://example.com", "https://example.com:8443/a?b=c#d", "https://u:p@example.com/", "http://é.example"]
        {
            assert_eq!(check_url(text, false), Ok(()), "{text}");
        }
        for text in [
            "",
            "example.com",
            "ftp://example.com",
            "HTTP://example.com",
            "http://",
            "http://a b",
            "http://[::1",
            " http://a",
            "http://a/\u{1}",
            "http://a\n",
        ] {
            assert_eq!(check_url(text, false), Err(Refusal::WebhookUrl), "{text}");
        }
        let long = |length: usize| format!("http://example.com/{}", "a".repeat(length - 19));
        assert_eq!(check_url(&long(2048), false), Ok(()));
        assert_eq!(check_url(&long(2049), false), Err(Refusal::WebhookUrl));
        assert_eq!(check_url("http://127.0.0.1/", false), Err(Refusal::WebhookTarget));
        assert_eq!(check_url("http://127.0.0.1/", true), Ok(()));
    }
}
