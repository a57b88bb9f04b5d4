//! One process: the driver and the core, what they hear, and the witness of the checker.

use std::collections::BTreeMap;

use backfill_core::id::RequestId;
use backfill_core::instance::Instance;
use backfill_core::io::{
    Answer, Command, Input, Mode, Output, PassiveReason, StoreCall, StoreRequest,
};
use backfill_core::policy::Policy;
use backfill_core::time::Mono;
use backfill_driver::{Driver, Handle, Observer};
use madsim::net::Endpoint;

use super::World;
use super::clock::Local;
use super::gateway::Client;
use super::truth::NOBODY;
use super::wire::{
    Ear, FromStore, FromWhatsApp, PEOPLE, Reply, STORE, WHATSAPP, Wire, address, connect,
};
use crate::chance::Chance;
use crate::checker::Touched;
use crate::clock::Clock;
use crate::scenario::{AccountPlan, Kind};
use crate::trace::Entry;

/// What a process is started with.
pub(super) struct Plan {
    pub(super) number: u32,
    pub(super) instance: u8,
    pub(super) policy: Policy,
    /// Of its boots and its jitter
    pub(super) seed: [u8; 32],
    pub(super) clock: Clock,
}

/// What a process does from its start to its end.
pub(super) async fn run(world: World, plan: Plan) {
    let Plan { number, instance, policy, seed, clock } = plan;
    let endpoint = Endpoint::bind(address(number)).await.expect("its address is its own");
    let (store, from_store) = connect(&endpoint, STORE).await;
    let (whatsapp, from_whatsapp) = connect(&endpoint, WHATSAPP).await;
    let (_desk, from_people) = connect::<(), Command>(&endpoint, PEOPLE).await;
    let wire = Wire::new(world.clone(), number, store, whatsapp);
    let local = Local::new(clock.clone());
    let scenario = world.look(|truth| truth.scenario.seed);
    let close_timeout = policy.close_timeout;
    let witness = Witness {
        world: world.clone(),
        process: number,
        instance,
        clock,
        mode: Mode::Passive(PassiveReason::Starting),
        asked: BTreeMap::new(),
        touched: Touched::NOTHING,
    };
    let driver = Driver::new(policy, seed, wire.clone(), local.clone(), witness);
    let handle = driver.handle();
    // What lies on the host is known before anything begins.
    for account in world.look(|truth| truth.checker.credentials_of(instance)) {
        handle.credentials(AccountPlan::account(account), true);
    }
    let own = Chance::of(u64::from(number) ^ scenario, "client");
    let client = Client::new(handle, wire.clone(), local, own, close_timeout);
    madsim::task::spawn(hear_store(from_store, wire.clone()));
    madsim::task::spawn(hear_whatsapp(from_whatsapp, wire, client.clone()));
    madsim::task::spawn(hear_people(from_people, client.handle().clone()));
    driver.run(client).await;
    world.look(|truth| truth.end(number, true));
}

async fn hear_store(mut ear: Ear<FromStore>, wire: Wire) {
    while let Some(message) = ear.hear().await {
        match message {
            FromStore::Answer(id, reply) => wire.answered(id, reply),
            FromStore::Hint(hint) => wire.hint(hint),
        }
    }
}

async fn hear_whatsapp(mut ear: Ear<FromWhatsApp>, wire: Wire, client: Client) {
    while let Some(message) = ear.hear().await {
        match message {
            FromWhatsApp::Answer(id, answer) => wire.answered(id, Reply::Answer(answer)),
            FromWhatsApp::Brought { account, connection, brought } => {
                client.brought(account, connection, brought);
            }
        }
    }
}

async fn hear_people(mut ear: Ear<Command>, handle: Handle) {
    while let Some(command) = ear.hear().await {
        let handle = handle.clone();
        madsim::task::spawn(async move { handle.command(command).await.ok() });
    }
}

/// Tells the checker what the core takes in, wants and believes.
struct Witness {
    world: World,
    process: u32,
    instance: u8,
    clock: Clock,
    mode: Mode,
    /// What the answer to a request of the store may change
    asked: BTreeMap<RequestId, Touched>,
    /// What the input under way may change
    touched: Touched,
}

impl Observer for Witness {
    fn input(&mut self, now: Mono, input: &Input) {
        self.touched = Touched::NOTHING;
        let process = self.process;
        let settled = if let Input::Answer(id, answer) = input {
            self.touched = self.asked.remove(id).unwrap_or(Touched::NOTHING);
            let known =
                matches!(answer, Answer::Committed { .. } | Answer::Conflict | Answer::Rejected(_));
            Some((*id, known))
        } else {
            None
        };
        self.world.look(|truth| {
            truth.events += 1;
            if let Some((id, known)) = settled {
                truth.processes[process as usize].asked.retain(|(asked, _)| *asked != id);
                if known {
                    truth.checker.answered(process, id);
                }
            }
            truth.trace.note(truth.now, || Entry::Input {
                process,
                mono: now,
                input: input.clone(),
            });
        });
    }

    fn settled(&mut self, _: Mono, core: &Instance, outputs: &[Output]) {
        let Self { world, process, instance, clock, mode, asked, touched } = self;
        let (p, before, after) = (*process, *mode, core.mode());
        *mode = after;
        world.look(|truth| {
            let now = truth.now;
            let mut pause = None;
            for output in outputs {
                let commit = match output {
                    Output::Store(StoreRequest { id, call, .. }) => {
                        asked.insert(*id, truth.checker.touched_by_call(call));
                        if let StoreCall::Commit(writes) = call {
                            let process = &mut truth.processes[p as usize];
                            process.asked.push((*id, writes.clone()));
                        }
                        matches!(call, StoreCall::Commit(_))
                    }
                    _ => false,
                };
                if commit || matches!(output, Output::Event(_)) {
                    touched.and(truth.checker.touched_by(output));
                }
                truth.checker.output(now, p, output, before, after);
                truth.trace.note(now, || Entry::Output { process: p, output: output.clone() });
                if matches!(output, Output::Store(_) | Output::Gateway(_))
                    && let Some(fault) =
                        truth.faults.strikes(Kind::PauseAtSend { ms: 0 }, *instance, NOBODY)
                    && let Kind::PauseAtSend { ms } = fault.kind
                {
                    pause = Some(ms);
                }
            }
            touched.session |= before != after;
            truth.checker.observed(now, p, core, clock, *touched);
            if let Some(ms) = pause {
                // Everything it wants has been decided, and nothing of it has been looked at again.
                truth.pause(p, now.after(ms));
            }
        });
    }
}
