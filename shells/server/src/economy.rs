//! What an idle instance costs, among the metrics.

use backfill_core::policy::Policy;
use backfill_driver::billing::PerDay;
use wa_http::metrics::Metrics;

/// Shows the billable operations that follow from the settings alone.
pub(crate) fn show(metrics: &Metrics, policy: &Policy) {
    for (per, day) in
        [("instance", PerDay::of_instance(policy)), ("account", PerDay::of_account(policy))]
    {
        let name = "wa_idle_operations_per_day";
        metrics.set(name, &[("per", per), ("op", "read")], day.reads);
        metrics.set(name, &[("per", per), ("op", "write")], day.writes);
    }
}
