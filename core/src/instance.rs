//! The composition root: one process of wa-backfill, as a state machine.

mod accounts;
mod activity;
mod incarnation;
mod insight;
mod outgoing;
mod ticks;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use smol_str::SmolStr;

use accounts::{Account, Scan};
use activity::Look;
pub use insight::{AccountInsight, LockInsight};
use outgoing::OutboxPoll;
use ticks::Glance;

use crate::bug::Bug;
use crate::doc::Version;
use crate::garbage::Garbage;
use crate::host::{AccountRoute, AccountTimer, Host, Route, Timer};
use crate::id::{AccountId, BootId, Epoch, RequestId};
use crate::io::{
    Answer, Command, CommandId, Event, GatewayCall, GatewayEvent, Hint, Input, Mode, Output,
    PassiveReason, Reply, RunKind, Trigger,
};
use crate::lock::LockView;
use crate::outbox;
use crate::policy::{InstanceMode, Policy};
use crate::roster::Roster;
use crate::session::{Op, Session};
use crate::tenure::{Stage, Tenure};
use crate::time::{Mono, StoreTime};

/// One process of wa-backfill.
///
/// Call [`handle_input`](Self::handle_input), then [`poll_output`](Self::poll_output) until it
/// returns `None`, then wait until [`poll_timeout`](Self::poll_timeout) or the next input. The
/// first input is [`Input::Timeout`]. Early and repeated timeouts change nothing.
///
/// ```
/// use backfill_core::id::InstanceId;
/// use backfill_core::instance::Instance;
/// use backfill_core::io::{Input, Output};
/// use backfill_core::policy::{Policy, Settings};
/// use backfill_core::time::Mono;
///
/// let label = InstanceId::parse("box-1").expect("a valid label");
/// let policy = Policy::new(Settings::exclusive(label)).expect("the defaults fit together");
/// let mut instance = Instance::new(policy, [7; 32], Mono::ZERO);
/// instance.handle_input(Mono::ZERO, Input::Timeout);
/// // The first thing it wants is to create its session.
/// assert!(matches!(instance.poll_output(), Some(Output::Store(_))));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Instance {
    host: Host,
    session: Session,
    boots: u64,
    begun: bool,
    roster: Roster,
    /// When the own session began, by the store's clock
    since: Option<StoreTime>,
    mode: Mode,
    lock: LockView,
    /// The lock's epoch while it is held
    held_lock: Option<Epoch>,
    accounts: BTreeMap<AccountId, Account>,
    /// Accounts whose credentials lie on this host
    credentials: BTreeSet<AccountId>,
    /// What ticks have to know of each connected account. It lies apart from the tenures: a tick
    /// over thousands of accounts reads little memory
    connected: BTreeMap<AccountId, Glance>,
    /// Boots that were looked up and found dead, and whether they ended on purpose
    dead: BTreeMap<SmolStr, bool>,
    /// Boots that were looked up and found alive; the roster will show them
    living: BTreeSet<SmolStr>,
    look: Look,
    scan: Scan,
    garbage: Garbage,
    outbox: OutboxPoll,
    /// Runs that the last tick started and that have not come to rest
    ticked: BTreeMap<RunKind, BTreeSet<AccountId>>,
    last_move: Option<Mono>,
    /// How many accounts in a row came back, because nobody took them
    vain_moves: u32,
    /// What others might take is left to them until then
    abstain_until: Mono,
    /// Since when nobody has the lock, as far as is known
    unlocked_since: Option<Mono>,
    abstain_for: Duration,
    stopping: bool,
    stopped: bool,
}

/// What an instance believes about something it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Belief {
    /// The fencing token
    pub epoch: Epoch,
    /// The belief ends here
    pub until: Mono,
}

/// Why [`Instance::poll_timeout`] wants to be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Output is waiting
    Output,
    /// An answer is overdue
    Request,
    /// Something is to be done
    Timer(&'static str),
}

impl Instance {
    /// A process that starts now. The seed makes its boots and its jitter: never reuse one.
    pub fn new(policy: Policy, seed: [u8; 32], now: Mono) -> Self {
        let mut host = Host::new(policy, seed, now);
        let session = Session::begin(&mut host);
        Self {
            host,
            session,
            boots: 1,
            begun: false,
            roster: Roster::default(),
            since: None,
            mode: Mode::Passive(PassiveReason::Starting),
            lock: LockView::default(),
            held_lock: None,
            accounts: BTreeMap::new(),
            credentials: BTreeSet::new(),
            connected: BTreeMap::new(),
            dead: BTreeMap::new(),
            living: BTreeSet::new(),
            look: Look::default(),
            scan: Scan::default(),
            garbage: Garbage::default(),
            outbox: OutboxPoll::default(),
            ticked: BTreeMap::new(),
            last_move: None,
            vain_moves: 0,
            abstain_until: Mono::ZERO,
            unlocked_since: None,
            abstain_for: Duration::ZERO,
            stopping: false,
            stopped: false,
        }
    }

    /// Takes in what happened. `now` that runs backwards counts as no time passing.
    pub fn handle_input(&mut self, now: Mono, input: Input) {
        self.host.now = self.host.now.max(now.min(END_OF_TIME));
        if self.stopped {
            if let Input::Command(id, command) = input {
                let reply = if command == Command::Stop { Reply::Accepted } else { Reply::Passive };
                self.host.out.push_back(Output::Reply(id, reply));
            }
            return;
        }
        if !self.begun {
            self.begun = true;
            let boot = self.host.boot.clone();
            self.host.event(Event::SessionStarted { boot });
        }
        self.check_deadline();
        if self.host.timers.is_due(&Timer::StopTimeout, self.host.now) {
            // What is answered only now would lead to something new.
            self.host.timers.clear(&Timer::StopTimeout);
            self.on_timer(Timer::StopTimeout);
        }
        match input {
            Input::Answer(request, answer) => self.on_answer(request, answer),
            Input::Command(id, command) => self.on_command(id, command),
            Input::Credentials(account, true) => {
                self.credentials.insert(account);
                self.on_hint(Hint::Accounts);
            }
            Input::Credentials(account, false) => {
                self.credentials.remove(&account);
            }
            Input::Gateway(account, event) => self.on_gateway(account, event),
            Input::Hint(hint) => self.on_hint(hint),
            Input::Ingested(account, ingested) => {
                self.with_tenure(&account, |tenure, host| tenure.on_ingested(host, &ingested));
            }
            Input::Timeout => {}
        }
        while let Some(request) = self.host.expired() {
            self.on_answer(request, Answer::Unknown);
        }
        while let Some(timer) = self.host.timers.pop_due(self.host.now) {
            self.on_timer(timer);
        }
        self.give_slots();
    }

    /// The next thing to do, if there is one.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.host.out.pop_front()
    }

    /// When to call again, and why. Changes only with inputs and outputs.
    pub fn poll_timeout(&self) -> Option<(Mono, Reason)> {
        if !self.host.out.is_empty() {
            return Some((self.host.now, Reason::Output));
        }
        if self.stopped {
            return None;
        }
        let late = Duration::from_secs(u64::from(self.host.bug(Bug::WakesLate)));
        let next = self.host.timers.next();
        let timer = next.map(|(at, timer)| (at + late, Reason::Timer(timer.name())));
        let request = self.host.next_expiry().map(|at| (at, Reason::Request));
        match (timer, request) {
            (Some(timer), Some(request)) if request.0 < timer.0 => Some(request),
            (Some(timer), _) => Some(timer),
            (None, request) => request,
        }
    }

    /// What the instance does now.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Its current session.
    pub fn boot(&self) -> &BootId {
        &self.host.boot
    }

    /// Its settings.
    pub fn policy(&self) -> &Policy {
        &self.host.policy
    }

    /// Whether it believes to own the account, and until when. Ask right before an effect, such
    /// as acknowledging a message, and compare `until` with the clock.
    pub fn belief(&self, account: &AccountId) -> Option<Belief> {
        self.belief_in(self.accounts.get(account)?)
    }

    fn belief_in(&self, account: &Account) -> Option<Belief> {
        let tenure = account.tenure.as_ref()?;
        let stands = matches!(tenure.stage, Stage::Loading | Stage::Ready | Stage::Leaving);
        stands.then_some(Belief { epoch: tenure.epoch, until: self.host.deadline })
    }

    /// The version of `leases/connection` that fences an owner's commits.
    pub fn fence(&self, account: &AccountId) -> Option<Version> {
        Some(self.accounts.get(account)?.tenure.as_ref()?.fence())
    }

    /// Everything it believes to own.
    pub fn beliefs(&self) -> impl Iterator<Item = (&AccountId, Belief)> {
        self.accounts.iter().filter_map(|(id, account)| Some((id, self.belief_in(account)?)))
    }

    /// Whether it believes to hold the lock.
    pub fn lock_belief(&self) -> Option<Belief> {
        let epoch = self.held_lock.filter(|_| !self.session.is_ending())?;
        Some(Belief { epoch, until: self.host.deadline })
    }

    /// The runs it believes to hold the lease of.
    pub fn run_beliefs(&self) -> impl Iterator<Item = (&AccountId, RunKind, Belief)> {
        let session = self.host.deadline;
        self.accounts.iter().flat_map(move |(id, account)| {
            let runs = account.tenure.iter().flat_map(|tenure| {
                tenure
                    .runs
                    .iter()
                    .filter_map(|(kind, run)| Some((*kind, run.deadline?, tenure.epoch)))
            });
            runs.map(move |(kind, deadline, epoch)| {
                (id, kind, Belief { epoch, until: deadline.min(session) })
            })
        })
    }

    /// How many runs of a kind work at this instant, those that only wait for a phone aside.
    pub fn working_runs(&self, kind: RunKind) -> u32 {
        let works = |account: &Account| {
            account.tenure.as_ref().is_some_and(|t| t.runs.get(&kind).is_some_and(|run| run.works))
        };
        u32::try_from(self.accounts.values().filter(|account| works(account)).count())
            .unwrap_or(u32::MAX)
    }

    /// Whether runs that the last tick of a kind started still work, or wait for their turn: as
    /// long as they do, no tick follows.
    pub fn tick_works(&self, kind: RunKind) -> bool {
        self.last_tick_works(kind)
    }

    fn on_answer(&mut self, request: RequestId, answer: Answer) {
        let Some(route) = self.host.answered(request) else { return };
        if let Answer::Read { read_time, .. } | Answer::Found { read_time, .. } = &answer {
            self.host.observe(*read_time);
        }
        match route {
            Route::Account(id, route) => {
                self.with_tenure(&id, |tenure, host| {
                    tenure.on_answer(host, route, request, answer)
                });
            }
            Route::Garbage => {
                self.garbage.on_found(&mut self.host, answer, self.accounts.keys());
            }
            Route::GarbageNames(count) => self.garbage.on_read(&mut self.host, count, answer),
            Route::Nobody => {}
            Route::OutboxClaimed(account) => self.on_processing(account, answer),
            Route::OutboxPoll => self.on_queued(answer),
            Route::PollLock => self.on_lock(answer),
            Route::PollSessions => self.on_sessions(answer),
            Route::ScanAccounts => self.on_accounts(answer),
            Route::ScanOwners(ids) => self.on_owners(ids, answer),
            Route::ScanSessions(boots) => self.on_owner_sessions(boots, answer),
            Route::Session => {
                let outcome = self.session.on_answer(&mut self.host, answer);
                if let Some(outcome) = outcome {
                    self.on_session(outcome);
                }
                if !self.stopped {
                    self.session.pump(&mut self.host);
                }
            }
        }
    }

    fn on_timer(&mut self, timer: Timer) {
        match timer {
            Timer::Account(id, timer) => {
                self.with_tenure(&id, |tenure, host| tenure.on_timer(host, timer));
            }
            Timer::Close(id, connection) => self.host.close(&id, connection),
            Timer::Create => self.session = Session::begin(&mut self.host),
            Timer::Deadline => self.check_deadline(),
            Timer::OutboxPoll => self.poll_outbox(),
            Timer::Poll => self.poll_lock(),
            Timer::Rebalance => self.rebalance(),
            Timer::Renew => {
                let op = if self.session.mirror.is_some() { Op::Mirror } else { Op::Renew };
                self.session.push(&mut self.host, op);
            }
            Timer::Scan => self.scan(),
            Timer::SessionRetry => self.session.on_retry(&mut self.host),
            // It was refused or has waited too long: expiry does the rest.
            Timer::StopTimeout if self.session.is_ending() => self.end_boot(true),
            Timer::StopTimeout => self.end_session(),
            Timer::Tick(kind) => self.tick(kind),
        }
    }

    fn on_hint(&mut self, hint: Hint) {
        let soon = self.host.now + outbox::HINT_DEBOUNCE;
        match hint {
            Hint::Accounts if self.mode == Mode::Active => {
                self.host.timers.set_earliest(Timer::Scan, soon);
            }
            Hint::Lock if self.session.is_created() => {
                self.host.timers.set_earliest(Timer::Poll, soon);
            }
            Hint::Outbox if self.mode == Mode::Active => {
                self.host.timers.set_earliest(Timer::OutboxPoll, soon);
            }
            Hint::Accounts | Hint::Lock | Hint::Outbox => {}
        }
    }

    fn on_gateway(&mut self, account: AccountId, event: GatewayEvent) {
        if let GatewayEvent::Closed { connection, .. } = event {
            self.host.closed(&account, connection);
        }
        if let GatewayEvent::Undecryptable { thread, second } = &event
            && let Some(account) = self.accounts.get_mut(&account)
            && account.tenure.is_none()
        {
            // It came over a connection that is being closed.
            account.unsaved.add(thread.clone(), *second);
        }
        self.with_tenure(&account, |tenure, host| tenure.on_gateway(host, event));
    }

    fn on_command(&mut self, id: CommandId, command: Command) {
        let reply = match command {
            Command::Stop => {
                self.stopping = true;
                self.step_down(PassiveReason::Stopped);
                Reply::Accepted
            }
            Command::Backfill(account) => self.on_owner(&account, |tenure, host| {
                if !tenure.is_connected() {
                    return Reply::InvalidState { status: tenure.record.status.clone() };
                }
                if tenure.start_run(host, RunKind::AutoBackfill, Trigger::Manual) {
                    Reply::Accepted
                } else {
                    Reply::AlreadyInProgress
                }
            }),
            Command::DeleteAccount(account) => self.on_owner(&account, |tenure, host| {
                let until = host.deadline;
                tenure.set_status("deleted");
                tenure.abort_runs(host, "deleted");
                // The account is given back once that is answered.
                host.gateway(&tenure.id, AccountRoute::Logout, GatewayCall::Logout, until);
                tenure.pump(host);
                Reply::Accepted
            }),
            Command::RegenerateQr(account) => self.on_owner(&account, |tenure, host| {
                if tenure.link.connection().is_some() {
                    return Reply::AlreadyInProgress;
                }
                tenure.set_status("connecting");
                tenure.want_connection(host);
                // Somebody waits for a code.
                tenure.on_timer(host, AccountTimer::Connect);
                Reply::Accepted
            }),
        };
        self.host.out.push_back(Output::Reply(id, reply));
    }

    /// Does something with an account that has to be owned here.
    fn on_owner(
        &mut self,
        id: &AccountId,
        act: impl FnOnce(&mut Tenure, &mut Host) -> Reply,
    ) -> Reply {
        if self.mode != Mode::Active {
            return Reply::Passive;
        }
        let Some(account) = self.accounts.get(id) else { return Reply::AccountNotFound };
        if account.record.status == "deleted" {
            return Reply::AccountNotFound;
        }
        if account.tenure.as_ref().is_none_or(|tenure| !tenure.is_ready()) {
            let owner = account.seen.as_ref().and_then(|seen| seen.owner.as_deref());
            let peer = owner.and_then(|boot| self.roster.peer(boot));
            return Reply::NotOwner { owner: peer.map(|peer| peer.instance.clone()) };
        }
        let mut reply = Reply::Accepted;
        self.with_tenure(id, |tenure, host| reply = act(tenure, host));
        reply
    }

    fn a_little_later(&mut self, timer: Timer) {
        let wait = self.host.about(Duration::from_secs(1));
        self.host.in_ms(timer, wait);
    }

    fn soon(&mut self, timer: Timer) {
        let wait = self.host.jitter(Duration::from_millis(100), Duration::from_millis(500));
        let at = self.host.now + wait;
        self.host.timers.set_earliest(timer, at);
    }

    fn is_shared(&self) -> bool {
        matches!(self.host.policy.mode, InstanceMode::Shared { .. })
    }
}

/// Beyond it nothing could be scheduled any more.
const END_OF_TIME: Mono = Mono::from_millis(u64::MAX / 2);
