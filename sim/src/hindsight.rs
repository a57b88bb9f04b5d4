//! Real processes, judged afterwards by what they were told.
//!
//! A core that is told the same does the same. So the recordings of all processes that shared a
//! store give back their cores with all they believed, and every commit they asked for; the
//! store's answers say when each took effect. All that is shown, in one order, to the
//! [`Checker`] that looks after simulated worlds. The processes have to have run on one machine:
//! their clocks are the same then.
//!
//! What never passes a core is not in a recording: messages on their way into the store. And a
//! recording ends where it ends: what has to come about sooner or later is not judged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use backfill_core::doc::{DocPath, Document, FieldOp, Precondition, Version, Write, WriteOp};
use backfill_core::id::{AccountId, Epoch, RequestId};
use backfill_core::instance::Instance;
use backfill_core::io::{
    Answer, Command, Event, GatewayCall, GatewayEvent, Input, Output, RunKind, StoreCall,
};
use backfill_core::time::{Mono, StoreTime};
use backfill_driver::recording::{Recording, Told, digest};

use crate::checker::{Applied, Checker, Touched};
use crate::clock::{Clock, ClockPlan, Real};
use crate::report::{Sometimes, Violation};
use crate::store::SimStore;
use crate::world::people::is_reserved;

/// What the checker says about processes that have been.
#[derive(Clone, Debug)]
pub struct Judgement {
    /// What was wrong
    pub violations: Vec<Violation>,
    /// What was reached
    pub sometimes: Sometimes,
    /// How many inputs the processes were told
    pub inputs: usize,
    /// How many of their commits took effect
    pub commits: usize,
}

/// Judges the processes that shared one store and are not any more.
///
/// Besides what the checker looks at: a process that did something else than its core does when
/// it is told the same, and recordings that contradict each other, violate S10.
pub fn judge(recordings: &[Recording]) -> Judgement {
    let mut recordings: Vec<&Recording> = recordings.iter().collect();
    recordings.sort_by_key(|recording| recording.begun);
    let Some(first) = recordings.first() else {
        let sometimes = Sometimes::default();
        return Judgement { violations: Vec::new(), sometimes, inputs: 0, commits: 0 };
    };
    let base = first.begun;
    let asked: Vec<Asked> = recordings.iter().map(|recording| Asked::of(recording)).collect();
    let shift = shift(&asked);
    let commits = commits(&recordings, asked);
    let origin = StoreTime::from_millis(base.as_millis() as i64 - shift);
    let store_clock = Clock::new(&ClockPlan::default()).with_origin(origin);
    let ids: Vec<AccountId> = accounts(&recordings).into_iter().collect();
    let mut court = Court {
        checker: Checker::of_accounts(&first.policy, ids.clone(), store_clock.clone()),
        clock: Clock::new(&ClockPlan { start: base.as_millis(), ..ClockPlan::default() }),
        now: Real::ZERO,
        store: SimStore::new(),
        processes: recordings.into_iter().map(Process::new).collect(),
        connections: BTreeMap::new(),
        sent: BTreeMap::new(),
        applied: BTreeSet::new(),
        store_clock,
        commits,
        ids,
    };
    court.hear();
    Judgement {
        violations: court.checker.violations().to_vec(),
        sometimes: court.checker.sometimes().clone(),
        inputs: court.processes.iter().map(|process| process.next).sum(),
        commits: court.applied.len(),
    }
}

/// A commit that took effect.
#[derive(Debug)]
struct Commit {
    process: usize,
    id: RequestId,
    writes: Vec<Write>,
    time: StoreTime,
    version: Option<Version>,
}

/// The commits that one process asked for.
#[derive(Debug, Default)]
struct Asked {
    /// When, and what
    commits: BTreeMap<RequestId, (Mono, Vec<Write>)>,
    /// Those that took effect as the store says: by its time, and when the answer came
    applied: BTreeMap<RequestId, (StoreTime, Option<Version>, Mono)>,
}

impl Asked {
    fn of(recording: &Recording) -> Self {
        let mut asked = Self::default();
        let mut core = made(recording);
        for Told { now, input, .. } in &recording.told {
            if let Input::Answer(id, answer) = input {
                match answer {
                    Answer::Committed { commit_time, versions } => {
                        let latest = versions.iter().flatten().max().copied();
                        asked.applied.insert(*id, (*commit_time, latest, *now));
                    }
                    Answer::Conflict | Answer::Rejected(_) => {
                        asked.commits.remove(id);
                    }
                    _ => {}
                }
            }
            core.handle_input(*now, input.clone());
            while let Some(output) = core.poll_output() {
                if let Output::Store(request) = output
                    && let StoreCall::Commit(writes) = request.call
                {
                    asked.commits.insert(request.id, (*now, writes));
                }
            }
        }
        asked
    }
}

/// How many milliseconds the processes' clock is ahead of the store's, as near as commits tell:
/// none took effect before it was asked for.
fn shift(asked: &[Asked]) -> i64 {
    let of = |asked: &Asked| {
        let pairs = asked.applied.iter().filter_map(|(id, (time, ..))| {
            let (sent, _) = asked.commits.get(id)?;
            Some(sent.as_millis() as i64 - time.as_millis())
        });
        pairs.max()
    };
    asked.iter().filter_map(of).max().unwrap_or(0)
}

/// The commits that took effect, in the order in which they did.
fn commits(recordings: &[&Recording], asked: Vec<Asked>) -> Vec<Commit> {
    let seen = seen(recordings);
    let mut known: BTreeSet<(DocPath, StoreTime)> = BTreeSet::new();
    for Asked { commits, applied } in &asked {
        for (id, (time, ..)) in applied {
            let writes = commits.get(id).into_iter().flat_map(|(_, writes)| writes);
            known.extend(writes.map(|write| (write.path.clone(), *time)));
        }
    }
    let mut all = Vec::new();
    for (process, Asked { commits, applied }) in asked.into_iter().enumerate() {
        for (id, (_, writes)) in commits {
            let told = applied.get(&id).map(|(time, version, _)| (*time, *version));
            // Nobody was told of this one, but somebody may have read what it wrote.
            let shown = || {
                writes.iter().filter(|write| is_numbered(write)).find_map(|write| {
                    let new = |doc: &&Arc<Document>| {
                        shows(doc, write) && !known.contains(&(doc.path.clone(), doc.update_time))
                    };
                    let doc = seen.get(&write.path)?.iter().find(new)?;
                    Some((doc.update_time, Some(doc.version)))
                })
            };
            if let Some((time, version)) = told.or_else(shown) {
                all.push(Commit { process, id, writes, time, version });
            }
        }
    }
    all.sort_by_key(|commit| (commit.time, commit.version));
    all
}

/// Every document that was read by anybody, by path.
fn seen(recordings: &[&Recording]) -> BTreeMap<DocPath, Vec<Arc<Document>>> {
    let mut seen: BTreeMap<DocPath, Vec<Arc<Document>>> = BTreeMap::new();
    for doc in recordings.iter().flat_map(|recording| &recording.told).flat_map(read) {
        seen.entry(doc.path.clone()).or_default().push(Arc::clone(doc));
    }
    seen
}

/// What an input shows of the store.
fn read(told: &Told) -> Vec<&Arc<Document>> {
    match &told.input {
        Input::Answer(_, Answer::Read { docs, .. }) => docs.iter().flatten().collect(),
        Input::Answer(_, Answer::Found { docs, .. }) => docs.iter().collect(),
        _ => Vec::new(),
    }
}

/// Whether a write leaves its document with a number that it never had before.
fn is_numbered(write: &Write) -> bool {
    let WriteOp::Merge(fields) = &write.op else { return false };
    write.precondition != Precondition::Any
        && fields.iter().any(|(name, _)| name.as_str() == "beat")
}

/// Whether a document shows every value that a write sets.
fn shows(doc: &Document, write: &Write) -> bool {
    let WriteOp::Merge(fields) = &write.op else { return false };
    fields.iter().all(|(name, op)| match op {
        FieldOp::Set(value) => doc.value(name.as_str()) == Some(value),
        _ => true,
    })
}

/// Every account that was read by anybody.
fn accounts(recordings: &[&Recording]) -> BTreeSet<AccountId> {
    let told = recordings.iter().flat_map(|recording| &recording.told);
    let account = |doc: &Arc<Document>| {
        let id = doc.path.as_str().strip_prefix("accounts/")?;
        AccountId::parse(id.split('/').next()?).ok()
    };
    told.flat_map(read).filter_map(account).collect()
}

fn made(recording: &Recording) -> Instance {
    Instance::new(recording.policy.clone(), recording.seed, recording.begun)
}

/// Where everything comes together.
struct Court {
    checker: Checker,
    /// The processes'
    clock: Clock,
    store_clock: Clock,
    now: Real,
    store: SimStore,
    ids: Vec<AccountId>,
    processes: Vec<Process>,
    /// By account, the process that is connected
    connections: BTreeMap<u16, u32>,
    /// Commits that have been asked for, with the epoch under which
    sent: BTreeMap<(usize, RequestId), Option<Epoch>>,
    applied: BTreeSet<(usize, RequestId)>,
    /// Those to come, the next one last
    commits: Vec<Commit>,
}

/// One process, told again what it was told.
struct Process {
    begun: Mono,
    told: Vec<Told>,
    core: Instance,
    next: usize,
    started: bool,
    ended: bool,
    asked: BTreeMap<RequestId, Option<StoreCall>>,
    /// Requests of the gateway that never left
    refused: BTreeSet<RequestId>,
}

impl Process {
    fn new(recording: &Recording) -> Self {
        let refused = recording.told.iter().filter_map(|told| match &told.input {
            Input::Answer(id, Answer::Rejected(_)) => Some(*id),
            _ => None,
        });
        Self {
            begun: recording.begun,
            told: recording.told.clone(),
            core: made(recording),
            next: 0,
            started: false,
            ended: false,
            asked: BTreeMap::new(),
            refused: refused.collect(),
        }
    }
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Commit,
    Process(usize),
}

impl Court {
    fn hear(&mut self) {
        self.commits.reverse();
        while let Some((at, step)) = self.next() {
            self.now = self.now.max(at);
            match step {
                Step::Commit => self.apply(),
                Step::Process(p) if self.processes[p].started => self.tell(p),
                Step::Process(p) => {
                    let process = &mut self.processes[p];
                    process.started = true;
                    self.checker.started(self.now, p as u8, process.core.boot());
                    self.end_if_over(p);
                }
            }
        }
        let stuck = self.processes.iter().position(|process| !process.ended);
        let late = self.commits.last().map(|commit| commit.process);
        if let Some(p) = stuck.or(late) {
            self.checker.violate("S10", self.now, || {
                format!("what process {p} was told fits to nothing that happened")
            });
        }
    }

    /// The earliest of what can come next: a commit after it was asked for, its answer after it.
    fn next(&self) -> Option<(Real, Step)> {
        let commit = self.commits.last().filter(|c| self.sent.contains_key(&(c.process, c.id)));
        let commit = commit.map(|commit| (self.store_clock.when_store(commit.time), Step::Commit));
        let of = |(p, process): (usize, &Process)| {
            let at = match process.told.get(process.next) {
                _ if process.ended => return None,
                _ if !process.started => process.begun,
                Some(Told { input: Input::Answer(id, Answer::Committed { .. }), .. })
                    if !self.applied.contains(&(p, *id)) && self.sent.contains_key(&(p, *id)) =>
                {
                    return None;
                }
                Some(told) => told.now,
                None => return None,
            };
            Some((self.clock.when(at.as_millis()), Step::Process(p)))
        };
        commit.into_iter().chain(self.processes.iter().enumerate().filter_map(of)).min()
    }

    /// The store carries out a commit.
    fn apply(&mut self) {
        let Some(commit) = self.commits.pop() else { return };
        let Commit { process, id, writes, time, .. } = commit;
        // Its conditions held: it took effect. Here versions are others.
        let any =
            writes.iter().map(|write| Write { precondition: Precondition::Any, ..write.clone() });
        let any: Vec<Write> = any.collect();
        let mut changes = Vec::new();
        if let Err(error) = self.store.commit_showing(time, &any, &mut changes) {
            self.checker.violate("S10", self.now, || format!("a commit cannot be: {error}"));
            return;
        }
        self.applied.insert((process, id));
        let epoch = self.sent.get(&(process, id)).copied().flatten();
        let applied = Applied {
            at: self.now,
            commit_time: time,
            process: Some(process as u32),
            epoch,
            late: false,
            writes: &writes,
            changes: &changes,
        };
        self.checker.applied(&applied, &self.store);
    }

    /// A process is told its next input.
    fn tell(&mut self, p: usize) {
        let process = &mut self.processes[p];
        let Told { now, input, did } = process.told[process.next].clone();
        process.next += 1;
        let (at, number) = (self.now, p as u32);
        let mut touched = Touched::NOTHING;
        match &input {
            Input::Answer(id, answer) => {
                let Some(call) = process.asked.remove(id) else {
                    return self.differs(p, format!("has the answer to request {}", id.0));
                };
                if let Some(call) = &call {
                    touched = self.checker.touched_by_call(call);
                }
                match answer {
                    Answer::Unknown if matches!(call, Some(StoreCall::Commit(_))) => {
                        let applied = self.applied.contains(&(p, *id));
                        self.checker.unknown(number, applied, touched.session);
                    }
                    Answer::Unknown => {}
                    _ => self.checker.answered(number, *id),
                }
            }
            Input::Command(_, Command::Stop) => self.checker.stopping(at, number),
            Input::Gateway(account, event) => self.report(p, account, event),
            _ => {}
        }
        let process = &mut self.processes[p];
        let before = process.core.mode();
        let mut works = input == Input::Timeout && process.core.tick_works(RunKind::AutoBackfill);
        process.core.handle_input(now, input);
        let outputs: Vec<Output> = std::iter::from_fn(|| process.core.poll_output()).collect();
        if digest(&outputs) != did {
            return self.differs(p, "did something else then".into());
        }
        let after = process.core.mode();
        for output in &outputs {
            touched.and(self.checker.touched_by(output));
            works &= !is_event(output, |event| matches!(event, Event::RunEnded { kind: AUTO, .. }));
            if works && is_event(output, |event| matches!(event, Event::Tick { kind: AUTO, .. })) {
                self.checker.violate("S7", at, || {
                    format!("process {p}: a tick while runs of the tick before work")
                });
            }
            self.checker.output(at, number, output, before, after);
        }
        touched.session |= after != before;
        self.checker.observed(at, number, &process.core, &self.clock, touched);
        for output in outputs {
            self.begin(p, now, output);
        }
        self.end_if_over(p);
    }

    /// Something that a process wants begins.
    fn begin(&mut self, p: usize, now: Mono, output: Output) {
        let process = &mut self.processes[p];
        match output {
            Output::Store(request) => {
                if let StoreCall::Commit(writes) = &request.call {
                    let about =
                        writes.iter().filter(|w| w.op != WriteOp::Verify).find_map(|write| {
                            let rest = write.path.as_str().strip_prefix("accounts/")?;
                            let owned = !rest.ends_with("/leases/connection");
                            owned.then(|| self.checker.position_of(rest))
                        });
                    let epoch = about.and_then(|about| self.checker.epoch_of(p as u32, about));
                    self.sent.insert((p, request.id), epoch);
                }
                process.asked.insert(request.id, Some(request.call));
            }
            Output::Gateway(request) => {
                process.asked.insert(request.id, None);
                if process.refused.contains(&request.id) {
                    return;
                }
                self.checker.effect_starts(self.now, p as u32, now, &request, &process.core);
                if let GatewayCall::History { thread, anchor, .. } = &request.call {
                    let position = self.checker.position_of(request.account.as_str());
                    let at = self.store_clock.store(self.now);
                    let reserved = is_reserved(&self.store, &request.account, at);
                    let anchor = (thread, anchor.id.as_str());
                    self.checker.phone_asked(self.now, p as u32, position, anchor, reserved);
                }
            }
            Output::Stopped => {
                process.ended = true;
                self.checker.ended(self.now, p as u32, true, false);
                self.connections.retain(|_, by| *by != p as u32);
            }
            Output::Event(_) | Output::Reply(..) => {}
        }
    }

    /// WhatsApp tells a process something.
    fn report(&mut self, p: usize, account: &AccountId, event: &GatewayEvent) {
        let Some(position) = self.ids.iter().position(|id| id == account) else { return };
        let (position, number) = (position as u16, p as u32);
        match event {
            GatewayEvent::Opened { .. } => {
                let replaced = self.connections.insert(position, number);
                self.checker.connected(self.now, number, position, replaced);
            }
            GatewayEvent::Closed { .. } => {
                self.checker.disconnected(self.now, number, position);
                if self.connections.get(&position) == Some(&number) {
                    self.connections.remove(&position);
                }
            }
            GatewayEvent::Page { .. } => self.checker.phone_answered(self.now, number, position),
            _ => {}
        }
    }

    /// A process did not do what its core does.
    fn differs(&mut self, p: usize, text: String) {
        self.processes[p].ended = true;
        self.checker.violate("S10", self.now, || format!("process {p} {text}"));
    }

    /// Where its recording ends, a process was killed.
    fn end_if_over(&mut self, p: usize) {
        let process = &mut self.processes[p];
        if !process.ended && process.next == process.told.len() {
            process.ended = true;
            self.checker.ended(self.now, p as u32, false, true);
            self.connections.retain(|_, by| *by != p as u32);
        }
    }
}

fn is_event(output: &Output, is: impl Fn(&Event) -> bool) -> bool {
    matches!(output, Output::Event(event) if is(event))
}

const AUTO: RunKind = RunKind::AutoBackfill;
