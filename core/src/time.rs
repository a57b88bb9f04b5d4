//! Two clocks that never mix: this process's own and the store's.

use std::ops::{Add, Sub};
use std::time::Duration;

/// This process's own monotonic clock, in milliseconds since an arbitrary origin.
///
/// It counts through suspend (`CLOCK_BOOTTIME` in production) and is used only for own deadlines
/// and timers. It says nothing about any other machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Mono(u64);

impl Mono {
    /// The clock's origin.
    pub const ZERO: Self = Self(0);
    /// A moment that never comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// The moment `ms` milliseconds after the origin.
    pub const fn from_millis(ms: u64) -> Self {
        Self(ms)
    }

    /// Milliseconds since the origin.
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// How long ago `earlier` was; zero if it has not come yet.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Mono {
    type Output = Self;

    fn add(self, d: Duration) -> Self {
        Self(self.0.saturating_add(millis(d)))
    }
}

impl Sub<Duration> for Mono {
    type Output = Self;

    fn sub(self, d: Duration) -> Self {
        Self(self.0.saturating_sub(millis(d)))
    }
}

/// The store's clock, in microseconds since the Unix epoch.
///
/// Comes only from a store: the read time of a read, the update time of a document, the commit
/// time of a commit. Never built from a client's wall clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct StoreTime(i64);

impl StoreTime {
    /// 1970-01-01T00:00:00Z.
    pub const EPOCH: Self = Self(0);

    /// The moment `us` microseconds after the Unix epoch.
    pub const fn from_micros(us: i64) -> Self {
        Self(us)
    }

    /// The moment `ms` milliseconds after the Unix epoch.
    pub const fn from_millis(ms: i64) -> Self {
        Self(ms.saturating_mul(1_000))
    }

    /// The moment `s` seconds after the Unix epoch.
    pub const fn from_secs(s: i64) -> Self {
        Self(s.saturating_mul(1_000_000))
    }

    /// Microseconds since the Unix epoch.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Whole milliseconds since the Unix epoch, rounded down.
    pub const fn as_millis(self) -> i64 {
        self.0.div_euclid(1_000)
    }

    /// Whole seconds since the Unix epoch, rounded down.
    pub const fn as_secs(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// How long ago `earlier` was; zero if it has not come yet.
    pub const fn since(self, earlier: Self) -> Duration {
        let us = self.0.saturating_sub(earlier.0);
        if us > 0 { Duration::from_micros(us.unsigned_abs()) } else { Duration::ZERO }
    }
}

impl Add<Duration> for StoreTime {
    type Output = Self;

    fn add(self, d: Duration) -> Self {
        Self(self.0.saturating_add(micros(d)))
    }
}

impl Sub<Duration> for StoreTime {
    type Output = Self;

    fn sub(self, d: Duration) -> Self {
        Self(self.0.saturating_sub(micros(d)))
    }
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

fn micros(d: Duration) -> i64 {
    i64::try_from(d.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arithmetic_saturates_instead_of_wrapping() {
        assert_eq!(Mono::NEVER + Duration::from_secs(1), Mono::NEVER);
        assert_eq!(Mono::ZERO - Duration::from_secs(1), Mono::ZERO);
        assert_eq!(StoreTime::from_secs(i64::MAX).as_micros(), i64::MAX);
        assert_eq!(
            StoreTime::from_micros(i64::MAX) + Duration::MAX,
            StoreTime::from_micros(i64::MAX)
        );
    }

    #[test]
    fn since_never_goes_negative() {
        assert_eq!(Mono::from_millis(5).since(Mono::from_millis(9)), Duration::ZERO);
        assert_eq!(StoreTime::from_millis(5).since(StoreTime::from_millis(9)), Duration::ZERO);
        assert_eq!(
            StoreTime::from_millis(9).since(StoreTime::from_millis(5)),
            Duration::from_millis(4)
        );
    }

    #[test]
    fn clocks_show_what_they_were_made_of() {
        assert_eq!(Mono::from_millis(1_234).as_millis(), 1_234);
        assert_eq!(StoreTime::from_secs(12), StoreTime::from_millis(12_000));
        assert_eq!(StoreTime::from_micros(12_345_678).as_secs(), 12);
        assert_eq!(StoreTime::from_micros(12_345_678).as_millis(), 12_345);
    }

    #[test]
    fn negative_times_round_down() {
        assert_eq!(StoreTime::from_micros(-1).as_millis(), -1);
        assert_eq!(StoreTime::from_micros(-1).as_secs(), -1);
    }
}
