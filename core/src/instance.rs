//! The composition root: one process of wa-backfill, as a state machine.

mod insight;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use smol_str::SmolStr;

pub use insight::{AccountInsight, LockInsight};

use crate::account::{Gaps, Record};
use crate::bug::Bug;
use crate::doc::{
    CollectionPath, Cursor, Document, FieldPath, Precondition, Query, Value, Version, Write,
};
use crate::eligibility;
use crate::garbage::Garbage;
use crate::host::{AccountRoute, AccountTimer, Host, Route, Timer};
use crate::id::{AccountId, BootId, Epoch, RequestId};
use crate::io::{
    Answer, Command, CommandId, Event, GatewayCall, GatewayEvent, Hint, Input, Key, Lane, Mode,
    Output, PassiveReason, Reply, RunKind, Skip, Trigger,
};
use crate::lock::{COMPAT_TERM, LockView, compat_path, lock_path};
use crate::outbox;
use crate::ownership::{Seen, share};
use crate::policy::{Credentials, InstanceMode, Policy};
use crate::roster::Roster;
use crate::session::{Claim, Mirror, Op, Outcome, Session, SessionState};
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
    /// Tenures that are connected, so that a tick need not look at all others
    connected: BTreeSet<AccountId>,
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
    /// No account is taken before this
    abstain_until: Mono,
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

/// An account, held or not.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Account {
    record: Record,
    /// The document whose status the record has, if it was read since the account was last held
    version: Option<Version>,
    seen: Option<Seen>,
    tenure: Option<Box<Tenure>>,
    unowned_since: Option<Mono>,
    released_at: Option<Mono>,
    reported_elsewhere: bool,
    /// What an earlier tenure noticed and could not make durable
    unsaved: Gaps,
}

/// A look at the lock and then at the sessions: one at a time, and made use of as a whole, so that
/// what is known about sessions is never older than what is known about the lock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Look {
    under_way: bool,
    asked: Mono,
    again: bool,
    /// The lock and the compat lock
    locks: (StoreTime, Vec<Option<Arc<Document>>>),
    sessions: Vec<(StoreTime, Vec<Arc<Document>>)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Scan {
    under_way: bool,
    again: bool,
    found: BTreeSet<AccountId>,
    /// Accounts whose ownership is being read
    reading: BTreeSet<AccountId>,
    looking_up: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct OutboxPoll {
    under_way: bool,
    again: bool,
    pages: u32,
    /// Where the next one goes on, if the last did not come to the end
    after: Option<Cursor>,
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
            connected: BTreeSet::new(),
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
        let tenure = self.accounts.get(account)?.tenure.as_ref()?;
        let stands = matches!(tenure.stage, Stage::Loading | Stage::Ready | Stage::Leaving);
        stands.then_some(Belief { epoch: tenure.epoch, until: self.host.deadline })
    }

    /// The version of `leases/connection` that fences an owner's commits.
    pub fn fence(&self, account: &AccountId) -> Option<Version> {
        Some(self.accounts.get(account)?.tenure.as_ref()?.fence())
    }

    /// Everything it believes to own.
    pub fn beliefs(&self) -> impl Iterator<Item = (&AccountId, Belief)> {
        self.accounts.keys().filter_map(|id| Some((id, self.belief(id)?)))
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
        u32::try_from(self.connected.iter().filter(|id| works(&self.accounts[*id])).count())
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

    /// Lets an account's owner part act, and sees what became of it.
    fn with_tenure(&mut self, id: &AccountId, act: impl FnOnce(&mut Tenure, &mut Host)) {
        let Some(account) = self.accounts.get_mut(id) else { return };
        let Some(tenure) = &mut account.tenure else { return };
        act(tenure, &mut self.host);
        let (stage, connected) = (tenure.stage, tenure.is_connected());
        if connected != self.connected.contains(id) {
            if connected {
                self.connected.insert(id.clone());
                self.host.query(Route::OutboxClaimed(id.clone()), outbox::processing(id, None));
                self.poll_outbox();
            } else {
                self.connected.remove(id);
            }
        }
        match stage {
            Stage::Loading | Stage::Ready | Stage::Leaving => {}
            Stage::Left => self.on_left(id),
            Stage::Lost => {
                let key = Key::Account(id.clone());
                self.host.event(Event::Fenced { key: key.clone() });
                self.host.event(Event::LeaseLost { key });
                self.drop_tenure(id);
                self.read_owners(BTreeSet::from([id.clone()]));
                self.finish_step_down();
            }
        }
    }

    fn drop_tenure(&mut self, id: &AccountId) {
        self.connected.remove(id);
        let Some(account) = self.accounts.get_mut(id) else { return };
        account.seen = None;
        if let Some(tenure) = account.tenure.take() {
            account.record = tenure.record.clone();
            account.version = None;
            account.unsaved = tenure.unsaved_gaps();
            tenure.abandon(&mut self.host);
        }
    }

    fn on_left(&mut self, id: &AccountId) {
        if self.mode == Mode::SteppingDown {
            self.finish_step_down();
            return;
        }
        let Some(account) = self.accounts.get_mut(id) else { return };
        let Some(tenure) = &mut account.tenure else { return };
        let key = Key::Account(id.clone());
        let (version, epoch) = (tenure.fence(), tenure.epoch);
        let exists = tenure.exists();
        if self.host.bug(Bug::ReleaseWithdrawn) {
            tenure.stage = Stage::Ready;
            tenure.want_connection(&mut self.host);
        } else {
            // A deleted account that is added again is as good as new.
            let deleted = tenure.record.status == "deleted";
            account.released_at = (!deleted).then_some(self.host.now);
            self.host.event(Event::LeaseReleased { key: key.clone() });
            self.drop_tenure(id);
        }
        if !exists {
            // Somebody deleted the document: until it is found again there is no such account.
            self.accounts.remove(id);
        }
        let announce = exists.then(|| id.path());
        let op = Op::Release { key, path: id.connection_path(), version, epoch, announce };
        self.session.push(&mut self.host, op);
    }

    fn on_session(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Gone => self.end_boot(false),
            Outcome::Done(op, versions) => self.on_session_done(op, &versions),
            Outcome::Refused(op, snapshot) => {
                if self.session.is_created() {
                    // A renewal may have been left out for the sake of this operation.
                    self.soon(Timer::Renew);
                }
                let doc = snapshot.map(|s| s.docs.into_iter().next().flatten());
                self.on_session_refused(op, doc);
            }
        }
    }

    fn on_session_done(&mut self, op: Op, versions: &[Option<Version>]) {
        let version = versions.first().copied().flatten();
        if let (Some(mirror), Op::Mirror) = (&mut self.session.mirror, &op) {
            mirror.precondition = version.map_or(Precondition::Any, Precondition::Version);
        }
        match op {
            Op::Create => {
                self.poll_lock();
                if self.host.bug(Bug::PassiveGateMissing) {
                    self.scan();
                }
            }
            Op::End => self.end_boot(true),
            Op::Claim(claim) => match &claim.key {
                Key::Lock => self.on_lock_taken(&claim, versions),
                Key::Account(id) => self.on_account_taken(&id.clone(), &claim, version),
                Key::Run(..) => {}
            },
            Op::MarkDead { boot, .. } => {
                self.roster.remove(boot.as_str());
                self.host.event(Event::DeadMarked { boot: boot.clone() });
                self.dead.insert(boot.text(), false);
                self.decide();
                self.reconsider();
            }
            Op::Mirror if self.is_shared() => {
                let mirror = self.session.mirror.take();
                self.note_taken_over(mirror.is_some_and(|mirror| mirror.from_foreign));
                self.show_shared();
                if self.mode != Mode::Active {
                    self.soon(Timer::Poll);
                }
            }
            Op::Mirror | Op::Renew => {
                if self.host.bug(Bug::FenceMovedByRenewal) {
                    self.touch_fences();
                }
            }
            // If nobody else wants it, it is taken again.
            Op::Release { key: Key::Account(id), .. } => self.read_owners(BTreeSet::from([id])),
            Op::Release { .. } => {}
        }
    }

    fn on_session_refused(&mut self, op: Op, doc: Option<Option<Arc<Document>>>) {
        match op {
            // Nothing was created: the same boot may try again.
            Op::Create if self.stopping => self.end_boot(true),
            Op::Create => self.a_little_later(Timer::Create),
            Op::End => self.a_little_later(Timer::StopTimeout),
            Op::Claim(claim) => match claim.key {
                Key::Account(id) => {
                    let Some(doc) = doc else {
                        self.soon(Timer::Scan);
                        return;
                    };
                    if let Some(account) = self.accounts.get_mut(&id) {
                        account.seen = Some(Seen::parse(doc.as_deref()));
                        // It may have been linked meanwhile.
                        account.version = None;
                    }
                    self.reconsider();
                }
                Key::Lock | Key::Run(..) => self.soon(Timer::Poll),
            },
            Op::Mirror => self.on_mirror_refused(doc),
            Op::MarkDead { .. } => self.soon(Timer::Poll),
            Op::Renew => {}
            // Rule: a process that reads its own boot on what it does not hold releases it.
            Op::Release { key: Key::Account(id), .. } => self.read_owners(BTreeSet::from([id])),
            Op::Release { .. } => {}
        }
    }

    fn on_mirror_refused(&mut self, doc: Option<Option<Arc<Document>>>) {
        if let Some(doc) = doc {
            self.lock.see_compat(doc.as_deref());
            let now = self.host.store_now();
            if self.lock.foreign_holds(&self.host, now) {
                self.host.incident(None, "foreign_lock_holder");
                self.step_down(PassiveReason::HeldByForeign);
                return;
            }
            if self.is_shared() {
                // Somebody else of the cluster may have renewed it.
                self.session.mirror = None;
                self.soon(Timer::Poll);
            } else if let Some(mirror) = &mut self.session.mirror {
                mirror.precondition = Precondition::unchanged(doc.as_deref());
            }
        }
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

    /// A boot whose deadline has passed once never believes again.
    fn check_deadline(&mut self) {
        let passed = self.host.deadline != Mono::ZERO && !self.host.believing();
        if passed && !self.host.bug(Bug::LapsedBootBelieves) {
            self.end_boot(false);
        }
    }

    /// The session is over: everything is dropped at once, and another one begins.
    fn end_boot(&mut self, graceful: bool) {
        let held = self.held_accounts();
        for id in &held {
            if !graceful {
                self.host.event(Event::LeaseLost { key: Key::Account(id.clone()) });
            }
            self.drop_tenure(id);
        }
        if self.held_lock.take().is_some() && !graceful {
            self.host.event(Event::LeaseLost { key: Key::Lock });
        }
        let old = self.host.boot.clone();
        self.host.event(Event::SessionEnded { boot: old.clone(), graceful });
        self.roster.end_own(old);
        for account in self.accounts.values_mut() {
            account.seen = None;
        }
        for timer in [
            Timer::Create,
            Timer::Deadline,
            Timer::OutboxPoll,
            Timer::Poll,
            Timer::Rebalance,
            Timer::Renew,
            Timer::Scan,
            Timer::SessionRetry,
            Timer::StopTimeout,
            Timer::Tick(RunKind::AutoBackfill),
            Timer::Tick(RunKind::RecentSync),
        ] {
            self.host.timers.clear(&timer);
        }
        self.host.deadline = Mono::ZERO;
        self.host.shown_until = None;
        self.host.forget(|_| true);
        self.living.clear();
        self.host.waiting.clear();
        self.host.working.clear();
        self.ticked.clear();
        self.look = Look::default();
        self.scan = Scan::default();
        self.outbox = OutboxPoll::default();
        if self.stopping {
            self.stopped = true;
            self.set_mode(Mode::Passive(PassiveReason::Stopped));
            self.host.out.push_back(Output::Stopped);
            return;
        }
        let reason = match self.mode {
            Mode::Passive(reason) => reason,
            Mode::Active | Mode::SteppingDown => PassiveReason::Starting,
        };
        self.set_mode(Mode::Passive(reason));
        self.host.boot = self.host.boot_of(self.boots);
        self.boots += 1;
        self.since = None;
        let boot = self.host.boot.clone();
        self.host.event(Event::SessionStarted { boot });
        self.session = Session::begin(&mut self.host);
    }

    fn set_mode(&mut self, mode: Mode) {
        if self.mode != mode {
            self.mode = mode;
            self.host.event(Event::Mode { mode });
        }
    }

    fn is_shared(&self) -> bool {
        matches!(self.host.policy.mode, InstanceMode::Shared { .. })
    }

    /// Closes everything in order, then ends the session.
    fn step_down(&mut self, reason: PassiveReason) {
        if self.mode == Mode::SteppingDown {
            return;
        }
        if reason == PassiveReason::HeldByForeign {
            // Somebody else's by now: there is nothing to give back.
            self.session.mirror = None;
        }
        if self.mode != Mode::Active {
            self.set_mode(Mode::Passive(reason));
            if self.stopping {
                self.end_session();
            }
            return;
        }
        self.set_mode(Mode::SteppingDown);
        self.session.state = SessionState::Draining;
        let timeout = self.host.policy.stop_timeout;
        self.host.in_ms(Timer::StopTimeout, timeout);
        let held = self.held_accounts();
        if self.host.bug(Bug::ReleaseBeforeClose) {
            self.session.push(&mut self.host, Op::End);
        }
        for id in &held {
            self.with_tenure(id, |tenure, host| {
                tenure.leave(host);
                tenure.pump(host);
            });
        }
        self.finish_step_down();
    }

    fn finish_step_down(&mut self) {
        let open = |account: &Account| {
            account.tenure.as_ref().is_some_and(|tenure| tenure.stage != Stage::Left)
        };
        let ending = self.session.is_ending();
        if self.mode == Mode::SteppingDown && !ending && !self.accounts.values().any(open) {
            self.end_session();
        }
    }

    /// One write frees everything this session owned.
    fn end_session(&mut self) {
        if self.session.is_ending() {
            return;
        }
        for id in self.held_accounts() {
            self.drop_tenure(&id);
        }
        let timeout = self.host.policy.stop_timeout;
        self.host.in_ms(Timer::StopTimeout, timeout);
        if self.session.is_unborn() || self.host.bug(Bug::StopLeavesSession) {
            // Another try to create it was to come; there is nothing to end.
            self.end_boot(true);
            return;
        }
        self.session.push(&mut self.host, Op::End);
    }

    // --- The lock and the other sessions ---

    fn poll_lock(&mut self) {
        let term = self.host.policy.session_term;
        let every = match self.mode {
            Mode::Active if self.is_shared() => term / 3,
            Mode::Active | Mode::SteppingDown => term * 4,
            Mode::Passive(_) => self.host.policy.passive_retry,
        };
        let wait = self.host.about(every);
        self.host.in_ms(Timer::Poll, wait);
        if std::mem::replace(&mut self.look.under_way, true) {
            self.look.again = true;
            return;
        }
        self.look.asked = self.host.now;
        let paths = vec![lock_path(), compat_path()];
        self.host.get(Route::PollLock, Lane::Lease, paths);
    }

    fn on_lock(&mut self, answer: Answer) {
        let Answer::Read { read_time, docs } = answer else {
            self.looked();
            return;
        };
        self.look.locks = (read_time, docs);
        // Afterwards, so that an owner that is not among them is certainly dead or missing.
        self.look.sessions.clear();
        self.host.query_in(Lane::Lease, Route::PollSessions, Roster::query(None));
    }

    fn on_sessions(&mut self, answer: Answer) {
        let Answer::Found { read_time, docs } = answer else {
            self.looked();
            return;
        };
        let own = docs.iter().find(|doc| doc.path.id() == self.host.boot.as_str());
        if let Some(doc) = own {
            self.since = doc.time("since");
        }
        let next = Roster::next_page(&docs);
        self.look.sessions.push((read_time, docs));
        if next.is_some() {
            self.host.query_in(Lane::Lease, Route::PollSessions, Roster::query(next));
            return;
        }
        self.living.clear();
        let (read_time, locks) = std::mem::take(&mut self.look.locks);
        let mut locks = locks.into_iter();
        self.lock.see(locks.next().flatten().as_deref());
        self.lock.see_compat(locks.next().flatten().as_deref());
        self.lock.read_time = read_time;
        self.host.foreign_at = self.host.foreign_at.max(self.lock.foreign_at);
        if self.is_shared()
            && let Some(left) = self.lock.shared_for()
        {
            let shown = self.look.asked + self.host.policy.belief(left);
            self.host.shown_until = self.host.shown_until.max(Some(shown));
        }
        let pages = std::mem::take(&mut self.look.sessions);
        self.looked();
        let marks = self.roster.learn(&self.host, &pages);
        for (boot, version, last_beat) in marks.into_iter().take(MARKS_PER_POLL) {
            self.session.push(&mut self.host, Op::MarkDead { boot, version, last_beat });
        }
        self.decide();
        self.reconsider();
    }

    /// A look at lock and sessions is done, or has failed.
    fn looked(&mut self) {
        self.look.under_way = false;
        if std::mem::take(&mut self.look.again) {
            self.soon(Timer::Poll);
        }
    }

    /// Whether to become active, stay passive or step down.
    fn decide(&mut self) {
        if !self.session.is_created() || !self.host.believing() || self.session.is_ending() {
            return;
        }
        let now = self.lock.read_time;
        let foreign = self.lock.foreign_holds(&self.host, now);
        let owner = self.lock.owner.clone();
        let cluster = match &self.host.policy.mode {
            InstanceMode::Exclusive => None,
            InstanceMode::Shared { cluster } => Some(smol_str::format_smolstr!("shared:{cluster}")),
        };
        let ours = owner.is_some()
            && (owner == cluster || owner.as_deref() == Some(self.host.boot.as_str()));
        let alive = owner.as_deref().is_some_and(|owner| self.lock_owner_lives(owner));

        match self.mode {
            Mode::SteppingDown => {}
            Mode::Active if foreign => {
                self.host.incident(None, "foreign_lock_holder");
                self.step_down(PassiveReason::HeldByForeign);
            }
            Mode::Active if !ours => self.step_down(PassiveReason::HeldByOther),
            Mode::Active => self.keep_shared_mirror(now),
            Mode::Passive(_) if self.stopping => {}
            Mode::Passive(_) if self.host.now < self.abstain_until => {
                self.set_mode(Mode::Passive(PassiveReason::CutOff));
            }
            Mode::Passive(_) if self.since.is_none() => {}
            Mode::Passive(_)
                if self.roster.elder(&self.host, self.since.unwrap_or_default()).is_some()
                    && !self.host.bug(Bug::SameInstanceIdTrusted) =>
            {
                self.set_mode(Mode::Passive(PassiveReason::DuplicateInstanceId));
            }
            Mode::Passive(_) if foreign => {
                self.set_mode(Mode::Passive(PassiveReason::HeldByForeign));
            }
            Mode::Passive(_) if cluster.is_some() && ours => {
                self.keep_shared_mirror(now);
                if self.session.mirror.is_none() {
                    self.activate(None);
                }
            }
            Mode::Passive(_) if alive && !self.trusts_label(owner.as_deref()) => {
                self.set_mode(Mode::Passive(PassiveReason::HeldByOther));
            }
            Mode::Passive(_) => self.claim_lock(cluster),
        }
    }

    fn trusts_label(&self, owner: Option<&str>) -> bool {
        let peer = owner.and_then(|owner| self.roster.peer(owner));
        self.host.bug(Bug::SameInstanceIdTrusted)
            && peer.is_some_and(|peer| peer.instance == self.host.policy.instance.as_str())
    }

    fn lock_owner_lives(&self, owner: &str) -> bool {
        if owner.starts_with("shared:") {
            return self.roster.peers().any(|(_, peer)| peer.mode == owner);
        }
        self.roster.peer(owner).is_some()
    }

    fn claim_lock(&mut self, cluster: Option<SmolStr>) {
        if self.session.is_busy_with(&Key::Lock) {
            return;
        }
        let holder = cluster.clone().unwrap_or_else(|| {
            smol_str::format_smolstr!("{}#{}", self.host.policy.instance, self.host.boot)
        });
        let mirror = self.mirror(holder);
        let claim = Claim {
            key: Key::Lock,
            path: lock_path(),
            precondition: self.lock.unchanged(),
            epoch: self.lock.epoch.next(),
            owner: cluster.unwrap_or_else(|| self.host.boot.text()),
            abnormal: false,
            unlinked: None,
            mirror: Some(mirror),
        };
        self.session.push(&mut self.host, Op::Claim(claim));
    }

    fn on_lock_taken(&mut self, claim: &Claim, versions: &[Option<Version>]) {
        self.host.event(Event::LeaseTaken { key: Key::Lock, epoch: claim.epoch });
        // Looks that began before it was taken show it as it was.
        self.host.forget(|route| matches!(route, Route::PollLock | Route::PollSessions));
        self.look = Look::default();
        self.lock.owner = Some(claim.owner.clone());
        self.lock.epoch = claim.epoch;
        self.note_taken_over(claim.mirror.as_ref().is_some_and(|mirror| mirror.from_foreign));
        if self.is_shared() {
            self.show_shared();
        } else {
            let version = versions.get(1).copied().flatten();
            self.session.mirror = claim.mirror.clone().map(|mirror| Mirror {
                precondition: version.map_or(Precondition::Any, Precondition::Version),
                from_foreign: false,
                ..mirror
            });
        }
        self.activate(Some(claim.epoch));
    }

    fn activate(&mut self, lock: Option<Epoch>) {
        self.held_lock = lock.filter(|_| !self.is_shared());
        self.session.state = SessionState::Active;
        if lock.is_none() {
            // Others share by the number of active sessions, so it is said at once.
            self.session.push(&mut self.host, Op::Renew);
        }
        self.set_mode(Mode::Active);
        self.scan();
        let auto = self.host.policy.auto_backfill.interval;
        self.host.in_ms(Timer::Tick(RunKind::AutoBackfill), auto);
        let recent = self.host.policy.recent_sync.interval;
        self.host.in_ms(Timer::Tick(RunKind::RecentSync), recent);
        let rebalance = self.host.about(self.host.policy.rebalance_interval);
        self.host.in_ms(Timer::Rebalance, rebalance);
        self.poll_outbox();
    }

    /// Whichever shared session sees it first keeps the compat lock alive for all.
    fn keep_shared_mirror(&mut self, read_time: StoreTime) {
        let InstanceMode::Shared { cluster } = &self.host.policy.mode else { return };
        let renewed = COMPAT_TERM * 2 / 3;
        if self.lock.compat_until() > read_time + renewed || self.session.mirror.is_some() {
            return;
        }
        self.session.mirror = Some(self.mirror(smol_str::format_smolstr!("shared:{cluster}")));
        self.session.push(&mut self.host, Op::Mirror);
    }

    /// The compat lock as it is to be after it was read.
    fn mirror(&self, holder: SmolStr) -> Mirror {
        Mirror {
            path: compat_path(),
            precondition: self.lock.compat_unchanged(),
            holder,
            from_foreign: self.lock.foreign_had(),
        }
    }

    /// From software that is not ours the compat lock was taken over just now, if it was.
    fn note_taken_over(&mut self, from_foreign: bool) {
        if from_foreign {
            self.host.foreign_at = self.host.foreign_at.max(Some(self.host.store_now()));
        }
    }

    /// The compat lock was written just now.
    fn show_shared(&mut self) {
        let sent = self.session.confirmed().unwrap_or(self.host.now);
        let shown = sent + self.host.policy.belief(COMPAT_TERM);
        self.host.shown_until = self.host.shown_until.max(Some(shown));
    }

    // --- Accounts: who owns what ---

    fn scan(&mut self) {
        let wait = self.host.about(self.host.policy.account_scan);
        self.host.in_ms(Timer::Scan, wait);
        let gate = self.mode == Mode::Active || self.host.bug(Bug::PassiveGateMissing);
        if !gate || !self.host.believing() {
            return;
        }
        if self.scan.under_way {
            self.scan.again = true;
            return;
        }
        self.scan.under_way = true;
        self.scan.found.clear();
        self.scan_page(None);
    }

    fn scan_page(&mut self, after: Option<Cursor>) {
        let query = Query {
            after,
            select: Some(vec![FieldPath::new("status"), FieldPath::new("phoneE164")]),
            ..Query::all(CollectionPath::root("accounts"), ACCOUNTS_PER_PAGE)
        };
        self.host.query(Route::ScanAccounts, query);
    }

    fn on_accounts(&mut self, answer: Answer) {
        let Answer::Found { docs, .. } = answer else {
            self.scan.under_way = false;
            self.soon(Timer::Scan);
            return;
        };
        let last = docs.last().map(|doc| SmolStr::new(doc.path.id()));
        let more = docs.len() >= ACCOUNTS_PER_PAGE as usize;
        for doc in docs {
            let Ok(id) = AccountId::parse(doc.path.id()) else { continue };
            let account = self.accounts.entry(id.clone()).or_insert_with(Account::unknown);
            if account.tenure.is_none() {
                account.record.status = doc.str("status").unwrap_or_default().into();
                account.version = Some(doc.version);
            }
            self.scan.found.insert(id);
        }
        if let (true, Some(id)) = (more, last) {
            self.scan_page(Some(Cursor { keys: Vec::new(), id }));
            return;
        }
        self.scan.under_way = false;
        let found = std::mem::take(&mut self.scan.found);
        self.accounts.retain(|id, account| account.tenure.is_some() || found.contains(id));
        let unheld = self
            .accounts
            .iter()
            .filter(|(_, account)| account.tenure.is_none() && account.record.status != "deleted")
            .map(|(id, _)| id.clone())
            .collect();
        self.read_owners(unheld);
        self.garbage.begin(&mut self.host);
        if std::mem::take(&mut self.scan.again) {
            self.soon(Timer::Scan);
        }
    }

    fn read_owners(&mut self, ids: BTreeSet<AccountId>) {
        let fresh: Vec<AccountId> =
            ids.into_iter().filter(|id| self.scan.reading.insert(id.clone())).collect();
        for ids in fresh.chunks(OWNERS_PER_READ) {
            let paths = ids.iter().map(AccountId::connection_path).collect();
            self.host.get(Route::ScanOwners(ids.to_vec()), Lane::Lease, paths);
        }
    }

    fn on_owners(&mut self, ids: Vec<AccountId>, answer: Answer) {
        for id in &ids {
            self.scan.reading.remove(id);
        }
        let Answer::Read { docs, .. } = answer else {
            self.soon(Timer::Scan);
            return;
        };
        for (id, doc) in ids.iter().zip(docs) {
            if let Some(account) = self.accounts.get_mut(id)
                && account.tenure.is_none()
            {
                account.seen = Some(Seen::parse(doc.as_deref()));
            }
        }
        self.reconsider();
    }

    fn on_owner_sessions(&mut self, boots: Vec<SmolStr>, answer: Answer) {
        self.scan.looking_up = false;
        let Answer::Read { docs, .. } = answer else {
            self.soon(Timer::Scan);
            return;
        };
        for (boot, doc) in boots.into_iter().zip(docs) {
            // A missing document means dead; one that lives is none of ours to judge here.
            let Some(doc) = doc else {
                self.dead.entry(boot).or_insert(false);
                continue;
            };
            if doc.str("state") == Some("dead") || doc.bool("live") == Some(false) {
                // A session that ended itself had closed everything before.
                self.dead.insert(boot, doc.time("lastBeatAt").is_none());
            } else {
                self.living.insert(boot);
            }
        }
        self.reconsider();
        self.dead.clear();
    }

    /// Looks at every account that is not held here: take it, give it back, or find out more.
    fn reconsider(&mut self) {
        let gate = self.mode == Mode::Active || self.host.bug(Bug::PassiveGateMissing);
        if !gate || !self.host.believing() || self.session.is_ending() {
            return;
        }
        let mut unknown = BTreeSet::new();
        let mut look_again = false;
        let mut ops = Vec::new();
        let mut room = self.room();
        for (id, account) in &mut self.accounts {
            let Some(seen) = &account.seen else { continue };
            let key = Key::Account(id.clone());
            if account.tenure.is_some()
                || account.record.status == "deleted"
                || self.session.is_busy_with(&key)
            {
                continue;
            }
            let abnormal = match seen.owner.as_deref() {
                None => false,
                Some(owner) if owner == self.host.boot.as_str() => {
                    if let Some(version) = seen.version {
                        let path = id.connection_path();
                        let epoch = seen.epoch;
                        ops.push(Op::Release { key, path, version, epoch, announce: None });
                    }
                    continue;
                }
                Some(owner) if self.roster.peer(owner).is_some() => {
                    account.unowned_since = None;
                    if account.released_at.take().is_some() {
                        self.vain_moves = 0;
                    }
                    continue;
                }
                Some(owner) => match self.dead.get(owner) {
                    Some(graceful) => !graceful,
                    None => {
                        if !self.living.contains(owner) {
                            unknown.insert(SmolStr::new(owner));
                        }
                        continue;
                    }
                },
            };
            let unowned_since = *account.unowned_since.get_or_insert(self.host.now);
            let here = self.credentials.contains(id);
            if !here && needs_credentials(&self.host, &account.record) {
                if !std::mem::replace(&mut account.reported_elsewhere, true) {
                    self.host.incident(Some(id), "session_elsewhere");
                }
                continue;
            }
            let long = self.host.now.since(unowned_since) >= self.host.policy.unowned_bound;
            let pause = self.host.policy.rebalance_interval * 2;
            let just_left = account.released_at.is_some_and(|at| self.host.now.since(at) < pause);
            // A share limits only what others could take too.
            let alone = needs_credentials(&self.host, &account.record)
                && self.host.now >= self.abstain_until;
            if !long && !alone && (room == 0 || just_left) {
                let at = unowned_since + self.host.policy.unowned_bound;
                self.host.timers.set_earliest(Timer::Scan, at);
                continue;
            }
            let unlinked = if here || self.host.policy.credentials == Credentials::Shared {
                None
            } else if let Some(version) = account.version {
                Some((id.path(), version))
            } else {
                look_again = true;
                continue;
            };
            room = room.saturating_sub(1);
            if self.host.bug(Bug::ConnectBeforeOwnership) {
                let until = self.host.deadline;
                self.host.gateway(id, AccountRoute::Unawaited, GatewayCall::Connect, until);
            }
            ops.push(Op::Claim(Claim {
                key,
                path: id.connection_path(),
                precondition: seen.version.map_or(Precondition::Absent, Precondition::Version),
                epoch: seen.epoch.next(),
                owner: self.host.boot.text(),
                abnormal,
                unlinked,
                mirror: None,
            }));
        }
        for op in ops {
            self.session.push(&mut self.host, op);
        }
        if look_again {
            self.soon(Timer::Scan);
        }
        if !unknown.is_empty() && !std::mem::replace(&mut self.scan.looking_up, true) {
            let boots: Vec<SmolStr> = unknown.into_iter().take(OWNERS_PER_READ).collect();
            let (boots, paths): (Vec<_>, Vec<_>) = boots
                .into_iter()
                .filter_map(|boot| Some((boot.clone(), BootId::parse(boot).ok()?.path())))
                .unzip();
            self.host.get(Route::ScanSessions(boots), Lane::Lease, paths);
        }
    }

    fn on_account_taken(&mut self, id: &AccountId, claim: &Claim, version: Option<Version>) {
        let Some(account) = self.accounts.get_mut(id) else { return };
        account.seen = None;
        account.unowned_since = None;
        let Some(version) =
            version.filter(|_| self.mode == Mode::Active || self.host.bug(Bug::PassiveGateMissing))
        else {
            // Not wanted any more, or not certain: it is read again, and given back.
            self.read_owners(BTreeSet::from([id.clone()]));
            return;
        };
        self.host.event(Event::LeaseTaken { key: claim.key.clone(), epoch: claim.epoch });
        if account.released_at.take().is_some() {
            self.vain_moves = self.vain_moves.saturating_add(1);
        }
        let unsaved = std::mem::take(&mut account.unsaved);
        let tenure =
            Tenure::begin(&mut self.host, id.clone(), claim.epoch, version, claim.abnormal)
                .remembering(unsaved);
        account.tenure = Some(Box::new(tenure));
    }

    fn held_accounts(&self) -> Vec<AccountId> {
        self.accounts.iter().filter(|(_, a)| a.tenure.is_some()).map(|(id, _)| id.clone()).collect()
    }

    fn held(&self) -> usize {
        let claiming = |id: &AccountId| self.session.is_busy_with(&Key::Account(id.clone()));
        self.accounts.iter().filter(|(id, a)| a.tenure.is_some() || claiming(id)).count()
    }

    /// How many more accounts this instance may take.
    fn room(&self) -> usize {
        if !self.is_shared() {
            return usize::MAX;
        }
        if self.host.now < self.abstain_until {
            return 0;
        }
        self.share().saturating_sub(self.held())
    }

    fn share(&self) -> usize {
        let accounts = self.accounts.values().filter(|a| a.record.status != "deleted").count();
        let able = |peer: &crate::roster::Peer| peer.active && peer.healthy && !peer.expired;
        let peers = self.roster.peers().filter(|(_, peer)| able(peer)).count();
        share(accounts, 1 + peers)
    }

    fn rebalance(&mut self) {
        let wait = self.host.about(self.host.policy.rebalance_interval);
        self.host.in_ms(Timer::Rebalance, wait);
        if self.mode != Mode::Active {
            return;
        }
        self.check_reach();
        if self.host.now >= self.abstain_until {
            self.session.healthy = true;
        }
        if !self.is_shared() || self.held() <= self.share() {
            return;
        }
        let pause = match self.vain_moves {
            0 => self.host.policy.rebalance_interval,
            // Others are able by the look of it, and take nothing.
            vain => self.host.policy.residency * (1 << vain.min(8)),
        };
        let settled = self.last_move.is_none_or(|at| self.host.now.since(at) >= pause);
        let resident = |tenure: &Tenure| {
            tenure.is_ready() && self.host.now.since(tenure.since) >= self.host.policy.residency
        };
        let candidate = self
            .accounts
            .iter()
            .find(|(_, account)| {
                // What can be served only here stays here.
                let bound = |t: &Tenure| needs_credentials(&self.host, &t.record);
                account.tenure.as_ref().is_some_and(|t| !bound(t) && resident(t))
            })
            .map(|(id, _)| id.clone());
        if let (true, Some(id)) = (settled, candidate) {
            self.last_move = Some(self.host.now);
            self.with_tenure(&id, |tenure, host| {
                tenure.leave(host);
                tenure.pump(host);
            });
        }
    }

    /// Who cannot reach WhatsApp makes room for somebody who can.
    fn check_reach(&mut self) {
        let limit = self.host.policy.cut_off_after;
        let links = || self.accounts.values().filter_map(|a| a.tenure.as_ref()).map(|t| &t.link);
        let reached = links().any(|link| link.is_open());
        let cut_off = !reached
            && links()
                .any(|link| link.cut_off_since.is_some_and(|at| self.host.now.since(at) >= limit));
        if reached {
            self.abstain_for = Duration::ZERO;
            self.session.healthy = true;
        }
        if !cut_off {
            return;
        }
        let term = self.host.policy.session_term;
        self.abstain_for = (self.abstain_for * 2).min(MAX_ABSTAIN).max(term * 2);
        self.abstain_until = self.host.now + self.abstain_for;
        self.session.healthy = false;
        self.host.incident(None, "whatsapp_unreachable");
        if !self.is_shared() {
            self.step_down(PassiveReason::CutOff);
            return;
        }
        let held = self.held_accounts();
        for id in &held {
            self.with_tenure(id, |tenure, host| {
                tenure.leave(host);
                tenure.pump(host);
            });
        }
    }

    fn touch_fences(&mut self) {
        let writes: Vec<Write> = self
            .accounts
            .iter()
            .filter(|(_, account)| account.tenure.is_some())
            .map(|(id, _)| {
                let beat = Value::from(self.host.now.as_millis());
                let fields = vec![(FieldPath::new("beat"), beat.into())];
                Write::merge(id.connection_path(), Precondition::Any, fields)
            })
            .collect();
        let not_after = self.host.deadline;
        self.host.commit(Route::Nobody, Lane::Lease, writes, not_after);
    }

    // --- Runs ---

    fn tick(&mut self, kind: RunKind) {
        let (enabled, interval) = match kind {
            RunKind::AutoBackfill => {
                (self.host.policy.auto_backfill.enabled, self.host.policy.auto_backfill.interval)
            }
            RunKind::RecentSync => {
                (self.host.policy.recent_sync.enabled, self.host.policy.recent_sync.interval)
            }
        };
        if self.mode != Mode::Active || !enabled {
            return;
        }
        if self.last_tick_works(kind) && !self.host.bug(Bug::OverlappingTicks) {
            let soon = self.host.now + TICK_RETRY;
            self.host.timers.set(Timer::Tick(kind), soon);
            return;
        }
        self.host.in_ms(Timer::Tick(kind), interval);
        match kind {
            RunKind::AutoBackfill => self.backfill_tick(),
            RunKind::RecentSync => self.recent_sync_tick(),
        }
    }

    fn last_tick_works(&self, kind: RunKind) -> bool {
        self.ticked.get(&kind).is_some_and(|started| {
            started.iter().any(|id| {
                let tenure = self.accounts.get(id).and_then(|account| account.tenure.as_ref());
                tenure
                    .and_then(|t| t.runs.get(&kind))
                    .is_some_and(|run| run.works || run.is_queued())
            })
        })
    }

    fn backfill_tick(&mut self) {
        let kind = RunKind::AutoBackfill;
        let cap = self.host.policy.auto_backfill.max_accounts_per_tick as usize;
        let mut skipped = BTreeMap::new();
        let mut due = Vec::new();
        for id in &self.connected {
            let Some(tenure) = &self.accounts[id].tenure else { continue };
            let cut_early = self.host.bug(Bug::CutBeforeFilter);
            let skip = if tenure.runs.contains_key(&kind) {
                Some(Skip::Running)
            } else if cut_early {
                None
            } else {
                eligibility::refuses(&self.host, &tenure.record, kind, Trigger::Periodic)
            };
            match skip {
                Some(reason) => *skipped.entry(reason).or_insert(0) += 1,
                None => due.push((eligibility::order(&self.host, &tenure.record, id), id)),
            }
        }
        if due.len() > cap {
            due.select_nth_unstable(cap);
            let over = u32::try_from(due.len() - cap).unwrap_or(u32::MAX);
            *skipped.entry(Skip::TickCap).or_insert(0) += over;
            due.truncate(cap);
        }
        due.sort_unstable();
        let start: Vec<AccountId> = due.into_iter().map(|(_, id)| id.clone()).collect();
        self.start_ticked(kind, &start, skipped);
    }

    fn recent_sync_tick(&mut self) {
        let kind = RunKind::RecentSync;
        let mut skipped = BTreeMap::new();
        let mut start = Vec::new();
        let connected: Vec<AccountId> = self.connected.iter().cloned().collect();
        for id in connected {
            let Some(tenure) = self.accounts.get_mut(&id).and_then(|a| a.tenure.as_mut()) else {
                continue;
            };
            if tenure.runs.contains_key(&kind) {
                *skipped.entry(Skip::Running).or_insert(0) += 1;
            } else if tenure.has_holes_to_close() {
                start.push(id);
            } else {
                tenure.stamp_idle_sync(&mut self.host);
                tenure.pump(&mut self.host);
                *skipped.entry(Skip::Idle).or_insert(0) += 1;
            }
        }
        self.start_ticked(kind, &start, skipped);
    }

    fn start_ticked(&mut self, kind: RunKind, start: &[AccountId], skipped: BTreeMap<Skip, u32>) {
        let connected = u32::try_from(self.connected.len()).unwrap_or(u32::MAX);
        let started = u32::try_from(start.len()).unwrap_or(u32::MAX);
        self.host.event(Event::Tick { kind, connected, started, skipped });
        for id in start {
            self.with_tenure(id, |tenure, host| {
                tenure.start_run(host, kind, Trigger::Periodic);
                tenure.pump(host);
            });
        }
        self.ticked.insert(kind, start.iter().cloned().collect());
    }

    fn give_slots(&mut self) {
        loop {
            let next = self.host.waiting.iter().position(|(kind, _)| self.host.has_slot(*kind));
            let Some((kind, id)) = next.and_then(|i| self.host.waiting.remove(i)) else { return };
            self.with_tenure(&id, |tenure, host| tenure.on_slot(host, kind));
        }
    }

    // --- Outbox ---

    fn poll_outbox(&mut self) {
        let wait = self.host.about(self.host.policy.outbox.poll);
        self.host.in_ms(Timer::OutboxPoll, wait);
        if self.mode != Mode::Active || self.connected.is_empty() || !self.host.believing() {
            return;
        }
        if self.outbox.under_way {
            self.outbox.again = true;
            return;
        }
        self.outbox.under_way = true;
        self.outbox.pages = 0;
        let after = self.outbox.after.take();
        self.read_outbox(after);
    }

    fn read_outbox(&mut self, after: Option<Cursor>) {
        self.outbox.pages += 1;
        let query = outbox::queued(self.host.store_now() + outbox::CLOCK_LAG, after);
        self.host.query(Route::OutboxPoll, query);
    }

    fn on_queued(&mut self, answer: Answer) {
        let after = match &answer {
            Answer::Found { docs, .. } => outbox::after_queued(docs),
            _ => None,
        };
        if after.is_some() && self.outbox.pages < outbox::PAGES_PER_POLL {
            self.read_outbox(after);
        } else {
            self.outbox.under_way = false;
            self.outbox.after = after;
            if std::mem::take(&mut self.outbox.again) {
                self.poll_outbox();
            }
        }
        self.send_found(answer);
    }

    fn on_processing(&mut self, account: AccountId, answer: Answer) {
        if let Answer::Found { docs, .. } = &answer
            && let after @ Some(_) = outbox::after_processing(docs)
            && self.connected.contains(&account)
        {
            let query = outbox::processing(&account, after);
            self.host.query(Route::OutboxClaimed(account), query);
        }
        self.send_found(answer);
    }

    fn send_found(&mut self, answer: Answer) {
        let Answer::Found { read_time, docs } = answer else { return };
        for doc in &docs {
            let Some(id) = doc.str("accountId").and_then(|id| AccountId::parse(id).ok()) else {
                continue;
            };
            self.with_tenure(&id, |tenure, host| tenure.on_outbox(host, read_time, doc));
        }
    }
}

impl Account {
    fn unknown() -> Self {
        Self {
            record: Record::default(),
            version: None,
            seen: None,
            tenure: None,
            unowned_since: None,
            released_at: None,
            reported_elsewhere: false,
            unsaved: Gaps::default(),
        }
    }
}

/// Whether an account can be served only where its credentials lie.
fn needs_credentials(host: &Host, record: &Record) -> bool {
    let local = host.policy.credentials == Credentials::Local;
    local && record.is_paired() && !host.bug(Bug::CredentialsIgnored)
}

const ACCOUNTS_PER_PAGE: u32 = 300;
const MARKS_PER_POLL: usize = 5;
/// Beyond it nothing could be scheduled any more.
const END_OF_TIME: Mono = Mono::from_millis(u64::MAX / 2);
const MAX_ABSTAIN: Duration = Duration::from_secs(3_600);
const OWNERS_PER_READ: usize = 100;
const TICK_RETRY: Duration = Duration::from_secs(5);
