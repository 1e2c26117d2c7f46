//! The time, everywhere: the database's, so that all replicas agree. `now` is monotonic time plus the offset to the
//! database's clock that [`Clock::take_over`] maintains. This machine's own clock decides nothing; it is compared with the
//! database's to report the difference. The only file that reads a clock.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;
use tracing::{info, warn};

use crate::domain::timestamp::Timestamp;

/// Monotonic time counts from here.
static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A difference that is reported.
const WARN_US: u64 = 1_000_000;
/// A difference that no working time synchronisation leaves: one of the two clocks is wrong, and nobody can tell which.
const APART_US: u64 = 30_000_000;
/// How far the time may be corrected backwards while `now` stands still instead. Larger corrections are steps, because to
/// wait for the database's clock would take too long.
const STANDSTILL_MAX_MS: i64 = 1000;
/// Marks that nothing was measured yet.
const UNKNOWN: i64 = i64::MIN;

/// A handle to the time; all clones show the same.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// What the deciding clock showed at [`ORIGIN`], in microseconds since the Unix epoch: this machine's clock until the
    /// database's was measured.
    origin_us: AtomicI64,
    /// This machine's clock minus the database's, as last measured.
    offset_us: AtomicI64,
    /// When that was, in monotonic microseconds.
    measured_us: AtomicI64,
    /// The latest that `now` returned.
    latest_ms: AtomicI64,
    /// How far tests have moved the time.
    ahead_ms: AtomicI64,
}

impl Default for Clock {
    fn default() -> Self {
        let origin_us = machine_us().saturating_sub(monotonic_us(Instant::now()));
        Self(Arc::new(Inner {
            origin_us: AtomicI64::new(origin_us),
            offset_us: AtomicI64::new(UNKNOWN),
            measured_us: AtomicI64::new(UNKNOWN),
            latest_ms: AtomicI64::new(i64::MIN),
            ahead_ms: AtomicI64::new(0),
        }))
    }
}

impl Clock {
    /// The database's time. It runs backwards only where a measurement says so, and by more than a second; for smaller
    /// corrections it stands still.
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

    /// Milliseconds that passed since some moment in the life of this process. Never steps, in either direction.
    pub fn elapsed_ms(&self) -> u64 {
        let elapsed_ms = monotonic_us(Instant::now()).unsigned_abs() / 1000;
        elapsed_ms.saturating_add_signed(self.0.ahead_ms.load(Ordering::Relaxed))
    }

    /// Takes over a measurement: the database's clock showed `shown` at some moment between `sent` and `received`. The
    /// first one counts as taken half-way. Later ones change the time by no more than they prove, so that it does not
    /// follow the varying delays of the network.
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

    /// How far this machine's clock is from the database's; none until it was measured.
    pub fn offset(&self) -> Option<Offset> {
        Offset::of(self.0.offset_us.load(Ordering::Relaxed))
    }

    pub fn is_measured_within(&self, limit: Duration) -> bool {
        let measured_us = self.0.measured_us.load(Ordering::Relaxed);
        monotonic_us(Instant::now()).saturating_sub(measured_us) <= micros(limit)
    }

    /// Moves the time of all clones, as tests do.
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

    /// Beyond a second.
    pub fn is_large(self) -> bool {
        self.0.unsigned_abs() > WARN_US
    }

    /// Beyond thirty seconds. Deleting and leasing then wait until the clocks agree.
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

/// This machine's time, for the log only: its other lines carry it, too.
pub fn machine_now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(machine_us()) * 1000).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// What this machine's clock shows, in microseconds since the Unix epoch. One set before 1970 shows 1970.
#[expect(clippy::disallowed_methods, reason = "this is the one place")]
fn machine_us() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    micros(since_epoch)
}

/// Microseconds from [`ORIGIN`] to `moment`, negative before it.
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

    /// A clock whose database is `ms` ahead of this machine, as a measurement of `round_trip_ms` shows it.
    fn measure(clock: &Clock, ms: i64, round_trip_ms: u64) {
        let received = Instant::now();
        let sent = received.checked_sub(Duration::from_millis(round_trip_ms)).expect("a moment");
        clock.take_over(shown(ms), sent, received);
    }

    /// This machine's time and `ms`.
    fn shown(ms: i64) -> OffsetDateTime {
        Timestamp::from_ms(machine_us() / 1000 + ms).to_date_time()
    }

    /// By how many milliseconds the clock is ahead of this machine's, give or take a tenth of a second.
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
        // It may have been so all the time.
        measure(&clock, 9_000, 8000);
        assert!(is_ahead(&clock, 12_000));
        // It was 13 to 16 seconds ahead, and then 6 to 10.
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
