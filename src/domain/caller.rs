//! Who is asking: the tenant that owns the data, and the caller that owns the idempotency keys.

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

/// The account that everything billed belongs to. Opaque text of at most 64 characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Tenant(String);

impl Tenant {
    /// The tenant of requests without a recognised key.
    pub fn public() -> Self {
        Self("public".to_owned())
    }

    pub fn from_stored(text: String) -> Self {
        Self(text)
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// The owner of a space of idempotency keys: the tenant of a recognised API key, otherwise the client's address.
/// The two kinds never share anything, not even for the tenant `public`.
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

/// A client's IP address: IPv4-mapped IPv6 is IPv4, and IPv6 is reduced to its /64, which one client has to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientAddress(IpAddr);

impl From<IpAddr> for ClientAddress {
    fn from(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
            v4 => v4,
        })
    }
}

impl fmt::Display for ClientAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(v4) => write!(formatter, "{v4}"),
            IpAddr::V6(v6) => write!(formatter, "{v6}/64"),
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
        assert_eq!(address("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::/64");
    }

    #[test]
    fn a_tenant_and_an_address_are_never_one_caller() {
        assert_eq!(Caller::Tenant(Tenant::public()).to_string(), "tenant:public");
        let address = ClientAddress::from("192.0.2.7".parse::<IpAddr>().expect("an address"));
        assert_eq!(Caller::Address(address).to_string(), "ip:192.0.2.7");
    }
}
