//! What is counted and measured, and how Prometheus reads it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

/// Everything one process counts and measures.
pub struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    timed: AtomicU32,
}

impl Default for Metrics {
    /// Nothing has happened yet, and everything that can be counted is 0.
    fn default() -> Self {
        let builder = PrometheusBuilder::new().set_buckets(&BOUNDS);
        let recorder = builder.expect("there are bounds").build_recorder();
        let handle = recorder.handle();
        let metrics = Self { recorder, handle, timed: AtomicU32::new(0) };
        FAMILIES.iter().for_each(|family| metrics.begin(family));
        metrics
    }
}

impl Metrics {
    /// Adds to a counter.
    pub fn add(&self, name: &'static str, labels: &[(&'static str, &str)], by: u64) {
        self.counter(key(name, labels)).increment(by);
    }

    /// Shows a counter that is kept elsewhere.
    pub fn total(&self, name: &'static str, labels: &[(&'static str, &str)], total: u64) {
        self.counter(key(name, labels)).absolute(total);
    }

    /// Sets a gauge.
    pub fn set(&self, name: &'static str, labels: &[(&'static str, &str)], to: f64) {
        self.gauge(key(name, labels)).set(to);
    }

    /// Measures how long something took.
    pub fn time(&self, name: &'static str, labels: &[(&'static str, &str)], took: Duration) {
        self.histogram(key(name, labels)).record(took.as_secs_f64());
        // Samples are kept one by one until somebody asks for them, which may be never.
        if self.timed.fetch_add(1, Ordering::Relaxed) % SUM_UP_EVERY == SUM_UP_EVERY - 1 {
            self.handle.run_upkeep();
        }
    }

    /// All of it in Prometheus' text format.
    pub fn render(&self) -> String {
        self.handle.render()
    }

    fn begin(&self, family: &Family) {
        let name = KeyName::from_const_str(family.name);
        let about = family.about.into();
        match family.kind {
            Kind::Counter => self.recorder.describe_counter(name, None, about),
            Kind::Gauge => self.recorder.describe_gauge(name, None, about),
            Kind::Histogram => self.recorder.describe_histogram(name, None, about),
        }
        let mut combinations = vec![Vec::new()];
        for (label, values) in family.labels {
            combinations = combinations
                .iter()
                .flat_map(|given| values.iter().map(|v| [&given[..], &[(*label, *v)]].concat()))
                .collect();
        }
        for labels in combinations {
            let key = key(family.name, &labels);
            match family.kind {
                Kind::Counter => self.counter(key).increment(0),
                Kind::Gauge => self.gauge(key).set(0.0),
                Kind::Histogram => drop(self.histogram(key)),
            }
        }
    }

    fn counter(&self, key: Key) -> Counter {
        self.recorder.register_counter(&key, &METADATA)
    }

    fn gauge(&self, key: Key) -> Gauge {
        self.recorder.register_gauge(&key, &METADATA)
    }

    fn histogram(&self, key: Key) -> Histogram {
        self.recorder.register_histogram(&key, &METADATA)
    }
}

fn key(name: &'static str, labels: &[(&'static str, &str)]) -> Key {
    debug_assert!(described(name, labels), "{name} {labels:?} is not described");
    let labels: Vec<Label> =
        labels.iter().map(|(name, value)| Label::new(*name, (*value).to_owned())).collect();
    Key::from_parts(name, labels)
}

fn described(name: &str, labels: &[(&'static str, &str)]) -> bool {
    let Some(family) = FAMILIES.iter().find(|family| family.name == name) else { return false };
    let known = |((label, values), (given, value)): (&(&str, &[&str]), &(&str, &str))| {
        label == given && (values.is_empty() || values.contains(value))
    };
    labels.len() == family.labels.len() && family.labels.iter().zip(labels).all(known)
}

/// Metrics of one name.
struct Family {
    name: &'static str,
    kind: Kind,
    about: &'static str,
    /// Labels with all their values. Without values, a label's values are known only when they
    /// come, and the metric is not shown before.
    labels: &'static [(&'static str, &'static [&'static str])],
}

#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

use Kind::{Counter as Count, Gauge as Now, Histogram as Time};

const fn family(
    name: &'static str,
    kind: Kind,
    labels: &'static [(&'static str, &'static [&'static str])],
    about: &'static str,
) -> Family {
    Family { name, kind, about, labels }
}

const RUN: (&str, &[&str]) = ("kind", &["auto_backfill", "recent_sync"]);
const LEASE: (&str, &[&str]) = ("key", &["account", "auto_backfill", "lock", "recent_sync"]);

/// Everything there is.
const FAMILIES: &[Family] = &[
    family(
        "wa_build_info",
        Now,
        &[("version", &[]), ("commit", &[])],
        "Always 1; the labels say what runs.",
    ),
    family(
        "wa_mode",
        Now,
        &[("mode", &["active", "passive", "stepping_down"])],
        "1 for the mode this instance is in.",
    ),
    family("wa_accounts", Now, &[("status", STATUSES)], "Known accounts by status."),
    family(
        "wa_connections",
        Now,
        &[("state", &["connecting", "open"])],
        "Connections to WhatsApp of this instance by state.",
    ),
    family("wa_ticks_total", Count, &[RUN], "Scheduler ticks by kind of run."),
    family(
        "wa_runs_total",
        Count,
        &[RUN, ("trigger", &["connect", "manual", "periodic"])],
        "Runs started, by kind and trigger.",
    ),
    family(
        "wa_runs_ended_total",
        Count,
        &[RUN, ("outcome", &[])],
        "Runs ended, by kind and outcome: ok or the error's code.",
    ),
    family("wa_run_seconds", Time, &[RUN], "How long runs took."),
    family(
        "wa_run_skips_total",
        Count,
        &[
            RUN,
            ("reason", &["backoff", "cooldown", "held_by_other", "idle", "running", "tick_cap"]),
        ],
        "Accounts passed over, by kind of run and reason.",
    ),
    family(
        "wa_manual_backfills_total",
        Count,
        &[("caller", &["admin_token", "console", "firebase"])],
        "Backfills somebody asked for, by kind of caller.",
    ),
    family("wa_leases_taken_total", Count, &[LEASE], "Leases taken, by what they are about."),
    family("wa_leases_released_total", Count, &[LEASE], "Leases given back."),
    family("wa_leases_lost_total", Count, &[LEASE], "Leases lost against our will."),
    family(
        "wa_fenced_total",
        Count,
        &[LEASE],
        "Writes refused because somebody else owns the account now.",
    ),
    family(
        "wa_unknown_outcomes_total",
        Count,
        &[("key", &["account", "auto_backfill", "lock", "other", "recent_sync"])],
        "Commits whose outcome was unknown.",
    ),
    family("wa_sessions_marked_dead_total", Count, &[], "Expired sessions of others marked dead."),
    family("wa_incidents_total", Count, &[("kind", &[])], "Notes left for operators, by kind."),
    family(
        "wa_holes_open",
        Now,
        &[],
        "Threads whose history has an open hole, as far as seen here.",
    ),
    family(
        "wa_holes_total",
        Count,
        &[("change", &["exhausted", "filled", "suspected"])],
        "Holes suspected, filled and exhausted.",
    ),
    family(
        "wa_messages_total",
        Count,
        &[("source", &["backfill", "history_sync", "late_page", "realtime", "recent_sync"])],
        "Messages made durable, by how they came.",
    ),
    family("wa_spool_chunks", Now, &[], "History chunks that wait to be stored."),
    family("wa_hook_seconds", Time, &[], "From a message's arrival until it may be acknowledged."),
    family("wa_store_commit_seconds", Time, &[], "Latency of commits."),
    family("wa_store_read_seconds", Time, &[], "Latency of reads and queries."),
    family(
        "wa_store_failures_total",
        Count,
        &[("reason", &["conflict", "denied", "invalid", "unavailable", "unknown"])],
        "Calls of the store that failed, by reason.",
    ),
    family("wa_store_connected", Now, &[], "1 if the store answered the latest call."),
    family(
        "wa_store_operations_total",
        Count,
        &[("op", &["delete", "read", "write"])],
        "Billable operations of the store.",
    ),
    family(
        "wa_idle_operations_per_day",
        Now,
        &[("per", &["account", "instance"]), ("op", &["read", "write"])],
        "Billable operations a day that follow from the settings when nothing happens.",
    ),
    family(
        "wa_http_requests_total",
        Count,
        &[("route", &[]), ("method", &[]), ("status", &[])],
        "Requests by route, method and status.",
    ),
    family("wa_http_request_seconds", Time, &[("route", &[])], "How long requests took, by route."),
];

/// What an account's status can be.
pub(crate) const STATUSES: &[&str] = &[
    "awaiting_scan",
    "connected",
    "connecting",
    "deleted",
    "disconnected",
    "logged_out",
    "needs_qr",
    "qr_ready",
];

const METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

/// Upper bounds of the buckets, in seconds.
const BOUNDS: [f64; 12] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0];

/// After so many measurements they are summed up.
const SUM_UP_EVERY: u32 = 4_096;

#[cfg(test)]
mod tests {
    use super::*;

    fn shows(metrics: &Metrics, line: &str) -> bool {
        metrics.render().lines().any(|l| l == line)
    }

    #[test]
    fn what_was_counted_and_measured_is_shown() {
        let metrics = Metrics::default();
        metrics.add("wa_ticks_total", &[("kind", "recent_sync")], 2);
        metrics.total("wa_store_operations_total", &[("op", "read")], 7);
        metrics.set("wa_spool_chunks", &[], 3.0);
        metrics.time("wa_hook_seconds", &[], Duration::from_millis(20));
        metrics.time("wa_hook_seconds", &[], Duration::from_secs(900));
        for line in [
            "# TYPE wa_ticks_total counter",
            "# HELP wa_ticks_total Scheduler ticks by kind of run.",
            "wa_ticks_total{kind=\"recent_sync\"} 2",
            "wa_store_operations_total{op=\"read\"} 7",
            "wa_spool_chunks 3",
            "wa_hook_seconds_bucket{le=\"0.01\"} 0",
            "wa_hook_seconds_bucket{le=\"0.03\"} 1",
            "wa_hook_seconds_bucket{le=\"300\"} 1",
            "wa_hook_seconds_bucket{le=\"+Inf\"} 2",
            "wa_hook_seconds_count 2",
        ] {
            assert!(shows(&metrics, line), "{line} is missing in\n{}", metrics.render());
        }
    }

    #[test]
    fn what_can_happen_is_there_before_it_happens() {
        let metrics = Metrics::default();
        for line in [
            "wa_runs_total{kind=\"auto_backfill\",trigger=\"manual\"} 0",
            "wa_run_skips_total{kind=\"recent_sync\",reason=\"cooldown\"} 0",
            "wa_leases_lost_total{key=\"account\"} 0",
            "wa_sessions_marked_dead_total 0",
            "wa_connections{state=\"open\"} 0",
            "wa_store_commit_seconds_count 0",
        ] {
            assert!(shows(&metrics, line), "{line} is missing in\n{}", metrics.render());
        }
        let text = metrics.render();
        let absent: Vec<_> = (FAMILIES.iter())
            .filter(|family| family.labels.iter().all(|(_, values)| !values.is_empty()))
            .filter(|family| !text.contains(&format!("# TYPE {} ", family.name)))
            .map(|family| family.name)
            .collect();
        assert!(absent.is_empty(), "{absent:?}");
    }

    #[test]
    fn values_of_labels_that_are_not_described_are_noticed() {
        assert!(described("wa_holes_total", &[("change", "filled")]));
        assert!(!described("wa_holes_total", &[("change", "dug")]));
        assert!(!described("wa_holes_total", &[]));
        assert!(described("wa_incidents_total", &[("kind", "anything")]));
        assert!(!described("wa_unheard_of", &[]));
    }
}
