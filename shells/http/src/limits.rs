//! Rate limits: so many requests a minute per key, evenly, with a quarter of a minute's worth at
//! once.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use backfill_core::time::Mono;

/// Who may ask how often.
#[derive(Debug)]
pub(crate) struct Limit<K> {
    /// Milliseconds that one request uses up; 0 for no limit
    cost: u64,
    /// Per key: until when its requests so far have used up its share
    used: Mutex<BTreeMap<K, u64>>,
}

impl<K: Ord> Limit<K> {
    /// `per_minute` requests a minute; 0 means no limit.
    pub(crate) fn new(per_minute: u32) -> Self {
        let cost = if per_minute == 0 { 0 } else { (MINUTE / u64::from(per_minute)).max(1) };
        Self { cost, used: Mutex::default() }
    }

    /// Takes one request's share.
    ///
    /// # Errors
    /// It is used up; the number of seconds after which it is worth trying again.
    pub(crate) fn take(&self, key: K, now: Mono) -> Result<(), u64> {
        if self.cost == 0 {
            return Ok(());
        }
        let now = now.as_millis();
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.len() >= MOST_KEYS {
            used.retain(|_, until| *until > now);
        }
        if used.len() >= MOST_KEYS && !used.contains_key(&key) {
            return Err(MINUTE / 1_000);
        }
        let until = used.entry(key).or_insert(now);
        let next = (*until).max(now) + self.cost;
        if next > now + (MINUTE / 4).max(self.cost) {
            let wait = next - now - (MINUTE / 4).max(self.cost);
            return Err(wait.div_ceil(1_000));
        }
        *until = next;
        Ok(())
    }
}

const MINUTE: u64 = 60_000;
/// More keys than this within a minute are an attack.
const MOST_KEYS: usize = 50_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_a_quarter_of_a_minute_and_then_it_goes_evenly() {
        let limit = Limit::new(60);
        let at = Mono::from_millis;
        for _ in 0..15 {
            assert_eq!(limit.take("a", at(0)), Ok(()));
        }
        assert_eq!(limit.take("a", at(0)), Err(1));
        assert_eq!(limit.take("b", at(0)), Ok(()), "another key");
        assert_eq!(limit.take("a", at(999)), Err(1));
        assert_eq!(limit.take("a", at(1_000)), Ok(()));
        assert_eq!(limit.take("a", at(1_000)), Err(1));
    }

    #[test]
    fn no_limit_is_none() {
        let limit = Limit::new(0);
        assert!((0..1_000).all(|_| limit.take("a", Mono::ZERO).is_ok()));
    }

    #[test]
    fn even_a_rate_below_the_burst_lets_one_through() {
        let limit = Limit::new(1);
        assert_eq!(limit.take("a", Mono::ZERO), Ok(()));
        assert_eq!(limit.take("a", Mono::from_millis(59_999)), Err(1));
        assert_eq!(limit.take("a", Mono::from_millis(60_000)), Ok(()));
    }
}
