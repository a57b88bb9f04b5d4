//! Every course that a small world can take within stated bounds, over the real core.

use std::time::{Duration, Instant};

use backfill_core::bug::Bug;
use backfill_core::policy::{InstanceMode, Settings};
use sim::model::{Action, Broken, Reached, World, short_terms};
use stateright::{Checker, Model, Property};

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
        let faulty = state.faults > 0 && world.now() < self.window;
        let busy: Vec<usize> = (0..world.nodes()).filter(|n| world.awaits_store(*n)).collect();
        for n in &busy {
            actions.push(Action::Deliver(*n, 0));
            if faulty {
                actions.extend([
                    Action::Fly(*n, 0),
                    Action::LoseAnswer(*n, 0),
                    Action::PauseOver(*n, 0),
                ]);
            }
        }
        if !busy.is_empty() {
            return;
        }
        actions.push(Action::Wait(1_000));
        actions.extend((0..world.flying()).map(Action::Land));
        for n in 0..world.nodes() {
            if world.core(n).is_none() {
                actions.push(Action::Restart(n));
            } else if world.is_paused(n) {
                actions.push(Action::Resume(n));
            } else if world.is_cut(n) {
                actions.push(Action::Heal(n));
            } else if faulty {
                actions.extend([
                    Action::Crash(n),
                    Action::Cut(n),
                    Action::Pause(n),
                    Action::Stop(n),
                ]);
            }
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
    }
}

#[test]
fn probe() {
    let faults: u8 = std::env::var("F").ok().and_then(|f| f.parse().ok()).unwrap_or(1);
    let cap: usize = std::env::var("CAP").ok().and_then(|f| f.parse().ok()).unwrap_or(300_000);
    let n: usize = std::env::var("N").ok().and_then(|f| f.parse().ok()).unwrap_or(2);
    let begun = Instant::now();
    let mut bounds = exclusive(n, None);
    bounds.faults = faults;
    let checker = bounds.checker().threads(2).target_state_count(cap).spawn_bfs().join();
    println!(
        "unique {} depth {} in {:?}; {:?}",
        checker.unique_state_count(),
        checker.max_depth(),
        begun.elapsed(),
        checker.discoveries().keys().collect::<Vec<_>>()
    );
    for (name, path) in checker.discoveries() {
        if name.starts_with('S') || name.starts_with("out") {
            println!("{name}: {:?}", path.into_actions());
        }
    }
    let _ = Duration::ZERO;
}
