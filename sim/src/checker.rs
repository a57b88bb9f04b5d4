//! Sees everything and says what was wrong.
//!
//! The checker knows nothing of how a world is run: whoever runs it reports what happens, in order
//! of real time. It looks at every property when something happens that could break it, never at
//! everything; [`Checker::finish`] is the one look at all.
//!
//! What a process believes is taken from its core; whatever beliefs cannot show is judged by what
//! the store accepted.

mod beliefs;
mod documents;
mod eventually;
mod messages;

use std::collections::{BTreeMap, BTreeSet};

use backfill_core::doc::Write;
use backfill_core::id::{AccountId, BootId, Epoch, RequestId, ThreadId};
use backfill_core::io::{Event, GatewayCall, Key, Mode, Output, RunKind, Skip, Trigger};
use backfill_core::policy::{Policy, Settings};
use backfill_core::time::StoreTime;
use smol_str::SmolStr;

use crate::clock::{Clock, Real};
use crate::report::{Sometimes, Violation};
use crate::scenario::{AccountPlan, Regime, Scenario};
use crate::store::{Change, SimStore};
use crate::whatsapp::WhatsApp;
use crate::world::store_clock;

pub use beliefs::Touched;
pub(crate) use beliefs::says_running;

/// Looks at a world and judges it.
#[derive(Clone, Debug)]
pub struct Checker {
    regime: Regime,
    quiet_from: Real,
    policy: Settings,
    /// By account number, its position in everything below
    positions: Vec<u16>,
    ids: Vec<AccountId>,
    accounts: Vec<AccountSeen>,
    processes: Vec<Process>,
    documents: documents::Documents,
    messages: messages::Messages,
    violations: Vec<Violation>,
    sometimes: Sometimes,
    /// When the last process ended, while none runs
    all_down: Option<Real>,
    running: u32,
    store_clock: Clock,
    /// The same without steps
    store_rate: Clock,
    latest_commit: StoreTime,
    /// There is a Node instance, for a while
    beside_node: bool,
    /// Credentials are kept on hosts
    local: bool,
    /// By position, the instance on whose host the account's credentials lie
    credentials: Vec<Option<u8>>,
}

/// What is known of one process.
#[derive(Clone, Debug)]
struct Process {
    instance: u8,
    alive: bool,
    crashed: bool,
    paused: bool,
    /// Something was taken from it while it was paused
    overtaken: bool,
    mode: Mode,
    boot: BootId,
    lock: Option<(Epoch, Real)>,
    holds: Vec<Option<(Epoch, Real)>>,
    held: u32,
    runs: Vec<(u16, RunKind, Real)>,
    /// Documents of commits whose outcome it does not know, with the request
    open_writes: Vec<(RequestId, backfill_core::doc::DocPath)>,
    last_request: u64,
    inputs: u32,
    /// Effects it asked for, for the bound on how many
    effects: u64,
    effects_before_quiet: u64,
    stop_asked: Option<Real>,
    /// What it owned when it ended
    left: Vec<u16>,
    ended: Option<Real>,
    started: Real,
    /// When it was last kept from working as it would
    disturbed: Real,
    /// Accounts a tick passed over for cooldown or backoff
    passed_over: bool,
    /// Until when it believed when that was last looked at, under which boot
    believed: Option<(BootId, Real)>,
    /// By position, since when the account's connection is closed as it says itself
    closed: Vec<Real>,
    /// Positions of accounts of which it was told that their credentials lie on its host
    credentials: BTreeSet<u16>,
    /// Ticks of backfills so far, and whether the last one left some for later
    ticks: u64,
    cut: bool,
}

/// What is known of one account.
#[derive(Clone, Debug, Default)]
struct AccountSeen {
    number: u16,
    /// Processes that hold it, whether or not they still believe
    holders: Vec<u32>,
    connection: Option<(u32, Real)>,
    /// The phone request under way: when, by whom, and when it counts as given up
    asked: Option<(Real, u32, Real)>,
    starts: documents::Starts,
    /// The epoch its ownership document shows
    epoch: Epoch,
    owned_since: Option<Real>,
    /// When its owner last gave it back
    given_back: Real,
    runs_in_quiet: u32,
    to_fill: messages::ToFill,
    deleted: bool,
    /// By conversation and anchor, how often the phone was asked without history coming
    tries: BTreeMap<(ThreadId, SmolStr), u32>,
    /// Since when it has waited for a backfill: the latest success or attempt
    waits: StoreTime,
    /// The same before its latest start
    waited: StoreTime,
    /// When it may have a periodic run again
    due: StoreTime,
    /// How many ticks in a row served one that had waited less
    passed: u64,
    /// The latest of them
    passed_at: u64,
    /// The boot that owns it, as its document says
    owner: SmolStr,
}

impl AccountSeen {
    /// Notes that the account has no owner any more, if it has none, and whether it was given back.
    fn note_unowned(&mut self, given_back: Option<Real>) {
        if self.holders.is_empty() {
            self.owned_since = None;
            self.given_back = given_back.unwrap_or(Real::ZERO);
        }
    }
}

/// A checker's word for no account.
pub const NOWHERE: u16 = u16::MAX;

impl Checker {
    /// A checker for a world with this course. `policy` is what its instances share.
    pub fn new(scenario: &Scenario, policy: &Policy) -> Self {
        let most = scenario.accounts.iter().map(|a| a.id).max().map_or(0, |id| id + 1);
        let mut positions = vec![NOWHERE; usize::from(most)];
        for (position, account) in scenario.accounts.iter().enumerate() {
            positions[usize::from(account.id)] = position as u16;
        }
        let ids = scenario.accounts.iter().map(|a| AccountPlan::account(a.id)).collect();
        let store_clock = Clock::new(&store_clock(scenario));
        Self {
            regime: scenario.regime,
            quiet_from: scenario.quiet_from,
            positions,
            accounts: scenario
                .accounts
                .iter()
                .map(|a| AccountSeen { number: a.id, ..AccountSeen::default() })
                .collect(),
            messages: messages::Messages::new(scenario),
            store_rate: Clock::new(&scenario.store.clock),
            beside_node: scenario.node.is_some(),
            local: scenario.pace.local,
            credentials: scenario.accounts.iter().map(|a| a.linked.then_some(a.home)).collect(),
            ..Self::of_accounts(policy, ids, store_clock)
        }
    }

    /// A checker for processes that serve these accounts, numbered in their order, within the
    /// declared bound on clocks. Nothing is known of their messages and credentials.
    pub fn of_accounts(policy: &Policy, ids: Vec<AccountId>, store_clock: Clock) -> Self {
        let numbers = 0..ids.len() as u16;
        Self {
            regime: Regime::Within,
            quiet_from: Real::NEVER,
            policy: Settings::clone(policy),
            positions: numbers.clone().collect(),
            accounts: numbers
                .map(|number| AccountSeen { number, ..AccountSeen::default() })
                .collect(),
            processes: Vec::new(),
            documents: documents::Documents::default(),
            messages: messages::Messages::default(),
            violations: Vec::new(),
            sometimes: Sometimes::default(),
            all_down: None,
            running: 0,
            store_rate: store_clock.clone(),
            store_clock,
            latest_commit: StoreTime::EPOCH,
            beside_node: false,
            local: false,
            credentials: vec![None; ids.len()],
            ids,
        }
    }

    /// The accounts whose credentials lie on the host of an instance.
    pub fn credentials_of(&self, instance: u8) -> Vec<u16> {
        let here = self.accounts.iter().zip(&self.credentials);
        here.filter(|(_, at)| **at == Some(instance)).map(|(account, _)| account.number).collect()
    }

    /// An account was linked: its credentials lie on the host of the instance that did, if that
    /// is still there.
    pub fn linked(&mut self, account: u16, by: Option<u8>) {
        let position = self.position(account);
        if let Some(credentials) = self.credentials.get_mut(usize::from(position)) {
            *credentials = by;
        }
        if let Some(seen) = self.accounts.get_mut(usize::from(position)) {
            // The phone tells a new device its history anew.
            seen.tries.clear();
        }
        if let Some(instance) = by {
            self.told_of_credentials(instance, position, true);
        }
    }

    /// The host of an instance has no credentials of the account any more, and the instance knows.
    pub fn unlinked(&mut self, account: u16, instance: u8) {
        let position = self.position(account);
        let credentials = self.credentials.get_mut(usize::from(position));
        if let Some(credentials) = credentials.filter(|at| **at == Some(instance)) {
            *credentials = None;
        }
        self.told_of_credentials(instance, position, false);
    }

    fn told_of_credentials(&mut self, instance: u8, position: u16, here: bool) {
        let processes = self.processes.iter_mut();
        for process in processes.filter(|p| p.alive && p.instance == instance) {
            if here {
                process.credentials.insert(position);
            } else {
                process.credentials.remove(&position);
            }
        }
    }

    /// What was wrong so far.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// What was reached so far.
    pub fn sometimes(&self) -> &Sometimes {
        &self.sometimes
    }

    /// A process starts. Processes are numbered in order of their start.
    pub fn started(&mut self, at: Real, instance: u8, boot: &BootId) {
        if let Some(since) = self.all_down.take()
            && at.since(since) > self.policy.session_term.as_millis() as u64
        {
            self.sometimes.all_down_longer_than_a_term += 1;
        }
        self.running += 1;
        self.processes.push(Process {
            instance,
            alive: true,
            crashed: false,
            paused: false,
            overtaken: false,
            mode: Mode::Passive(backfill_core::io::PassiveReason::Starting),
            boot: boot.clone(),
            lock: None,
            holds: vec![None; self.accounts.len()],
            held: 0,
            runs: Vec::new(),
            open_writes: Vec::new(),
            last_request: 0,
            inputs: 0,
            effects: 0,
            effects_before_quiet: 0,
            stop_asked: None,
            left: Vec::new(),
            ended: None,
            started: at,
            disturbed: at,
            passed_over: false,
            believed: None,
            closed: vec![Real::ZERO; self.accounts.len()],
            credentials: (0_u16..)
                .zip(&self.credentials)
                .filter(|(_, at)| **at == Some(instance))
                .map(|(position, _)| position)
                .collect(),
            ticks: 0,
            cut: false,
        });
    }

    /// A process is told to stop.
    pub fn stopping(&mut self, at: Real, process: u32) {
        let p = &mut self.processes[process as usize];
        if p.stop_asked.is_none() {
            p.stop_asked = Some(at);
            let held = p.holds.iter().enumerate().filter(|(_, hold)| hold.is_some());
            p.left = held.map(|(position, _)| position as u16).collect();
        }
    }

    /// Something keeps a process from working as it would.
    pub fn disturbed(&mut self, at: Real, process: u32) {
        self.processes[process as usize].disturbed = at;
    }

    /// A process ends: of itself after it was told to stop, or not.
    ///
    /// L5, first half: a graceful stop takes no longer than closing and the last write may, each of
    /// which has the limit, and a few seconds.
    pub fn ended(&mut self, at: Real, process: u32, graceful: bool, disturbed: bool) {
        let limit = (self.policy.stop_timeout * 2 + self.policy.write_timeout).as_millis() as u64;
        let p = &mut self.processes[process as usize];
        p.alive = false;
        p.ended = Some(at);
        p.crashed = !graceful;
        p.lock = None;
        p.runs.clear();
        p.held = 0;
        let holds = std::mem::take(&mut p.holds);
        let asked = p.stop_asked;
        for (position, _) in holds.iter().enumerate().filter(|(_, hold)| hold.is_some()) {
            let account = &mut self.accounts[position];
            account.holders.retain(|holder| *holder != process);
            account.note_unowned(None);
        }
        self.processes[process as usize].holds = vec![None; self.accounts.len()];
        for account in &mut self.accounts {
            if account.connection.is_some_and(|(p, _)| p == process) {
                account.connection = None;
            }
        }
        self.running -= 1;
        if self.running == 0 {
            self.all_down = Some(at);
        }
        if let Some(asked) = asked
            && !disturbed
            && at.since(asked) > limit
        {
            let took = at.since(asked);
            self.violate("L5", at, || format!("process {process} took {took} ms to stop"));
        }
    }

    /// A process is paused.
    pub fn paused(&mut self, _at: Real, process: u32) {
        self.processes[process as usize].paused = true;
    }

    /// A process goes on.
    pub fn resumed(&mut self, _at: Real, process: u32) {
        let p = &mut self.processes[process as usize];
        p.paused = false;
        if std::mem::take(&mut p.overtaken) {
            self.sometimes.takeover_after_pause += 1;
        }
    }

    /// The clock of an instance, or the store's, does something other than go on.
    pub fn clock_changed(&mut self, instance: Option<u8>) {
        let holds = self.processes.iter().any(|p| {
            p.alive && p.held > 0 && instance.is_none_or(|instance| p.instance == instance)
        });
        self.sometimes.clock_step_while_holding += u64::from(holds);
    }

    /// A process wants something; called when it comes out of the core, before it is done.
    ///
    /// `before` and `after` are the core's mode before and after the input that led to it.
    ///
    /// - S6: passive before and after, only commits that touch nothing but sessions, the lock and
    ///   incidents may come out, reads, and closing. Stepping down before and after, nothing that
    ///   opens, asks or sends.
    /// - S7: a tick of backfills starts no more than its cap.
    /// - S9: a commit that changes a document by compare-and-set comes out only if no earlier one
    ///   of this process on the same document is without an answer, unless it was read again.
    /// - S10: request ids rise.
    pub fn output(&mut self, at: Real, process: u32, output: &Output, before: Mode, after: Mode) {
        let quiet = at >= self.quiet_from;
        let p = &mut self.processes[process as usize];
        let id = match output {
            Output::Store(request) => Some(request.id),
            Output::Gateway(request) => Some(request.id),
            Output::Event(event) => return self.event(at, process, event),
            Output::Reply(..) | Output::Stopped => None,
        };
        if let Some(id) = id {
            p.effects += 1;
            p.effects_before_quiet += u64::from(!quiet);
            if id.0 <= p.last_request {
                let last = p.last_request;
                let text = || format!("process {process}: request {} after {last}", id.0);
                return self.violate("S10", at, text);
            }
            p.last_request = id.0;
        }
        let passive = |mode| matches!(mode, Mode::Passive(_));
        let passive = passive(before) && passive(after);
        let stepping = before == Mode::SteppingDown && after == Mode::SteppingDown;
        match output {
            Output::Store(request) => self.store_request(at, process, request, (passive, stepping)),
            Output::Gateway(request) => {
                let allowed = match request.call {
                    GatewayCall::Close { .. } => true,
                    // What has arrived and was confirmed has to be durable before the end.
                    GatewayCall::Spool { .. } => stepping,
                    _ => false,
                };
                if (passive || stepping) && !allowed {
                    let call = call_name(&request.call);
                    self.violate("S6", at, || format!("process {process}: {call} in {after:?}"));
                }
            }
            Output::Event(_) | Output::Reply(..) | Output::Stopped => {}
        }
    }

    fn event(&mut self, at: Real, process: u32, event: &Event) {
        let quiet = at >= self.quiet_from;
        let p = &mut self.processes[process as usize];
        match event {
            Event::Mode { mode } => {
                let leaves = p.mode == Mode::Active && *mode != Mode::Active;
                if leaves && p.held > 0 {
                    self.sometimes.mode_flip_while_holding += 1;
                }
                if *mode == Mode::Passive(backfill_core::io::PassiveReason::DuplicateInstanceId) {
                    self.sometimes.same_instance_id_twice += 1;
                }
                p.mode = *mode;
            }
            Event::Connection { account, state } => {
                let position = usize::from(self.position_in(account.as_str()));
                let p = &mut self.processes[process as usize];
                if let Some(closed) = p.closed.get_mut(position) {
                    *closed = if *state == "open" { Real::NEVER } else { (*closed).min(at) };
                }
            }
            Event::SessionEnded { .. } => {
                p.closed.iter_mut().for_each(|closed| *closed = (*closed).min(at));
            }
            Event::Skipped { kind: RunKind::AutoBackfill, reason: Skip::Cooldown, .. } if p.cut => {
                self.violate("L4", at, || {
                    format!("process {process}: a tick chose one in cooldown, and left others")
                });
            }
            Event::Hole { change, .. } => {
                use backfill_core::io::HoleChange;
                *match change {
                    HoleChange::Exhausted => &mut self.sometimes.hole_exhausted,
                    HoleChange::Filled => &mut self.sometimes.hole_filled,
                    HoleChange::Suspected => &mut self.sometimes.hole_found,
                } += 1;
            }
            Event::Tick { kind: RunKind::AutoBackfill, started, skipped, .. } => {
                let skipped_for = |skip| skipped.get(&skip).is_some_and(|n| *n > 0);
                p.ticks += 1;
                p.cut = skipped_for(Skip::TickCap);
                self.sometimes.cap_reached += u64::from(skipped_for(Skip::TickCap));
                if skipped_for(Skip::Backoff) || skipped_for(Skip::Cooldown) {
                    p.passed_over = true;
                } else if *started > 0 && std::mem::take(&mut p.passed_over) {
                    self.sometimes.cooldown_blocked_then_released += 1;
                }
                let cap = self.policy.auto_backfill.max_accounts_per_tick;
                if *started > cap {
                    let started = *started;
                    self.violate("S7", at, || {
                        format!("process {process}: a tick started {started} of at most {cap}")
                    });
                }
            }
            Event::RunStarted { account, kind: RunKind::AutoBackfill, trigger } => {
                let position = self.position_in(account.as_str());
                if let Some(seen) = self.accounts.get_mut(usize::from(position)) {
                    seen.runs_in_quiet += u32::from(quiet);
                    if *trigger == Trigger::Manual {
                        seen.tries.clear();
                    }
                }
                if *trigger == Trigger::Periodic {
                    self.started_before_others(at, process, position);
                }
            }
            Event::RunEnded { account, kind: RunKind::AutoBackfill, .. } => {
                // It had its turn, if only to find that the store did not let it begin.
                let position = usize::from(self.position_in(account.as_str()));
                if let Some(seen) = self.accounts.get_mut(position) {
                    seen.passed = 0;
                }
            }
            Event::Fenced { key: Key::Account(account) } => {
                let position = usize::from(self.position_in(account.as_str()));
                let p = &self.processes[process as usize];
                let Some(seen) = self.accounts.get(position) else { return };
                let held = p.holds[position].map(|(epoch, _)| epoch);
                if held == Some(seen.epoch) && seen.owner == p.boot.as_str() {
                    let number = seen.number;
                    self.violate("S3", at, || {
                        format!("process {process} is fenced from account {number}, which it owns")
                    });
                }
            }
            Event::SessionStarted { boot } => p.boot = boot.clone(),
            _ => {}
        }
    }

    /// Looks at everything there is, when the world ends.
    pub fn finish(&mut self, at: Real, scenario: &Scenario, store: &SimStore, net: &WhatsApp) {
        self.finish_messages(at, store, net);
        self.finish_eventually(at, scenario, store, net);
    }

    /// Notes that something was wrong.
    pub fn violate(&mut self, check: &'static str, at: Real, text: impl FnOnce() -> String) {
        // After the first hundred nobody learns anything from another.
        if self.violations.len() < 100 {
            self.violations.push(Violation { check, at, text: text() });
        }
    }

    /// The position of the account whose id `text` begins with; [`NOWHERE`] if there is none.
    fn position_in(&self, text: &str) -> u16 {
        match AccountPlan::number(text) {
            Some(number) => self.position(number),
            None => {
                let found = self.ids.iter().position(|id| text.starts_with(id.as_str()));
                found.map_or(NOWHERE, |position| position as u16)
            }
        }
    }

    /// The position of the account whose id `text` begins with; [`NOWHERE`] if there is none.
    pub fn position_of(&self, text: &str) -> u16 {
        self.position_in(text)
    }

    fn position(&self, account: u16) -> u16 {
        self.positions.get(usize::from(account)).copied().unwrap_or(NOWHERE)
    }
}

/// A commit as the store carried it out.
#[derive(Debug)]
pub struct Applied<'a> {
    /// When
    pub at: Real,
    /// When by the store's clock
    pub commit_time: StoreTime,
    /// Who asked: a core; `None` if it was somebody else
    pub process: Option<u32>,
    /// The epoch under which the sender held the account it writes about, when it sent this
    pub epoch: Option<Epoch>,
    /// It had been applied before, or its sender had given it up
    pub late: bool,
    /// What was asked
    pub writes: &'a [Write],
    /// What each write found and left
    pub changes: &'a [Change],
}

fn call_name(call: &GatewayCall) -> &'static str {
    match call {
        GatewayCall::Close { .. } => "close",
        GatewayCall::Connect => "connect",
        GatewayCall::History { .. } => "history",
        GatewayCall::Logout => "logout",
        GatewayCall::Parse { .. } => "parse",
        GatewayCall::Recover => "recover",
        GatewayCall::Send { .. } => "send",
        GatewayCall::Spool { .. } => "spool",
        GatewayCall::Unspool { .. } => "unspool",
    }
}
