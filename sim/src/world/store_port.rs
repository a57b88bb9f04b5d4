//! The way to the store and back.

use std::sync::Arc;

use backfill_core::doc::{Document, FieldOp, Precondition, Value, Write, WriteOp};
use backfill_core::id::{Epoch, RequestId};
use backfill_core::io::{Answer, Hint, Rejection, StoreCall, StoreRequest};
use backfill_core::time::StoreTime;
use backfill_driver::port::StoreError;

use super::{Ev, NOBODY, State, World};
use crate::checker::{Applied, Touched, says_running};
use crate::scenario::Kind;
use crate::store::Change;
use crate::trace::Entry;
use crate::variant::Slip;

/// A request that is on its way to the store.
#[derive(Clone, Debug)]
pub(super) struct Request {
    process: u32,
    dest: Dest,
    call: StoreCall,
    /// The epoch under which its sender owned the account it is about, when it was sent
    epoch: Option<Epoch>,
    /// Nobody waits for it any more, or it was carried out before
    late: bool,
    /// How long the answer takes
    back: u64,
}

/// Who waits for an answer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Dest {
    /// The core
    Core(RequestId, Touched),
    /// A task that stores messages
    Job(u32),
}

/// What a task that stores messages is told.
#[derive(Clone, Debug)]
pub(super) enum JobAnswer {
    Committed,
    Conflict,
    /// It waited, and tries again
    Again,
    /// Not now, or nobody knows
    Failed,
    Read(Vec<Option<Arc<Document>>>),
}

/// What the network does to a request.
enum Fate {
    /// Refused at the door
    Refused(Rejection),
    /// A commit is refused for no reason
    Conflict,
    /// Never arrives
    Lost,
    /// Arrives after this many more milliseconds than its sender waits
    Late(u64),
    /// Is carried out, and its answer is lost
    Silent,
    Usual,
}

impl World {
    pub(super) fn send_for_core(&mut self, p: u32, mut request: StoreRequest) {
        if let StoreCall::Commit(writes) = &mut request.call {
            self.loosen(writes);
        }
        let process = &self.processes[p as usize];
        let mono = self.hosts[process.host].clock.mono(self.now);
        if mono > request.not_after && self.slip != Some(Slip::NotAfterUnchecked) {
            let expired = Answer::Rejected(Rejection::Expired);
            let answer = Ev::Answer(p, request.id, Touched::NOTHING, expired);
            self.queue.push(self.now, answer);
            return;
        }
        let touched = self.checker.touched_by_call(&request.call);
        let epoch = match &request.call {
            StoreCall::Commit(writes) => self.epoch_for(p, writes),
            StoreCall::Get(_) | StoreCall::Query(_) => None,
        };
        self.send(p, Dest::Core(request.id, touched), request.call, epoch);
    }

    /// Takes away what a commit depends on, as a wrong shell would.
    fn loosen(&self, writes: &mut Vec<Write>) {
        let path = |write: &Write, end: &str| write.path.as_str().ends_with(end);
        let fenced = match self.slip {
            Some(Slip::LateRunningAfterOk) if writes.iter().any(says_running) => true,
            Some(Slip::RunStateUnfenced)
                if writes.iter().any(|write| {
                    path(write, "/leases/autoBackfill") || path(write, "/leases/recentSync")
                }) =>
            {
                false
            }
            Some(Slip::UnconditionalRelease) if writes.iter().any(gives_back) => false,
            _ => return,
        };
        if !fenced {
            writes.retain(|write| write.op != WriteOp::Verify);
        }
        for write in writes.iter_mut().filter(|write| write.op != WriteOp::Verify) {
            write.precondition = Precondition::Any;
        }
    }

    /// Sends a request to the store; its answer will be an event.
    pub(super) fn send(&mut self, p: u32, dest: Dest, call: StoreCall, epoch: Option<Epoch>) {
        let is_commit = matches!(call, StoreCall::Commit(_));
        *self.census.entry(kind_of(dest, &call)).or_default() += 1;
        if self.trace.is_recording()
            && let StoreCall::Get(paths) = &call
        {
            let paths = paths.clone();
            self.trace.note(self.now, || Entry::Read { process: p, paths });
        }
        let (fate, delay) = self.fate(p, is_commit);
        let process = &mut self.processes[p as usize];
        if !matches!(fate, Fate::Usual) || delay > 500 {
            process.stop_disturbed = true;
            self.checker.disturbed(self.now, p);
        }
        let process = &mut self.processes[p as usize];
        let policy = &self.hosts[process.host].policy;
        let timeout = if is_commit { policy.write_timeout } else { policy.read_timeout };
        let timeout = timeout.as_millis() as u64;
        let when = process.chance.below(8);
        let request = Request { process: p, dest, call, epoch, late: false, back: 0 };
        match fate {
            Fate::Refused(rejection) => {
                self.reply(p, dest, delay, Err(Answer::Rejected(rejection)));
            }
            Fate::Conflict => self.reply(p, dest, delay, Err(Answer::Conflict)),
            Fate::Lost => {
                if is_commit {
                    self.checker.unknown(p, false, touches_session(dest));
                }
                self.no_answer(p, dest, timeout, is_commit);
            }
            Fate::Late(ms) => {
                self.no_answer(p, dest, timeout, is_commit);
                if is_commit {
                    let at = self.now.after(timeout + ms);
                    self.queue.push(at, Ev::Arrive(Box::new(Request { late: true, ..request })));
                }
            }
            Fate::Silent => {
                self.no_answer(p, dest, timeout, is_commit);
                if is_commit {
                    let applied = self.carry_out(&request).is_ok();
                    self.checker.unknown(p, applied, touches_session(dest));
                }
            }
            Fate::Usual => {
                if is_commit
                    && let Some(Kind::StoreDuplicate { ms }) = self.strikes(p, STORE_DUPLICATE)
                {
                    let again = Request { late: true, ..request.clone() };
                    self.queue.push(self.now.after(delay + ms), Ev::Arrive(Box::new(again)));
                }
                match when {
                    0 => {
                        let there = delay / 2;
                        let request = Request { back: delay - there, ..request };
                        self.queue.push(self.now.after(there), Ev::Arrive(Box::new(request)));
                    }
                    1..4 => {
                        let request = Request { back: 0, ..request };
                        self.queue.push(self.now.after(delay), Ev::Arrive(Box::new(request)));
                    }
                    _ => {
                        let answer = self.carry_out(&request);
                        self.reply(p, dest, delay, answer);
                    }
                }
            }
        }
    }

    /// A request has reached the store.
    pub(super) fn arrive(&mut self, request: Request) {
        let answer = self.carry_out(&request);
        if request.late {
            return;
        }
        if request.back > 0 {
            self.reply(request.process, request.dest, request.back, answer);
        } else {
            let answer = self.answer(request.process, request.dest, answer);
            self.step(answer);
        }
    }

    fn reply(&mut self, p: u32, dest: Dest, after: u64, answer: Result<Answer, Answer>) {
        let event = self.answer(p, dest, answer);
        self.queue.push(self.now.after(after), event);
    }

    fn answer(&self, p: u32, dest: Dest, answer: Result<Answer, Answer>) -> Ev {
        let answer = answer.unwrap_or_else(|refusal| refusal);
        match dest {
            Dest::Core(id, touched) => Ev::Answer(p, id, touched, answer),
            Dest::Job(job) => {
                let answer = match answer {
                    Answer::Committed { .. } => JobAnswer::Committed,
                    Answer::Conflict => JobAnswer::Conflict,
                    Answer::Read { docs, .. } => JobAnswer::Read(docs),
                    Answer::Done | Answer::Found { .. } => JobAnswer::Failed,
                    Answer::Rejected(_) | Answer::Unknown => JobAnswer::Failed,
                };
                Ev::Job(p, job, answer)
            }
        }
    }

    /// The sender gives up; the shell says so, or the core has to notice by itself.
    fn no_answer(&mut self, p: u32, dest: Dest, timeout: u64, is_commit: bool) {
        let told = self.processes[p as usize].chance.permille(500);
        if told || matches!(dest, Dest::Job(_)) {
            let unavailable = Answer::Rejected(Rejection::Unavailable);
            let answer = if is_commit { Answer::Unknown } else { unavailable };
            self.reply(p, dest, timeout, Err(answer));
        }
    }

    fn fate(&mut self, p: u32, is_commit: bool) -> (Fate, u64) {
        let process = &mut self.processes[p as usize];
        let instance = process.instance;
        let plan = &self.scenario.store;
        let mut delay = process.chance.between(plan.latency_min, plan.latency_max);
        if self.faults.is_quiet() {
            return (Fate::Usual, delay);
        }
        if let Some(Kind::StoreSlow { ms }) = self.strikes(p, Kind::StoreSlow { ms: 0 }) {
            delay += ms;
        }
        let policy = &self.hosts[self.processes[p as usize].host].policy;
        let timeout = if is_commit { policy.write_timeout } else { policy.read_timeout };
        let timeout = timeout.as_millis() as u64;
        let mut holds = |kind| self.faults.holds(kind, instance, NOBODY);
        let fate = if holds(Kind::StorePartition { requests: true }) {
            Fate::Lost
        } else if holds(Kind::StorePartition { requests: false }) {
            Fate::Silent
        } else if self.strikes(p, Kind::StoreDown).is_some() {
            Fate::Refused(Rejection::Unavailable)
        } else if self.strikes(p, Kind::StoreLosesRequest).is_some() {
            Fate::Lost
        } else if is_commit && self.strikes(p, Kind::StoreConflict).is_some() {
            Fate::Conflict
        } else if let Some(Kind::StoreLate { ms }) = self.strikes(p, Kind::StoreLate { ms: 0 }) {
            Fate::Late(ms)
        } else if self.strikes(p, Kind::StoreLosesReply).is_some() {
            Fate::Silent
        } else if delay >= timeout {
            Fate::Late(delay - timeout)
        } else {
            Fate::Usual
        };
        (fate, delay)
    }

    fn strikes(&mut self, p: u32, kind: Kind) -> Option<Kind> {
        let instance = self.processes[p as usize].instance;
        self.faults.strikes(kind, instance, NOBODY).map(|fault| fault.kind)
    }

    /// What the store answers; `Err` if it refuses.
    fn carry_out(&mut self, request: &Request) -> Result<Answer, Answer> {
        let now = self.store_clock.store(self.now);
        let refused = |error: StoreError| match error {
            StoreError::Conflict(_) => Answer::Conflict,
            StoreError::Denied(_) => Answer::Rejected(Rejection::Denied),
            StoreError::Invalid { .. } => Answer::Rejected(Rejection::Invalid),
            StoreError::Unavailable(_) => Answer::Rejected(Rejection::Unavailable),
            StoreError::Unknown(_) => Answer::Unknown,
        };
        match &request.call {
            StoreCall::Get(paths) => {
                let snapshot = self.store.get(now, paths);
                Ok(Answer::Read { read_time: snapshot.read_time, docs: snapshot.docs })
            }
            StoreCall::Query(query) => {
                let found = self.store.query(now, query).map_err(refused)?;
                Ok(Answer::Found { read_time: found.read_time, docs: found.docs })
            }
            StoreCall::Commit(writes) => {
                let by = matches!(request.dest, Dest::Core(..)).then_some(request.process);
                let committed = self.commit(by, request.epoch, request.late, writes);
                let (commit_time, versions) = committed.map_err(refused)?;
                Ok(Answer::Committed { commit_time, versions })
            }
        }
    }

    /// Commits, and has the checker look at it.
    pub(super) fn commit(
        &mut self,
        process: Option<u32>,
        epoch: Option<Epoch>,
        late: bool,
        writes: &[Write],
    ) -> Result<(StoreTime, Vec<Option<backfill_core::doc::Version>>), StoreError> {
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
        if self.trace.is_recording() {
            let entry =
                Entry::Commit { process, applied: result.is_ok(), late, writes: writes.to_vec() };
            self.trace.note(self.now, || entry);
        }
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
            self.hint(by, hint);
        }
    }

    fn hint(&mut self, by: Option<u32>, hint: Hint) {
        for i in 0..self.hosts.len() {
            let Some(p) = self.hosts[i].current.filter(|p| Some(*p) != by) else { continue };
            let process = &mut self.processes[p as usize];
            if process.hinted[hint as usize] || process.state == State::Dead {
                continue;
            }
            let wait = process.chance.between(20, 600);
            let instance = process.instance;
            if self.faults.strikes(Kind::HintsLost, instance, NOBODY).is_some() {
                continue;
            }
            self.processes[p as usize].hinted[hint as usize] = true;
            self.queue.push(self.now.after(wait), Ev::Hint(p, hint));
        }
    }

    fn epoch_for(&self, p: u32, writes: &[Write]) -> Option<Epoch> {
        let about = |write: &Write| {
            let rest = write.path.as_str().strip_prefix("accounts/")?;
            (!rest.ends_with("/leases/connection")).then(|| self.checker.position_of(rest))
        };
        let position = writes.iter().filter(|w| w.op != WriteOp::Verify).find_map(about)?;
        self.checker.epoch_of(p, position)
    }
}

/// Whether a write frees an account.
fn gives_back(write: &Write) -> bool {
    let WriteOp::Merge(fields) = &write.op else { return false };
    write.path.as_str().ends_with("/leases/connection")
        && fields
            .iter()
            .any(|(field, op)| field.as_str() == "owner" && *op == FieldOp::Set(Value::Null))
}

/// What a request to the store is for, for the census.
fn kind_of(dest: Dest, call: &StoreCall) -> &'static str {
    if let Dest::Job(_) = dest {
        return match call {
            StoreCall::Commit(_) => "ingest: commits",
            StoreCall::Get(_) | StoreCall::Query(_) => "ingest: reads",
        };
    }
    match call {
        StoreCall::Commit(writes) => match writes.first().map(|write| write.path.as_str()) {
            Some(path) if path.starts_with("instances/") => "core: session commits",
            Some(path) if path.ends_with("/sync/state") => "core: account commits",
            _ => "core: other commits",
        },
        StoreCall::Get(paths) => match paths.first().map(|path| path.as_str()) {
            Some("coordination/lock") => "core: reads of the lock",
            _ => "core: other reads",
        },
        StoreCall::Query(query) => match query.collection.as_str() {
            "instances" => "core: queries of sessions",
            "outbox" => "core: queries of the outbox",
            "accounts" => "core: queries of accounts",
            _ => "core: other queries",
        },
    }
}

fn touches_session(dest: Dest) -> bool {
    matches!(dest, Dest::Core(_, Touched { session: true, .. }))
}

const STORE_DUPLICATE: Kind = Kind::StoreDuplicate { ms: 0 };
