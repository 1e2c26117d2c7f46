//! The clock of the service. `now` is the time of the database, so that all replicas agree: monotonic time plus an
//! offset that [`Clock::take_over`] measures. This machine's clock decides nothing; it is read only to report its
//! difference from the database's. No other file reads a clock.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use tracing::{info, warn};

use crate::domain::timestamp::Timestamp;

/// Origin of monotonic time.
static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Larger differences are reported.
const WARN_US: u64 = 1_000_000;
/// Larger differences mean that one of the two clocks is wrong, because time synchronisation never leaves such a
/// difference.
const APART_US: u64 = 30_000_000;
/// For corrections up to this, `now` stands still instead of running backwards. Larger corrections take effect at once,
/// because standing still for so long would be worse.
const STANDSTILL_MAX_MS: i64 = 1000;
/// Nothing has been measured yet.
const UNKNOWN: i64 = i64::MIN;

/// A handle to the clock; all clones share it.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The time at [`ORIGIN`], in microseconds since the Unix epoch. Taken from this machine's clock until the
    /// database's has been measured.
    origin_us: AtomicI64,
    /// This machine's clock minus the database's, as last measured.
    offset_us: AtomicI64,
    /// Time of the last measurement, in monotonic microseconds.
    measured_us: AtomicI64,
    /// The latest result of `now`.
    latest_ms: AtomicI64,
    /// How far tests have moved the clock. The clocks of all databases share it.
    ahead_ms: Arc<AtomicI64>,
}

impl Default for Clock {
    fn default() -> Self {
        Self::moved_by(Arc::default())
    }
}

impl Clock {
    /// The clock of another database.
    pub fn of_another_database(&self) -> Self {
        Self::moved_by(self.0.ahead_ms.clone())
    }

    fn moved_by(ahead_ms: Arc<AtomicI64>) -> Self {
        let origin_us = machine_us().saturating_sub(monotonic_us(Instant::now()));
        Self(Arc::new(Inner {
            origin_us: AtomicI64::new(origin_us),
            offset_us: AtomicI64::new(UNKNOWN),
            measured_us: AtomicI64::new(UNKNOWN),
            latest_ms: AtomicI64::new(i64::MIN),
            ahead_ms,
        }))
    }

    /// The database's time. After a correction backwards of up to a second it stands still; after a larger one it runs
    /// backwards.
    pub fn now(&self) -> Timestamp {
        let inner = &self.0;
        let now_us = inner.origin_us.load(Ordering::Relaxed).saturating_add(monotonic_us(Instant::now()));
        let now_ms = now_us.div_euclid(1000).saturating_add(inner.ahead_ms.load(Ordering::Relaxed));
        let latest_ms = inner.latest_ms.fetch_max(now_ms, Ordering::Relaxed);
        if latest_ms.saturating_sub(now_ms) > STANDSTILL_MAX_MS {
            inner.latest_ms.store(now_ms, Ordering::Relaxed);
            return Timestamp::from_ms(now_ms);
        }
        Timestamp::from_ms(now_ms.max(latest_ms))
    }

    /// Milliseconds since an arbitrary moment of this process. Unaffected by corrections of the clock.
    pub fn elapsed_ms(&self) -> u64 {
        let elapsed_ms = monotonic_us(Instant::now()).unsigned_abs() / 1000;
        elapsed_ms.saturating_add_signed(self.0.ahead_ms.load(Ordering::Relaxed))
    }

    /// Applies a measurement: the database's clock showed `shown` at some moment between `sent` and `received`. The
    /// first measurement assumes the midpoint. Later ones move the time only as far as they prove necessary, so that
    /// varying network delays do not move it.
    pub fn take_over(&self, shown: OffsetDateTime, sent: Instant, received: Instant) {
        let shown_us = i64::try_from(shown.unix_timestamp_nanos() / 1000).unwrap_or(i64::MAX);
        let earliest_us = shown_us.saturating_sub(monotonic_us(received));
        let latest_us = shown_us.saturating_sub(monotonic_us(sent));
        let before_us = self.0.origin_us.load(Ordering::Relaxed);
        let known_offset_us = self.0.offset_us.load(Ordering::Relaxed);
        let origin_us = match known_offset_us {
            UNKNOWN => earliest_us.midpoint(latest_us),
            _ => before_us.clamp(earliest_us, latest_us.max(earliest_us)),
        };
        self.0.origin_us.store(origin_us, Ordering::Relaxed);
        let machine_origin_us = machine_us().saturating_sub(monotonic_us(Instant::now()));
        let offset_us = machine_origin_us.saturating_sub(origin_us);
        self.0.offset_us.store(offset_us, Ordering::Relaxed);
        self.0.measured_us.store(monotonic_us(received), Ordering::Relaxed);
        if known_offset_us != UNKNOWN && origin_us.abs_diff(before_us) > WARN_US {
            let offset = Offset(origin_us.saturating_sub(before_us));
            warn!(seconds = offset.seconds(), "the database's clock was set, or this process was suspended");
        }
        report(Offset::of(known_offset_us), Offset(offset_us));
    }

    /// This machine's clock minus the database's; `None` until it is measured.
    pub fn offset(&self) -> Option<Offset> {
        Offset::of(self.0.offset_us.load(Ordering::Relaxed))
    }

    pub fn is_measured_within(&self, limit: Duration) -> bool {
        let measured_us = self.0.measured_us.load(Ordering::Relaxed);
        monotonic_us(Instant::now()).saturating_sub(measured_us) <= micros(limit)
    }

    /// Moves the time of all clones, for tests.
    pub fn advance_ms(&self, ms: i64) {
        self.0.ahead_ms.fetch_add(ms, Ordering::Relaxed);
    }
}

/// This machine's clock minus the database's, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offset(i64);

impl Offset {
    fn of(us: i64) -> Option<Self> {
        (us != UNKNOWN).then_some(Self(us))
    }

    pub fn seconds(self) -> f64 {
        self.0 as f64 / 1e6
    }

    pub fn as_ms(self) -> i64 {
        self.0 / 1000
    }

    /// More than a second.
    pub fn is_large(self) -> bool {
        self.0.unsigned_abs() > WARN_US
    }

    /// More than thirty seconds. The process then neither deletes nor leases.
    pub fn is_apart(self) -> bool {
        self.0.unsigned_abs() > APART_US
    }
}

/// Logs when the clocks begin to differ, and when they agree again.
fn report(known: Option<Offset>, measured: Offset) {
    let seconds = measured.seconds();
    let was = |is: fn(Offset) -> bool| known.is_some_and(is);
    if measured.is_apart() && !was(Offset::is_apart) {
        warn!(
            seconds,
            "this machine's clock is far from the database's: this process neither prunes nor sends webhooks"
        );
    } else if measured.is_large() && !was(Offset::is_large) {
        warn!(seconds, "this machine's clock differs from the database's");
    } else if !measured.is_large() && was(Offset::is_large) {
        info!(seconds, "this machine's clock agrees with the database's again");
    }
}

/// This machine's time, for the time stamps of log lines.
pub fn machine_now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(machine_us()) * 1000).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// This machine's clock in microseconds since the Unix epoch; 0 if it is set before 1970.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
fn machine_us() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    micros(since_epoch)
}

/// Microseconds from [`ORIGIN`] to `moment`; negative before it.
fn monotonic_us(moment: Instant) -> i64 {
    let origin = *ORIGIN;
    match moment.checked_duration_since(origin) {
        Some(after) => micros(after),
        None => -micros(origin.duration_since(moment)),
    }
}

fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    /// Applies a measurement of a database that is `ms` ahead of this machine, with a round trip of `round_trip_ms`.
    fn measure(clock: &Clock, ms: i64, round_trip_ms: u64) {
        let received = Instant::now();
        let sent = received.checked_sub(Duration::from_millis(round_trip_ms)).expect("a moment");
        clock.take_over(shown(ms), sent, received);
    }

    /// This machine's time plus `ms`.
    fn shown(ms: i64) -> OffsetDateTime {
        Timestamp::from_ms(machine_us() / 1000 + ms).to_date_time()
    }

    /// Whether the clock is `ms` ahead of this machine's, within a tenth of a second.
    fn is_ahead(clock: &Clock, ms: i64) -> bool {
        (clock.now().as_ms() - machine_us() / 1000).abs_diff(ms) < 100
    }

    #[test]
    fn the_time_is_the_databases() {
        let clock = Clock::default();
        assert!(is_ahead(&clock, 0) && clock.offset().is_none());
        for ahead_ms in [25 * HOUR, -25 * HOUR, 0] {
            measure(&clock, ahead_ms, 0);
            assert!(is_ahead(&clock, ahead_ms), "{ahead_ms}");
            let offset = clock.offset().expect("an offset");
            assert!((offset.as_ms() + ahead_ms).abs() < 100 && offset.is_apart() == (ahead_ms != 0));
        }
    }

    #[test]
    fn the_first_round_trip_is_halved_and_later_ones_prove_what_they_can() {
        let clock = Clock::default();
        measure(&clock, 10_000, 4000);
        assert!(is_ahead(&clock, 12_000));
        // This measurement does not contradict the time.
        measure(&clock, 9_000, 8000);
        assert!(is_ahead(&clock, 12_000));
        // The first measurement proves 13 to 16 seconds ahead, the second 6 to 10.
        measure(&clock, 13_000, 3000);
        assert!(is_ahead(&clock, 13_000));
        measure(&clock, 6_000, 4000);
        assert!(is_ahead(&clock, 10_000));
    }

    #[test]
    fn a_small_correction_backwards_makes_the_clock_stand_still_and_a_large_one_sets_it() {
        let clock = Clock::default();
        measure(&clock, 10_000, 0);
        let before = clock.now();
        measure(&clock, 9_500, 0);
        assert_eq!(clock.now(), before);
        measure(&clock, 5_000, 0);
        assert!(is_ahead(&clock, 5_000));
    }

    #[test]
    fn an_offset_is_large_beyond_a_second_and_apart_beyond_thirty() {
        for (us, is_large, is_apart) in
            [(-1_000_000, false, false), (1_000_001, true, false), (30_000_000, true, false), (-30_000_001, true, true)]
        {
            let offset = Offset(us);
            assert_eq!((offset.is_large(), offset.is_apart()), (is_large, is_apart), "{us}");
        }
    }
}
