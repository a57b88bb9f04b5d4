//! How fast worlds run, on one core.

use std::collections::{BTreeMap, BTreeSet};

use sim::campaign::{self, Stopwatch, Tier};
use sim::clock::Real;
use sim::report::Report;
use sim::scenario::Scenario;
use sim::swarm;
use sim::trace::Trace;
use sim::world::World;

fn main() {
    if std::env::args().any(|argument| argument == "day") {
        // For profilers.
        measure("one day", [1, 1].map(|seed| swarm::day(seed, false, 3, 10)).into_iter());
        return;
    }
    println!("tier 1, one core");
    println!();
    println!(
        "{:44} {:>12} {:>14} {:>10}",
        "a day of 24 h with faults", "events", "simulated:real", "events/s"
    );
    for (shared, instances, accounts) in
        [(false, 1, 1), (false, 3, 10), (false, 3, 30), (true, 3, 30), (true, 7, 30)]
    {
        let mode = if shared { "shared" } else { "exclusive" };
        let name = format!("{instances} instances ({mode}), {accounts} accounts");
        measure(&name, (0..3).map(|seed| swarm::day(seed, shared, instances, accounts)));
    }
    println!();
    println!("what happens in such a day of 3 instances and 30 accounts");
    println!();
    println!("{:44} {:>12} {:>12}", "", "exclusive", "shared");
    let census = [false, true].map(|shared| {
        let world = World::new(swarm::day(0, shared, 3, 30), Trace::default());
        let census = world.expect("the defaults fit together").run().0.census;
        census.into_iter().collect::<BTreeMap<_, _>>()
    });
    let kinds: BTreeSet<_> = census.iter().flat_map(|census| census.keys()).collect();
    for kind in kinds {
        let [exclusive, shared] = [0, 1].map(|i| census[i].get(kind).copied().unwrap_or(0));
        println!("{kind:44} {exclusive:>12} {shared:>12}");
    }
    println!();
    if std::env::args().any(|argument| argument == "days") {
        return;
    }
    let seeds = 0..300;
    let summary = campaign::run(Tier::One, seeds.clone(), 1, |_| ());
    println!(
        "seeds {}..{}: {:.1} worlds/s, {} : 1, {} events/s, {} failed",
        seeds.start,
        seeds.end,
        summary.seeds_per_second,
        summary.simulated_to_real,
        summary.events_per_second,
        summary.failed_seeds
    );
}

fn measure(name: &str, scenarios: impl Iterator<Item = Scenario>) {
    // Making a world is not part of a day in it, and a first one warms everything up.
    let mut worlds: Vec<World> = scenarios
        .map(|scenario| World::new(scenario, Trace::default()).expect("the defaults fit together"))
        .collect();
    let first = worlds.remove(0).run().0;
    let stopwatch = Stopwatch::start();
    let mut reports: Vec<Report> = worlds.into_iter().map(|world| world.run().0).collect();
    let seconds = stopwatch.elapsed().as_secs_f64();
    let events: u64 = reports.iter().map(|report| report.events).sum();
    let simulated: u64 = reports.iter().map(|report| report.simulated_ms).sum();
    reports.push(first);
    let violations: usize = reports.iter().map(|report| report.violations.len()).sum();
    let wrong = match reports.iter().flat_map(|report| &report.violations).next() {
        None => String::new(),
        Some(first) => {
            let Real(at) = first.at;
            format!("  ({violations} violations, first {} at {at} ms)", first.check)
        }
    };
    println!(
        "{name:44} {:>12} {:>12.0}:1 {:>10.0}{wrong}",
        events / (reports.len() as u64 - 1),
        simulated as f64 / 1_000.0 / seconds,
        events as f64 / seconds
    );
}
