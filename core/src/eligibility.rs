//! Who is due for a backfill now, and in which order.

use std::time::Duration;

use crate::account::Stamps;
use crate::bug::Bug;
use crate::host::Host;
use crate::io::{RunKind, Skip, Trigger};
use crate::time::StoreTime;

/// Whether an attempt was made so recently that no automatic run may start.
pub(crate) fn backs_off(host: &Host, stamps: &Stamps) -> bool {
    attempted(host, host.store_now(), stamps)
}

fn attempted(host: &Host, now: StoreTime, stamps: &Stamps) -> bool {
    let recent = within(now, stamps.last_auto_attempt_at, host.policy.auto_backfill.backoff);
    recent && !host.bug(Bug::BackoffIgnored)
}

/// How long it takes until an automatic run may start again after the last attempt.
pub(crate) fn backoff_left(host: &Host, stamps: &Stamps) -> Duration {
    if !backs_off(host, stamps) {
        return Duration::ZERO;
    }
    let since = stamps.last_auto_attempt_at.map_or(Duration::ZERO, |at| host.store_now().since(at));
    // A moment more: what the store's clock shows is an estimate.
    host.policy.auto_backfill.backoff.saturating_sub(since) + Duration::from_millis(100)
}

/// Why a run may not start `now`, by the store's clock, if it may not. Manual runs skip cooldown and
/// backoff, the run after a connect skips the cooldown.
pub(crate) fn refuses(
    host: &Host,
    now: StoreTime,
    stamps: &Stamps,
    kind: RunKind,
    trigger: Trigger,
) -> Option<Skip> {
    if kind == RunKind::RecentSync || trigger == Trigger::Manual {
        return None;
    }
    if host.bug(Bug::RunningTrusted) && stamps.running {
        return Some(Skip::Running);
    }
    let auto = &host.policy.auto_backfill;
    if attempted(host, now, stamps) {
        return Some(Skip::Backoff);
    }
    // Only a run that left nothing to do is stamped as a success: the others go on after the backoff.
    let recent = within(now, stamps.last_auto_success_at, auto.cooldown);
    if trigger == Trigger::Periodic && recent {
        return Some(Skip::Cooldown);
    }
    None
}

/// Since when an account has waited; who has waited longest comes first.
///
/// An attempt counts like a success: otherwise three accounts that fail fast win every tick.
pub(crate) fn waits_since(host: &Host, stamps: &Stamps) -> StoreTime {
    let success = stamps.last_auto_at;
    let attempt =
        if host.bug(Bug::OrderBySuccessAlone) { None } else { stamps.last_auto_attempt_at };
    success.max(attempt).unwrap_or_default()
}

/// Whether `at` was less than `span` ago. A stamp far ahead of the store's clock was not made by
/// it, and must not block an account until it comes true.
fn within(now: StoreTime, at: Option<StoreTime>, span: Duration) -> bool {
    at.is_some_and(|at| at + span > now && at <= now + span.max(AHEAD))
}

/// The store's clock may be ahead of its estimate by this much.
const AHEAD: Duration = Duration::from_secs(3_600);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::InstanceId;
    use crate::policy::{Policy, Settings};
    use crate::time::Mono;

    const NOW: StoreTime = StoreTime::from_secs(1_000_000);

    fn host() -> Host {
        let settings = Settings::exclusive(InstanceId::parse("i").unwrap());
        let mut host = Host::new(Policy::new(settings).unwrap(), [7; 32], Mono::from_millis(1));
        host.observe(NOW);
        host
    }

    fn with(mut stamps: Stamps, change: impl FnOnce(&mut Stamps)) -> Stamps {
        change(&mut stamps);
        stamps
    }

    fn ago(secs: u64) -> Option<StoreTime> {
        Some(NOW - Duration::from_secs(secs))
    }

    fn periodic(stamps: &Stamps) -> Option<Skip> {
        refuses(&host(), NOW, stamps, RunKind::AutoBackfill, Trigger::Periodic)
    }

    #[test]
    fn a_new_account_is_due() {
        assert_eq!(periodic(&Stamps::default()), None);
    }

    #[test]
    fn an_attempt_blocks_for_the_backoff_and_not_longer() {
        let tried = |secs| {
            with(Stamps::default(), |r| {
                r.last_auto_attempt_at = ago(secs);
            })
        };
        assert_eq!(periodic(&tried(599)), Some(Skip::Backoff));
        assert_eq!(periodic(&tried(600)), None);
    }

    #[test]
    fn after_the_backoff_is_left_no_attempt_is_too_early() {
        let host = host();
        let tried = |secs| with(Stamps::default(), |r| r.last_auto_attempt_at = ago(secs));
        for (secs, left) in [(0, 600), (1, 599), (599, 1)] {
            assert!(backs_off(&host, &tried(secs)));
            let wait = backoff_left(&host, &tried(secs));
            let more = wait.checked_sub(Duration::from_secs(left)).unwrap();
            assert!(Duration::ZERO < more && more < Duration::from_secs(1), "{wait:?}");
        }
        for rested in [tried(600), Stamps::default()] {
            assert!(!backs_off(&host, &rested));
            assert_eq!(backoff_left(&host, &rested), Duration::ZERO);
        }
    }

    #[test]
    fn a_complete_run_blocks_for_the_cooldown_an_incomplete_one_does_not() {
        let complete = |secs| {
            with(Stamps::default(), |r| {
                r.last_auto_success_at = ago(secs);
                r.last_auto_attempt_at = ago(secs);
            })
        };
        assert_eq!(periodic(&complete(21_599)), Some(Skip::Cooldown));
        assert_eq!(periodic(&complete(21_600)), None);
        let incomplete = with(Stamps::default(), |r| {
            r.last_auto_at = ago(700);
            r.last_auto_attempt_at = ago(700);
        });
        assert_eq!(periodic(&incomplete), None);
    }

    #[test]
    fn connecting_skips_the_cooldown_and_asking_skips_both() {
        let done = with(Stamps::default(), |r| {
            r.last_auto_success_at = ago(700);
            r.last_auto_attempt_at = ago(700);
        });
        let refused = |stamps: &Stamps, trigger| {
            refuses(&host(), NOW, stamps, RunKind::AutoBackfill, trigger)
        };
        assert_eq!(refused(&done, Trigger::Connect), None);
        let tried = with(done, |r| {
            r.last_auto_attempt_at = ago(5);
        });
        assert_eq!(refused(&tried, Trigger::Connect), Some(Skip::Backoff));
        assert_eq!(refused(&tried, Trigger::Manual), None);
        assert_eq!(refuses(&host(), NOW, &tried, RunKind::RecentSync, Trigger::Periodic), None);
    }

    #[test]
    fn what_says_running_without_a_lease_is_due() {
        assert_eq!(
            periodic(&with(Stamps::default(), |r| {
                r.running = true;
            })),
            None
        );
    }

    #[test]
    fn stamps_from_the_far_future_block_nobody() {
        let ahead = Some(NOW + Duration::from_secs(400 * 24 * 3_600));
        let stamps = with(Stamps::default(), |r| {
            r.last_auto_attempt_at = ahead;
            r.last_auto_success_at = ahead;
        });
        assert_eq!(periodic(&stamps), None);
    }

    #[test]
    fn who_has_waited_longest_comes_first_and_failures_count() {
        let host = host();
        let fails = with(Stamps::default(), |r| {
            r.last_auto_attempt_at = ago(700);
        });
        let waits = with(Stamps::default(), |r| {
            r.last_auto_at = ago(900);
            r.last_auto_attempt_at = ago(900);
        });
        let since = [Stamps::default(), waits, fails].map(|stamps| waits_since(&host, &stamps));
        assert!(since.is_sorted(), "{since:?}");
        assert_eq!(Some(since[2]), ago(700));
    }
}
