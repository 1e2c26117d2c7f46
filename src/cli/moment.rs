//! Moments on the command line: a date, a time, or how long ago.

use time::format_description::well_known::Rfc3339;
use time::macros::format_description;
use time::{Date, OffsetDateTime};

use crate::domain::timestamp::Timestamp;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    At(Timestamp),
    AgoMs(i64),
}

/// How moments are written, for the help.
pub const FORMS: &str = "2026-11-24, 2026-11-24T09:30:00Z, or how long ago: 90s, 30m, 12h, 7d";

impl Moment {
    pub fn parse(text: &str) -> Result<Self, String> {
        ago_ms(text).map(Self::AgoMs).or_else(|| at(text).map(Self::At)).ok_or_else(|| format!("expected {FORMS}"))
    }

    pub fn before(self, now: Timestamp) -> Timestamp {
        match self {
            Self::At(moment) => moment,
            Self::AgoMs(ms) => now.plus_ms(-ms),
        }
    }
}

fn ago_ms(text: &str) -> Option<i64> {
    let unit_ms = match text.chars().last()? {
        's' => 1000,
        'm' => 60_000,
        'h' => 3_600_000,
        'd' => 86_400_000,
        _ => return None,
    };
    let digits = &text[..text.len() - 1];
    let is_digits = digits.bytes().all(|byte| byte.is_ascii_digit());
    is_digits.then(|| digits.parse::<u32>().ok())?.map(|count| i64::from(count) * unit_ms)
}

fn at(text: &str) -> Option<Timestamp> {
    if let Ok(date) = Date::parse(text, format_description!("[year]-[month]-[day]")) {
        return Some(date.midnight().assume_utc().into());
    }
    OffsetDateTime::parse(text, &Rfc3339).ok().map(Timestamp::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_date_a_time_or_how_long_ago() {
        let now = Timestamp::from_ms(1_767_225_600_000);
        for (text, shown) in [
            ("2026-01-01", "2026-01-01T00:00:00.000Z"),
            ("2026-01-01T01:00:00.5+01:00", "2026-01-01T00:00:00.500Z"),
            ("90s", "2025-12-31T23:58:30.000Z"),
            ("30m", "2025-12-31T23:30:00.000Z"),
            ("0h", "2026-01-01T00:00:00.000Z"),
            ("7d", "2025-12-25T00:00:00.000Z"),
        ] {
            assert_eq!(Moment::parse(text).expect(text).before(now).to_rfc_3339(), shown);
        }
        for text in
            ["", "d", "-1d", "1w", "1.5h", "yesterday", "2026-13-01", "2026-01-01T00:00:00", "99999999999d", "1é"]
        {
            assert!(Moment::parse(text).is_err(), "{text}");
        }
    }
}
