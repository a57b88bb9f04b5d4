//! Tier 1: the bare core in an event queue.

use sim::campaign::{in_parallel, outcome};
use sim::swarm;
use sim::trace::Trace;
use sim::world::World;

/// How many worlds a test run looks at.
const SEEDS: u64 = 2_000;

#[test]
fn fixed_seeds_violate_nothing() {
    let look = |found: &mut (u64, Vec<String>), seed| {
        let report = outcome(swarm::scenario(seed), None);
        found.0 += report.simulated_ms;
        found.1.extend(report.violations.into_iter().map(|violation| {
            let (at, check, text) = (violation.at.0, violation.check, violation.text);
            format!("seed {seed} at {at}: {check}: {text}")
        }));
    };
    let found = in_parallel(0..SEEDS, 2, Default::default, look);
    let simulated: u64 = found.iter().map(|(ms, _)| ms).sum();
    let wrong: Vec<String> = found.into_iter().flat_map(|(_, texts)| texts).collect();
    assert!(wrong.is_empty(), "{} violations: {wrong:#?}", wrong.len());
    assert!(simulated > SEEDS * 30 * 60_000, "worlds end early: {simulated} ms");
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..10 {
        let traces = [0, 1].map(|_| {
            let (_, trace) = World::new(swarm::scenario(seed), Trace::recording()).unwrap().run();
            format!("{:?}", trace.entries())
        });
        assert!(traces[0] == traces[1], "seed {seed}");
        assert!(traces[0].len() > 100);
    }
}
