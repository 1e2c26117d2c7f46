//! A time in whole milliseconds since the Unix epoch, as in the API.

use std::fmt;

use schemars::JsonSchema;
use serde::Serialize;
use time::format_description::StaticFormatDescription;
use time::macros::format_description;
use time::{Duration, OffsetDateTime};

/// Milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, JsonSchema, Serialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

/// RFC 3339 in UTC. The format of `time` omits milliseconds that are zero; here all texts have the same length.
const RFC_3339: StaticFormatDescription =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// 0001-01-01T00:00:00Z.
const YEAR_ONE_MS: i64 = -62_135_596_800_000;

impl Timestamp {
    /// The end of the year 9999.
    pub const LAST: Self = Self(253_402_300_799_999);

    pub const fn from_ms(ms: i64) -> Self {
        Self(ms)
    }

    /// Parses the digits in a cursor.
    pub fn parse(digits: &str) -> Option<Self> {
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok().map(Self))?
    }

    pub const fn as_ms(self) -> i64 {
        self.0
    }

    pub const fn plus_ms(self, ms: i64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// The value for PostgreSQL. Years above 9999 saturate, because [`OffsetDateTime`] ends there; years before 1
    /// saturate, because PostgreSQL's calendar has another beginning.
    pub fn to_date_time(self) -> OffsetDateTime {
        let ms = self.0.max(YEAR_ONE_MS);
        OffsetDateTime::UNIX_EPOCH.saturating_add(Duration::milliseconds(ms))
    }

    /// In UTC, with milliseconds.
    pub fn to_rfc_3339(self) -> String {
        self.to_date_time().format(RFC_3339).expect("a year has four digits")
    }
}

impl From<OffsetDateTime> for Timestamp {
    fn from(moment: OffsetDateTime) -> Self {
        // A calendar date always fits: 64 bits of milliseconds span 292 million years.
        Self((moment.unix_timestamp_nanos() / 1_000_000) as i64)
    }
}

/// A stored time in microseconds since the Unix epoch, PostgreSQL's precision. Cursors contain it, because whole
/// milliseconds would repeat or skip rows that another program wrote. Its text is `<ms>`, or `<ms>.<µs>` if necessary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoredMoment(i64);

impl StoredMoment {
    /// Earlier and later than everything that is stored.
    pub const FIRST: Self = Self(0);
    pub const LAST: Self = Self(i64::MAX);

    pub fn parse(text: &str) -> Option<Self> {
        let (ms, us) = text.split_once('.').unwrap_or((text, "000"));
        let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if !is_digits(ms) || us.len() != 3 || !is_digits(us) {
            return None;
        }
        let us: i64 = us.parse().ok()?;
        Some(Self(ms.parse::<i64>().ok()?.saturating_mul(1000).saturating_add(us)))
    }

    /// The time one microsecond earlier.
    pub fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// The value for PostgreSQL. Saturates like [`Timestamp::to_date_time`].
    pub fn to_date_time(self) -> OffsetDateTime {
        let us = self.0.max(YEAR_ONE_MS * 1000);
        OffsetDateTime::UNIX_EPOCH.saturating_add(Duration::microseconds(us))
    }
}

impl fmt::Display for StoredMoment {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (ms, us) = (self.0.div_euclid(1000), self.0.rem_euclid(1000));
        if us == 0 { write!(text, "{ms}") } else { write!(text, "{ms}.{us:03}") }
    }
}

impl From<Timestamp> for StoredMoment {
    fn from(moment: Timestamp) -> Self {
        Self(moment.0.saturating_mul(1000))
    }
}

impl From<OffsetDateTime> for StoredMoment {
    fn from(moment: OffsetDateTime) -> Self {
        Self((moment.unix_timestamp_nanos() / 1000) as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_has_milliseconds_always() {
        for (ms, text) in [
            (1_767_225_600_007, "2026-01-01T00:00:00.007Z"),
            (0, "1970-01-01T00:00:00.000Z"),
            (i64::MIN, "0001-01-01T00:00:00.000Z"),
            (i64::MAX, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(Timestamp::from_ms(ms).to_rfc_3339(), text);
        }
    }

    #[test]
    fn a_stored_moment_is_whole_milliseconds_where_it_can_be() {
        for (us, text) in [(1_767_225_600_000_000, "1767225600000"), (7_012, "7.012"), (0, "0")] {
            assert_eq!(
                (StoredMoment(us).to_string().as_str(), StoredMoment::parse(text)),
                (text, Some(StoredMoment(us)))
            );
        }
        for text in ["", "-", "-1", "+1", "1.", "1.1", "1.0000", "1.-01", ".001", "x"] {
            assert_eq!(StoredMoment::parse(text), None, "{text}");
        }
    }
}
