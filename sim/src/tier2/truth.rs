//! What is true in the world, and the checker's look at it. Processes never see it: the servers
//! keep their state here, the director brings about what happens, and witnesses report.

use std::collections::BTreeSet;
use std::sync::Arc;

use backfill_core::bug::Bug;
use backfill_core::doc::{Document, Version, Write, WriteOp};
use backfill_core::id::Epoch;
use backfill_core::io::Hint;
use backfill_core::policy::{Policy, PolicyErrors};
use backfill_core::time::StoreTime;
use backfill_driver::port::StoreError;
use madsim::runtime::Handle;
use madsim::task::NodeId;

use super::Ev;
use super::agenda::Agenda;
use super::store::Due;
use super::wire::{Asked, Chunk};
use crate::chance::Chance;
use crate::checker::{Applied, Checker};
use crate::clock::{Clock, ClockPlan, Real};
use crate::faults::{FaultPlan, NO_INSTANCE};
use crate::report::{Report, fault_counts};
use crate::scenario::{InstancePlan, Kind, Scenario};
use crate::store::{Change, SimStore};
use crate::trace::{Entry, Trace};
use crate::whatsapp::{ConnKey, Out, WhatsApp};
use crate::world::{broken, own_clock, people, store_clock};

pub(super) struct Truth {
    pub(super) scenario: Scenario,
    pub(super) now: Real,
    pub(super) faults: FaultPlan,
    pub(super) store: SimStore,
    pub(super) store_clock: Clock,
    pub(super) net: WhatsApp,
    pub(super) hosts: Vec<Host>,
    pub(super) processes: Vec<Process>,
    pub(super) checker: Checker,
    pub(super) trace: Trace,
    pub(super) spool: std::collections::BTreeMap<(u16, u64), Arc<Chunk>>,
    /// Chunks that were lost, until that is noted
    pub(super) missing: std::collections::BTreeSet<(u16, u64)>,
    pub(super) next_chunk: u64,
    pub(super) people: Chance,
    pub(super) events: u64,
    commits: u64,
    /// What WhatsApp does next
    pub(super) later: Agenda<Out>,
    /// What the director does next
    pub(super) plan: Agenda<Ev>,
    /// What the store does next
    pub(super) due: Agenda<Due>,
    /// When hints are told
    hints: Chance,
    changes: Vec<Change>,
}

/// Where processes of one instance run.
pub(super) struct Host {
    pub(super) plan: InstancePlan,
    pub(super) policy: Policy,
    pub(super) current: Option<u32>,
    pub(super) starts: u64,
}

/// One run of the program.
pub(super) struct Process {
    pub(super) node: NodeId,
    pub(super) host: usize,
    pub(super) instance: u8,
    pub(super) state: State,
    pub(super) connections: BTreeSet<(u16, u64)>,
    /// Commits that its core asked for and that have not left
    pub(super) asked: Vec<Asked>,
    pub(super) hinted: [bool; 3],
    /// Something has disturbed it since it was told to stop
    pub(super) disturbed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Dead,
    Paused(Real),
    Running,
}

impl Truth {
    pub(super) fn new(
        scenario: Scenario,
        bug: Option<Bug>,
        trace: Trace,
    ) -> Result<Self, PolicyErrors> {
        let mut hosts = Vec::new();
        for plan in &scenario.instances {
            let policy = scenario.policy(plan)?;
            let policy = bug.map_or(policy.clone(), |bug| broken(&policy, bug));
            hosts.push(Host { policy, plan: plan.clone(), current: None, starts: 0 });
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
        let mut truth = Self {
            now: Real::ZERO,
            faults: FaultPlan::new(&scenario),
            store: SimStore::new(),
            store_clock: Clock::new(&store_clock(&scenario)),
            net: WhatsApp::new(scenario.seed, &scenario.accounts),
            hosts,
            processes: Vec::new(),
            checker: Checker::new(&scenario, &policy),
            trace,
            spool: std::collections::BTreeMap::new(),
            missing: std::collections::BTreeSet::new(),
            next_chunk: 1,
            people: Chance::of(scenario.seed, "people"),
            events: 0,
            commits: 0,
            later: Agenda::new(),
            plan: Agenda::new(),
            due: Agenda::new(),
            hints: Chance::of(scenario.seed, "hints"),
            changes: Vec::new(),
            scenario,
        };
        for i in 0..truth.scenario.accounts.len() {
            let account = &truth.scenario.accounts[i];
            let write = people::new_account(account.id, account.linked);
            truth.commit(None, None, false, &[write]).expect("a new world has no accounts yet");
        }
        Ok(truth)
    }

    pub(super) fn own_clock(&self, host: usize) -> Clock {
        Clock::new(&own_clock(&self.scenario, &self.hosts[host].plan))
    }

    /// Moves what WhatsApp wants to happen into its queue.
    pub(super) fn carry(&mut self) {
        if !self.net.has_output() {
            return;
        }
        for (at, out) in self.net.take() {
            self.later.push(at, out);
        }
    }

    /// Has the director do something.
    pub(super) fn schedule(&mut self, at: Real, event: Ev) {
        self.plan.push(at, event);
    }

    pub(super) fn is_alive(&self, process: u32) -> bool {
        self.processes.get(process as usize).is_some_and(|p| p.state != State::Dead)
    }

    /// Whether what a process says to the store now, or the store to it, is lost on the way.
    pub(super) fn is_cut_off(&self, process: u32, requests: bool) -> bool {
        let instance = self.processes[process as usize].instance;
        self.faults.on(Kind::StorePartition { requests }, instance, NOBODY)
    }

    /// A process stands still from now on.
    pub(super) fn pause(&mut self, p: u32, until: Real) {
        let process = &mut self.processes[p as usize];
        match process.state {
            State::Dead => return,
            State::Paused(old) if old >= until => return,
            State::Paused(_) | State::Running => {}
        }
        process.state = State::Paused(until);
        process.disturbed = true;
        self.checker.disturbed(self.now, p);
        Handle::current().pause(process.node);
        self.checker.paused(self.now, p);
        self.trace.note(self.now, || Entry::Paused { process: p, until });
        self.schedule(until, Ev::Resume(p, until));
    }

    pub(super) fn resume(&mut self, p: u32, until: Real) {
        let process = &mut self.processes[p as usize];
        if process.state != State::Paused(until) {
            return;
        }
        process.state = State::Running;
        self.checker.resumed(self.now, p);
        self.trace.note(self.now, || Entry::Resumed { process: p });
        Handle::current().resume(process.node);
    }

    /// A process is no more: its memory is gone, and its sockets are closed.
    pub(super) fn end(&mut self, p: u32, graceful: bool) {
        let process = &mut self.processes[p as usize];
        if process.state == State::Dead {
            return;
        }
        process.state = State::Dead;
        let (node, instance, disturbed) = (process.node, process.instance, process.disturbed);
        self.hosts[process.host].current = None;
        for (account, request) in std::mem::take(&mut process.connections) {
            self.net.close(account, ConnKey { process: p, request });
        }
        // Whoever keeps processes running starts another one, unless it is meant to be down.
        self.schedule(self.now.after(1_000), Ev::Start(instance));
        self.checker.ended(self.now, p, graceful, disturbed);
        if graceful && !disturbed {
            let due = self.now.after(self.checker.hand_over_after_stop());
            self.schedule(due, Ev::CheckHandOver(p));
        }
        self.trace.note(self.now, || Entry::Ended { process: p, graceful });
        Handle::current().kill(node);
    }

    /// WhatsApp ends the account's connection, whoever has it.
    pub(super) fn note_disconnected(&mut self, account: u16) {
        if let Some(key) = self.net.connection(account) {
            self.checker.disconnected(self.now, key.process, account);
        }
    }

    /// A process sends a commit: whether its core asked for it, and the epoch under which it owns
    /// the account that it is about.
    pub(super) fn sends(&mut self, p: u32, writes: &[Write]) -> (bool, Option<Epoch>) {
        let asked = &mut self.processes[p as usize].asked;
        let Some(i) = asked.iter().position(|(_, w)| w == writes) else { return (false, None) };
        asked.swap_remove(i);
        let about = |write: &Write| {
            let rest = write.path.as_str().strip_prefix("accounts/")?;
            (!rest.ends_with("/leases/connection")).then(|| self.checker.position_of(rest))
        };
        let position = writes.iter().filter(|w| w.op != WriteOp::Verify).find_map(about);
        (true, position.and_then(|position| self.checker.epoch_of(p, position)))
    }

    /// Commits, and has the checker look at it.
    pub(super) fn commit(
        &mut self,
        process: Option<u32>,
        epoch: Option<Epoch>,
        late: bool,
        writes: &[Write],
    ) -> Result<(StoreTime, Vec<Option<Version>>), StoreError> {
        self.commits += 1;
        let now = self.store_clock.store(self.now);
        let mut changes = std::mem::take(&mut self.changes);
        let result = self.store.commit_showing(now, writes, &mut changes);
        let commit_time = result.as_ref().map_or(now, |committed| committed.commit_time);
        let applied =
            Applied { at: self.now, commit_time, process, epoch, late, writes, changes: &changes };
        match &result {
            Ok(_) => {
                self.checker.applied(&applied, &self.store);
                self.give_hints(process, writes, &changes);
            }
            Err(_) => self.checker.refused(&applied),
        }
        self.trace.note(self.now, || Entry::Commit {
            process,
            applied: result.is_ok(),
            late,
            writes: writes.to_vec(),
        });
        self.changes = changes;
        result.map(|committed| (committed.commit_time, committed.versions))
    }

    fn give_hints(&mut self, by: Option<u32>, writes: &[Write], changes: &[Change]) {
        for (write, Change { before, after }) in writes.iter().zip(changes) {
            let path = write.path.as_str();
            let hint = if write.op == WriteOp::Verify || path.starts_with("threads/") {
                continue;
            } else if path == "coordination/lock" {
                Hint::Lock
            } else if path.starts_with("outbox/") {
                Hint::Outbox
            } else if path.starts_with("accounts/") && path.matches('/').count() == 1 {
                let status = |doc: &Option<Arc<Document>>| doc.as_ref()?.value("status").cloned();
                if status(after) == status(before) {
                    continue;
                }
                Hint::Accounts
            } else {
                continue;
            };
            for i in 0..self.hosts.len() {
                let Some(p) = self.hosts[i].current.filter(|p| Some(*p) != by) else { continue };
                let process = &mut self.processes[p as usize];
                let instance = process.instance;
                if process.hinted[hint as usize]
                    || self.faults.strikes(Kind::HintsLost, instance, NOBODY).is_some()
                {
                    continue;
                }
                self.processes[p as usize].hinted[hint as usize] = true;
                let wait = self.hints.between(20, 600);
                self.due.push(self.now.after(wait), Due::Hint(p, hint));
            }
        }
    }

    pub(super) fn store_time(&self) -> StoreTime {
        self.store_clock.store(self.now)
    }

    /// The end of the world, and what came of it.
    pub(super) fn finish(&mut self) -> (Report, Trace) {
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
            census: vec![("commits", self.commits)],
            simulated_ms: self.now.0,
        };
        (report, std::mem::take(&mut self.trace))
    }
}

pub(super) const NOBODY: u16 = crate::faults::NO_ACCOUNT;
