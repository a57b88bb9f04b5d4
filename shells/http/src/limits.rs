//! Rate limits: so many requests a minute per key, evenly, with a quarter of a minute's worth at
//! once.

use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};

use governor::clock::{Clock, DefaultClock};
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};

/// Who may ask how often.
pub(crate) struct Limit<K: Clone + Eq + Hash, C: Clock = DefaultClock> {
    /// `None`: as often as they like
    limiter: Option<Limiter<K, C>>,
    asked: AtomicU32,
}

type Limiter<K, C> = RateLimiter<K, HashMapStateStore<K>, C, NoOpMiddleware<<C as Clock>::Instant>>;

impl<K: Clone + Eq + Hash> Limit<K> {
    /// `per_minute` requests a minute; 0 means no limit.
    pub(crate) fn new(per_minute: u32) -> Self {
        Self::with_clock(per_minute, DefaultClock::default())
    }
}

impl<K: Clone + Eq + Hash, C: Clock> Limit<K, C> {
    fn with_clock(per_minute: u32, clock: C) -> Self {
        let limiter = NonZeroU32::new(per_minute).map(|per_minute| {
            let at_once = NonZeroU32::new(per_minute.get() / 4).unwrap_or(NonZeroU32::MIN);
            let quota = Quota::per_minute(per_minute).allow_burst(at_once);
            RateLimiter::hashmap_with_clock(quota, clock)
        });
        Self { limiter, asked: AtomicU32::new(0) }
    }

    /// Takes one request's share.
    ///
    /// # Errors
    /// It is used up; the number of seconds after which it is worth trying again.
    pub(crate) fn take(&self, key: &K) -> Result<(), u64> {
        let Some(limiter) = &self.limiter else { return Ok(()) };
        if self.asked.fetch_add(1, Ordering::Relaxed) % FORGET_EVERY == FORGET_EVERY - 1 {
            limiter.retain_recent();
        }
        limiter.check_key(key).map_err(|refused| {
            let wait = refused.wait_time_from(limiter.clock().now());
            u64::try_from(wait.as_millis().div_ceil(1_000)).unwrap_or(u64::MAX).max(1)
        })
    }
}

/// After so many requests, keys that have used up nothing are forgotten.
const FORGET_EVERY: u32 = 10_000;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use governor::clock::FakeRelativeClock;

    use super::*;

    #[test]
    fn a_burst_is_a_quarter_of_a_minute_and_then_it_goes_evenly() {
        let clock = FakeRelativeClock::default();
        let limit = Limit::with_clock(60, clock.clone());
        for _ in 0..15 {
            assert_eq!(limit.take(&"a"), Ok(()));
        }
        assert_eq!(limit.take(&"a"), Err(1));
        assert_eq!(limit.take(&"b"), Ok(()), "another key");
        clock.advance(Duration::from_millis(999));
        assert_eq!(limit.take(&"a"), Err(1));
        clock.advance(Duration::from_millis(1));
        assert_eq!(limit.take(&"a"), Ok(()));
        assert_eq!(limit.take(&"a"), Err(1));
    }

    #[test]
    fn no_limit_is_none() {
        let limit = Limit::new(0);
        assert!((0..1_000).all(|_| limit.take(&"a").is_ok()));
    }

    #[test]
    fn even_a_rate_below_the_burst_lets_one_through() {
        let clock = FakeRelativeClock::default();
        let limit = Limit::with_clock(1, clock.clone());
        assert_eq!(limit.take(&"a"), Ok(()));
        assert_eq!(limit.take(&"a"), Err(60));
        clock.advance(Duration::from_secs(60));
        assert_eq!(limit.take(&"a"), Ok(()));
    }

    #[test]
    fn keys_of_long_ago_are_forgotten() {
        let clock = FakeRelativeClock::default();
        let limit = Limit::with_clock(60, clock.clone());
        for key in 0..FORGET_EVERY - 1 {
            assert_eq!(limit.take(&key), Ok(()));
        }
        clock.advance(Duration::from_secs(60));
        assert_eq!(limit.take(&0), Ok(()));
        assert_eq!(limit.limiter.map(|limiter| limiter.len()), Some(1));
    }
}
