//! Known bugs, each in the world in which the table found it.

use std::collections::BTreeSet;

use sim::campaign::outcome;
use sim::mutants::{FOUND, WITHIN};
use sim::properties::PROPERTIES;
use sim::variant::Variant;

#[test]
fn every_known_bug_is_found_in_its_world() {
    let mut missed = Vec::new();
    for variant in Variant::all() {
        let found = FOUND.iter().find(|(name, ..)| *name == variant.name());
        let (name, check, seed) = *found.unwrap_or_else(|| panic!("no world for {variant:?}"));
        assert!(seed < WITHIN, "{name}: {seed} is not among the fixed seeds");
        assert!(variant.shown_by().contains(&check), "{name} has nothing to do with {check}");
        let world = variant.world(seed);
        let shows = |variant| {
            let violations = outcome(world.clone(), variant).violations;
            violations.iter().any(|found| found.check == check)
        };
        if !shows(Some(variant)) {
            missed.push(format!("{name} in world {seed} by {check}"));
        }
        // Without it, nothing of the kind is wrong there.
        assert!(!shows(None), "{name}");
    }
    assert!(missed.is_empty(), "{missed:#?}");
}

/// A check that nothing was ever seen to violate may be one that nothing can violate.
#[test]
fn every_property_is_violated_by_a_known_bug() {
    let violated: BTreeSet<&str> = FOUND.iter().map(|(_, check, _)| *check).collect();
    // Those two are of the simulator itself.
    let of_worlds = PROPERTIES.iter().filter(|p| !["panic", "settings"].contains(&p.name));
    let missing: Vec<&str> = of_worlds.map(|p| p.name).filter(|n| !violated.contains(n)).collect();
    assert!(missing.is_empty(), "no known bug violates {missing:?}");
}
