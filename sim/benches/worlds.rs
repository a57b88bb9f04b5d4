//! How fast worlds run, on one core.

use sim::campaign::{self, Stopwatch};
use sim::clock::Real;
use sim::report::Report;
use sim::scenario::Scenario;
use sim::swarm;
use sim::trace::Trace;
use sim::world::World;

fn main() {
    println!("tier 1, one core");
    println!();
    println!(
        "{:44} {:>12} {:>14} {:>10}",
        "a day of 24 h with faults", "events", "simulated:real", "events/s"
    );
    for (instances, accounts) in [(1, 1), (3, 10), (3, 30), (7, 30)] {
        let name = format!("{instances} instances, {accounts} accounts");
        measure(&name, (0..3).map(|seed| swarm::day(seed, instances, accounts)));
    }
    println!();
    let seeds = 0..300;
    let summary = campaign::run(seeds.clone(), 1, |_| ());
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
