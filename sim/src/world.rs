//! Tier 1: the world as a queue of events, with the bare core in every process.
//!
//! The world does what shells, stores and networks do, with what the fault plan adds. A request to
//! the store takes effect at the moment it is sent or at the moment its answer arrives, or, rarely,
//! in between: the two ends are what differs most, and cost one event.

mod gateway;
pub(crate) mod intake;
pub(crate) mod node;
pub(crate) mod people;
mod store_port;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use backfill_core::bug::Bug;
use backfill_core::id::RequestId;
use backfill_core::instance::Instance;
use backfill_core::io::{Answer, Command, CommandId, Event, Hint, Input, Output, RunKind};
use backfill_core::policy::{Policy, PolicyErrors, Settings};

use crate::chance::{Chance, draw};
use crate::checker::{Checker, Touched};
use crate::clock::{Clock, ClockPlan, Real};
use crate::faults::{FaultPlan, NO_INSTANCE};
use crate::queue::Queue;
use crate::report::{Report, fault_counts};
use crate::scenario::{AccountPlan, Ask, InstancePlan, Kind, Scenario, Target};
use crate::store::{Change, SimStore};
use crate::trace::{Entry, Trace};
use crate::variant::{Slip, Variant};
use crate::whatsapp::{ConnKey, Delivery, Later, Out, WhatsApp};

/// A world that runs.
#[derive(Debug)]
pub struct World {
    scenario: Scenario,
    now: Real,
    queue: Queue<Ev>,
    faults: FaultPlan,
    store: SimStore,
    store_clock: Clock,
    net: WhatsApp,
    hosts: Vec<Host>,
    processes: Vec<Process>,
    checker: Checker,
    trace: Trace,
    /// History chunks that lie in the spool, which is where the store is
    spool: BTreeMap<(u16, u64), u32>,
    /// Chunks that were lost, until that is noted
    missing: BTreeSet<(u16, u64)>,
    next_chunk: u64,
    node: node::Node,
    events: u64,
    census: BTreeMap<&'static str, u64>,
    /// Of who sends when
    people: Chance,
    changes: Vec<Change>,
    /// What the shells get wrong on purpose
    slip: Option<Slip>,
    /// Every core has a double beside it
    shadowed: bool,
}

/// Where processes of one instance run.
#[derive(Debug)]
struct Host {
    plan: InstancePlan,
    policy: Policy,
    clock: Clock,
    current: Option<u32>,
    starts: u64,
}

/// One run of the program.
#[derive(Debug)]
struct Process {
    host: usize,
    instance: u8,
    core: Box<Instance>,
    /// Its double
    shadow: Option<Box<Instance>>,
    state: State,
    /// When it wants to be woken
    wake: Real,
    /// Timeouts without time passing
    spins: u32,
    /// Its own draws: what happens to others does not change them
    chance: Chance,
    outputs: VecDeque<Output>,
    /// The output before which it was paused already
    paused_for: Option<RequestId>,
    /// What arrived while it was paused
    held: VecDeque<Ev>,
    hinted: [bool; 3],
    gateway: gateway::Gateway,
    jobs: Vec<Option<intake::Job>>,
    /// Something has disturbed it since it was told to stop
    stop_disturbed: bool,
    commands: u64,
    /// What it believed when the trace last looked
    believed: BTreeMap<Option<u16>, (u64, Real)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Dead,
    Paused(Real),
    Running,
}

/// What happens.
#[derive(Clone, Debug)]
enum Ev {
    Answer(u32, RequestId, Touched, Answer),
    Arrive(Box<store_port::Request>),
    CheckHandOver(u32),
    CheckOwners,
    /// Everything has settled
    CountHoles,
    Deliver(u16, ConnKey, Delivery),
    Fault(u32, bool),
    Gateway(u32, gateway::Step),
    Hint(u32, Hint),
    Job(u32, u32, store_port::JobAnswer),
    Kill(u32),
    Node(node::Step),
    Operation(u32),
    Outbox(u16),
    Resume(u32, Real),
    Start(u8),
    Wa(u16, Later),
    Wake(u32),
}

impl World {
    /// Prepares a world.
    ///
    /// # Errors
    /// What is wrong with the scenario's settings.
    pub fn new(scenario: Scenario, trace: Trace) -> Result<Self, PolicyErrors> {
        let mut hosts = Vec::new();
        for plan in &scenario.instances {
            hosts.push(Host {
                policy: scenario.policy(plan)?,
                clock: Clock::new(&own_clock(&scenario, plan)),
                plan: plan.clone(),
                current: None,
                starts: 0,
            });
        }
        let spare = InstancePlan {
            id: NO_INSTANCE,
            label: "spare".into(),
            start: Real::ZERO,
            clock: ClockPlan::default(),
        };
        let policy = match hosts.first() {
            Some(host) => host.policy.clone(),
            None => scenario.policy(&spare)?,
        };
        let mut world = Self {
            now: Real::ZERO,
            queue: Queue::new(),
            faults: FaultPlan::new(&scenario),
            store: SimStore::new(),
            store_clock: Clock::new(&store_clock(&scenario)),
            net: WhatsApp::new(scenario.seed, &scenario.accounts),
            hosts,
            processes: Vec::new(),
            checker: Checker::new(&scenario, &policy),
            trace,
            spool: BTreeMap::new(),
            missing: BTreeSet::new(),
            next_chunk: 1,
            node: node::Node::default(),
            events: 0,
            census: BTreeMap::new(),
            people: Chance::of(scenario.seed, "people"),
            changes: Vec::new(),
            slip: None,
            shadowed: false,
            scenario,
        };
        world.plan_ahead();
        Ok(world)
    }

    /// The same world with a double of every core, which is given the same inputs, and every answer
    /// twice.
    #[must_use]
    pub const fn shadowed(mut self) -> Self {
        self.shadowed = true;
        self
    }

    /// The same world with a rule broken on purpose, by every process.
    #[must_use]
    pub fn breaking(mut self, variant: Option<Variant>) -> Self {
        match variant {
            None => {}
            Some(Variant::Core(bug)) => {
                for host in &mut self.hosts {
                    host.policy = broken(&host.policy, bug);
                }
            }
            Some(Variant::Shell(slip)) => self.slip = Some(slip),
        }
        self
    }

    /// Runs the world to its end.
    pub fn run(mut self) -> (Report, Trace) {
        while let Some((at, event)) = self.next() {
            if at > self.scenario.end {
                break;
            }
            self.now = at;
            self.events += 1;
            self.faults.advance(at);
            *self.census.entry(event.kind()).or_default() += 1;
            self.step(event);
            self.carry();
        }
        self.now = self.scenario.end;
        self.checker.finish(self.now, &self.scenario, &self.store, &self.net);
        for violation in self.checker.violations() {
            self.trace.note(violation.at, || Entry::Violation {
                check: violation.check,
                text: violation.text.clone(),
            });
        }
        let report = Report {
            seed: self.scenario.seed,
            violations: self.checker.violations().to_vec(),
            sometimes: self.checker.sometimes().clone(),
            faults: fault_counts(self.faults.struck()),
            events: self.events,
            census: self.census.into_iter().collect(),
            simulated_ms: self.now.0,
        };
        (report, self.trace)
    }

    /// What happens next. Nobody is woken before everything else has happened at a moment.
    fn next(&mut self) -> Option<(Real, Ev)> {
        let wakes = self.hosts.iter().filter_map(|host| {
            let p = host.current?;
            let process = &self.processes[p as usize];
            (process.state == State::Running).then_some((process.wake, p))
        });
        match wakes.min() {
            Some((at, p)) if at < self.queue.next().unwrap_or(Real::NEVER) => {
                Some((at, Ev::Wake(p)))
            }
            _ => self.queue.pop(),
        }
    }

    fn plan_ahead(&mut self) {
        self.set_up_accounts();
        for i in 0..self.hosts.len() {
            let plan = &self.hosts[i].plan;
            self.queue.push(plan.start, Ev::Start(plan.id));
        }
        for (i, fault) in self.scenario.faults.iter().enumerate() {
            let end = self.scenario.fault_end(fault);
            if is_event(fault.kind) && fault.from < end {
                self.queue.push(fault.from, Ev::Fault(i as u32, true));
                if end != Real::NEVER {
                    self.queue.push(end, Ev::Fault(i as u32, false));
                }
            }
        }
        for (i, operation) in self.scenario.operations.iter().enumerate() {
            self.queue.push(operation.at, Ev::Operation(i as u32));
        }
        for i in 0..self.scenario.accounts.len() {
            let account = self.scenario.accounts[i].id;
            if let Some(wait) = self.next_send(account) {
                self.queue.push(Real(wait), Ev::Outbox(account));
            }
        }
        self.queue.push(self.checker.handed_over(), Ev::CheckOwners);
        self.queue.push(self.checker.settled(), Ev::CountHoles);
        self.plan_node();
        self.carry();
    }

    /// Puts what WhatsApp wants to happen into the queue.
    fn carry(&mut self) {
        if !self.net.has_output() {
            return;
        }
        for (at, out) in self.net.take() {
            match out {
                Out::Deliver(account, key, delivery) => {
                    self.queue.push(at, Ev::Deliver(account, key, delivery));
                }
                Out::Later(account, later) => self.queue.push(at, Ev::Wa(account, later)),
            }
        }
    }

    fn step(&mut self, event: Ev) {
        if let Some(p) = event.process() {
            let Some(process) = self.processes.get_mut(p as usize) else {
                if let Ev::Deliver(account, key, delivery) = event {
                    node::receive(&mut self.net, self.now, account, key, &delivery);
                }
                return;
            };
            match process.state {
                State::Dead => return,
                State::Paused(_) => {
                    process.held.push_back(event);
                    return;
                }
                State::Running => {}
            }
        }
        match event {
            Ev::Answer(p, id, touched, answer) => {
                if matches!(
                    answer,
                    Answer::Committed { .. } | Answer::Conflict | Answer::Rejected(_)
                ) {
                    self.checker.answered(p, id);
                }
                self.feed(p, Input::Answer(id, answer), touched);
            }
            Ev::Arrive(request) => self.arrive(*request),
            Ev::CheckOwners => {
                if let Some(again) = self.checker.check_owners(self.now, &self.net) {
                    self.queue.push(again, Ev::CheckOwners);
                }
            }
            Ev::CountHoles => {
                self.checker.note_holes(self.now, self.scenario.end, &self.store, &self.net);
            }
            Ev::CheckHandOver(p) => self.checker.check_hand_over(self.now, p, &self.net),
            Ev::Deliver(account, key, delivery) => self.deliver(account, key, delivery),
            Ev::Fault(i, on) => self.fault(i, on),
            Ev::Gateway(p, step) => self.gateway_step(p, step),
            Ev::Hint(p, hint) => {
                self.processes[p as usize].hinted[hint as usize] = false;
                self.feed(p, Input::Hint(hint), Touched::NOTHING);
            }
            Ev::Job(p, job, answer) => self.job_answered(p, job, answer),
            Ev::Kill(p) => {
                if self.processes[p as usize].state != State::Dead {
                    self.end(p, false);
                }
            }
            Ev::Node(step) => self.node_step(step),
            Ev::Operation(i) => self.operate(i),
            Ev::Outbox(account) => self.put_in_outbox(account),
            Ev::Resume(p, until) => self.resume(p, until),
            Ev::Start(instance) => self.start(instance),
            Ev::Wa(account, later) => {
                let linked = self.net.is_linked(account);
                self.net.handle(self.now, account, later, &mut self.faults);
                if !linked && self.net.is_linked(account) {
                    self.linked(account);
                }
            }
            Ev::Wake(p) => self.wake(p),
        }
    }

    fn start(&mut self, instance: u8) {
        let Some(i) = self.hosts.iter().position(|host| host.plan.id == instance) else { return };
        let host = &mut self.hosts[i];
        if host.current.is_some() || self.faults.keeps_down(instance) {
            return;
        }
        let host = &mut self.hosts[i];
        let number = self.processes.len() as u32;
        host.current = Some(number);
        host.starts += 1;
        let own = draw(draw(self.scenario.seed, 0x9000 + u64::from(instance)), host.starts);
        let mut seed = [0; 32];
        for (i, part) in seed.chunks_mut(8).enumerate() {
            part.copy_from_slice(&draw(own, i as u64).to_be_bytes());
        }
        let core = Instance::new(host.policy.clone(), seed, host.clock.mono(self.now));
        self.checker.started(self.now, instance, core.boot());
        self.trace.note(self.now, || Entry::Started { process: number, instance });
        self.processes.push(Process {
            host: i,
            instance,
            shadow: self.shadowed.then(|| Box::new(core.clone())),
            core: Box::new(core),
            state: State::Running,
            wake: Real::NEVER,
            spins: 0,
            chance: Chance::new(own),
            outputs: VecDeque::new(),
            paused_for: None,
            held: VecDeque::new(),
            hinted: [false; 3],
            gateway: gateway::Gateway::default(),
            jobs: Vec::new(),
            stop_disturbed: false,
            commands: 0,
            believed: BTreeMap::new(),
        });
        self.feed(number, Input::Timeout, Touched::NOTHING);
        if self.scenario.pace.local {
            for account in self.checker.credentials_of(instance) {
                let here = Input::Credentials(AccountPlan::account(account), true);
                self.feed(number, here, Touched::NOTHING);
            }
        }
    }

    /// An account was linked: its credentials lie where its connection ends.
    fn linked(&mut self, account: u16) {
        let by = self.net.connection(account).map(|key| key.process as usize);
        let at = by.and_then(|p| self.processes.get(p)).map(|process| process.instance);
        self.checker.linked(account, at);
    }

    /// The credentials of an account lie on a process's host from now on, or not any more.
    fn credentials(&mut self, p: u32, account: u16, here: bool) {
        let instance = self.processes[p as usize].instance;
        if here {
            self.checker.linked(account, Some(instance));
        } else {
            self.checker.unlinked(account, instance);
        }
        let told = Input::Credentials(AccountPlan::account(account), here);
        self.feed(p, told, Touched::NOTHING);
    }

    /// Gives a process an input, and does what it wants.
    fn feed(&mut self, p: u32, input: Input, mut touched: Touched) {
        let process = &mut self.processes[p as usize];
        let clock = &self.hosts[process.host].clock;
        let mono = clock.mono(self.now);
        if self.trace.is_recording() {
            let input = input.clone();
            self.trace.note(self.now, || Entry::Input { process: p, mono, input });
        }
        let before = process.core.mode();
        let mut works = input == Input::Timeout && process.core.tick_works(RunKind::AutoBackfill);
        let again = process.shadow.is_some().then(|| input.clone());
        process.core.handle_input(mono, input);
        let first = process.outputs.len();
        while let Some(output) = process.core.poll_output() {
            process.outputs.push_back(output);
        }
        let after = process.core.mode();
        if let Some(input) = again
            && let Some(differs) = process.compare(mono, input, first)
        {
            process.shadow = None;
            self.checker.violate("S10", self.now, || format!("process {p}: {differs}"));
        }
        let process = &mut self.processes[p as usize];
        for output in process.outputs.range(first..) {
            if matches!(output, Output::Event(_)) || is_commit(output) {
                touched.and(self.checker.touched_by(output));
            }
            // One that ends right before the tick works no more.
            works &= !matches!(output, Output::Event(Event::RunEnded { kind: AUTO_BACKFILL, .. }));
            if works && matches!(output, Output::Event(Event::Tick { kind: AUTO_BACKFILL, .. })) {
                self.checker.violate("S7", self.now, || {
                    format!("process {p}: a tick while runs of the tick before work")
                });
            }
            self.checker.output(self.now, p, output, before, after);
            self.trace.note(self.now, || Entry::Output { process: p, output: output.clone() });
        }
        if after != before {
            touched.session = true;
        }
        self.checker.observed(self.now, p, &process.core, clock, touched);
        if self.trace.is_recording() {
            self.note_beliefs(p);
        }
        self.flush(p);
        self.rearm(p);
    }

    /// Notes what a process believes now, where that has changed.
    fn note_beliefs(&mut self, p: u32) {
        let process = &mut self.processes[p as usize];
        let clock = &self.hosts[process.host].clock;
        let accounts = process.core.beliefs().filter_map(|(account, belief)| {
            Some((Some(AccountPlan::number(account.as_str())?), belief))
        });
        let believed: BTreeMap<Option<u16>, (u64, Real)> = accounts
            .chain(process.core.lock_belief().map(|belief| (None, belief)))
            .map(|(what, belief)| (what, (belief.epoch.0, clock.when(belief.until.as_millis()))))
            .collect();
        let before = std::mem::take(&mut process.believed);
        for (account, (epoch, _)) in &before {
            if !believed.contains_key(account) {
                let (account, epoch, until) = (*account, *epoch, Real::ZERO);
                let entry = Entry::Belief { process: p, account, epoch, until };
                self.trace.note(self.now, || entry);
            }
        }
        for (account, (epoch, until)) in &believed {
            if before.get(account) != Some(&(*epoch, *until)) {
                let (account, epoch, until) = (*account, *epoch, *until);
                let entry = Entry::Belief { process: p, account, epoch, until };
                self.trace.note(self.now, || entry);
            }
        }
        process.believed = believed;
    }

    /// Carries out what a process wants, until it is paused.
    fn flush(&mut self, p: u32) {
        loop {
            let process = &mut self.processes[p as usize];
            if process.state != State::Running {
                return;
            }
            let Some(output) = process.outputs.pop_front() else { return };
            let id = match &output {
                Output::Store(request) => Some(request.id),
                Output::Gateway(request) => Some(request.id),
                Output::Event(_) | Output::Reply(..) => None,
                Output::Stopped => {
                    self.end(p, true);
                    return;
                }
            };
            let Some(id) = id else { continue };
            if process.paused_for != Some(id)
                && let Some(fault) =
                    self.faults.strikes(Kind::PauseAtSend { ms: 0 }, process.instance, NOBODY)
                && let Kind::PauseAtSend { ms } = fault.kind
            {
                process.paused_for = Some(id);
                process.outputs.push_front(output);
                self.pause(p, self.now.after(ms));
                return;
            }
            match output {
                Output::Store(request) => self.send_for_core(p, request),
                Output::Gateway(request) => self.ask_gateway(p, request),
                Output::Event(_) | Output::Reply(..) | Output::Stopped => {}
            }
        }
    }

    /// Sees to it that the process is woken when it wants to be.
    fn rearm(&mut self, p: u32) {
        let process = &mut self.processes[p as usize];
        if process.state == State::Dead {
            return;
        }
        let clock = &self.hosts[process.host].clock;
        process.wake = match process.core.poll_timeout() {
            Some((at, _)) => clock.when(at.as_millis()).max(self.now),
            None => Real::NEVER,
        };
    }

    fn wake(&mut self, p: u32) {
        self.feed(p, Input::Timeout, Touched::NOTHING);
        // S10: having been told that time has passed, a core does not want to be told so again
        // while it does not pass.
        let process = &mut self.processes[p as usize];
        process.spins = if process.wake == self.now { process.spins + 1 } else { 0 };
        if process.spins > 100 {
            let reason = process.core.poll_timeout();
            self.checker.violate("S10", self.now, || {
                format!("process {p} wants to be woken again and again: {reason:?}")
            });
            self.end(p, false);
        }
    }

    fn pause(&mut self, p: u32, until: Real) {
        let process = &mut self.processes[p as usize];
        let until = match process.state {
            State::Dead => return,
            State::Paused(old) if old >= until => return,
            State::Paused(_) | State::Running => until,
        };
        process.state = State::Paused(until);
        process.stop_disturbed = true;
        self.checker.disturbed(self.now, p);
        self.checker.paused(self.now, p);
        self.trace.note(self.now, || Entry::Paused { process: p, until });
        self.queue.push(until, Ev::Resume(p, until));
    }

    fn resume(&mut self, p: u32, until: Real) {
        let process = &mut self.processes[p as usize];
        if process.state != State::Paused(until) {
            return;
        }
        process.state = State::Running;
        self.checker.resumed(self.now, p);
        self.trace.note(self.now, || Entry::Resumed { process: p });
        let process = &mut self.processes[p as usize];
        let mut held = std::mem::take(&mut process.held);
        // Either what arrived or the clock is noticed first.
        let clock_first = process.chance.permille(500);
        self.flush(p);
        if clock_first {
            self.catch_up(p);
        }
        while let Some(event) = held.pop_front() {
            match self.processes[p as usize].state {
                State::Dead => return,
                State::Paused(_) => {
                    held.push_front(event);
                    // What arrives from now on comes after what has arrived.
                    std::mem::swap(&mut held, &mut self.processes[p as usize].held);
                    self.processes[p as usize].held.append(&mut held);
                    return;
                }
                State::Running => self.step(event),
            }
        }
        self.catch_up(p);
    }

    fn catch_up(&mut self, p: u32) {
        let process = &self.processes[p as usize];
        if process.state != State::Running {
            return;
        }
        let mono = self.hosts[process.host].clock.mono(self.now);
        if process.core.poll_timeout().is_some_and(|(at, _)| at <= mono) {
            self.feed(p, Input::Timeout, Touched::NOTHING);
        }
    }

    fn end(&mut self, p: u32, graceful: bool) {
        let process = &mut self.processes[p as usize];
        if process.state == State::Dead {
            return;
        }
        process.state = State::Dead;
        process.held.clear();
        process.outputs.clear();
        process.jobs.clear();
        let disturbed = process.stop_disturbed;
        let instance = process.instance;
        let gateway = std::mem::take(&mut process.gateway);
        self.hosts[process.host].current = None;
        for (account, connection) in gateway.connections() {
            self.net.close(account, ConnKey { process: p, request: connection });
        }
        // Whoever keeps processes running starts another one, unless it is meant to be down.
        self.queue.push(self.now.after(1_000), Ev::Start(instance));
        self.checker.ended(self.now, p, graceful, disturbed);
        if graceful && !disturbed {
            let due = self.now.after(self.checker.hand_over_after_stop());
            self.queue.push(due, Ev::CheckHandOver(p));
        }
        self.trace.note(self.now, || Entry::Ended { process: p, graceful });
    }

    fn fault(&mut self, i: u32, on: bool) {
        let fault = self.scenario.faults[i as usize];
        let end = self.scenario.fault_end(&fault);
        self.trace.note(self.now, || Entry::Fault { fault, on });
        if on {
            self.faults.count(fault.kind);
        }
        let hosts: Vec<(u8, Option<u32>)> = self
            .hosts
            .iter()
            .filter(|host| match fault.target {
                Target::All => true,
                Target::Instance(id) => host.plan.id == id,
                Target::Account(_) => false,
            })
            .map(|host| (host.plan.id, host.current))
            .collect();
        let accounts: Vec<u16> = self
            .scenario
            .accounts
            .iter()
            .map(|account| account.id)
            .filter(|id| match fault.target {
                Target::Account(account) => account == *id,
                Target::All => true,
                Target::Instance(_) => false,
            })
            .collect();
        match fault.kind {
            Kind::Crash | Kind::HostReboot { .. } => {
                if let Kind::HostReboot { .. } = fault.kind
                    && on
                {
                    self.checker.clock_changed(None);
                }
                for (instance, current) in hosts {
                    match (on, current) {
                        (true, Some(p)) => self.end(p, false),
                        (false, None) => self.start(instance),
                        _ => {}
                    }
                }
            }
            Kind::Pause | Kind::Freeze => {
                for (instance, current) in hosts {
                    match (on, current) {
                        (true, Some(p)) => {
                            if fault.kind == Kind::Freeze {
                                self.checker.clock_changed(Some(instance));
                            }
                            self.pause(p, end);
                        }
                        (false, None) => self.start(instance),
                        _ => {}
                    }
                }
            }
            Kind::Stop => {
                for (instance, current) in hosts {
                    match (on, current) {
                        (true, Some(p)) => self.stop(p),
                        (false, None) => self.start(instance),
                        _ => {}
                    }
                }
            }
            Kind::ForeignClient if on => {
                for account in accounts {
                    self.foreign_login(account);
                }
            }
            Kind::LoggedOut if on => {
                for account in accounts {
                    self.net.log_out(self.now, account);
                    self.note_disconnected(account);
                }
            }
            Kind::WaDown if on => {
                let all: Vec<u16> = self.scenario.accounts.iter().map(|a| a.id).collect();
                for account in all {
                    let by = self.net.connection(account).map(|key| key.process);
                    let of_instance = |p: u32| {
                        self.processes
                            .get(p as usize)
                            .is_some_and(|p| fault.target == Target::Instance(p.instance))
                    };
                    if accounts.contains(&account) || by.is_some_and(of_instance) {
                        let lost = backfill_core::io::CloseReason::Lost;
                        self.note_disconnected(account);
                        self.net.cut(self.now, account, lost);
                    }
                }
            }
            Kind::WaSilent if on => {
                for account in accounts {
                    self.net.silence(self.now, account);
                }
            }
            _ => {}
        }
    }

    fn stop(&mut self, p: u32) {
        if self.processes[p as usize].state == State::Dead {
            return;
        }
        self.processes[p as usize].stop_disturbed = false;
        self.checker.stopping(self.now, p);
        let policy = &self.hosts[self.processes[p as usize].host].policy;
        let patience = policy.stop_timeout.as_millis() as u64 * 3;
        self.queue.push(self.now.after(patience), Ev::Kill(p));
        self.command(p, Command::Stop);
    }

    /// A command reaches a process, when it can take one.
    fn command(&mut self, p: u32, command: Command) {
        let process = &mut self.processes[p as usize];
        process.commands += 1;
        let id = CommandId(process.commands);
        match process.state {
            State::Dead => {}
            State::Paused(until) => {
                process.stop_disturbed = true;
                // A signal waits for its process.
                let step = gateway::Step::Command(id, command);
                self.queue.push(until, Ev::Gateway(p, step));
            }
            State::Running => self.feed(p, Input::Command(id, command), Touched::NOTHING),
        }
    }

    fn operate(&mut self, i: u32) {
        let operation = self.scenario.operations[i as usize].clone();
        let account = crate::scenario::AccountPlan::account(operation.account);
        let command = match operation.ask {
            Ask::Backfill => Command::Backfill(account),
            Ask::Delete => Command::DeleteAccount(account),
            Ask::RegenerateQr => Command::RegenerateQr(account),
        };
        let host = self.hosts.iter().find(|host| host.plan.id == operation.instance);
        if let Some(p) = host.and_then(|host| host.current) {
            self.command(p, command);
        }
    }
}

impl Process {
    /// Gives the double what the core was given, and says how it differs.
    ///
    /// S10: a double that is woken with every input has nothing to do before the time for which it
    /// asked to be; the same inputs have the same outputs, and an answer that comes twice has no effect the
    /// second time: each request has been answered, or given up, once.
    fn compare(
        &mut self,
        mono: backfill_core::time::Mono,
        input: Input,
        first: usize,
    ) -> Option<&'static str> {
        let shadow = self.shadow.as_mut()?;
        if shadow.poll_timeout().is_none_or(|(at, _)| at > mono) {
            shadow.handle_input(mono, Input::Timeout);
            if shadow.poll_output().is_some() {
                return Some("something was due before the time asked for");
            }
        }
        let answer = matches!(input, Input::Answer(..)).then(|| input.clone());
        shadow.handle_input(mono, input);
        let same =
            self.outputs.range(first..).all(|output| shadow.poll_output().as_ref() == Some(output));
        if !same || shadow.poll_output().is_some() {
            return Some("the same inputs had other outputs");
        }
        // What is due by now would be done with the next input, whatever that is.
        let due = shadow.poll_timeout().is_some_and(|(at, _)| at <= mono);
        if let Some(answer) = answer.filter(|_| !due) {
            shadow.handle_input(mono, answer);
            if shadow.poll_output().is_some() || *shadow != self.core {
                return Some("an answer that came again had an effect");
            }
        }
        None
    }
}

impl Ev {
    const fn kind(&self) -> &'static str {
        match self {
            Self::Answer(..) => "answers to the core",
            Self::Arrive(_) => "requests that reach the store late",
            Self::CheckHandOver(_) | Self::CheckOwners | Self::CountHoles => "looks of the checker",
            Self::Deliver(..) => "deliveries of WhatsApp",
            Self::Fault(..) => "faults",
            Self::Gateway(..) => "effects on WhatsApp",
            Self::Hint(..) => "hints",
            Self::Job(..) => "answers to ingest",
            Self::Kill(_) | Self::Resume(..) | Self::Start(_) => "starts and ends",
            Self::Node(_) => "looks of a Node instance",
            Self::Operation(_) => "commands",
            Self::Outbox(_) => "messages of the inbox",
            Self::Wa(..) => "doings of WhatsApp",
            Self::Wake(..) => "timers",
        }
    }

    /// The process that has to run for the event to happen.
    fn process(&self) -> Option<u32> {
        match self {
            Self::Answer(p, ..)
            | Self::Gateway(p, _)
            | Self::Hint(p, _)
            | Self::Job(p, ..)
            | Self::Wake(p) => Some(*p),
            Self::Deliver(_, key, _) => Some(key.process),
            Self::Arrive(_)
            | Self::CheckHandOver(_)
            | Self::CheckOwners
            | Self::CountHoles
            | Self::Fault(..)
            | Self::Kill(_)
            | Self::Node(_)
            | Self::Operation(_)
            | Self::Outbox(_)
            | Self::Resume(..)
            | Self::Start(_)
            | Self::Wa(..) => None,
        }
    }
}

/// Whether the world has to do something when a fault of this kind begins and ends; the others are
/// asked for when they could strike.
pub(crate) const fn is_event(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Crash
            | Kind::ForeignClient
            | Kind::Freeze
            | Kind::HostReboot { .. }
            | Kind::LoggedOut
            | Kind::Pause
            | Kind::Stop
            | Kind::WaDown
            | Kind::WaSilent
    )
}

fn is_commit(output: &Output) -> bool {
    use backfill_core::io::{StoreCall, StoreRequest};
    matches!(output, Output::Store(StoreRequest { call: StoreCall::Commit(_), .. }))
}

/// A policy of which one rule is not kept.
pub(crate) fn broken(policy: &Policy, bug: Bug) -> Policy {
    let settings = Settings { bug: Some(bug), ..Settings::clone(policy) };
    Policy::new(settings).expect("no setting has changed")
}

/// The clock of an instance's host: it stands still during a freeze.
pub(crate) fn own_clock(scenario: &Scenario, plan: &InstancePlan) -> ClockPlan {
    let mut clock = plan.clock.clone();
    let rate_at = |at: Real| {
        plan.clock.rates.iter().rev().find(|(from, _)| *from <= at).map_or(0, |(_, ppm)| *ppm)
    };
    for fault in &scenario.faults {
        let end = scenario.fault_end(fault);
        let mine = fault.target == Target::All || fault.target == Target::Instance(plan.id);
        if fault.kind == Kind::Freeze && mine && fault.from < end {
            clock.rates.retain(|(at, _)| *at < fault.from || *at >= end);
            clock.rates.push((fault.from, -1_000_000));
            clock.rates.push((end, rate_at(end)));
            clock.rates.sort_by_key(|(at, _)| *at);
        }
    }
    clock
}

/// The store's clock: steps forward when its host reboots.
pub(crate) fn store_clock(scenario: &Scenario) -> ClockPlan {
    let mut clock = scenario.store.clock.clone();
    for fault in &scenario.faults {
        if let Kind::HostReboot { ms } = fault.kind
            && fault.from < scenario.fault_end(fault)
        {
            clock.steps.push((fault.from, ms));
        }
    }
    clock.steps.sort_by_key(|(at, _)| *at);
    clock
}

const AUTO_BACKFILL: RunKind = RunKind::AutoBackfill;
const NOBODY: u16 = crate::faults::NO_ACCOUNT;
