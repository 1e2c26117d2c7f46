//! The tenant, which owns data, and the caller, which owns idempotency keys.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, LazyLock};

use serde::{Serialize, Serializer};
use sha2::{Digest, Sha256};

/// A customer account. Its id is opaque text of at most 64 characters, which clones share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenant(Arc<str>);

static PUBLIC: LazyLock<Tenant> = LazyLock::new(|| Tenant(Tenant::PUBLIC.into()));

impl Tenant {
    /// The id of the public tenant.
    pub const PUBLIC: &str = "public";

    /// The tenant of requests without a recognised key, unless the operator names one.
    pub fn public() -> Self {
        PUBLIC.clone()
    }

    pub fn from_stored(text: String) -> Self {
        Self(text.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Serialize for Tenant {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The owner of idempotency keys: the tenant of a recognised API key, or that the operator acts for, otherwise the client's
/// address. The two never share a key, not even if the tenant is `public`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Caller {
    Tenant(Tenant),
    Address(ClientAddress),
}

impl fmt::Display for Caller {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tenant(tenant) => write!(formatter, "tenant:{tenant}"),
            Self::Address(address) => write!(formatter, "ip:{address}"),
        }
    }
}

/// Maximum length of an unreadable address. A longer one is replaced by its SHA-256.
const UNREADABLE_TEXT_MAX: usize = 64;
const HASHED: &str = "sha256:";

/// The address of a client. IPv4 in IPv6 becomes IPv4. IPv6 is reduced to its /64, which usually belongs to one client,
/// except for link-local addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ClientAddress {
    V4(Ipv4Addr),
    Network(Ipv6Addr),
    LinkLocal(Ipv6Addr),
    /// What a proxy wrote instead of an address: visible ASCII, or `HASHED` and its SHA-256.
    Unreadable(Arc<str>),
}

impl ClientAddress {
    /// The text that a proxy sent instead of an address.
    pub fn unreadable(text: &[u8]) -> Self {
        let is_plain = text.len() <= UNREADABLE_TEXT_MAX && text.iter().all(u8::is_ascii_graphic);
        Self::Unreadable(match std::str::from_utf8(text) {
            Ok(text) if is_plain && !text.starts_with(HASHED) => text.into(),
            _ => format!("{HASHED}{}", hex::encode(Sha256::digest(text))).into(),
        })
    }
}

impl ClientAddress {
    /// The address that operators name: an IP address, or what this type shows.
    pub fn from_text(text: &str) -> Self {
        match text.strip_suffix("/64").unwrap_or(text).parse::<IpAddr>() {
            Ok(address) => address.into(),
            Err(_) => Self::unreadable(text.strip_prefix('?').unwrap_or(text).as_bytes()),
        }
    }
}

impl From<IpAddr> for ClientAddress {
    fn from(address: IpAddr) -> Self {
        let v6 = match address.to_canonical() {
            IpAddr::V4(v4) => return Self::V4(v4),
            IpAddr::V6(v6) => v6,
        };
        let network = v6.to_bits() & !u128::from(u64::MAX);
        match v6.segments() {
            // RFC 6052. As IPv6, all of IPv4 behind a translator would be one network.
            [0x64, 0xff9b, 0, 0, 0, 0, ..] => Self::V4(Ipv4Addr::from_bits(v6.to_bits() as u32)),
            // Link-local: all clients of a link have the same prefix.
            [first, ..] if first & 0xffc0 == 0xfe80 => Self::LinkLocal(v6),
            _ => Self::Network(network.into()),
        }
    }
}

impl fmt::Display for ClientAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(v4) => write!(formatter, "{v4}"),
            Self::Network(v6) => write!(formatter, "{v6}/64"),
            Self::LinkLocal(v6) => write!(formatter, "{v6}"),
            Self::Unreadable(text) => write!(formatter, "?{text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> String {
        ClientAddress::from(text.parse::<IpAddr>().expect("an address")).to_string()
    }

    #[test]
    fn addresses_are_reduced_to_what_one_client_has() {
        assert_eq!(address("192.0.2.7"), "192.0.2.7");
        assert_eq!(address("::ffff:192.0.2.7"), "192.0.2.7");
        assert_eq!(address("64:ff9b::192.0.2.7"), "192.0.2.7");
        assert_eq!(address("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
        assert_eq!(address("fe80::1"), "fe80::1");
    }

    #[test]
    fn what_is_no_address_keeps_its_text_or_a_hash_of_it() {
        let text = |text: &[u8]| Caller::Address(ClientAddress::unreadable(text)).to_string();
        assert_eq!(text(b"_hidden"), "ip:?_hidden");
        assert_eq!(text(&[b'x'; 64]), format!("ip:?{}", "x".repeat(64)));
        let hashed: [&[u8]; 4] = [&[b'x'; 65], b"a b", b"\xff", b"sha256:x"];
        for raw in hashed {
            assert!(text(raw).starts_with("ip:?sha256:") && text(raw).len() == 11 + 64, "{}", text(raw));
        }
        // The length of the column in the database.
        assert!(text(&[b'x'; 5000]).len() <= 128);
    }

    #[test]
    fn an_address_is_found_by_what_is_shown_of_it() {
        for shown in ["192.0.2.7", "2001:db8:1:2::/64", "fe80::1", "?_hidden"] {
            assert_eq!(ClientAddress::from_text(shown).to_string(), shown);
        }
        assert_eq!(ClientAddress::from_text("2001:db8:1:2::9").to_string(), "2001:db8:1:2::/64");
    }

    #[test]
    fn a_tenant_and_an_address_are_never_one_caller() {
        assert_eq!(Caller::Tenant(Tenant::public()).to_string(), "tenant:public");
        let address = ClientAddress::from("192.0.2.7".parse::<IpAddr>().expect("an address"));
        assert_eq!(Caller::Address(address).to_string(), "ip:192.0.2.7");
    }
}
