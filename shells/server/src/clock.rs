//! The clocks and tasks of a real process.
#![expect(clippy::disallowed_methods, reason = "the one place that reads clocks")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use backfill_core::time::{Mono, StoreTime};
use backfill_driver::port::Runtime;
use rustix::time::{ClockId, clock_gettime};

/// Tokio, with a clock that counts through suspend.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokioRuntime;

impl Runtime for TokioRuntime {
    fn now(&self) -> Mono {
        let now = clock_gettime(ClockId::Boottime);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let millis = u64::try_from(now.tv_nsec / 1_000_000).unwrap_or(0);
        Mono::from_millis(seconds * 1_000 + millis)
    }

    fn sleep_until(&self, at: Mono) -> impl Future<Output = ()> + Send + 'static {
        let clock = *self;
        async move {
            loop {
                let left = at.since(clock.now());
                if left.is_zero() {
                    return;
                }
                // Tokio's timers stand still while the machine sleeps; the clock does not.
                tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
            }
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(task);
    }
}

/// What people call the time.
pub(crate) fn wall() -> StoreTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    StoreTime::from_micros(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}

const LONGEST_SLEEP: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sleep_ends_when_the_clock_says_so() {
        let clock = TokioRuntime;
        let at = clock.now() + Duration::from_millis(30);
        clock.sleep_until(at).await;
        assert!(clock.now() >= at);
    }
}
