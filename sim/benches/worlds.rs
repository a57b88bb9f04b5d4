//! How fast worlds run, on one core.
//!
//! Time is what processors work for this process, so that a busy machine spoils nothing but caches.
//!
//! A day is 24 hours of instances and accounts at their defaults, per account 50 conversations, 500
//! messages and 4 disconnects, with a crash of each instance and faults of the store. What phones
//! keep from the time before is no part of it: in the rows that say so, each conversation has 200
//! older messages, and the day is the first one, on which all of them are fetched.
//!
//! `cargo bench -p sim --bench worlds` on 2 virtual cores, for 3 exclusive instances with 30
//! accounts:
//!
//! | | events | commits | simulated : real | ns per event |
//! |---|---:|---:|---:|---:|
//! | tier 1 | 205,569 | 61,027 | 106,079 : 1 | 3,962 |
//! | tier 1, first day | 243,340 | 72,615 | 42,320 : 1 | 8,390 |
//! | tier 2 | 280,648 | 56,894 | 52,148 : 1 | 5,904 |
//! | tier 2, first day | 328,417 | 70,637 | 21,206 : 1 | 12,406 |
//!
//! How fast those cores are changes from minute to minute: the same single day, measured three
//! times in turn right afterwards, gave 119,157 to 120,232 : 1 in tier 1, and 55,372 to 56,785 : 1
//! in tier 2. What does not change is the number of instructions, 5.6 and 9.2 thousand million with
//! the system's allocator.
//!
//! The goal of tier 2, 50,000 : 1, is reached; that of tier 1, 1,000,000 : 1, is missed. It leaves
//! 86 ms for such a day, or 1.4 µs for each commit with all that leads to it and follows from it;
//! with one instance and one account tier 1 reaches 2,731,183 : 1. Where the time goes, as samples
//! of the call stack show it:
//!
//! | | tier 1 | tier 2 |
//! |---|---:|---:|
//! | the store carries out commits | 28 % | 17 % |
//! | the core decides | 24 % | 17 % |
//! | … of it what is known of the completeness of threads | 3 % | 2 % |
//! | the checker looks, at commits and beliefs, and at the end | 15 % | 9 % |
//! | ingest reads and plans writes | 12 % | 7 % |
//! | the store answers queries and reads | 5 % | 3 % |
//! | the rest: WhatsApp and requests; in tier 2 mostly tasks, timers, network | 16 % | 47 % |
//!
//! No function stands out: comparing names and paths, and the allocator, with about a tenth each,
//! are spread over all rows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use sim::campaign::{self, Tier};
use sim::clock::Real;
use sim::report::Report;
use sim::scenario::Scenario;
use sim::swarm;
use sim::trace::Trace;
use sim::world::World;

/// That of campaigns.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Messages of each conversation from before a first day.
const HISTORY: u32 = 200;

fn main() {
    let asked = |what: &str| std::env::args().any(|argument| argument == what);
    // For profilers.
    if asked("day") {
        return measure("one day", &days(false, 3, 30, 0, 1), first_tier);
    }
    if asked("day-of-tier-2") {
        return measure("one day", &days(false, 3, 30, 0, 1), second_tier);
    }
    heading("tier 1");
    for (shared, instances, accounts, history) in [
        (false, 3, 30, 0),
        (false, 3, 30, HISTORY),
        (true, 3, 30, 0),
        (true, 7, 30, 0),
        (false, 3, 10, 0),
        (false, 1, 1, 0),
    ] {
        let name = name(shared, instances, accounts, history);
        measure(&name, &days(shared, instances, accounts, history, 3), first_tier);
    }
    heading("tier 2");
    for history in [0, HISTORY] {
        measure(&name(false, 3, 30, history), &days(false, 3, 30, history, 1), second_tier);
    }
    println!();
    println!("what happens in a day of 3 instances and 30 accounts in tier 1");
    println!();
    println!("{:40} {:>12} {:>12} {:>12}", "", "exclusive", "first day", "shared");
    let census = [(false, 0), (false, HISTORY), (true, 0)].map(|(shared, history)| {
        let day = swarm::day(0, shared, 3, 30, history);
        first_tier(day).census.into_iter().collect::<BTreeMap<_, _>>()
    });
    let kinds: BTreeSet<_> = census.iter().flat_map(|census| census.keys()).collect();
    for kind in kinds {
        let [exclusive, first, shared] =
            [0, 1, 2].map(|i| census[i].get(kind).copied().unwrap_or(0));
        println!("{kind:40} {exclusive:>12} {first:>12} {shared:>12}");
    }
    println!();
    if asked("days") {
        return;
    }
    let seeds = 0..300;
    let start = processor_time();
    let summary = campaign::run(Tier::One, seeds.clone(), 1, |_| ());
    let seconds = (processor_time() - start).as_secs_f64();
    println!(
        "seeds {}..{}: {:.1} worlds/s, {:.0}:1, {:.0} events/s, {} failed",
        seeds.start,
        seeds.end,
        summary.worlds as f64 / seconds,
        summary.simulated_ms as f64 / 1_000.0 / seconds,
        summary.events as f64 / seconds,
        summary.failed_seeds
    );
}

fn heading(tier: &str) {
    println!();
    println!(
        "{tier:46} {:>9} {:>9} {:>14} {:>9} {:>8}",
        "events", "commits", "simulated:real", "events/s", "ns/event"
    );
}

fn name(shared: bool, instances: u8, accounts: u16, history: u32) -> String {
    let mode = if shared { "shared" } else { "exclusive" };
    let first = if history > 0 { ", first day" } else { "" };
    format!("{instances} instances ({mode}), {accounts} accounts{first}")
}

fn days(shared: bool, instances: u8, accounts: u16, history: u32, seeds: u64) -> Vec<Scenario> {
    (0..seeds).map(|seed| swarm::day(seed, shared, instances, accounts, history)).collect()
}

fn first_tier(scenario: Scenario) -> Report {
    World::new(scenario, Trace::default()).expect("the defaults fit together").run().0
}

#[cfg(madsim)]
fn second_tier(scenario: Scenario) -> Report {
    sim::tier2::run(scenario, None, Trace::default()).expect("the defaults fit together").0
}

#[cfg(not(madsim))]
fn second_tier(_: Scenario) -> Report {
    panic!("built without `--cfg madsim`: is RUSTFLAGS set?")
}

/// Events and commits are those of one day.
fn measure(name: &str, days: &[Scenario], run: impl Fn(Scenario) -> Report) {
    let start = processor_time();
    let reports: Vec<Report> = days.iter().map(|day| run(day.clone())).collect();
    let seconds = (processor_time() - start).as_secs_f64();
    let events: u64 = reports.iter().map(|report| report.events).sum();
    let commits = reports.iter().flat_map(|report| &report.census);
    let commits: u64 = commits.filter(|(kind, _)| kind.ends_with("commits")).map(|(_, n)| n).sum();
    let simulated: u64 = reports.iter().map(|report| report.simulated_ms).sum();
    let violations: usize = reports.iter().map(|report| report.violations.len()).sum();
    let wrong = match reports.iter().flat_map(|report| &report.violations).next() {
        None => String::new(),
        Some(first) => {
            let Real(at) = first.at;
            format!("  ({violations} violations, first {} at {at} ms)", first.check)
        }
    };
    let worlds = reports.len() as u64;
    println!(
        "{name:46} {:>9} {:>9} {:>12.0}:1 {:>9.0} {:>8.0}{wrong}",
        events / worlds,
        commits / worlds,
        simulated as f64 / 1_000.0 / seconds,
        events as f64 / seconds,
        seconds * 1e9 / events as f64
    );
}

/// How long processors have worked for this process.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs() as u32)
}
