//! Cells: databases that each have the data of some tenants. A tenant lives in one of them.

use std::fmt;
use std::sync::Arc;

/// The id of a cell, as the operator chose it. Clones share it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CellId(Arc<str>);

/// Maximum length of an id.
const LENGTH_MAX: usize = 32;

impl CellId {
    /// Lowercase letters, digits and hyphens, not beginning with a hyphen. `None` for any other text.
    pub fn parse(text: &str) -> Option<Self> {
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_id = (1..=LENGTH_MAX).contains(&text.len()) && text.bytes().all(is_plain) && !text.starts_with('-');
        is_id.then(|| Self(text.into()))
    }

    pub fn from_stored(text: String) -> Self {
        Self(text.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CellId {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        text.write_str(&self.0)
    }
}

/// Whether a cell has the data of a tenant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residence {
    Here,
    /// The same, but no deliveries are begun: the tenant is about to be moved.
    Departing,
    /// The tenant is being moved to another cell.
    Leaving,
    /// Another cell has it, or no cell does.
    #[default]
    Elsewhere,
}

impl Residence {
    const ALL: [Self; 4] = [Self::Here, Self::Departing, Self::Leaving, Self::Elsewhere];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Here => "here",
            Self::Departing => "departing",
            Self::Leaving => "leaving",
            Self::Elsewhere => "elsewhere",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|residence| residence.as_str() == text)
    }

    /// Whether the cell executes the tenant's writes, and replays its stored responses.
    pub fn executes(self) -> bool {
        matches!(self, Self::Here | Self::Departing)
    }
}

/// The statements that the server of a cell runs. A few of them differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    #[default]
    PostgreSql,
    /// Citus distributes the schema. Statements are sent to any of its nodes, and run on the one that has the data.
    Citus,
}

impl Dialect {
    pub fn is_citus(self) -> bool {
        self == Self::Citus
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_short_plain_word() {
        for text in ["home", "eu-1", "2", &"x".repeat(32)] {
            assert_eq!(CellId::parse(text).expect(text).to_string(), text);
        }
        for text in ["", "-a", "A", "a b", "a_b", "ä", &"x".repeat(33)] {
            assert_eq!(CellId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn only_the_home_of_a_tenant_executes() {
        for residence in Residence::ALL {
            assert_eq!(Residence::parse(residence.as_str()), Some(residence));
        }
        assert_eq!(Residence::parse(""), None);
        assert!(Residence::Here.executes() && Residence::Departing.executes() && !Residence::default().executes());
    }
}
