//! Making a failing world smaller.

use sim::campaign::outcome;
use sim::clock::Real;
use sim::scenario::{Fault, Kind, Target};
use sim::shrink::{shrink, size};
use sim::swarm;
use sim::variant::Variant;

#[test]
fn what_has_nothing_to_do_with_it_is_left_out() {
    // A passive instance does what it must not as soon as somebody asks it to: all that this needs
    // is two instances, one account and one operation, or a tick.
    let variant = Variant::named("passive-gate-missing");
    let mut scenario = swarm::scenario(1);
    for n in 0..40 {
        scenario.faults.push(Fault {
            from: Real(n * 60_000),
            to: Real(n * 60_000 + 5_000),
            kind: Kind::PhoneSilent,
            target: Target::All,
            permille: 500,
            salt: n,
        });
    }
    let mut sizes = vec![size(&scenario)];
    let shrunk = shrink(scenario, variant, Some("S6"), |s| sizes.push(size(s))).unwrap();
    assert!(sizes.is_sorted_by(|a, b| a >= b), "{sizes:?}");
    assert_eq!(shrunk.violation.check, "S6");
    assert!(shrunk.scenario.faults.len() <= 3, "{:?}", shrunk.scenario.faults);
    assert!(shrunk.scenario.accounts.len() <= 1);
    let again = outcome(shrunk.scenario.clone(), variant).violations;
    assert!(again.contains(&shrunk.violation), "{again:?}");
    // Nothing more can be left out.
    for i in 0..shrunk.scenario.instances.len() {
        let mut smaller = shrunk.scenario.clone();
        smaller.instances.remove(i);
        let found = outcome(smaller, variant).violations;
        assert!(!found.iter().any(|violation| violation.check == "S6"), "instance {i} is too many");
    }
}

#[test]
fn a_world_without_a_failure_stays_as_it_is() {
    let mut scenario = swarm::scenario(3);
    scenario.faults.clear();
    scenario.end = Real(1_000);
    assert!(shrink(scenario, None, None, |_| ()).is_none());
}
