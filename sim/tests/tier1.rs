//! Tier 1: the bare core in an event queue.

use std::collections::BTreeMap;

use sim::report::Report;
use sim::swarm;
use sim::trace::Trace;
use sim::world::World;

#[test]
fn fixed_seeds_violate_nothing() {
    let mut wrong: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for seed in 0..200 {
        for violation in run(seed).violations {
            let text = format!("seed {seed} at {}: {}", violation.at.0, violation.text);
            wrong.entry(violation.check).or_default().push(text);
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
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

fn run(seed: u64) -> Report {
    World::new(swarm::scenario(seed), Trace::default()).unwrap().run().0
}
