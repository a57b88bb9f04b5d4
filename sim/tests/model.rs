//! Every course that a small world can take within stated bounds, over the real core.

use std::time::Instant;

use backfill_core::bug::Bug;
use backfill_core::policy::{InstanceMode, Settings};
use sim::model::{Action, Broken, Reached, World, short_terms};
use stateright::{Checker, HasDiscoveries, Model, Property};

/// What is searched: all that follows from a calm start, with a number of faults.
///
/// Reads are answered at once; commits of different processes come in any order. A fault may hit
/// every commit, and every process between commits, until the window closes. What flies may land,
/// who stands still or is dead may go on, at any later time.
struct Bounds {
    settings: Vec<Settings>,
    accounts: usize,
    /// Until when everything goes well
    calm: u64,
    /// Until when something may go wrong
    window: u64,
    /// How long it goes on
    horizon: u64,
    faults: u8,
    /// What may go wrong
    kinds: fn(Action) -> bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    world: World,
    faults: u8,
}

impl Model for Bounds {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut world = World::new(self.settings.clone(), self.accounts);
        world.calm(self.calm);
        vec![State { world, faults: self.faults }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let world = &state.world;
        if world.broken().is_some() || world.now() >= self.horizon {
            return;
        }
        let mut faults = Vec::new();
        let busy: Vec<usize> = (0..world.nodes()).filter(|n| world.awaits_store(*n)).collect();
        for n in &busy {
            actions.push(Action::Deliver(*n, 0));
            faults.extend([Action::Fly(*n, 0), Action::LoseAnswer(*n, 0), Action::Pause(*n)]);
            faults.push(Action::PauseOver(*n, 0));
        }
        if busy.is_empty() {
            actions.push(Action::Wait(1_000));
            actions.extend((0..world.flying()).map(Action::Land));
            for n in 0..world.nodes() {
                if world.core(n).is_none() {
                    actions.push(Action::Restart(n));
                } else if world.is_paused(n) {
                    actions.push(Action::Resume(n));
                } else if world.is_cut(n) {
                    actions.push(Action::Heal(n));
                } else {
                    faults.extend([Action::Crash(n), Action::Cut(n)]);
                    faults.extend([Action::Pause(n), Action::Stop(n)]);
                }
            }
        }
        if state.faults > 0 && world.now() < self.window {
            actions.extend(faults.into_iter().filter(|fault| (self.kinds)(*fault)));
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        let costs = !matches!(
            action,
            Action::Deliver(..)
                | Action::Heal(_)
                | Action::Land(_)
                | Action::Restart(_)
                | Action::Resume(_)
                | Action::Wait(_)
        );
        next.faults -= u8::from(costs);
        next.world.act(action);
        next.world.serve_reads();
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn holds(state: &State, broken: Broken) -> bool {
            state.world.broken() != Some(broken)
        }
        vec![
            Property::always("S1: epochs grow", |_, s: &State| holds(s, Broken::EpochFell)),
            Property::always("S2: one owner", |_, s: &State| holds(s, Broken::TwoOwners)),
            Property::always("S3: no stale write", |_, s: &State| holds(s, Broken::StaleWrite)),
            Property::always("S4: one connection", |_, s: &State| holds(s, Broken::TwoConnections)),
            Property::always("S5: effects are covered", |_, s: &State| holds(s, Broken::Uncovered)),
            Property::always("S6: passive is silent", |_, s: &State| holds(s, Broken::Passive)),
            Property::always("S9: read after unknown", |_, s: &State| holds(s, Broken::Unread)),
            Property::always("the dead stay dead", |_, s: &State| holds(s, Broken::Revived)),
            Property::always("output wakes", |_, s: &State| holds(s, Broken::Asleep)),
            Property::sometimes("an account is connected", |_, s: &State| {
                s.world.reached(Reached::Connected)
            }),
            Property::sometimes("a dead mark", |_, s: &State| s.world.reached(Reached::DeadMark)),
            Property::sometimes("a takeover", |_, s: &State| s.world.reached(Reached::Takeover)),
            Property::sometimes("an unknown outcome", |_, s: &State| {
                s.world.reached(Reached::Unknown)
            }),
            Property::sometimes("a late commit is refused", |_, s: &State| {
                s.world.reached(Reached::LateRefused)
            }),
        ]
    }
}

/// Exclusive mode with one account; faults begin when one process has it connected.
fn exclusive(nodes: usize, bug: Option<Bug>) -> Bounds {
    let settings = (0..nodes).map(|n| {
        let mut s = short_terms(&format!("i{n}"), InstanceMode::Exclusive);
        s.bug = bug;
        s
    });
    Bounds {
        settings: settings.collect(),
        accounts: 1,
        calm: 4_000,
        window: 7_000,
        horizon: 30_000,
        faults: 1,
        kinds: |_| true,
    }
}

fn shared(nodes: usize, accounts: usize) -> Bounds {
    let mode = InstanceMode::Shared { cluster: "c".into() };
    let settings = (0..nodes).map(|n| short_terms(&format!("i{n}"), mode.clone()));
    Bounds { settings: settings.collect(), accounts, ..exclusive(nodes, None) }
}

/// Searches, at most `cap` states, and reports how far it came.
fn search(name: &str, bounds: Bounds, cap: usize) -> impl Checker<Bounds> + use<> {
    let begun = Instant::now();
    let checker = bounds
        .checker()
        .threads(2)
        .target_state_count(cap)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    println!(
        "{name}: {} states, depth {}, {:.1} s",
        checker.unique_state_count(),
        checker.max_depth(),
        begun.elapsed().as_secs_f32()
    );
    checker
}

/// Everything holds, everything was seen, and enough was tried.
fn holds(name: &str, bounds: Bounds, least: usize, cap: usize) {
    let checker = search(name, bounds, cap);
    checker.assert_properties();
    let states = checker.unique_state_count();
    assert!(states >= least, "{name}: only {states} states");
}

fn breaks(bug: Bug, bounds: Bounds, property: &str) {
    let checker = search(&format!("{bug:?}"), bounds, 400_000);
    let found: Vec<_> = checker.discoveries().into_keys().collect();
    assert!(found.contains(&property), "{bug:?} breaks {property}, but found is {found:?}");
}

#[test]
fn two_processes_survive_any_fault() {
    holds("two processes, one fault", exclusive(2, None), 25_000, 1_000_000);
}

#[test]
fn three_processes_survive_any_fault() {
    holds("three processes, one fault", exclusive(3, None), 100_000, 1_000_000);
}

#[test]
fn a_start_survives_any_fault() {
    let bounds = Bounds { calm: 0, window: 3_000, horizon: 20_000, ..exclusive(2, None) };
    holds("the start, one fault", bounds, 20_000, 1_000_000);
}

#[test]
fn processes_that_share_survive_any_fault() {
    holds("two that share two accounts, one fault", shared(2, 2), 30_000, 1_000_000);
}

#[test]
fn two_faults_close_together() {
    let bounds = Bounds { window: 4_600, faults: 2, ..exclusive(2, None) };
    holds("two processes, two faults", bounds, 200_000, 250_000);
}

#[test]
fn wrong_rules_are_found() {
    let one = |bug| exclusive(2, Some(bug));
    breaks(
        Bug::ConnectBeforeOwnership,
        one(Bug::ConnectBeforeOwnership),
        "S5: effects are covered",
    );
    breaks(Bug::EffectsNeverExpire, one(Bug::EffectsNeverExpire), "S5: effects are covered");
    breaks(Bug::FenceMovedByRenewal, one(Bug::FenceMovedByRenewal), "S9: read after unknown");
    breaks(Bug::GuardDoesNotMoveVersion, one(Bug::GuardDoesNotMoveVersion), "S2: one owner");
    breaks(Bug::LapsedBootBelieves, one(Bug::LapsedBootBelieves), "S4: one connection");
    breaks(Bug::PassiveGateMissing, one(Bug::PassiveGateMissing), "S6: passive is silent");
    breaks(Bug::UnknownAsFailure, one(Bug::UnknownAsFailure), "S9: read after unknown");
    breaks(Bug::UnknownAsSuccess, one(Bug::UnknownAsSuccess), "S9: read after unknown");

    let late = Bounds {
        calm: 0,
        window: 4_000,
        horizon: 12_000,
        faults: 2,
        kinds: |action| matches!(action, Action::Fly(..) | Action::Stop(_)),
        ..one(Bug::AcquireNotTiedToSession)
    };
    breaks(Bug::AcquireNotTiedToSession, late, "the dead stay dead");

    let asleep = Bounds {
        window: 14_000,
        faults: 2,
        kinds: |action| matches!(action, Action::PauseOver(0, _) | Action::Pause(0)),
        ..one(Bug::DeadlineFromAnswer)
    };
    breaks(Bug::DeadlineFromAnswer, asleep, "S2: one owner");
}
