//! Who is due for a backfill now, and in which order.

use crate::account::Record;
use crate::bug::Bug;
use crate::host::Host;
use crate::id::AccountId;
use crate::io::{RunKind, Skip, Trigger};
use crate::time::StoreTime;

/// Whether an attempt was made so recently that no automatic run may start.
pub(crate) fn backs_off(host: &Host, record: &Record) -> bool {
    let backoff = host.policy.auto_backfill.backoff;
    record.last_auto_attempt_at.is_some_and(|at| at + backoff > host.store_now())
}

/// Why a run may not start now, if it may not. Manual runs skip cooldown and backoff, the run
/// after a connect skips the cooldown.
pub(crate) fn refuses(
    host: &Host,
    record: &Record,
    kind: RunKind,
    trigger: Trigger,
) -> Option<Skip> {
    if kind == RunKind::RecentSync || trigger == Trigger::Manual {
        return None;
    }
    if host.bug(Bug::RunningTrusted) && record.running {
        return Some(Skip::Running);
    }
    if backs_off(host, record) {
        return Some(Skip::Backoff);
    }
    // Only a run that left nothing to do is stamped as a success: the others go on after the backoff.
    let cooldown = host.policy.auto_backfill.cooldown;
    let recent = record.last_auto_success_at.is_some_and(|at| at + cooldown > host.store_now());
    if trigger == Trigger::Periodic && recent {
        return Some(Skip::Cooldown);
    }
    None
}

/// Sorts accounts by how long they have waited, then by id.
///
/// An attempt counts like a success: otherwise three accounts that fail fast win every tick.
pub(crate) fn order<'a>(
    host: &Host,
    record: &Record,
    id: &'a AccountId,
) -> (StoreTime, &'a AccountId) {
    let success = record.last_auto_at;
    let attempt =
        if host.bug(Bug::OrderBySuccessAlone) { None } else { record.last_auto_attempt_at };
    (success.max(attempt).unwrap_or_default(), id)
}
