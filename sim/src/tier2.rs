//! Tier 2: the driver and the core in processes of their own, each a node of a simulated network.
//!
//! Every process runs what production runs, the [driver](backfill_driver) with its tasks, timeouts
//! and cancellations; the store and WhatsApp are other nodes, reached by messages only. Scenarios
//! and checker are those of tier 1.

mod agenda;
mod clock;
mod gateway;
mod process;
mod store;
mod truth;
mod whatsapp;
mod wire;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backfill_core::bug::Bug;
use backfill_core::id::BootId;
use backfill_core::io::{CloseReason, Command};
use backfill_core::policy::PolicyErrors;
use madsim::net::Endpoint;
use madsim::runtime::{Handle, Runtime};
use madsim::time::TimeHandle;

use self::agenda::Agenda;
use self::truth::{Process, State, Truth};
use self::wire::{Lines, PEOPLE, STORE, WHATSAPP};
use crate::chance::draw;
use crate::clock::Real;
use crate::report::Report;
use crate::scenario::{AccountPlan, Ask, Kind, Scenario, Target};
use crate::trace::{Entry, Trace};
use crate::whatsapp::{ConnKey, FOREIGN};
use crate::world::{is_event, node, people};

/// Runs a world to its end, on a thread of its own: what a thread keeps would make the next world
/// another one.
///
/// # Errors
/// What is wrong with the scenario's settings.
///
/// # Panics
/// If a process does.
pub fn run(
    scenario: Scenario,
    bug: Option<Bug>,
    trace: Trace,
) -> Result<(Report, Trace), PolicyErrors> {
    let world = std::thread::Builder::new()
        .name(format!("world {}", scenario.seed))
        .spawn(move || {
            let mut config = madsim::Config::default();
            config.net.send_latency = Duration::from_millis(1)..Duration::from_millis(6);
            let runtime = Runtime::with_seed_and_config(scenario.seed, config);
            let world = runtime.block_on(direct(scenario, bug, trace))?;
            // What was to happen in the same instant has happened.
            Ok(world.look(Truth::finish))
        })
        .expect("a thread can be started");
    match world.join() {
        Ok(end) => end,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Reaches what is true from everywhere in the world.
#[derive(Clone)]
struct World {
    truth: Arc<Mutex<Truth>>,
    time: TimeHandle,
}

/// What the director brings about.
#[derive(Clone, Copy, Debug)]
enum Ev {
    CheckHandOver(u32),
    CheckOwners,
    /// Everything has settled
    CountHoles,
    End,
    Fault(u32, bool),
    Kill(u32),
    Node(node::Step),
    Operation(u32),
    Outbox(u16),
    Resume(u32, Real),
    Start(u8),
}

impl World {
    /// The next event of an agenda, when its time comes.
    async fn next<E>(&self, agenda: impl Fn(&mut Truth) -> &mut Agenda<E>) -> E {
        poll_fn(|cx| self.look(|truth| agenda(truth).poll_next(cx))).await
    }

    /// Looks at what is true now.
    fn look<T>(&self, look: impl FnOnce(&mut Truth) -> T) -> T {
        let truth = &mut *self.truth.lock().unwrap_or_else(PoisonError::into_inner);
        truth.now = clock::real(&self.time);
        truth.faults.advance(truth.now);
        let seen = look(truth);
        truth.carry();
        seen
    }
}

/// Lets a world live to its end.
async fn direct(scenario: Scenario, bug: Option<Bug>, trace: Trace) -> Result<World, PolicyErrors> {
    let truth = Truth::new(scenario, bug, trace)?;
    let time = TimeHandle::current();
    let world = World { truth: Arc::new(Mutex::new(truth)), time };
    let place =
        |name: &str, at: SocketAddr| Handle::current().create_node().name(name).ip(at.ip()).build();
    place("store", STORE).spawn(store::serve(world.clone()));
    place("whatsapp", WHATSAPP).spawn(whatsapp::serve(world.clone()));
    let desk = Lines::new();
    place("people", PEOPLE).spawn(take_in(desk.clone()));

    world.look(plan_ahead);
    let mut node = node::Node::default();
    loop {
        match world.next(|truth| &mut truth.plan).await {
            Ev::CheckHandOver(p) => world.look(|t| t.checker.check_hand_over(t.now, p, &t.net)),
            Ev::CheckOwners => world.look(|t| {
                if let Some(again) = t.checker.check_owners(t.now, &t.net) {
                    t.schedule(again, Ev::CheckOwners);
                }
            }),
            Ev::CountHoles => world.look(|t| {
                t.checker.note_holes(t.now, t.scenario.end, &t.store, &t.net);
            }),
            Ev::End => return Ok(world),
            Ev::Fault(i, on) => {
                world.look(|t| t.trace_fault(i, on));
                fault(&world, &desk, i, on);
            }
            Ev::Kill(p) => world.look(|t| t.end(p, false)),
            Ev::Node(step) => world.look(|t| t.node_step(&mut node, step)),
            Ev::Operation(i) => operate(&world, &desk, i),
            Ev::Outbox(account) => world.look(|t| t.put_in_outbox(account)),
            Ev::Resume(p, until) => world.look(|t| t.resume(p, until)),
            Ev::Start(instance) => start(&world, instance),
        }
    }
}

fn plan_ahead(truth: &mut Truth) {
    let scenario = truth.scenario.clone();
    for instance in &scenario.instances {
        truth.schedule(instance.start, Ev::Start(instance.id));
    }
    for (i, fault) in scenario.faults.iter().enumerate() {
        let end = scenario.fault_end(fault);
        let happens = is_event(fault.kind) || matches!(fault.kind, Kind::StorePartition { .. });
        if happens && fault.from < end {
            truth.schedule(fault.from, Ev::Fault(i as u32, true));
            if end != Real::NEVER {
                truth.schedule(end, Ev::Fault(i as u32, false));
            }
        }
    }
    for (i, operation) in scenario.operations.iter().enumerate() {
        truth.schedule(operation.at, Ev::Operation(i as u32));
    }
    for account in &scenario.accounts {
        if let Some(wait) = truth.next_send(account.id) {
            truth.schedule(Real(wait), Ev::Outbox(account.id));
        }
    }
    let handed_over = truth.checker.handed_over();
    if handed_over < scenario.end {
        truth.schedule(handed_over, Ev::CheckOwners);
    }
    let settled = truth.checker.settled();
    if settled < scenario.end {
        truth.schedule(settled, Ev::CountHoles);
    }
    if let Some(plan) = &scenario.node {
        truth.schedule(plan.start, Ev::Node(node::Step::Look));
        truth.schedule(plan.end, Ev::Node(node::Step::End));
    }
    truth.schedule(scenario.end, Ev::End);
}

/// Starts a process of an instance, unless one runs.
fn start(world: &World, instance: u8) {
    let made = world.look(|truth| {
        let host = truth.hosts.iter().position(|host| host.plan.id == instance)?;
        if truth.hosts[host].current.is_some() || truth.faults.keeps_down(instance) {
            return None;
        }
        let number = truth.processes.len() as u32;
        truth.hosts[host].current = Some(number);
        truth.hosts[host].starts += 1;
        let own =
            draw(draw(truth.scenario.seed, 0x9000 + u64::from(instance)), truth.hosts[host].starts);
        let node = Handle::current()
            .create_node()
            .name(format!("process {number}"))
            .ip(wire::address(number).ip())
            .build();
        truth.processes.push(Process {
            node: node.id(),
            host,
            instance,
            state: State::Running,
            connections: std::collections::BTreeSet::new(),
            asked: Vec::new(),
            hinted: [false; 3],
            disturbed: false,
        });
        let mut seed = [0; 32];
        for (i, part) in seed.chunks_mut(8).enumerate() {
            part.copy_from_slice(&draw(own, i as u64).to_be_bytes());
        }
        truth.checker.started(truth.now, instance, &BootId::derive(&seed, 0));
        truth.trace.note(truth.now, || Entry::Started { process: number, instance });
        let policy = truth.hosts[host].policy.clone();
        let clock = truth.own_clock(host);
        Some((node, process::Plan { number, instance, policy, seed, clock }))
    });
    if let Some((node, plan)) = made {
        let number = plan.number;
        let driver = process::run(world.clone(), plan);
        partition(world, number);
        node.spawn(driver);
    }
}

/// The network between a process and the store has changed.
fn partition(world: &World, p: u32) {
    world.look(|truth| {
        let cut = [true, false].iter().any(|requests| truth.is_cut_off(p, *requests));
        truth.checker.disturbed(if cut { Real::NEVER } else { truth.now }, p);
    });
}

fn fault(world: &World, desk: &Lines<Command>, i: u32, on: bool) {
    let (fault, end, hosts, accounts) = world.look(|t| t.targets(i));
    match fault.kind {
        Kind::Crash | Kind::HostReboot { .. } => {
            if on && matches!(fault.kind, Kind::HostReboot { .. }) {
                world.look(|t| t.checker.clock_changed(None));
            }
            for (instance, current) in hosts {
                match (on, current) {
                    (true, Some(p)) => world.look(|t| t.end(p, false)),
                    (false, None) => start(world, instance),
                    _ => {}
                }
            }
        }
        Kind::Pause | Kind::Freeze => {
            for (instance, current) in hosts {
                match (on, current) {
                    (true, Some(p)) => world.look(|t| {
                        if fault.kind == Kind::Freeze {
                            t.checker.clock_changed(Some(instance));
                        }
                        t.pause(p, end);
                    }),
                    (false, None) => start(world, instance),
                    _ => {}
                }
            }
        }
        Kind::Stop => {
            for (instance, current) in hosts {
                match (on, current) {
                    (true, Some(p)) => {
                        world.look(|t| t.stopping(p));
                        desk.say(p, Command::Stop);
                    }
                    (false, None) => start(world, instance),
                    _ => {}
                }
            }
        }
        Kind::StorePartition { .. } => {
            for p in hosts.into_iter().filter_map(|(_, p)| p) {
                partition(world, p);
            }
        }
        _ if on => world.look(|t| t.whatsapp_fault(fault, &accounts)),
        _ => {}
    }
}

fn operate(world: &World, desk: &Lines<Command>, i: u32) {
    let (operation, current) = world.look(|truth| {
        let operation = truth.scenario.operations[i as usize].clone();
        let host = truth.hosts.iter().find(|host| host.plan.id == operation.instance);
        let current = host.and_then(|host| host.current);
        (operation, current)
    });
    let account = AccountPlan::account(operation.account);
    let asked = match operation.ask {
        Ask::Backfill => Command::Backfill(account),
        Ask::Delete => Command::DeleteAccount(account),
        Ask::RegenerateQr => Command::RegenerateQr(account),
    };
    if let Some(p) = current {
        desk.say(p, asked);
    }
}

/// Operators hear of every process.
async fn take_in(desk: Lines<Command>) {
    let endpoint = Endpoint::bind(PEOPLE).await.expect("nobody else is there");
    loop {
        let (process, mut ear) = desk.accept::<()>(&endpoint).await;
        let desk = desk.clone();
        madsim::task::spawn(async move {
            while ear.hear().await.is_some() {}
            desk.forget(process);
        });
    }
}

type Targets = (crate::scenario::Fault, Real, Vec<(u8, Option<u32>)>, Vec<u16>);

impl Truth {
    fn trace_fault(&mut self, i: u32, on: bool) {
        let fault = self.scenario.faults[i as usize];
        self.trace.note(self.now, || Entry::Fault { fault, on });
        if on {
            self.faults.count(fault.kind);
        }
    }

    /// A fault, its end, and whom it meets: instances with their processes, and accounts.
    fn targets(&self, i: u32) -> Targets {
        let fault = self.scenario.faults[i as usize];
        let hosts = self.hosts.iter().filter(|host| match fault.target {
            Target::All => true,
            Target::Instance(id) => host.plan.id == id,
            Target::Account(_) => false,
        });
        let accounts = self.scenario.accounts.iter().map(|account| account.id);
        let meets = |id: &u16| match fault.target {
            Target::Account(account) => account == *id,
            Target::All => true,
            Target::Instance(_) => false,
        };
        (
            fault,
            self.scenario.fault_end(&fault),
            hosts.map(|host| (host.plan.id, host.current)).collect(),
            accounts.filter(meets).collect(),
        )
    }

    fn whatsapp_fault(&mut self, fault: crate::scenario::Fault, accounts: &[u16]) {
        match fault.kind {
            Kind::ForeignClient => {
                for account in accounts {
                    // Another client takes the account's connection, and leaves soon.
                    let key = ConnKey { process: FOREIGN, request: self.now.0 };
                    self.note_disconnected(*account);
                    self.net.open(self.now, *account, key, u8::MAX, &mut self.faults);
                    self.net.close(*account, key);
                }
            }
            Kind::LoggedOut => {
                for account in accounts {
                    self.note_disconnected(*account);
                    self.net.log_out(self.now, *account);
                }
            }
            Kind::WaDown => {
                let all: Vec<u16> = self.scenario.accounts.iter().map(|a| a.id).collect();
                for account in all {
                    let by = self.net.connection(account).map(|key| key.process);
                    let of_instance = |p: u32| {
                        let process = self.processes.get(p as usize);
                        process.is_some_and(|p| fault.target == Target::Instance(p.instance))
                    };
                    if accounts.contains(&account) || by.is_some_and(of_instance) {
                        self.note_disconnected(account);
                        self.net.cut(self.now, account, CloseReason::Lost);
                    }
                }
            }
            Kind::WaSilent => {
                for account in accounts {
                    self.net.silence(self.now, *account);
                }
            }
            _ => {}
        }
    }

    fn stopping(&mut self, p: u32) {
        self.checker.stopping(self.now, p);
        let process = &mut self.processes[p as usize];
        // A process that stands still hears of it later.
        process.disturbed |= process.state != State::Running;
        let policy = &self.hosts[process.host].policy;
        let patience = policy.stop_timeout.as_millis() as u64 * 3;
        let end = self.now.after(patience);
        self.schedule(end, Ev::Kill(p));
    }

    fn next_send(&mut self, account: u16) -> Option<u64> {
        let plan = self.scenario.accounts.iter().find(|a| a.id == account)?;
        if plan.sends == 0 || plan.threads == 0 {
            return None;
        }
        Some(1 + self.people.waiting(24 * 3_600_000 / u64::from(plan.sends)))
    }

    fn put_in_outbox(&mut self, account: u16) {
        if let Some(wait) = self.next_send(account) {
            let next = self.now.after(wait);
            self.schedule(next, Ev::Outbox(account));
        }
        let now = self.store_clock.store(self.now);
        let writes = people::new_outbox(&mut self.people, &self.net, account, now);
        if let Some((number, writes)) = writes {
            self.commit(None, None, false, &writes)
                .expect("a random id is new, and nothing else can be refused");
            self.checker.inbox_wrote(account, number);
        }
    }

    fn node_step(&mut self, node: &mut node::Node, step: node::Step) {
        let Some(plan) = self.scenario.node.clone() else { return };
        let doc = self.store.document(&node::lock_path()).cloned();
        let accounts: Vec<u16> = self.scenario.accounts.iter().map(|a| a.id).collect();
        let shown = |account: u16| self.store.document(&AccountPlan::account(account).path());
        let wants = node.step(&plan, self.now, step, doc.as_deref(), &accounts, shown);
        if !wants.writes.is_empty() {
            self.commit(None, None, false, &wants.writes).expect("nothing is required");
        }
        if plan.serves {
            for account in accounts {
                let net = (&mut self.net, &mut self.faults, &mut self.checker);
                node::connect(net, self.now, account, wants.connected);
            }
        }
        if let Some(wait) = wants.again {
            let next = self.now.after(wait);
            self.schedule(next, Ev::Node(node::Step::Look));
        }
    }
}
