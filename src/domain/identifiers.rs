//! Ids and secrets that the service generates. The caller passes the source of randomness.

use std::borrow::Cow;

use rand::Rng;
use sha2::{Digest, Sha256};

/// Number of hexadecimal digits in the prefix of a key.
const PREFIX_DIGITS: usize = 8;

/// `prefix`, and `bytes` random bytes in lowercase hexadecimal.
pub fn draw(rng: &mut impl Rng, prefix: &str, bytes: usize) -> String {
    let mut drawn = vec![0; bytes];
    rng.fill_bytes(&mut drawn);
    format!("{prefix}{}", hex::encode(drawn))
}

/// A complete API key: `apk_` and 32 hexadecimal digits. Only its hash is stored.
pub struct ApiKey(String);

impl ApiKey {
    /// Of its prefix, in characters.
    pub const PREFIX_LENGTH: usize = "apk_".len() + PREFIX_DIGITS;

    /// `rng` must be a cryptographic source.
    pub fn draw(rng: &mut impl Rng) -> Self {
        Self(draw(rng, "apk_", 16))
    }

    /// The first 12 characters, which identify the key in lists.
    pub fn prefix(&self) -> &str {
        &self.0[..Self::PREFIX_LENGTH]
    }

    pub fn hash(&self) -> [u8; 32] {
        hash_of_key(self.0.as_bytes())
    }

    /// The secret. Shown only once.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// The public name of an API key, in the log and to operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyPrefix([u8; "apk_".len() + PREFIX_DIGITS]);

impl KeyPrefix {
    /// None for a text of another form.
    pub fn from_stored(text: &str) -> Option<Self> {
        text.is_ascii().then(|| text.as_bytes().try_into().ok().map(Self))?
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("ASCII")
    }
}

/// The stored hash of an API key: SHA-256. A key has 128 random bits, so it needs no slow hash.
pub fn hash_of_key(presented: &[u8]) -> [u8; 32] {
    Sha256::digest(presented).into()
}

/// `path` for logs and traces: an idempotency key that it looks up is left out, and every API key is reduced to its prefix,
/// because a client may put a whole key into a path.
pub fn without_keys(path: &str) -> Cow<'_, str> {
    const LOOK_UP: &str = "/idempotency/";
    let is_look_up = |at: &usize| path.as_bytes()[*at..].to_ascii_lowercase().starts_with(LOOK_UP.as_bytes());
    if let Some(at) = path.match_indices('/').map(|(at, _)| at).find(is_look_up) {
        return format!("{}*", without_api_keys(&path[..at + LOOK_UP.len()])).into();
    }
    without_api_keys(path)
}

fn without_api_keys(text: &str) -> Cow<'_, str> {
    if !text.contains("apk_") {
        return text.into();
    }
    let mut parts = text.split("apk_");
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        shown.push_str("apk_");
        let digits = part.bytes().take_while(u8::is_ascii_hexdigit).count();
        if digits > PREFIX_DIGITS {
            shown.push_str(&part[..PREFIX_DIGITS]);
            shown.push('*');
            shown.push_str(&part[digits..]);
        } else {
            shown.push_str(part);
        }
    }
    shown.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_key_only_its_prefix_is_shown() {
        for (text, shown) in [
            ("/api/v1/api-keys/apk_3d455bc0d3ba04160d41d4b66259b6a7", "/api/v1/api-keys/apk_3d455bc0*"),
            ("/apk_3d455bc0d3/apk_3d455bc0d3ba/", "/apk_3d455bc0*/apk_3d455bc0*/"),
            ("/api/v1/api-keys/apk_3d455bc0", "/api/v1/api-keys/apk_3d455bc0"),
            ("/apk_apk_é", "/apk_apk_é"),
            ("/api/v1/idempotency/order-1", "/api/v1/idempotency/*"),
            ("/API/V1/Idempotency/order/1", "/API/V1/Idempotency/*"),
            ("/api/v1/idempotency", "/api/v1/idempotency"),
            ("", ""),
        ] {
            assert_eq!(without_keys(text), shown);
        }
    }
}
