//! A moment, as the API and the database show it: whole milliseconds since the Unix epoch.

use schemars::JsonSchema;
use serde::Serialize;
use time::{Duration, OffsetDateTime};

/// Milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, JsonSchema, Serialize)]
#[serde(transparent)]
pub struct Timestamp(i64);

/// 0001-01-01T00:00:00Z.
const YEAR_ONE_MS: i64 = -62_135_596_800_000;

impl Timestamp {
    pub const fn from_ms(ms: i64) -> Self {
        Self(ms)
    }

    /// Digits, as cursors hold them.
    pub fn parse(digits: &str) -> Option<Self> {
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok().map(Self))?
    }

    pub const fn as_ms(self) -> i64 {
        self.0
    }

    pub const fn plus_ms(self, ms: i64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// The value as PostgreSQL's `timestamptz` takes it. Moments outside the calendar's range saturate: after the year
    /// 9999 as those of [`OffsetDateTime`] do, and before the year 1, because PostgreSQL's calendar begins later than that.
    pub fn to_date_time(self) -> OffsetDateTime {
        let ms = self.0.max(YEAR_ONE_MS);
        OffsetDateTime::UNIX_EPOCH.saturating_add(Duration::milliseconds(ms))
    }
}

impl From<OffsetDateTime> for Timestamp {
    fn from(moment: OffsetDateTime) -> Self {
        // A calendar date always fits: 64 bits of milliseconds span 292 million years.
        Self((moment.unix_timestamp_nanos() / 1_000_000) as i64)
    }
}
