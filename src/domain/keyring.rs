//! Encryption of stored secrets: AES-256-GCM with a random nonce (docs/adr/0017). The first key encrypts, every key decrypts.
//! A ciphertext belongs to one webhook, and is refused for another. Without keys, or if the first entry is `plain`, secrets
//! are stored as plain text.

use std::fmt;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rand::Rng;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use super::caller::Tenant;
use super::webhook::{SECRET_LENGTH, Secret};

/// As the first entry: the keys decrypt only.
const PLAIN: &str = "plain";
/// Maximum length of the id of a key.
const KEY_ID_MAX: usize = 32;

/// The keys of ENCRYPTION_KEYS. Clones share them.
#[derive(Clone, Default)]
pub struct Keyring {
    /// The keys encrypt nothing.
    decrypts_only: bool,
    keys: Arc<[Key]>,
}

struct Key {
    id: String,
    key: LessSafeKey,
}

/// A secret as a row of `webhooks` holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredSecret {
    /// `None`: plain text.
    pub key_id: Option<String>,
    /// With a key: the nonce, the encrypted secret and its tag.
    pub bytes: Vec<u8>,
}

/// Why a stored secret cannot be used. The text names no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    #[error("it is encrypted with the key {0}, which ENCRYPTION_KEYS does not have")]
    UnknownKey(String),
    #[error("the key {0} of ENCRYPTION_KEYS does not decrypt it")]
    WrongKey(String),
    #[error("it is malformed")]
    Malformed,
}

impl Keyring {
    /// Parses `id:base64` pairs, optionally after `plain`, separated by commas or white space. The error says what is
    /// accepted.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let mut keys: Vec<Key> = Vec::new();
        let is_separator = |character: char| character == ',' || character.is_whitespace();
        let mut entries = text.split(is_separator).filter(|entry| !entry.is_empty()).peekable();
        let decrypts_only = entries.next_if_eq(&PLAIN).is_some();
        for pair in entries {
            let key = Key::parse(pair).ok_or(
                "a list of <id>:<key>, optionally preceded by the entry plain: ids of 1 to 32 letters, digits, '.', '_' or '-', \
                 and keys that are the base64 of 32 bytes",
            )?;
            if keys.iter().any(|own| own.id == key.id) {
                return Err("a list of keys with different ids");
            }
            keys.push(key);
        }
        Ok(Self { decrypts_only, keys: keys.into() })
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The key that encrypts. `None`: secrets are stored as plain text.
    fn encrypting(&self) -> Option<&Key> {
        self.keys.first().filter(|_| !self.decrypts_only)
    }

    pub fn encrypts(&self) -> bool {
        self.encrypting().is_some()
    }

    /// Whether `stored` needs no rewriting: it is stored as [`Keyring::seal`] would store it.
    pub fn is_current(&self, stored: &StoredSecret) -> bool {
        self.encrypting().map(|key| key.id.as_str()) == stored.key_id.as_deref()
    }

    /// Encrypts the secret of a webhook with the first key, unless the keys only decrypt. `rng` must be cryptographic.
    pub fn seal(&self, tenant: &Tenant, webhook: &str, secret: &Secret, rng: &mut impl Rng) -> StoredSecret {
        let Some(key) = self.encrypting() else {
            return StoredSecret { key_id: None, bytes: secret.as_bytes().to_vec() };
        };
        let mut nonce = [0; NONCE_LEN];
        rng.fill_bytes(&mut nonce);
        let mut sealed = secret.as_bytes().to_vec();
        let nonce_of = Nonce::assume_unique_for_key(nonce);
        key.key
            .seal_in_place_append_tag(nonce_of, owner(tenant, webhook), &mut sealed)
            .expect("a secret is shorter than the limit of the cipher");
        StoredSecret { key_id: Some(key.id.clone()), bytes: [nonce.as_slice(), &sealed].concat() }
    }

    /// Decrypts the secret of a webhook.
    pub fn open(&self, tenant: &Tenant, webhook: &str, stored: &StoredSecret) -> Result<Secret, Unreadable> {
        let plain = |bytes: &[u8]| bytes.try_into().map(Secret::from_stored).map_err(|_| Unreadable::Malformed);
        let Some(id) = &stored.key_id else { return plain(&stored.bytes) };
        let key = self.keys.iter().find(|key| key.id == *id).ok_or_else(|| Unreadable::UnknownKey(id.clone()))?;
        let (nonce, sealed) = stored.bytes.split_first_chunk::<NONCE_LEN>().ok_or(Unreadable::Malformed)?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = key.key.open_in_place(nonce, owner(tenant, webhook), &mut sealed);
        plain(opened.map_err(|_| Unreadable::WrongKey(id.clone()))?)
    }
}

/// What a ciphertext is bound to. The id of a webhook has a fixed length, so no two webhooks have the same text.
fn owner(tenant: &Tenant, webhook: &str) -> Aad<String> {
    Aad::from(format!("webhook secret\n{tenant}\n{webhook}"))
}

impl Key {
    fn parse(pair: &str) -> Option<Self> {
        let (id, key) = pair.split_once(':')?;
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let is_id = (1..=KEY_ID_MAX).contains(&id.len()) && id.bytes().all(is_plain);
        let key: [u8; SECRET_LENGTH] = STANDARD.decode(key).ok()?.try_into().ok()?;
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).ok()?);
        is_id.then(|| Self { id: id.to_owned(), key })
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        text.debug_list().entries(self.keys.iter().map(|key| &key.id)).finish()
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const WEBHOOK: &str = "wh_0123456789abcdef";

    fn pair(id: &str, byte: u8) -> String {
        format!("{id}:{}", STANDARD.encode([byte; 32]))
    }

    fn ring(pairs: &[String]) -> Keyring {
        Keyring::parse(&pairs.join(",")).expect("keys")
    }

    #[test]
    fn a_secret_is_decrypted_for_its_own_webhook_only() {
        let (ring, rng) = (ring(&[pair("a", 1)]), &mut StdRng::seed_from_u64(7));
        let (tenant, secret) = (Tenant::public(), Secret::draw(rng));
        let stored = ring.seal(&tenant, WEBHOOK, &secret, rng);
        assert_eq!((stored.key_id.as_deref(), stored.bytes.len()), (Some("a"), 12 + 32 + 16));
        assert_eq!(ring.open(&tenant, WEBHOOK, &stored), Ok(secret.clone()));
        assert_ne!(ring.seal(&tenant, WEBHOOK, &secret, rng), stored, "each encryption has a nonce of its own");
        let wrong = Err(Unreadable::WrongKey("a".to_owned()));
        assert_eq!(ring.open(&Tenant::from_stored("tnt_1".to_owned()), WEBHOOK, &stored), wrong);
        assert_eq!(ring.open(&tenant, "wh_fedcba9876543210", &stored), wrong);
        for index in 0..stored.bytes.len() {
            let mut changed = stored.clone();
            changed.bytes[index] ^= 1;
            assert_eq!(ring.open(&tenant, WEBHOOK, &changed), wrong, "byte {index}");
        }
        let short = StoredSecret { bytes: vec![0; 11], ..stored };
        assert_eq!(ring.open(&tenant, WEBHOOK, &short), Err(Unreadable::Malformed));
    }

    #[test]
    fn the_first_key_encrypts_and_all_decrypt() {
        let rng = &mut StdRng::seed_from_u64(7);
        let (tenant, secret) = (Tenant::public(), Secret::draw(rng));
        let old = ring(&[pair("a", 1)]).seal(&tenant, WEBHOOK, &secret, rng);
        let both = ring(&[pair("b", 2), pair("a", 1)]);
        let new = both.seal(&tenant, WEBHOOK, &secret, rng);
        let plain = Keyring::default().seal(&tenant, WEBHOOK, &secret, rng);
        for (stored, is_current) in [(&old, false), (&new, true), (&plain, false)] {
            assert_eq!(
                (both.open(&tenant, WEBHOOK, stored), both.is_current(stored)),
                (Ok(secret.clone()), is_current)
            );
        }
        assert!(Keyring::default().is_current(&plain));
        assert_eq!(Keyring::default().open(&tenant, WEBHOOK, &old), Err(Unreadable::UnknownKey("a".to_owned())));
        assert_eq!(ring(&[pair("a", 2)]).open(&tenant, WEBHOOK, &old), Err(Unreadable::WrongKey("a".to_owned())));
    }

    #[test]
    fn after_plain_the_keys_decrypt_and_nothing_is_encrypted() {
        let rng = &mut StdRng::seed_from_u64(7);
        let (tenant, secret) = (Tenant::public(), Secret::draw(rng));
        let encrypted = ring(&[pair("a", 1)]).seal(&tenant, WEBHOOK, &secret, rng);
        let plain = ring(&["plain".to_owned(), pair("a", 1)]);
        assert_eq!(plain.open(&tenant, WEBHOOK, &encrypted), Ok(secret.clone()));
        let stored = plain.seal(&tenant, WEBHOOK, &secret, rng);
        assert_eq!((&stored.key_id, plain.encrypts(), plain.is_empty()), (&None, false, false));
        assert!(plain.is_current(&stored) && !plain.is_current(&encrypted));
        assert!(Keyring::parse("plain").is_ok_and(|ring| ring.is_empty()));
        for text in [format!("{},plain", pair("a", 1)), "plain plain".to_owned()] {
            assert!(Keyring::parse(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn keys_are_pairs_of_an_id_and_the_base64_of_32_bytes() {
        let two = format!("\n{}\r\n{} ,", pair("2026-01", 1), pair("old_1.x", 2));
        assert_eq!(format!("{:?}", Keyring::parse(&two).expect("keys")), r#"["2026-01", "old_1.x"]"#);
        assert!(Keyring::parse(" ").is_ok_and(|ring| ring.is_empty()));
        let (short, long_id) = (format!("a:{}", STANDARD.encode([1; 31])), pair(&"a".repeat(33), 1));
        for text in ["a", "a:", ":", &pair("", 1), &pair("a b", 1), &pair("é", 1), &short, &long_id, "a:!!"] {
            assert!(Keyring::parse(text).is_err(), "{text}");
        }
        assert_eq!(
            Keyring::parse(&[pair("a", 1), pair("a", 2)].join(",")).err(),
            Some("a list of keys with different ids")
        );
    }
}
