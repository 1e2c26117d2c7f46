//! Names that clients choose: agents, services and idempotency keys. They are validated when they are parsed.

use std::fmt;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Serialize, Serializer};

/// Maximum length of an agent id, in characters.
pub const AGENT_ID_MAX: usize = 256;
/// Maximum length of a service id, in characters.
pub const SERVICE_ID_MAX: usize = 128;
/// The pattern of agent and service ids for clients. `.` and `..` are excluded, because in a path they mean another
/// path.
pub const IDENTIFIER: &str = "^([.]{0,2}[A-Za-z0-9_-]|[.]{3})[A-Za-z0-9._-]*$";
/// The pattern in paths, which may also name ids stored when `.` and `..` were valid.
pub const STORED_IDENTIFIER: &str = "^[A-Za-z0-9._-]+$";
/// Maximum length of an idempotency key, in characters, without quotes.
pub const IDEMPOTENCY_KEY_MAX: usize = 255;

/// An agent: 1 to 256 ASCII letters, digits, `.`, `_`, `-`, but neither `.` nor `..`.
// Clones share the text. This is no documentation, because that is the description of the schema.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema)]
#[schemars(transparent)]
pub struct AgentId(#[schemars(length(min = 1, max = AGENT_ID_MAX), regex(pattern = IDENTIFIER))] Arc<str>);

/// A service: 1 to 128 ASCII letters, digits, `.`, `_`, `-`, but neither `.` nor `..`.
// Clones share the text. This is no documentation, because that is the description of the schema.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema)]
#[schemars(transparent)]
pub struct ServiceId(#[schemars(length(min = 1, max = SERVICE_ID_MAX), regex(pattern = IDENTIFIER))] Arc<str>);

/// An idempotency key: 1 to 255 visible ASCII characters, without the quotes around it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct IdempotencyKey(String);

macro_rules! identifier {
    ($name:ident, $length_max:expr) => {
        impl $name {
            pub fn parse(text: &str) -> Option<Self> {
                Self::parse_existing(text).filter(Self::is_valid)
            }

            /// For reads and settlements. Also accepts `.` and `..`, which earlier versions may have stored.
            pub fn parse_existing(text: &str) -> Option<Self> {
                is_plain(text, $length_max).then(|| Self(text.into()))
            }

            /// Whether new data may have this id.
            pub fn is_valid(&self) -> bool {
                !matches!(self.as_str(), "." | "..")
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
    };
}
identifier!(AgentId, AGENT_ID_MAX);
identifier!(ServiceId, SERVICE_ID_MAX);

/// The header value is not an idempotency key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MalformedKey;

impl IdempotencyKey {
    /// Parses an `Idempotency-Key` header: raw text, or an RFC 8941 string in double quotes. An empty value and `""`
    /// count as no key.
    pub fn parse(value: &[u8]) -> Result<Option<Self>, MalformedKey> {
        let value = value.trim_ascii();
        let key = match value {
            [] => return Ok(None),
            [b'"', quoted @ ..] => unquote(quoted)?,
            raw => raw.to_vec(),
        };
        if key.is_empty() {
            return Ok(None);
        }
        // Visible ASCII is UTF-8.
        let key = String::from_utf8(key).map_err(|_| MalformedKey)?;
        Self::literal(key).map(Some)
    }

    /// Takes `text` literally: quotes are part of the key.
    pub fn literal(text: String) -> Result<Self, MalformedKey> {
        let is_key =
            (1..=IDEMPOTENCY_KEY_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
        if is_key { Ok(Self(text)) } else { Err(MalformedKey) }
    }
}

impl From<IdempotencyKey> for String {
    fn from(key: IdempotencyKey) -> Self {
        key.0
    }
}

/// Unquotes the text after the opening quote. The closing quote must be the last character.
fn unquote(quoted: &[u8]) -> Result<Vec<u8>, MalformedKey> {
    let mut key = Vec::with_capacity(quoted.len());
    let mut bytes = quoted.iter();
    loop {
        match bytes.next() {
            Some(b'"') if bytes.as_slice().is_empty() => return Ok(key),
            Some(b'\\') => match bytes.next() {
                Some(escaped @ (b'"' | b'\\')) => key.push(*escaped),
                _ => return Err(MalformedKey),
            },
            Some(b'"') | None => return Err(MalformedKey),
            Some(byte) => key.push(*byte),
        }
    }
}

fn is_plain(text: &str, length_max: usize) -> bool {
    (1..=length_max).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

macro_rules! text_of {
    ($($name:ident),*) => {$(
        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// Trusts a value that was validated before it was stored.
            pub fn from_stored(text: String) -> Self {
                Self(text.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    )*};
}
text_of!(AgentId, ServiceId, IdempotencyKey);

#[cfg(test)]
mod tests {
    use super::*;

    fn key(value: &str) -> Result<Option<String>, MalformedKey> {
        IdempotencyKey::parse(value.as_bytes()).map(|key| key.map(|key| key.0))
    }

    #[test]
    fn a_raw_and_a_quoted_key_are_the_same() {
        for value in ["abc", " abc ", "\"abc\"", "\t\"abc\" "] {
            assert_eq!(key(value), Ok(Some("abc".to_owned())), "{value}");
        }
        for value in ["\"a\\\"b\"", "a\"b"] {
            assert_eq!(key(value), Ok(Some("a\"b".to_owned())), "{value}");
        }
        assert_eq!(key("\"a\\\\b\""), Ok(Some("a\\b".to_owned())));
    }

    #[test]
    fn an_empty_key_is_no_key() {
        for value in ["", "  ", "\"\""] {
            assert_eq!(key(value), Ok(None), "{value}");
        }
    }

    #[test]
    fn anything_else_is_malformed() {
        for value in ["\"abc", "\"", "\"abc\";x=1", "\"a b\"", "a b", "é", "\"a\\n\"", "\"a\\", "a\u{7f}", "\"a\"b\""]
        {
            assert_eq!(key(value), Err(MalformedKey), "{value}");
        }
        assert_eq!(key(&"k".repeat(256)), Err(MalformedKey));
        assert_eq!(key(&"k".repeat(255)), Ok(Some("k".repeat(255))));
        assert_eq!(key(&format!("\"{}\"", "k".repeat(255))), Ok(Some("k".repeat(255))));
    }

    #[test]
    fn identifiers_are_bounded_and_plain() {
        assert!(AgentId::parse(&"a".repeat(256)).is_some());
        assert!(AgentId::parse(&"a".repeat(257)).is_none());
        assert!(ServiceId::parse(&"s".repeat(128)).is_some());
        assert!(ServiceId::parse(&"s".repeat(129)).is_none());
        assert!(ServiceId::parse("Az09._-").is_some());
        for text in ["...", ".a", "..a", "a.", "a.."] {
            assert!(AgentId::parse(text).is_some() && ServiceId::parse(text).is_some(), "{text}");
        }
        for text in [".", ".."] {
            assert!(AgentId::parse(text).is_none() && ServiceId::parse(text).is_none(), "{text}");
            assert!(AgentId::parse_existing(text).is_some_and(|id| !id.is_valid()), "{text}");
        }
        for text in ["", "a b", "a/b", "é", "a\0"] {
            assert!(AgentId::parse(text).is_none() && AgentId::parse_existing(text).is_none(), "{text}");
        }
    }
}
