//! API keys as the operator sees them, and what each may be used for. The key itself is never stored.

use std::borrow::Cow;
use std::fmt;
use std::ops::Not;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

use super::timestamp::Timestamp;

/// The largest limit of one key. The smallest is 1.
pub const RATE_LIMIT_MAX: i64 = 1_000_000;
/// How long a rotated key remains valid: at most, and unless the operator says otherwise.
pub const OVERLAP_SECONDS_MAX: i64 = 30 * 86_400;
pub const OVERLAP_SECONDS_DEFAULT: i64 = 86_400;

/// One right of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    UsageWrite,
    SettleWrite,
    Read,
    Webhooks,
    /// Includes all others.
    Admin,
}

impl Scope {
    pub const ALL: [Self; 5] = [Self::UsageWrite, Self::SettleWrite, Self::Read, Self::Webhooks, Self::Admin];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UsageWrite => "usage:write",
            Self::SettleWrite => "settle:write",
            Self::Read => "read",
            Self::Webhooks => "webhooks",
            Self::Admin => "admin",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == text)
    }
}

/// A set of scopes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scopes(u8);

impl Scopes {
    pub const NONE: Self = Self(0);

    pub const fn and(self, scope: Scope) -> Self {
        Self(self.0 | (1 << scope as u8))
    }

    /// None if a name is unknown or there is no name.
    pub fn parse<'a>(names: impl Iterator<Item = &'a str>) -> Option<Self> {
        let mut scopes = Self::NONE;
        for name in names {
            scopes = scopes.and(Scope::parse(name)?);
        }
        (scopes != Self::NONE).then_some(scopes)
    }

    pub fn is_empty(self) -> bool {
        self == Self::NONE
    }

    /// Whether a key with these scopes may do what needs one of `needed`.
    pub fn permit(self, needed: Self) -> bool {
        needed.is_empty() || self.0 & needed.and(Scope::Admin).0 != 0
    }

    pub fn names(self) -> Vec<&'static str> {
        let own = Scope::ALL.into_iter().filter(|scope| Self::NONE.and(*scope).0 & self.0 != 0);
        own.map(Scope::as_str).collect()
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        text.write_str(&self.names().join(", "))
    }
}

impl Serialize for Scopes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.names().serialize(serializer)
    }
}

impl JsonSchema for Scopes {
    fn schema_name() -> Cow<'static, str> {
        "ApiKeyScopes".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "array",
            "minItems": 1,
            "items": { "type": "string", "enum": Scope::ALL.map(Scope::as_str) },
        })
    }
}

/// A live API key.
#[derive(Clone, Debug, PartialEq, Eq, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "ApiKey")]
pub struct ApiKeyInfo {
    pub prefix: String,
    pub label: String,
    pub created_at: Timestamp,
    pub tenant_id: String,
    #[serde(flatten)]
    pub limits: KeyLimits,
    /// It was rotated, and expires at the end of the overlap.
    #[serde(skip_serializing_if = "Not::not")]
    pub rotated: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<Timestamp>,
}

// What limits a key. No doc comment: it would describe every schema that this is a part of.
#[derive(Clone, Debug, Default, PartialEq, Eq, JsonSchema, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyLimits {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scopes: Option<Scopes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit_per_window: Option<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_permits_what_needs_it_and_admin_permits_everything() {
        let of = |scope| Scopes::NONE.and(scope);
        let either = of(Scope::Read).and(Scope::Webhooks);
        assert!(of(Scope::Read).permit(either) && of(Scope::Webhooks).permit(either));
        assert!(!of(Scope::UsageWrite).permit(either) && !of(Scope::Read).permit(of(Scope::Admin)));
        for scope in Scope::ALL {
            assert!(of(Scope::Admin).permit(of(scope)) && of(scope).permit(Scopes::NONE));
            assert_eq!(Scope::parse(scope.as_str()), Some(scope));
        }
    }

    #[test]
    fn scopes_have_names_in_one_order() {
        let parse = |names: &[&str]| Scopes::parse(names.iter().copied());
        assert_eq!(parse(&["read", "usage:write", "read"]).map(Scopes::names), Some(vec!["usage:write", "read"]));
        for names in [&[][..], &["write"], &["read", "Read"], &[""]] {
            assert_eq!(parse(names), None, "{names:?}");
        }
    }
}
