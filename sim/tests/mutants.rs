//! Known bugs, each in the world in which the table found it.

use sim::campaign::outcome;
use sim::mutants::{FOUND, WITHIN};
use sim::variant::Variant;

#[test]
fn every_known_bug_is_found_in_its_world() {
    assert!(Variant::all().count() >= 30);
    let mut missed = Vec::new();
    for variant in Variant::all() {
        let seed = FOUND.iter().find(|(name, _)| *name == variant.name()).map(|(_, seed)| *seed);
        let seed = seed.unwrap_or_else(|| panic!("{} was never found", variant.name()));
        assert!(seed < WITHIN, "{}: {seed} is not among the fixed seeds", variant.name());
        let shows = |violations: &[sim::report::Violation]| {
            violations.iter().any(|found| variant.shown_by().contains(&found.check))
        };
        if !shows(&outcome(variant.world(seed), Some(variant)).violations) {
            missed.push(format!("{} in world {seed}", variant.name()));
        }
        // Without it, nothing of the kind is wrong there.
        assert!(!shows(&outcome(variant.world(seed), None).violations), "{}", variant.name());
    }
    assert!(missed.is_empty(), "{missed:#?}");
}
