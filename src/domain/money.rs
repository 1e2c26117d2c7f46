//! Money and counts. They are exact, and in JSON they have a form that JavaScript clients read without loss.

use std::borrow::Cow;
use std::fmt;
use std::ops::AddAssign;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

/// The largest integer that an IEEE double holds exactly: 2^53 − 1.
pub const SAFE_MAX: u64 = 9_007_199_254_740_991;

/// The price of one request in stroops: 0 to [`Price::MAX`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Price(i64);

impl Price {
    pub const MAX: Self = Self(9_007_199_254);

    /// `None` if the price is out of range.
    pub fn new(stroops: i64) -> Option<Self> {
        (0..=Self::MAX.0).contains(&stroops).then_some(Self(stroops))
    }

    /// A price from the database, which checks the range.
    pub const fn from_stored(stroops: i64) -> Self {
        Self(stroops)
    }

    pub const fn stroops(self) -> i64 {
        self.0
    }
}

impl fmt::Display for Price {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl JsonSchema for Price {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Price".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "integer", "format": "int64", "minimum": 0, "maximum": Self::MAX.0 })
    }
}

/// An amount of money in stroops, the smallest unit. In JSON a number up to [`SAFE_MAX`], and a decimal string above
/// it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stroops(u128);

impl Stroops {
    /// The cost of `requests` at `price` each. Neither is negative. A product of 63 and 34 bits fits.
    pub fn bill(requests: Count, price: Price) -> Self {
        Self(u128::from(requests.0.unsigned_abs()) * u128::from(price.0.unsigned_abs()))
    }

    /// Parses the decimal digits of a PostgreSQL `numeric` without fraction.
    pub fn from_digits(digits: &str) -> Option<Self> {
        digits.parse().ok().map(Self)
    }
}

impl AddAssign for Stroops {
    fn add_assign(&mut self, other: Self) {
        self.0 += other.0;
    }
}

impl fmt::Display for Stroops {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0)
    }
}

impl Serialize for Stroops {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match u64::try_from(self.0) {
            Ok(amount) if amount <= SAFE_MAX => serializer.serialize_u64(amount),
            _ => serializer.collect_str(&self.0),
        }
    }
}

impl JsonSchema for Stroops {
    fn schema_name() -> Cow<'static, str> {
        "Stroops".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "An amount of stroops: a number up to 2^53 - 1, a decimal string above.",
            "anyOf": [
                { "type": "integer", "format": "int64", "minimum": 0, "maximum": SAFE_MAX },
                { "type": "string", "pattern": "^[0-9]+$" },
            ],
        })
    }
}

/// A number of requests in 64 bits. In JSON a number that saturates at [`SAFE_MAX`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Count(pub i64);

impl Count {
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(self.0.min(SAFE_MAX as i64))
    }
}

impl JsonSchema for Count {
    fn schema_name() -> Cow<'static, str> {
        "Count".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A number of requests. It is shown as 2^53 - 1 at most.",
            "type": "integer",
            "format": "int64",
            "minimum": 0,
            "maximum": SAFE_MAX,
        })
    }
}

/// As in JSON.
impl fmt::Display for Count {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0.min(SAFE_MAX as i64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_numbers_up_to_the_safe_maximum_and_text_above() {
        let shown = |requests, price| serde_json::to_string(&Stroops::bill(Count(requests), price)).expect("JSON");
        let one = Price::new(1).expect("a price");
        assert_eq!(shown(1_000_000, Price::MAX), "9007199254000000");
        assert_eq!(shown(2_000_000, Price::MAX), "\"18014398508000000\"");
        assert_eq!(shown(SAFE_MAX as i64, one), "9007199254740991");
        assert_eq!(shown(SAFE_MAX as i64 + 1, one), "\"9007199254740992\"");
        assert_eq!(shown(SAFE_MAX as i64, Price::MAX), "\"81129638407932410098420714\"");
        assert_eq!(shown(0, Price::MAX), "0");
    }

    #[test]
    fn counts_saturate_only_when_shown() {
        let shown = |count| serde_json::to_string(&Count(count)).expect("JSON");
        assert_eq!(shown(SAFE_MAX as i64), "9007199254740991");
        assert_eq!(shown(i64::MAX), "9007199254740991");
        assert_eq!(shown(7), "7");
    }
}
