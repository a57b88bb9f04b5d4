//! Real time, and the clocks that run beside it.

use backfill_core::time::{Mono, StoreTime};
use serde::{Deserialize, Serialize};

/// Milliseconds since the world began: the axis that nobody in the world can read.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Real(pub u64);

impl Real {
    /// When the world begins.
    pub const ZERO: Self = Self(0);
    /// A moment that never comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// `ms` later.
    #[must_use]
    pub const fn after(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }

    /// Milliseconds since `earlier`; zero if it has not come yet.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// WhatsApp's clock, which is right: seconds since the Unix epoch.
    pub const fn second(self) -> i64 {
        GENESIS_SECOND + (self.0 / 1_000) as i64
    }
}

/// When the world begins, in seconds since the Unix epoch.
pub const GENESIS_SECOND: i64 = 1_800_000_000;

/// How one clock runs: a start value, and its rate from certain moments on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockPlan {
    /// What it shows when the world begins, in milliseconds after its own origin
    pub start: u64,
    /// Rates in parts per million beside real time; −1,000,000 stands still. In order of time; the
    /// rate before the first is exact
    pub rates: Vec<(Real, i32)>,
    /// Jumps forward, in milliseconds, in order of time
    pub steps: Vec<(Real, u64)>,
}

impl ClockPlan {
    /// A clock whose rate never changes.
    pub fn steady(start: u64, ppm: i32) -> Self {
        Self { start, rates: vec![(Real::ZERO, ppm)], steps: Vec::new() }
    }
}

/// A clock that runs as planned.
#[derive(Clone, Debug)]
pub struct Clock {
    /// (from, value then, ppm), in order; never empty
    segments: Vec<(Real, u64, i32)>,
    /// As the store's, what it shows at its origin: milliseconds since the Unix epoch
    origin: i64,
    /// The segment that was looked at last: time mostly goes forward
    last: std::cell::Cell<usize>,
}

impl Clock {
    /// The clock of a plan.
    pub fn new(plan: &ClockPlan) -> Self {
        let mut edges: Vec<(Real, Option<i32>, u64)> = Vec::new();
        edges.extend(plan.rates.iter().map(|(at, ppm)| (*at, Some((*ppm).max(-1_000_000)), 0)));
        edges.extend(plan.steps.iter().map(|(at, ms)| (*at, None, *ms)));
        edges.sort_by_key(|(at, ..)| *at);
        let mut segments = vec![(Real::ZERO, plan.start, 0)];
        for (at, ppm, step) in edges {
            let (from, value, old) = segments[segments.len() - 1];
            let now = run(value, at.since(from), old).saturating_add(step);
            let segment = (at, now, ppm.unwrap_or(old));
            if at == from {
                segments.pop();
            }
            segments.push(segment);
        }
        Self { segments, origin: GENESIS_SECOND * 1_000, last: std::cell::Cell::new(0) }
    }

    /// The clock of a store in a world that began at another time.
    #[must_use]
    pub fn with_origin(self, origin: StoreTime) -> Self {
        Self { origin: origin.as_millis(), ..self }
    }

    /// What it shows, in milliseconds after its origin.
    pub fn at(&self, real: Real) -> u64 {
        let (from, value, ppm) = self.segments[self.segment(real)];
        run(value, real.since(from), ppm)
    }

    /// The first moment at which it shows `value` or more.
    pub fn when(&self, value: u64) -> Real {
        for (i, (from, at, ppm)) in self.segments.iter().enumerate().skip(self.likely(value)) {
            let end = self.segments.get(i + 1).map_or(Real::NEVER, |(next, ..)| *next);
            if value <= *at {
                return *from;
            }
            if let Some(ms) = time_to_run(value - at, *ppm) {
                let real = from.after(ms);
                if real < end {
                    return real;
                }
            }
        }
        Real::NEVER
    }

    /// The same clock, as a process's own.
    pub fn mono(&self, real: Real) -> Mono {
        Mono::from_millis(self.at(real))
    }

    /// The same clock, as the store's.
    pub fn store(&self, real: Real) -> StoreTime {
        StoreTime::from_millis(self.origin + self.at(real) as i64)
    }

    /// The first moment at which the store shows `time` or later.
    pub fn when_store(&self, time: StoreTime) -> Real {
        self.when(u64::try_from(time.as_millis() - self.origin).unwrap_or(0))
    }

    fn segment(&self, real: Real) -> usize {
        if self.segments.len() == 1 {
            return 0;
        }
        let mut i = self.last.get();
        if self.segments[i].0 > real {
            i = 0;
        }
        while self.segments.get(i + 1).is_some_and(|(from, ..)| *from <= real) {
            i += 1;
        }
        self.last.set(i);
        i
    }

    /// A segment that is not after the one in which `value` is first shown.
    fn likely(&self, value: u64) -> usize {
        let i = self.last.get();
        if self.segments[i].1 < value { i } else { 0 }
    }
}

fn run(value: u64, ms: u64, ppm: i32) -> u64 {
    let ppm = i64::from(ppm);
    let (millions, rest) = ((ms / 1_000_000) as i64, (ms % 1_000_000) as i64);
    let ahead = millions.saturating_mul(ppm).saturating_add((rest * ppm).div_euclid(1_000_000));
    value.saturating_add(ms).saturating_add_signed(ahead)
}

/// After how many real milliseconds a clock of this rate has gone `value` on; `None` for never.
fn time_to_run(value: u64, ppm: i32) -> Option<u64> {
    let rate = u64::try_from(1_000_000 + i64::from(ppm)).ok().filter(|rate| *rate > 0)?;
    let (whole, rest) = (value / rate, value % rate);
    let mut ms = whole.checked_mul(1_000_000)?.checked_add(rest * 1_000_000 / rate)?;
    // `run` rounds down, so the exact quotient can be one short.
    while run(0, ms, ppm) < value {
        ms += 1;
    }
    Some(ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn when_is_the_first_moment_that_shows_the_value() {
        for ppm in [-500_000, -9_900, -1, 0, 1, 9_900, 500_000] {
            let clock = Clock::new(&ClockPlan::steady(1_000, ppm));
            for value in [0, 1_000, 1_001, 1_999, 54_321, 3_600_000] {
                let real = clock.when(value);
                assert!(clock.at(real) >= value, "{ppm} {value}");
                if real > Real::ZERO {
                    assert!(clock.at(Real(real.0 - 1)) < value, "{ppm} {value}");
                }
            }
        }
    }

    #[test]
    fn rates_change_steps_jump_and_a_stopped_clock_stands() {
        let plan = ClockPlan {
            start: 0,
            rates: vec![(Real(1_000), -1_000_000), (Real(2_000), 0)],
            steps: vec![(Real(3_000), 500)],
        };
        let clock = Clock::new(&plan);
        let shown: Vec<u64> =
            [0, 1_000, 1_500, 2_000, 2_500, 2_999, 3_000].map(|ms| clock.at(Real(ms))).into();
        assert_eq!(shown, [0, 1_000, 1_000, 1_000, 1_500, 1_999, 2_500]);
        assert_eq!(clock.when(1_200), Real(2_200));
        assert_eq!(clock.when(2_100), Real(3_000));
        assert_eq!(clock.at(Real(0)), 0);
    }
}
