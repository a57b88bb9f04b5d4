//! What processes believe, and what they do about it: S2, S4, S5, S7.

use std::time::Duration;

use backfill_core::doc::{DocPath, Precondition, Write, WriteOp};
use backfill_core::id::{Epoch, RequestId, ThreadId};
use backfill_core::instance::{Belief, Instance};
use backfill_core::io::{
    Event, GatewayCall, GatewayRequest, Key, Output, RunKind, StoreCall, StoreRequest,
};
use backfill_core::time::Mono;

use super::{Checker, NOWHERE, call_name};
use crate::clock::{Clock, Real};
use crate::scenario::Regime;
use crate::world::node::NODE;

/// What an answer, or an output, may have changed of the beliefs of its process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Touched {
    /// The session was renewed, or anything else that concerns every account
    pub session: bool,
    /// The position of one account, or [`NOWHERE`]
    pub account: u16,
    /// A run's lease
    pub runs: bool,
}

impl Touched {
    /// Nothing.
    pub const NOTHING: Self = Self { session: false, account: NOWHERE, runs: false };

    /// Both.
    pub fn and(&mut self, other: Self) {
        // Two accounts at once are as good as all.
        let clash =
            self.account != NOWHERE && other.account != NOWHERE && self.account != other.account;
        self.session |= other.session || clash;
        self.runs |= other.runs;
        if self.account == NOWHERE {
            self.account = other.account;
        }
    }
}

/// A run's start may have waited for so long behind other commits when the connection ends, in
/// milliseconds.
const START_IN_FLIGHT: u64 = 15_000;

/// Beliefs are looked at anew after this many inputs even if nothing seems to have changed.
const LOOK_ANYWAY: u32 = 64;

impl Checker {
    /// What an output may change of its sender's beliefs.
    pub fn touched_by(&self, output: &Output) -> Touched {
        let about = |key: &Key| match key {
            Key::Account(account) => {
                Touched { account: self.position_in(account.as_str()), ..Touched::NOTHING }
            }
            Key::Lock => Touched { session: true, ..Touched::NOTHING },
            Key::Run(..) => Touched { runs: true, ..Touched::NOTHING },
        };
        match output {
            Output::Event(event) => match event {
                Event::LeaseTaken { key, .. }
                | Event::LeaseLost { key }
                | Event::LeaseReleased { key }
                | Event::Fenced { key } => about(key),
                Event::Mode { .. } | Event::SessionStarted { .. } | Event::SessionEnded { .. } => {
                    Touched { session: true, runs: true, ..Touched::NOTHING }
                }
                Event::RunStarted { .. } | Event::RunEnded { .. } => {
                    Touched { runs: true, ..Touched::NOTHING }
                }
                _ => Touched::NOTHING,
            },
            Output::Store(StoreRequest { call, .. }) => self.touched_by_call(call),
            Output::Gateway(_) | Output::Reply(..) | Output::Stopped => Touched::NOTHING,
        }
    }

    /// What the answer to a store call may change of its sender's beliefs.
    pub fn touched_by_call(&self, call: &StoreCall) -> Touched {
        let mut touched = Touched::NOTHING;
        match call {
            StoreCall::Commit(writes) => {
                for write in writes {
                    touched.and(self.touched_by_path(&write.path));
                }
            }
            StoreCall::Get(paths) => {
                for path in paths {
                    touched.and(self.touched_by_path(path));
                }
            }
            StoreCall::Query(_) => {}
        }
        touched
    }

    fn touched_by_path(&self, path: &DocPath) -> Touched {
        let path = path.as_str();
        if path.starts_with("instances/") || path.starts_with("coordination/") {
            return Touched { session: true, ..Touched::NOTHING };
        }
        let Some(rest) = path.strip_prefix("accounts/") else { return Touched::NOTHING };
        if path.ends_with("/leases/connection") {
            Touched { account: self.position_in(rest), ..Touched::NOTHING }
        } else if rest.contains("/leases/") {
            Touched { runs: true, ..Touched::NOTHING }
        } else {
            Touched::NOTHING
        }
    }

    /// A core has taken an input; `touched` is what may have changed.
    ///
    /// - S2: within the declared bound on clocks, no two processes hold one account, the lock or a
    ///   run's lease at a real instant at which both believe. Believing ends at the belief's
    ///   `until` on the process's own clock, also for a paused process.
    /// - S7: no more runs of a kind work at once than the cap allows.
    pub fn observed(
        &mut self,
        at: Real,
        process: u32,
        core: &Instance,
        clock: &Clock,
        mut touched: Touched,
    ) {
        let p = &mut self.processes[process as usize];
        p.inputs = p.inputs.wrapping_add(1);
        if p.inputs.is_multiple_of(LOOK_ANYWAY) {
            touched.session = true;
            touched.runs = true;
        }
        if touched.session {
            self.look_at_session(at, process, core, clock);
            self.look_at_lock(at, process, core, clock);
            if self.processes[process as usize].held > 0 || core.beliefs().next().is_some() {
                for position in 0..self.accounts.len() as u16 {
                    self.look_at_account(at, process, position, core, clock);
                }
            }
        } else if touched.account != NOWHERE {
            self.look_at_account(at, process, touched.account, core, clock);
        }
        if touched.runs || (touched.session && !self.processes[process as usize].runs.is_empty()) {
            self.look_at_runs(at, process, core, clock);
        }
    }

    /// S2, the single process's part: within the bound, nobody believes longer than its session
    /// lives by the store's clock, nor again under a boot whose belief has ended once.
    fn look_at_session(&mut self, at: Real, process: u32, core: &Instance, clock: &Clock) {
        let belief = core.lock_belief().or_else(|| core.beliefs().next().map(|(_, b)| b));
        let p = &mut self.processes[process as usize];
        let Some(until) = belief.map(|belief| clock.when(belief.until.as_millis())) else {
            p.believed = None;
            return;
        };
        if self.regime == Regime::Beyond {
            return;
        }
        let before = p.believed.replace((core.boot().clone(), until));
        if let Some((boot, ended)) = before
            && boot == *core.boot()
            && ended <= at
            && until > at
        {
            self.violate("S2", at, || {
                format!("process {process} believes again after its belief has ended")
            });
        }
        if let Some((renewed, term)) = self.session_seen(core.boot()) {
            // Steps of the store's clock end every process, so only its rate counts from now on.
            let clock = &self.store_rate;
            let rest = clock.store(until).since(clock.store(at));
            let lived = self.store_clock.store(at).since(renewed);
            if lived + rest > term + Duration::from_millis(2) {
                let late = (lived + rest).saturating_sub(term);
                self.violate("S2", at, || {
                    format!("process {process} believes {late:?} longer than its session lives")
                });
            }
        }
    }

    fn look_at_lock(&mut self, at: Real, process: u32, core: &Instance, clock: &Clock) {
        let belief = core.lock_belief().map(|b| real(b, clock));
        self.processes[process as usize].lock = belief;
        let Some((epoch, until)) = belief else { return };
        // In shared mode all sessions keep the lock together, under the same epoch.
        if until <= at || self.regime == Regime::Beyond || self.shared() {
            return;
        }
        let other = self.processes.iter().enumerate().find_map(|(q, other)| {
            let (other_epoch, other_until) = other.lock?;
            (q as u32 != process && other.alive && other_until > at).then_some((q, other_epoch))
        });
        if let Some((q, other_epoch)) = other {
            self.violate("S2", at, || {
                format!(
                    "process {process} under epoch {} and process {q} under epoch {} both believe \
                     to hold the lock",
                    epoch.0, other_epoch.0
                )
            });
        }
    }

    fn look_at_account(
        &mut self,
        at: Real,
        process: u32,
        position: u16,
        core: &Instance,
        clock: &Clock,
    ) {
        let i = usize::from(position);
        let p = &mut self.processes[process as usize];
        let account = &mut self.accounts[i];
        let belief = self.ids.get(i).and_then(|id| core.belief(id)).map(|b| real(b, clock));
        let before = std::mem::replace(&mut p.holds[i], belief);
        match (before, belief) {
            (None, Some(_)) => {
                p.held += 1;
                account.holders.push(process);
                account.owned_since.get_or_insert(at);
            }
            (Some((_, until)), None) => {
                p.held -= 1;
                account.holders.retain(|holder| *holder != process);
                // Whoever lets its belief run out has given nothing back.
                account.note_unowned((at < until).then_some(at));
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
        if before != belief {
            self.belief_changed(at, process, position);
        }
    }

    fn belief_changed(&mut self, at: Real, process: u32, position: u16) {
        let account = &self.accounts[usize::from(position)];
        if account.holders.len() < 2 || self.regime == Regime::Beyond {
            return;
        }
        let until = |p: u32| {
            self.processes[p as usize].holds[usize::from(position)].filter(|(_, until)| *until > at)
        };
        let Some((epoch, _)) = until(process) else { return };
        let other = account
            .holders
            .iter()
            .filter(|holder| **holder != process)
            .find_map(|holder| until(*holder).map(|(epoch, until)| (*holder, epoch, until)));
        if let Some((q, other_epoch, other_until)) = other {
            let number = account.number;
            self.violate("S2", at, || {
                format!(
                    "account {number}: process {process} (epoch {}) believes, and process {q} \
                     (epoch {}) until {}",
                    epoch.0, other_epoch.0, other_until.0
                )
            });
        }
    }

    fn look_at_runs(&mut self, at: Real, process: u32, core: &Instance, clock: &Clock) {
        let mut runs = std::mem::take(&mut self.processes[process as usize].runs);
        runs.clear();
        for (account, kind, belief) in core.run_beliefs() {
            let position = self.position_in(account.as_str());
            runs.push((position, kind, clock.when(belief.until.as_millis())));
        }
        if self.regime == Regime::Within {
            for (position, kind, until) in &runs {
                let other = self.processes.iter().enumerate().find(|(q, other)| {
                    let same = |run: &(u16, RunKind, Real)| {
                        run.0 == *position && run.1 == *kind && run.2 > at
                    };
                    *q as u32 != process && other.alive && other.runs.iter().any(same)
                });
                if let Some((q, _)) = other
                    && *until > at
                {
                    let (number, kind) = (self.number(*position), *kind);
                    self.violate("S2", at, || {
                        format!(
                            "account {number}: {kind:?} runs in process {process} and process {q}"
                        )
                    });
                }
            }
        }
        self.processes[process as usize].runs = runs;
        for (kind, most) in [
            (RunKind::AutoBackfill, self.policy.auto_backfill.max_concurrency),
            (RunKind::RecentSync, self.policy.recent_sync.max_concurrency),
        ] {
            let working = core.working_runs(kind);
            if working > most {
                self.violate("S7", at, || {
                    format!("process {process}: {working} {kind:?} work at once, of {most}")
                });
            }
        }
    }

    /// An effect on WhatsApp starts: `not_after` was looked at just now and has not passed.
    ///
    /// S5: whatever needs ownership starts only while its sender believes, and its `not_after` is
    /// not after the belief's end; so nothing starts after stepping down. Closing needs none, and
    /// a look at what lies in the spool changes nothing: it may come after a stop that followed it.
    pub fn effect_starts(
        &mut self,
        at: Real,
        process: u32,
        now: Mono,
        request: &GatewayRequest,
        core: &Instance,
    ) {
        if matches!(request.call, GatewayCall::Close { .. } | GatewayCall::Recover) {
            return;
        }
        let belief = core.belief(&request.account);
        let number = self.number(self.position_in(request.account.as_str()));
        let call = call_name(&request.call);
        match belief {
            Some(belief) if now < belief.until => {
                let bounded = matches!(
                    request.call,
                    GatewayCall::Connect | GatewayCall::History { .. } | GatewayCall::Send { .. }
                );
                if bounded && request.not_after > belief.until {
                    let late = request.not_after.since(belief.until).as_millis();
                    self.violate("S5", at, || {
                        format!(
                            "process {process}: {call} of account {number} may start {late} ms \
                             after the belief ends"
                        )
                    });
                }
            }
            _ => self.violate("S5", at, || {
                format!("process {process}: {call} of account {number} starts without ownership")
            }),
        }
    }

    /// A connection to WhatsApp opens; `replaced` is whose had to go.
    ///
    /// S4: within the bound, none is open for the account of a process that can act: one that is
    /// alive, not paused, and believes to own the account; any other can only close it.
    pub fn connected(&mut self, at: Real, process: u32, account: u16, replaced: Option<u32>) {
        let position = self.position(account);
        let Some(seen) = self.accounts.get_mut(usize::from(position)) else { return };
        seen.connection = Some((process, at));
        if self.regime == Regime::Beyond {
            return;
        }
        if replaced == Some(NODE) {
            return self.violate("S4", at, || {
                format!("account {account}: process {process} connects beside a Node instance")
            });
        }
        if let Some(q) = replaced.filter(|q| *q != process)
            && let Some(old) = self.processes.get(q as usize)
            && old.alive
            && !old.paused
            && old.holds[usize::from(position)].is_some_and(|(_, until)| until > at)
        {
            self.violate("S4", at, || {
                format!(
                    "account {account}: process {process} connects, and process {q} is connected"
                )
            });
        }
    }

    /// A Node instance connects an account; `replaced` is whose connection had to go.
    ///
    /// S4: not while a process of ours that can act is connected.
    pub fn foreign_connected(&mut self, at: Real, account: u16, replaced: Option<u32>) {
        let Some(q) = replaced else { return };
        self.disconnected(at, q, account);
        let position = usize::from(self.position(account));
        let acts = self.processes.get(q as usize).is_some_and(|p| {
            let hold = p.holds.get(position).copied().flatten();
            p.alive && !p.paused && hold.is_some_and(|(_, until)| until > at)
        });
        if acts && self.regime == Regime::Within {
            self.violate("S4", at, || {
                format!("account {account}: a Node instance connects, and process {q} is connected")
            });
        }
    }

    /// A connection to WhatsApp is no more.
    pub fn disconnected(&mut self, _at: Real, process: u32, account: u16) {
        let position = self.position(account);
        if let Some(seen) = self.accounts.get_mut(usize::from(position))
            && seen.connection.is_some_and(|(p, _)| p == process)
        {
            seen.connection = None;
        }
    }

    /// A request leaves for a phone.
    ///
    /// S4: within the bound, none is under way for the account: one is from its sending until its
    /// answer or timeout. Two are at least the spacing apart, less what clocks may differ.
    /// `reserved`: the store knows of it.
    ///
    /// S7: for one conversation, with one message, no more often than there are tries, until
    /// history of the conversation comes, a manual run, or linking anew.
    pub fn phone_asked(
        &mut self,
        at: Real,
        process: u32,
        account: u16,
        (thread, anchor): (&ThreadId, &str),
        reserved: bool,
    ) {
        if !reserved {
            self.violate("S4", at, || {
                format!("account {account}: process {process} asks the phone unannounced")
            });
        }
        let timeout = self.policy.phone.timeout.as_millis() as u64;
        // The asker waits on its own clock, which may be fast.
        let slack = u64::from(self.policy.clock_rate_ppm) * 2;
        let wait = timeout - timeout * slack / 1_000_000;
        let spacing = self.policy.phone.spacing.as_millis() as u64;
        let spacing = spacing - spacing * slack / 1_000_000;
        let position = self.position(account);
        let Some(seen) = self.accounts.get_mut(usize::from(position)) else { return };
        let tries = seen.tries.entry((thread.clone(), anchor.into())).or_default();
        *tries += 1;
        let tried = *tries;
        let before = seen.asked.replace((at, process, at.after(wait)));
        if tried > self.policy.phone.tries {
            self.violate("S7", at, || {
                format!("account {account}: the phone is asked {tried} times for one anchor")
            });
        }
        if let Some((asked, q, until)) = before
            && self.regime == Regime::Within
        {
            if at < until {
                self.violate("S4", at, || {
                    format!(
                        "account {account}: process {process} asks the phone, and the request of \
                         process {q} at {} is under way",
                        asked.0
                    )
                });
            } else if at.since(asked) + 1 < spacing {
                self.violate("S4", at, || {
                    format!(
                        "account {account}: process {process} asks the phone {} ms after \
                         process {q}",
                        at.since(asked)
                    )
                });
            }
        }
    }

    /// The answer to the request under way arrived at the process that asked.
    pub fn phone_answered(&mut self, at: Real, process: u32, account: u16) {
        let position = self.position(account);
        if let Some(seen) = self.accounts.get_mut(usize::from(position))
            && let Some((_, asker, until)) = &mut seen.asked
            && *asker == process
        {
            *until = at.min(*until);
        }
    }

    /// A phone answered once more, or for another request.
    pub fn duplicate_reply(&mut self) {
        self.sometimes.duplicate_reply_ignored += 1;
    }

    pub(super) fn store_request(
        &mut self,
        at: Real,
        process: u32,
        request: &StoreRequest,
        (passive, stepping): (bool, bool),
    ) {
        let p = &mut self.processes[process as usize];
        let writes = match &request.call {
            StoreCall::Commit(writes) => writes,
            StoreCall::Get(paths) => {
                if !p.open_writes.is_empty() {
                    p.open_writes.retain(|(_, open)| !paths.contains(open));
                }
                return;
            }
            StoreCall::Query(query) => {
                if !p.open_writes.is_empty() {
                    p.open_writes.retain(|(_, open)| open.collection() != query.collection);
                }
                return;
            }
        };
        for write in writes.iter().filter(|write| says_running(write)) {
            let rest = write.path.as_str().strip_prefix("accounts/").unwrap_or_default();
            let position = usize::from(self.position_in(rest));
            let p = &self.processes[process as usize];
            if p.closed.get(position).is_some_and(|closed| at.since(*closed) > START_IN_FLIGHT) {
                let number = self.accounts[position].number;
                self.violate("S5", at, || {
                    format!("process {process} starts a run of account {number}, not connected")
                });
            }
        }
        let p = &mut self.processes[process as usize];
        let mut again = false;
        for write in writes {
            let guarded =
                matches!(write.precondition, Precondition::Version(_) | Precondition::Absent)
                    && matches!(write.op, WriteOp::Merge(_));
            if guarded {
                again |= p.open_writes.iter().any(|(_, open)| *open == write.path);
                p.open_writes.push((request.id, write.path.clone()));
            }
        }
        if again {
            let paths: Vec<String> = writes.iter().map(|w| w.path.as_str().to_owned()).collect();
            self.violate("S9", at, || {
                format!("process {process} writes {paths:?} again without reading it")
            });
        }
        if stepping && let Some(write) = writes.iter().find(|write| begins_something(write)) {
            let path = write.path.as_str().to_owned();
            self.violate("S6", at, || format!("process {process} writes {path} in SteppingDown"));
        }
        if passive {
            let own = |path: &str| {
                path.starts_with("instances/")
                    || path.starts_with("coordination/")
                    || path.starts_with("incidents/")
                    || path == "wa_metrics/longrun/locks/wa_connection"
            };
            // A claim goes out while passive: it is the attempt at the lock.
            if let Some(write) = writes.iter().find(|w| !own(w.path.as_str())) {
                let path = write.path.as_str().to_owned();
                self.violate("S6", at, || format!("process {process} writes {path} while passive"));
            }
        }
    }

    /// A commit was answered for good: applied or refused.
    pub fn answered(&mut self, process: u32, request: RequestId) {
        let p = &mut self.processes[process as usize];
        if !p.open_writes.is_empty() {
            p.open_writes.retain(|(id, _)| *id != request);
        }
    }

    /// The epoch under which a process held the account that a commit is about, when it was last
    /// looked at.
    pub fn epoch_of(&self, process: u32, position: u16) -> Option<Epoch> {
        let hold = self.processes[process as usize].holds.get(usize::from(position))?;
        hold.map(|(epoch, _)| epoch)
    }

    pub(super) fn shared(&self) -> bool {
        matches!(self.policy.mode, backfill_core::policy::InstanceMode::Shared { .. })
    }

    pub(super) fn number(&self, position: u16) -> u16 {
        self.accounts.get(usize::from(position)).map_or(NOWHERE, |account| account.number)
    }
}

/// Whether a write says that a backfill is under way.
pub(crate) fn says_running(write: &Write) -> bool {
    use backfill_core::doc::{FieldOp, Value};
    let WriteOp::Merge(fields) = &write.op else { return false };
    fields.iter().any(|(field, op)| {
        let FieldOp::Set(Value::Map(status)) = op else { return false };
        field.as_str() == "lastAutoBackfillStatus"
            && status.get("running") == Some(&Value::Bool(true))
    })
}

/// Whether a write takes an account or the lock, starts a run, announces a request to a phone or
/// claims a message to be sent.
fn begins_something(write: &Write) -> bool {
    use backfill_core::doc::{FieldOp, Value};
    let WriteOp::Merge(fields) = &write.op else { return false };
    let path = write.path.as_str();
    let sets = |name: &str, wanted: &dyn Fn(&Value) -> bool| {
        fields.iter().any(|(field, op)| match op {
            FieldOp::Set(value) => field.as_str() == name && wanted(value),
            FieldOp::ServerTime => field.as_str() == name,
            FieldOp::Remove => false,
        })
    };
    let text = |value: &Value| value.as_str().is_some();
    let owned = path.ends_with("/leases/connection") || path == "coordination/lock";
    (owned && sets("owner", &text))
        || says_running(write)
        || (path.ends_with("/sync/state") && sets("askedAt", &|value| *value != Value::Null))
        || (path.starts_with("outbox/") && sets("status", &|v| v.as_str() == Some("processing")))
}

fn real(belief: Belief, clock: &Clock) -> (Epoch, Real) {
    (belief.epoch, clock.when(belief.until.as_millis()))
}
