//! What is counted and measured, and how Prometheus reads it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Everything one process counts and measures.
#[derive(Debug, Default)]
pub struct Metrics(Mutex<BTreeMap<Key, Measured>>);

type Key = (&'static str, Vec<(&'static str, String)>);

#[derive(Clone, Debug)]
enum Measured {
    Counter(u64),
    Gauge(f64),
    Histogram { buckets: [u64; BOUNDS.len()], sum: f64, count: u64 },
}

impl Metrics {
    /// Adds to a counter.
    pub fn add(&self, name: &'static str, labels: &[(&'static str, &str)], by: u64) {
        if let Measured::Counter(n) =
            self.lock().entry(key(name, labels)).or_insert(Measured::Counter(0))
        {
            *n = n.saturating_add(by);
        }
    }

    /// Shows a counter that is kept elsewhere.
    pub fn total(&self, name: &'static str, labels: &[(&'static str, &str)], total: u64) {
        self.lock().insert(key(name, labels), Measured::Counter(total));
    }

    /// Sets a gauge.
    pub fn set(&self, name: &'static str, labels: &[(&'static str, &str)], to: f64) {
        self.lock().insert(key(name, labels), Measured::Gauge(to));
    }

    /// Measures how long something took.
    pub fn time(&self, name: &'static str, labels: &[(&'static str, &str)], took: Duration) {
        let empty = Measured::Histogram { buckets: [0; BOUNDS.len()], sum: 0.0, count: 0 };
        if let Measured::Histogram { buckets, sum, count } =
            self.lock().entry(key(name, labels)).or_insert(empty)
        {
            let seconds = took.as_secs_f64();
            if let Some(at) = BOUNDS.iter().position(|bound| seconds <= *bound) {
                buckets[at] += 1;
            }
            *sum += seconds;
            *count += 1;
        }
    }

    /// What a counter shows, summed over all labels that are not given.
    pub fn count(&self, name: &str, labels: &[(&'static str, &str)]) -> u64 {
        let measured = self.lock();
        let matching = measured.iter().filter(|((of, with), _)| {
            *of == name && labels.iter().all(|(k, v)| with.iter().any(|(l, w)| l == k && w == v))
        });
        matching.map(|(_, m)| if let Measured::Counter(n) = m { *n } else { 0 }).sum()
    }

    /// All of it in Prometheus' text format.
    pub fn render(&self) -> String {
        let measured = self.lock();
        let mut text = String::new();
        for (name, kind, help) in FAMILIES {
            let of_family = measured.range((*name, Vec::new())..);
            let mut lines = of_family.take_while(|((of, _), _)| of == name).peekable();
            if lines.peek().is_none() && *kind != "counter" {
                continue;
            }
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for ((_, labels), measured) in lines {
                measured.render(&mut text, name, labels);
            }
        }
        text
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Measured>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Measured {
    fn render(&self, text: &mut String, name: &str, labels: &[(&'static str, String)]) {
        // Writing to a String cannot fail.
        let _ = match self {
            Self::Counter(n) => writeln!(text, "{name}{} {n}", shown(labels, None)),
            Self::Gauge(x) => writeln!(text, "{name}{} {x}", shown(labels, None)),
            Self::Histogram { buckets, sum, count } => {
                let mut below = 0;
                for (bound, n) in BOUNDS.iter().zip(buckets) {
                    below += n;
                    let le = shown(labels, Some(&bound.to_string()));
                    let _ = writeln!(text, "{name}_bucket{le} {below}");
                }
                let _ = writeln!(text, "{name}_bucket{} {count}", shown(labels, Some("+Inf")));
                let _ = writeln!(text, "{name}_sum{} {sum}", shown(labels, None));
                writeln!(text, "{name}_count{} {count}", shown(labels, None))
            }
        };
    }
}

fn key(name: &'static str, labels: &[(&'static str, &str)]) -> Key {
    debug_assert!(FAMILIES.iter().any(|(family, ..)| *family == name), "{name} is not described");
    (name, labels.iter().map(|(k, v)| (*k, (*v).to_owned())).collect())
}

fn shown(labels: &[(&'static str, String)], le: Option<&str>) -> String {
    let own = labels.iter().map(|(k, v)| (*k, v.as_str()));
    let all: Vec<String> = own
        .chain(le.map(|le| ("le", le)))
        .map(|(k, v)| {
            let v = v.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            format!("{k}=\"{v}\"")
        })
        .collect();
    if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) }
}

/// Upper bounds of the buckets, in seconds.
const BOUNDS: [f64; 12] = [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0];

/// Name, kind, and what it means.
const FAMILIES: &[(&str, &str, &str)] = &[
    ("wa_build_info", "gauge", "Always 1; the labels say what runs."),
    ("wa_mode", "gauge", "1 for the mode this instance is in."),
    ("wa_accounts", "gauge", "Known accounts by status."),
    ("wa_connections", "gauge", "Connections to WhatsApp of this instance by state."),
    ("wa_ticks_total", "counter", "Scheduler ticks by kind of run."),
    ("wa_runs_total", "counter", "Runs started, by kind and trigger."),
    ("wa_runs_ended_total", "counter", "Runs ended, by kind and outcome."),
    ("wa_run_seconds", "histogram", "How long runs took."),
    ("wa_run_skips_total", "counter", "Accounts passed over, by kind of run and reason."),
    ("wa_manual_backfills_total", "counter", "Backfills somebody asked for, by kind of caller."),
    ("wa_leases_taken_total", "counter", "Leases taken, by what they are about."),
    ("wa_leases_released_total", "counter", "Leases given back."),
    ("wa_leases_lost_total", "counter", "Leases lost against our will."),
    ("wa_fenced_total", "counter", "Writes refused because somebody else owns the account now."),
    ("wa_unknown_outcomes_total", "counter", "Commits whose outcome was unknown."),
    ("wa_sessions_marked_dead_total", "counter", "Expired sessions of others marked dead."),
    ("wa_incidents_total", "counter", "Notes left for operators, by kind."),
    ("wa_holes_open", "gauge", "Threads whose history has an open hole, as far as seen here."),
    ("wa_holes_total", "counter", "Holes suspected, filled and exhausted."),
    ("wa_messages_total", "counter", "Messages made durable, by how they came."),
    ("wa_spool_chunks", "gauge", "History chunks that wait to be stored."),
    ("wa_hook_seconds", "histogram", "From a message's arrival until it may be acknowledged."),
    ("wa_store_commit_seconds", "histogram", "Latency of commits."),
    ("wa_store_read_seconds", "histogram", "Latency of reads and queries."),
    ("wa_store_failures_total", "counter", "Calls of the store that failed, by reason."),
    ("wa_store_connected", "gauge", "1 if the store answered the latest call."),
    ("wa_store_operations_total", "counter", "Billable operations of the store."),
    (
        "wa_idle_operations_per_day",
        "gauge",
        "Billable operations a day that follow from the settings when nothing happens.",
    ),
    ("wa_http_requests_total", "counter", "Requests by route and status."),
    ("wa_http_request_seconds", "histogram", "How long requests took, by route."),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_gauges_and_histograms_are_rendered() {
        let metrics = Metrics::default();
        metrics.add("wa_ticks_total", &[("kind", "recent_sync")], 2);
        metrics.set("wa_spool_chunks", &[], 3.0);
        metrics.time("wa_hook_seconds", &[], Duration::from_millis(20));
        metrics.time("wa_hook_seconds", &[], Duration::from_secs(900));
        let text = metrics.render();
        for line in [
            "# TYPE wa_ticks_total counter",
            "wa_ticks_total{kind=\"recent_sync\"} 2",
            "wa_spool_chunks 3",
            "wa_hook_seconds_bucket{le=\"0.01\"} 0",
            "wa_hook_seconds_bucket{le=\"0.03\"} 1",
            "wa_hook_seconds_bucket{le=\"300\"} 1",
            "wa_hook_seconds_bucket{le=\"+Inf\"} 2",
            "wa_hook_seconds_count 2",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
        assert!(!text.contains("wa_mode"), "nothing is known of it");
    }

    #[test]
    fn labels_are_escaped() {
        let metrics = Metrics::default();
        metrics.add("wa_ticks_total", &[("kind", "a\"b\\c\nd")], 1);
        assert!(metrics.render().contains("wa_ticks_total{kind=\"a\\\"b\\\\c\\nd\"} 1"));
        assert_eq!(metrics.count("wa_ticks_total", &[]), 1);
        assert_eq!(metrics.count("wa_ticks_total", &[("kind", "x")]), 0);
    }
}
