//! The lease machine: a few instances over one store, under any schedule of deliveries, losses,
//! late and doubled arrivals, pauses, crashes, stops and restarts.

use std::time::Duration;

use backfill_core::policy::InstanceMode;
use proptest::collection::vec;
use proptest::prelude::*;
use sim::model::{Action, World, short_terms};

use crate::cases;

/// What a schedule says; which node or request it means depends on what there is by then.
#[derive(Clone, Copy, Debug)]
enum Step {
    Commit(Fate, usize),
    Land(usize),
    Node(Event, usize),
    Serve(usize),
    Wait(u64),
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Delivered,
    Flying,
    Lost,
    Muted,
    PausedOver,
    Twice,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Crash,
    Cut,
    Heal,
    Pause,
    Restart,
    Resume,
    Stop,
}

fn step() -> impl Strategy<Value = Step> {
    let at = 0_usize..64;
    let fate = prop_oneof![
        12 => Just(Fate::Delivered),
        1 => Just(Fate::Flying),
        1 => Just(Fate::Lost),
        1 => Just(Fate::Muted),
        1 => Just(Fate::PausedOver),
        1 => Just(Fate::Twice),
    ];
    let event = prop_oneof![
        1 => Just(Event::Crash),
        1 => Just(Event::Cut),
        3 => Just(Event::Heal),
        1 => Just(Event::Pause),
        2 => Just(Event::Restart),
        3 => Just(Event::Resume),
        1 => Just(Event::Stop),
    ];
    prop_oneof![
        16 => (fate, at.clone()).prop_map(|(fate, at)| Step::Commit(fate, at)),
        1 => at.clone().prop_map(Step::Land),
        2 => (event, at.clone()).prop_map(|(event, at)| Step::Node(event, at)),
        16 => at.prop_map(Step::Serve),
        10 => prop_oneof![3 => 1_u64..3_000, 1 => Just(10_000)].prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(64), ..ProptestConfig::default() })]

    /// S1 to S6 and S9 hold under any schedule, and when it is over the accounts are served again.
    #[test]
    fn no_schedule_makes_two_owners(
        nodes in 2_usize..4,
        accounts in 1_usize..3,
        shared in any::<bool>(),
        same_label in prop::bool::weighted(0.1),
        calm in prop::bool::ANY,
        steps in vec(step(), 1..400),
    ) {
        let mode = if shared {
            InstanceMode::Shared { cluster: "c".into() }
        } else {
            InstanceMode::Exclusive
        };
        let settings = (0..nodes).map(|n| {
            let label = if same_label { "i".to_owned() } else { format!("i{n}") };
            // What somebody gives back is seen before that one may take it again.
            let mut settings = short_terms(&label, mode.clone());
            settings.account_scan = Duration::from_secs(5);
            settings.unowned_bound = Duration::from_secs(20);
            settings
        });
        let mut world = World::new(settings.collect(), accounts);
        if calm {
            world.calm(5_000);
        }
        for step in steps {
            take(&mut world, step);
            prop_assert_eq!(world.broken(), None, "at {} after {:?}", world.now(), step);
        }
        for n in 0..nodes {
            world.act(Action::Heal(n));
            world.act(Action::Resume(n));
        }
        // Those that were told to stop end first.
        let stopped = world.now() + 15_000;
        world.calm(stopped);
        for n in 0..nodes {
            world.act(Action::Restart(n));
        }
        let end = world.now() + 60_000;
        world.calm(end);
        prop_assert_eq!(world.broken(), None, "in the calm at the end");
        // An account may be on its way to another process.
        let last = world.now() + 60_000;
        while world.connected() < accounts && world.now() < last {
            let next = world.now() + 1_000;
            world.calm(next);
        }
        prop_assert_eq!(world.connected(), accounts, "every account is connected again");
        prop_assert!(world.foreign_fields_survive());
    }
}

/// Takes a step, as near to what it says as there is something to take it with.
fn take(world: &mut World, step: Step) {
    match step {
        Step::Commit(fate, at) => {
            let Some((n, at)) = pick(world, at) else { return };
            world.act(match fate {
                Fate::Delivered => Action::Deliver(n, at),
                Fate::Flying => Action::Fly(n, at),
                Fate::Lost => Action::Lose(n, at),
                Fate::Muted => Action::LoseAnswer(n, at),
                Fate::PausedOver => Action::PauseOver(n, at),
                Fate::Twice => Action::DeliverTwice(n, at),
            });
        }
        Step::Land(at) => world.act(Action::Land(at % world.flying().max(1))),
        Step::Node(event, at) => {
            let n = at % world.nodes();
            world.act(match event {
                Event::Crash => Action::Crash(n),
                Event::Cut => Action::Cut(n),
                Event::Heal => Action::Heal(n),
                Event::Pause => Action::Pause(n),
                Event::Restart => Action::Restart(n),
                Event::Resume => Action::Resume(n),
                Event::Stop => Action::Stop(n),
            });
        }
        Step::Serve(most) => {
            for at in 0..=most % 8 {
                let Some((n, at)) = pick(world, at * 7) else { return };
                world.act(Action::Deliver(n, at));
            }
        }
        Step::Wait(ms) => world.act(Action::Wait(ms)),
    }
}

/// A request of a process that can be reached and goes on.
fn pick(world: &World, at: usize) -> Option<(usize, usize)> {
    let requests: Vec<_> = (0..world.nodes())
        .filter(|n| world.awaits_store(*n) && !world.is_cut(*n))
        .flat_map(|n| (0..world.pending(n)).map(move |at| (n, at)))
        .collect();
    requests.get(at % requests.len().max(1)).copied()
}
