//! Many worlds, and what came of all of them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use backfill_core::bug::Bug;
use serde::Serialize;

use crate::clock::Real;
use crate::properties::PROPERTIES;
use crate::report::{Report, Sometimes, Violation};
use crate::scenario::{Kind, Scenario};
use crate::swarm;
use crate::trace::Trace;
use crate::variant::Variant;
use crate::world::World;

/// Which of the two kinds of worlds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Tier {
    /// The bare core in an event queue
    One,
    /// Driver and core in nodes of a simulated network
    Two,
}

/// Every so many worlds, all that happens to a process happens to a double of it too.
const SHADOWED: u64 = 8;

/// So many failures are reported of each property.
const FIRST: usize = 40;

/// What came of a campaign.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// In which worlds
    pub tier: Tier,
    /// How many there were
    pub worlds: u64,
    /// The seeds, the end not included
    pub seeds: Range<u64>,
    /// Threads that ran them
    pub jobs: usize,
    /// How long all worlds lived, in milliseconds
    pub simulated_ms: u64,
    /// Events that they carried out
    pub events: u64,
    /// How long it took, in milliseconds
    pub wall_ms: u64,
    /// Simulated time by real time
    pub simulated_to_real: u64,
    /// Events per second of real time
    pub events_per_second: u64,
    /// Seeds per second of real time
    pub seeds_per_second: f64,
    /// How often each kind of fault struck
    pub faults: BTreeMap<&'static str, u64>,
    /// Those that never did
    pub never_struck: Vec<&'static str>,
    /// How often each of the things happened that have to happen sometimes
    pub sometimes: BTreeMap<&'static str, u64>,
    /// Those that never did
    pub never_reached: Vec<&'static str>,
    /// By property, what came of its checks
    pub checks: BTreeMap<&'static str, Check>,
    /// Seeds that violated something
    pub failed_seeds: u64,
    /// The first violations, in order of seed
    pub first_failures: Vec<Failure>,
}

/// What came of checking one property.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What it says
    pub says: &'static str,
    /// In how many seeds it was violated
    pub failed_seeds: u64,
}

/// A violation.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Failure {
    /// In which world
    pub seed: u64,
    /// When
    pub at_ms: u64,
    /// Of which property
    pub check: &'static str,
    /// How
    pub text: String,
}

impl Summary {
    /// Whether something was violated, a world was left out, or a campaign that is large enough
    /// missed something.
    pub fn is_failed(&self) -> bool {
        let left_out = self.worlds < self.seeds.end - self.seeds.start;
        let missed = !self.never_struck.is_empty() || !self.never_reached.is_empty();
        self.failed_seeds > 0 || left_out || (self.is_large() && missed)
    }

    /// Whether every fault has to strike in it, and it has to reach everything that happens
    /// sometimes.
    pub fn is_large(&self) -> bool {
        self.worlds >= self.tier.large()
    }

    /// The summary as text for machines.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a summary has only plain data")
    }
}

impl Tier {
    /// In a campaign of at least this many worlds every fault has to strike, and it has to reach
    /// everything that happens sometimes.
    pub const fn large(self) -> u64 {
        match self {
            Self::One => 2_000,
            Self::Two => 200,
        }
    }

    /// Runs one world, in which a rule may be broken on purpose. A panic in it is a violation like
    /// any other, and settings that do not fit together are one too. A slip of the shell is none in
    /// tier 2, where the real driver runs.
    pub fn outcome(self, scenario: Scenario, variant: Option<Variant>) -> Report {
        match (self, variant) {
            (Self::One, _) => outcome(scenario, variant),
            (Self::Two, _) => outcome_in_tier_2(scenario, variant.and_then(Variant::bug)),
        }
    }
}

/// Runs a world for every seed, on `jobs` threads. `done` is called after each.
pub fn run(tier: Tier, seeds: Range<u64>, jobs: usize, done: impl Fn(u64) + Sync) -> Summary {
    let stopwatch = Stopwatch::start();
    let tallies = in_parallel(seeds.clone(), jobs, Tally::default, |tally, seed| {
        tally.add(&tier.outcome(swarm::scenario(seed), None));
        done(seed);
    });
    let mut all = Tally::default();
    for tally in tallies {
        all.merge(tally);
    }
    all.summary(tier, seeds, jobs, stopwatch.elapsed())
}

/// Runs one world of tier 1.
pub fn outcome(scenario: Scenario, variant: Option<Variant>) -> Report {
    let seed = scenario.seed;
    let shadowed = seed.is_multiple_of(SHADOWED);
    let run = || match World::new(scenario, Trace::default()) {
        Ok(world) if shadowed => world.breaking(variant).shadowed().run().0,
        Ok(world) => world.breaking(variant).run().0,
        Err(errors) => violated(seed, "settings", errors.to_string()),
    };
    unless_it_panics(seed, run)
}

#[cfg(madsim)]
fn outcome_in_tier_2(scenario: Scenario, bug: Option<Bug>) -> Report {
    let seed = scenario.seed;
    unless_it_panics(seed, || match crate::tier2::run(scenario, bug, Trace::default()) {
        Ok((report, _)) => report,
        Err(errors) => violated(seed, "settings", errors.to_string()),
    })
}

#[cfg(not(madsim))]
fn outcome_in_tier_2(scenario: Scenario, _: Option<Bug>) -> Report {
    violated(scenario.seed, "settings", "this program was built without `--cfg madsim`".into())
}

fn unless_it_panics(seed: u64, run: impl FnOnce() -> Report) -> Report {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|cause| {
        let said = cause.downcast_ref::<String>().map(String::as_str);
        let text = said.or_else(|| cause.downcast_ref::<&str>().copied()).unwrap_or("panicked");
        violated(seed, "panic", text.into())
    })
}

/// Calls `work` for every number, on `jobs` threads, each with its own `start`.
pub fn in_parallel<T: Send>(
    numbers: Range<u64>,
    jobs: usize,
    start: impl Fn() -> T + Sync,
    work: impl Fn(&mut T, u64) + Sync,
) -> Vec<T> {
    let next = AtomicU64::new(numbers.start);
    thread::scope(|scope| {
        let run = || {
            let mut own = start();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= numbers.end {
                    return own;
                }
                work(&mut own, number);
            }
        };
        let threads: Vec<_> = (0..jobs.max(1)).map(|_| scope.spawn(run)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|cause| std::panic::resume_unwind(cause)))
            .collect()
    })
}

/// Real time, which worlds know nothing of.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Starts now.
    #[expect(clippy::disallowed_methods, reason = "how long worlds take, not what they do")]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Since the start.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

#[derive(Default)]
struct Tally {
    worlds: u64,
    simulated_ms: u64,
    events: u64,
    faults: BTreeMap<&'static str, u64>,
    sometimes: Sometimes,
    failed: BTreeMap<&'static str, (u64, Vec<Failure>)>,
    failed_seeds: u64,
}

impl Tally {
    fn add(&mut self, report: &Report) {
        self.worlds += 1;
        self.simulated_ms += report.simulated_ms;
        self.events += report.events;
        self.sometimes.add(&report.sometimes);
        self.failed_seeds += u64::from(!report.violations.is_empty());
        for (kind, count) in &report.faults {
            *self.faults.entry(kind).or_default() += count;
        }
        let mut seen = Vec::new();
        for violation in &report.violations {
            if seen.contains(&violation.check) {
                continue;
            }
            seen.push(violation.check);
            let (count, first) = self.failed.entry(violation.check).or_default();
            *count += 1;
            first.push(Failure {
                seed: report.seed,
                at_ms: violation.at.0,
                check: violation.check,
                text: violation.text.clone(),
            });
            keep_first(first);
        }
    }

    fn merge(&mut self, other: Self) {
        self.worlds += other.worlds;
        self.simulated_ms += other.simulated_ms;
        self.events += other.events;
        self.sometimes.add(&other.sometimes);
        self.failed_seeds += other.failed_seeds;
        for (kind, count) in other.faults {
            *self.faults.entry(kind).or_default() += count;
        }
        for (check, (count, failures)) in other.failed {
            let (all, first) = self.failed.entry(check).or_default();
            *all += count;
            first.extend(failures);
            keep_first(first);
        }
    }

    fn summary(self, tier: Tier, seeds: Range<u64>, jobs: usize, wall: Duration) -> Summary {
        let per_second = |count: u64| count as f64 / wall.as_secs_f64().max(1e-9);
        let mut faults: BTreeMap<_, _> = (0..Kind::COUNT).map(|i| (Kind::name(i), 0)).collect();
        faults.extend(self.faults);
        let sometimes: BTreeMap<_, _> = self.sometimes.counts().collect();
        let mut checks: BTreeMap<_, _> = PROPERTIES
            .iter()
            .map(|property| (property.name, Check { says: property.says, failed_seeds: 0 }))
            .collect();
        let mut first_failures = Vec::new();
        for (name, (failed_seeds, first)) in self.failed {
            checks.entry(name).or_insert(Check { says: "", failed_seeds: 0 }).failed_seeds =
                failed_seeds;
            first_failures.extend(first);
        }
        first_failures.sort();
        Summary {
            tier,
            worlds: self.worlds,
            jobs,
            simulated_ms: self.simulated_ms,
            events: self.events,
            wall_ms: wall.as_millis() as u64,
            simulated_to_real: (per_second(self.simulated_ms) / 1_000.0) as u64,
            events_per_second: per_second(self.events) as u64,
            seeds_per_second: per_second(self.worlds),
            never_struck: never(&faults),
            faults,
            never_reached: never(&sometimes),
            sometimes,
            checks,
            failed_seeds: self.failed_seeds,
            first_failures,
            seeds,
        }
    }
}

fn never(counts: &BTreeMap<&'static str, u64>) -> Vec<&'static str> {
    counts.iter().filter(|(_, count)| **count == 0).map(|(name, _)| *name).collect()
}

fn keep_first(failures: &mut Vec<Failure>) {
    failures.sort();
    failures.truncate(FIRST);
}

fn violated(seed: u64, check: &'static str, text: String) -> Report {
    Report {
        seed,
        violations: vec![Violation { check, at: Real::ZERO, text }],
        sometimes: Sometimes::default(),
        faults: Vec::new(),
        events: 0,
        census: Vec::new(),
        simulated_ms: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_is_the_same_in_whatever_parts_it_is_counted() {
        let reports: Vec<Report> = (0..20)
            .map(|seed| {
                let mut report = violated(seed, "S1", format!("of {seed}"));
                report.events = seed;
                report.faults = vec![("crash", 2)];
                if seed % 2 == 0 {
                    report.violations.clear();
                }
                report
            })
            .collect();
        let count = |parts: &[&[Report]]| {
            let mut all = Tally::default();
            for part in parts {
                let mut tally = Tally::default();
                part.iter().for_each(|report| tally.add(report));
                all.merge(tally);
            }
            all.summary(Tier::One, 0..20, 1, Duration::from_secs(2))
        };
        let (left, right) = reports.split_at(7);
        let summary = count(&[&reports]);
        assert_eq!(summary.to_json(), count(&[right, left]).to_json());
        assert_eq!((summary.failed_seeds, summary.events), (10, 190));
        assert_eq!((summary.faults["crash"], summary.faults["stop"]), (40, 0));
        assert_eq!(summary.checks["S1"].failed_seeds, 10);
        let first: Vec<u64> = summary.first_failures.iter().map(|f| f.seed).collect();
        assert_eq!(first, [1, 3, 5, 7, 9, 11, 13, 15, 17, 19]);
        assert!(summary.is_failed());
    }

    #[test]
    fn only_a_large_campaign_has_to_reach_everything() {
        for tier in [Tier::One, Tier::Two] {
            let summary = |worlds| {
                let tally = Tally { worlds, ..Tally::default() };
                tally.summary(tier, 0..worlds, 1, Duration::from_secs(1))
            };
            assert!(!summary(tier.large() - 1).is_failed());
            let nothing = summary(tier.large());
            assert!(nothing.is_failed());
            let all = Summary { never_struck: Vec::new(), never_reached: Vec::new(), ..nothing };
            assert!(!all.is_failed());
            assert!(Summary { never_struck: vec!["crash"], ..all.clone() }.is_failed());
            assert!(Summary { never_reached: vec!["cap_reached"], ..all }.is_failed());
        }
    }

    #[test]
    fn a_campaign_that_leaves_worlds_out_fails() {
        let tally = Tally { worlds: 9, ..Tally::default() };
        assert!(tally.summary(Tier::One, 0..10, 1, Duration::from_secs(1)).is_failed());
    }
}
