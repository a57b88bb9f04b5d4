//! Tier 1: the bare core in an event queue.

use std::collections::BTreeMap;

use sim::report::Report;
use sim::swarm;
use sim::trace::Trace;
use sim::world::World;

#[test]
fn fixed_seeds_are_safe() {
    let wrong = violations(0..200, |check| check.starts_with('S'));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn fixed_seeds_come_to_rest() {
    let wrong = violations(0..200, |check| check.starts_with('L'));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Worlds beyond the fixed range that showed a defect once: a session created again while it was
/// being ended (724), short drains before any record of a disconnect (909) and beside a store whose
/// clock is ahead (916), a message that could not be decrypted just before the session was lost
/// (1319), a chunk removed while stepping down (1470), a lock judged by older sessions (1478), an
/// answer that came with the end of the time to stop (1544).
const ONCE_WRONG: [u64; 9] = [342, 559, 724, 909, 916, 1319, 1470, 1478, 1544];

#[test]
fn worlds_that_went_wrong_do_not_any_more() {
    for seed in ONCE_WRONG {
        let wrong = violations(seed..seed + 1, |_| true);
        assert!(wrong.is_empty(), "{wrong:#?}");
    }
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

/// Per check, what was wrong in which seed.
fn violations(
    seeds: std::ops::Range<u64>,
    of: impl Fn(&str) -> bool,
) -> BTreeMap<&'static str, Vec<String>> {
    let mut wrong: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for seed in seeds {
        for violation in run(seed).violations.into_iter().filter(|v| of(v.check)) {
            let text = format!("seed {seed} at {}: {}", violation.at.0, violation.text);
            wrong.entry(violation.check).or_default().push(text);
        }
    }
    wrong
}

fn run(seed: u64) -> Report {
    let world = World::new(swarm::scenario(seed), Trace::default());
    world.expect("scenarios of the swarm have settings that fit together").run().0
}
