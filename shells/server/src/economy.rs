//! What an idle instance costs: billable operations that follow from the settings alone.

use std::time::Duration;

use backfill_core::policy::{InstanceMode, Policy};
use wa_http::metrics::Metrics;

/// Operations a day.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct PerDay {
    /// Documents read
    pub(crate) reads: f64,
    /// Documents written
    pub(crate) writes: f64,
}

/// Of one instance that serves and has no accounts.
pub(crate) fn per_instance(policy: &Policy) -> PerDay {
    let shared = matches!(policy.mode, InstanceMode::Shared { .. });
    let polls = daily(if shared { policy.session_term / 3 } else { policy.session_term * 4 });
    // Lock and compat lock, and at least the own session.
    let lock_reads = polls * 3.0;
    // Accounts, and sessions that have been dead for long; none of either is one read each.
    let scan_reads = daily(policy.account_scan) * 2.0;
    // In exclusive mode the compat lock is renewed along with the session.
    let renewals = daily(policy.session_renewal) * if shared { 1.0 } else { 2.0 };
    PerDay { reads: lock_reads + scan_reads, writes: renewals }
}

/// Of one account that is connected and in which nothing happens. That accounts are connected
/// costs the instance one read per outbox poll besides, however many they are.
pub(crate) fn per_account(policy: &Policy) -> PerDay {
    // The stamp of the gap filler: the account, its order of writes and the fence.
    let stamps = if policy.recent_sync.enabled { daily(policy.idle_stamp) * 3.0 } else { 0.0 };
    PerDay { reads: daily(policy.account_scan), writes: stamps }
}

/// The outbox polls of one instance with connected accounts.
pub(crate) fn outbox_reads(policy: &Policy) -> f64 {
    daily(policy.outbox.poll)
}

/// Shows it among the metrics.
pub(crate) fn show(metrics: &Metrics, policy: &Policy) {
    let name = "wa_idle_operations_per_day";
    let (instance, account) = (per_instance(policy), per_account(policy));
    metrics.set(
        name,
        &[("per", "instance"), ("op", "read")],
        instance.reads + outbox_reads(policy),
    );
    metrics.set(name, &[("per", "instance"), ("op", "write")], instance.writes);
    metrics.set(name, &[("per", "account"), ("op", "read")], account.reads);
    metrics.set(name, &[("per", "account"), ("op", "write")], account.writes);
}

fn daily(every: Duration) -> f64 {
    86_400.0 / every.as_secs_f64().max(0.001)
}

#[cfg(test)]
mod tests {
    use backfill_core::id::InstanceId;
    use backfill_core::policy::Settings;

    use super::*;

    #[test]
    fn the_defaults_cost_what_the_documentation_says() {
        let id = InstanceId::parse("i").unwrap();
        let policy = Policy::new(Settings::exclusive(id)).unwrap();
        assert_eq!(per_instance(&policy), PerDay { reads: 1_008.0, writes: 5_760.0 });
        assert_eq!(per_account(&policy), PerDay { reads: 144.0, writes: 288.0 });
        assert!((outbox_reads(&policy) - 2_880.0).abs() < 1e-9);
    }
}
