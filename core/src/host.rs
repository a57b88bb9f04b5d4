//! What all parts of an instance share: the way out, timers, clocks, the session's belief.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use smol_str::SmolStr;

use crate::bug::Bug;
use crate::doc::{DocPath, FieldOp, Precondition, Query, Value, Write};
use crate::id::{AccountId, BootId, OutboxId, RequestId};
use crate::io::{
    ChunkId, Event, GatewayCall, GatewayRequest, Lane, Output, RunKind, StoreCall, StoreRequest,
};
use crate::policy::Policy;
use crate::time::{Mono, StoreTime};
use crate::timers::Timers;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Host {
    pub(crate) policy: Arc<Policy>,
    /// The latest `now` ever given
    pub(crate) now: Mono,
    pub(crate) clock: StoreClock,
    pub(crate) timers: Timers<Timer>,
    pub(crate) boot: BootId,
    /// Until when everything held under the session may be believed
    pub(crate) deadline: Mono,
    /// Until when the compat lock certainly keeps other software away
    pub(crate) shown_until: Option<Mono>,
    /// When the accounts were last taken over from software that is not ours
    pub(crate) foreign_at: Option<StoreTime>,
    /// Slots taken by working runs, per kind
    pub(crate) working: BTreeMap<RunKind, u32>,
    /// Accounts whose runs wait for a slot, in order
    waiting: BTreeMap<RunKind, VecDeque<AccountId>>,
    /// The first turn to connect that nobody has
    next_connect: Mono,
    /// Connections that were told to close, until they are closed, and how often they were told
    closing: BTreeMap<(AccountId, RequestId), u32>,
    pub(crate) out: VecDeque<Output>,
    requests: BTreeMap<RequestId, Route>,
    expiries: BTreeMap<Patience, VecDeque<(Mono, RequestId)>>,
    next_request: u64,
    seed: [u8; 32],
    draws: u64,
    incidents: u64,
}

/// Where an answer goes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Route {
    Account(AccountId, AccountRoute),
    /// Sessions that have been dead for long
    Garbage,
    /// What these accounts name
    GarbageNames(usize),
    /// Nobody waits for it
    Nobody,
    /// Messages of this account that somebody claimed
    OutboxClaimed(AccountId),
    OutboxPoll,
    PollLock,
    PollSessions,
    ScanAccounts,
    ScanOwners(Vec<AccountId>),
    ScanSessions(Vec<SmolStr>),
    Session,
}

/// Where within an account.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum AccountRoute {
    Connect,
    Ledger,
    Load,
    LoadMarker,
    LoadOpen,
    Logout,
    Recover,
    Run(RunKind),
    Send(OutboxId),
    Spool(ChunkId),
    Unawaited,
}

/// What is to be done later.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Timer {
    Account(AccountId, AccountTimer),
    /// A connection that was told to close has not closed
    Close(AccountId, RequestId),
    /// The session is to be created once more
    Create,
    /// The session's belief ends
    Deadline,
    OutboxPoll,
    Poll,
    Rebalance,
    Renew,
    Scan,
    SessionRetry,
    StopTimeout,
    Tick(RunKind),
}

/// What is to be done later about one account.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum AccountTimer {
    /// Commits that were refused
    Again,
    Connect,
    /// The run that follows a connect
    ConnectRun,
    /// It is to be shown that the gap filler has nothing to do
    Idle,
    LedgerRetry,
    Load,
    /// The open holes are to be looked up
    LoadOpen,
    /// The phone may be asked, or has not answered
    Phone,
    /// The spool is to be looked into once more
    Recover,
    /// A run has something to do: renew its lease, retry, end
    Run(RunKind),
    Spool,
    Stamp,
}

impl Timer {
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Account(_, AccountTimer::Again) => "account write again",
            Self::Account(_, AccountTimer::Connect) => "connect",
            Self::Account(_, AccountTimer::ConnectRun) => "run after connect",
            Self::Account(_, AccountTimer::Idle) => "idle stamp",
            Self::Account(_, AccountTimer::LedgerRetry) => "account write retry",
            Self::Account(_, AccountTimer::Load) => "account load",
            Self::Account(_, AccountTimer::LoadOpen) => "open holes",
            Self::Account(_, AccountTimer::Recover) => "look into the spool",
            Self::Account(_, AccountTimer::Phone) => "phone",
            Self::Account(_, AccountTimer::Run(_)) => "run",
            Self::Account(_, AccountTimer::Spool) => "spool retry",
            Self::Account(_, AccountTimer::Stamp) => "stamp",
            Self::Close(..) => "close again",
            Self::Create => "session creation",
            Self::Deadline => "session deadline",
            Self::OutboxPoll => "outbox poll",
            Self::Poll => "lock poll",
            Self::Rebalance => "rebalance",
            Self::Renew => "session renewal",
            Self::Scan => "account scan",
            Self::SessionRetry => "session write retry",
            Self::StopTimeout => "stop timeout",
            Self::Tick(RunKind::AutoBackfill) => "backfill tick",
            Self::Tick(RunKind::RecentSync) => "recent sync tick",
        }
    }
}

/// How long an answer is waited for. Within one class requests expire in the order of sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Patience {
    Gateway,
    Read,
    Write,
}

impl Host {
    pub(crate) fn new(policy: Policy, seed: [u8; 32], now: Mono) -> Self {
        Self {
            policy: Arc::new(policy),
            now,
            clock: StoreClock::default(),
            timers: Timers::new(),
            boot: BootId::derive(&seed, 0),
            deadline: Mono::ZERO,
            shown_until: None,
            foreign_at: None,
            working: BTreeMap::new(),
            waiting: BTreeMap::new(),
            next_connect: now,
            closing: BTreeMap::new(),
            out: VecDeque::new(),
            requests: BTreeMap::new(),
            expiries: BTreeMap::new(),
            next_request: 1,
            seed,
            draws: 0,
            incidents: 0,
        }
    }

    /// Whether a rule is broken on purpose.
    #[cfg(feature = "bugs")]
    pub(crate) fn bug(&self, bug: Bug) -> bool {
        self.policy.bug == Some(bug)
    }

    /// Whether a rule is broken on purpose: never in this build.
    #[cfg(not(feature = "bugs"))]
    #[expect(clippy::unused_self, reason = "the same call as with the feature")]
    pub(crate) const fn bug(&self, _: Bug) -> bool {
        false
    }

    /// The store's time now, or a little less.
    pub(crate) fn store_now(&self) -> StoreTime {
        self.clock.now(self.now, self.policy.clock_rate_ppm).unwrap_or_default()
    }

    /// Learns from an answer what the store's time was at least.
    pub(crate) fn observe(&mut self, time: StoreTime) {
        self.clock.observe(time, self.now, self.policy.clock_rate_ppm);
    }

    /// Whether the session, and so everything held under it, may be believed now.
    pub(crate) fn believing(&self) -> bool {
        self.now < self.deadline
    }

    /// Until when a commit of a chain may start: its answer is worth waiting for, and the session,
    /// once it has a deadline, still stands.
    pub(crate) fn commit_until(&self) -> Mono {
        let timeout = self.now + self.policy.write_timeout;
        if self.deadline == Mono::ZERO { timeout } else { timeout.min(self.deadline) }
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.out.push_back(Output::Event(event));
    }

    pub(crate) fn get(&mut self, route: Route, lane: Lane, paths: Vec<DocPath>) -> RequestId {
        self.store(route, lane, StoreCall::Get(paths), Mono::NEVER)
    }

    pub(crate) fn query(&mut self, route: Route, query: Query) -> RequestId {
        self.query_in(Lane::Work, route, query)
    }

    pub(crate) fn query_in(&mut self, lane: Lane, route: Route, query: Query) -> RequestId {
        self.store(route, lane, StoreCall::Query(query), Mono::NEVER)
    }

    /// Sends a commit that may start until `not_after`.
    pub(crate) fn commit(
        &mut self,
        route: Route,
        lane: Lane,
        writes: Vec<Write>,
        not_after: Mono,
    ) -> RequestId {
        self.store(route, lane, StoreCall::Commit(writes), not_after)
    }

    pub(crate) fn gateway(
        &mut self,
        account: &AccountId,
        route: AccountRoute,
        call: GatewayCall,
        not_after: Mono,
    ) -> RequestId {
        // How long a parse or a spool takes depends on its size; the gateway always answers them.
        let patience = match call {
            GatewayCall::Parse { .. } | GatewayCall::Spool { .. } | GatewayCall::Unspool { .. } => {
                None
            }
            _ => Some(Patience::Gateway),
        };
        let id = self.request(Route::Account(account.clone(), route), patience);
        let not_after = if self.bug(Bug::EffectsNeverExpire) { Mono::NEVER } else { not_after };
        self.out.push_back(Output::Gateway(GatewayRequest {
            id,
            account: account.clone(),
            not_after,
            call,
        }));
        id
    }

    /// Closes a connection; allowed at any time. Until it is reported closed it is told again, at
    /// growing intervals: no other one of the account may open before.
    pub(crate) fn close(&mut self, account: &AccountId, connection: RequestId) {
        let key = (account.clone(), connection);
        let told = self.closing.get(&key).copied().unwrap_or(0);
        if told == CLOSES_BEFORE_INCIDENT {
            self.incident(Some(account), "connection_does_not_close");
        }
        self.closing.insert(key, told.saturating_add(1));
        let wait = self.policy.close_timeout * 2 * (1 << told.min(5));
        let timer = Timer::Close(account.clone(), connection);
        self.in_ms(timer, wait.min(LONGEST_CLOSE_WAIT));
        let id = self.request(Route::Nobody, Some(Patience::Gateway));
        self.out.push_back(Output::Gateway(GatewayRequest {
            id,
            account: account.clone(),
            not_after: Mono::NEVER,
            call: GatewayCall::Close { connection },
        }));
    }

    /// A connection is closed. Whether it had been told to.
    pub(crate) fn closed(&mut self, account: &AccountId, connection: RequestId) -> bool {
        self.timers.clear(&Timer::Close(account.clone(), connection));
        self.closing.remove(&(account.clone(), connection)).is_some()
    }

    /// Whether a connection of the account has not closed yet.
    pub(crate) fn is_closing(&self, account: &AccountId) -> bool {
        let first = (account.clone(), RequestId(0));
        self.closing.range(first..).next().is_some_and(|((id, _), _)| id == account)
    }

    /// Leaves a note for operators in `incidents`.
    pub(crate) fn incident(&mut self, account: Option<&AccountId>, kind: &'static str) {
        self.event(Event::Incident { account: account.cloned(), kind });
        self.incidents += 1;
        let id = smol_str::format_smolstr!("incidents/{}-{}", self.boot, self.incidents);
        let Ok(path) = DocPath::parse(id) else { return };
        let fields = vec![
            ("accountId".into(), Value::from(account.map(AccountId::text)).into()),
            ("type".into(), Value::from(kind).into()),
            ("severity".into(), Value::from("warning").into()),
            ("details".into(), Value::map([("boot", Value::from(self.boot.text()))]).into()),
            ("ts".into(), FieldOp::ServerTime),
        ];
        let write = Write::merge(path, Precondition::Absent, fields);
        let not_after = self.now + self.policy.write_timeout;
        self.commit(Route::Nobody, Lane::Work, vec![write], not_after);
    }

    /// Takes out where the answer to `request` goes; `None` if nobody waits (any more).
    pub(crate) fn answered(&mut self, request: RequestId) -> Option<Route> {
        let route = self.requests.remove(&request)?;
        self.trim();
        Some(route)
    }

    fn trim(&mut self) {
        for queue in self.expiries.values_mut() {
            while queue.front().is_some_and(|(_, id)| !self.requests.contains_key(id)) {
                queue.pop_front();
            }
        }
    }

    /// Nobody waits for the answers to these any more: whoever did is gone, and the answers must
    /// not be taken for those of a successor.
    pub(crate) fn forget(&mut self, gone: impl Fn(&Route) -> bool) {
        self.requests.retain(|_, route| !gone(route));
        self.trim();
    }

    /// Takes out a request that has waited too long.
    pub(crate) fn expired(&mut self) -> Option<RequestId> {
        let now = self.now;
        self.expiries
            .values()
            .filter_map(|queue| queue.front())
            .filter(|(at, _)| *at <= now)
            .min()
            .map(|(_, id)| *id)
    }

    /// When the next request has waited too long.
    pub(crate) fn next_expiry(&self) -> Option<Mono> {
        self.expiries.values().filter_map(|queue| queue.front()).map(|(at, _)| *at).min()
    }

    pub(crate) fn in_ms(&mut self, timer: Timer, delay: Duration) {
        let at = self.now + delay;
        self.timers.set(timer, at);
    }

    /// A number from `min` to `max`, the same for the same seed and number of draws.
    pub(crate) fn jitter(&mut self, min: Duration, max: Duration) -> Duration {
        self.draws += 1;
        let hash = Sha256::new()
            .chain_update(b"jitter")
            .chain_update(self.seed)
            .chain_update(self.draws.to_be_bytes())
            .finalize();
        let draw = u64::from_be_bytes([
            hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7],
        ]);
        let span = u64::try_from(max.saturating_sub(min).as_millis()).unwrap_or(u64::MAX);
        min + Duration::from_millis(if span == u64::MAX { draw } else { draw % (span + 1) })
    }

    /// `d` give or take a fifth, but some time in any case: timers that are due again at once
    /// would never let go.
    pub(crate) fn about(&mut self, d: Duration) -> Duration {
        self.jitter(d - d / 5, d + d / 5).max(Duration::from_millis(1))
    }

    pub(crate) fn boot_of(&self, n: u64) -> BootId {
        BootId::derive(&self.seed, n)
    }

    /// Whether another run of this kind may work now.
    pub(crate) fn has_slot(&self, kind: RunKind) -> bool {
        let most = match kind {
            RunKind::AutoBackfill => self.policy.auto_backfill.max_concurrency,
            RunKind::RecentSync => self.policy.recent_sync.max_concurrency,
        };
        self.working.get(&kind).copied().unwrap_or(0) < most
    }

    /// A run waits until others of its kind let it work.
    pub(crate) fn stand_in_line(&mut self, kind: RunKind, account: &AccountId) {
        self.waiting.entry(kind).or_default().push_back(account.clone());
    }

    /// Takes out the first run in line that may work now.
    pub(crate) fn next_in_line(&mut self) -> Option<(RunKind, AccountId)> {
        for kind in [RunKind::AutoBackfill, RunKind::RecentSync] {
            if self.has_slot(kind)
                && let Some(line) = self.waiting.get_mut(&kind)
                && let Some(account) = line.pop_front()
            {
                return Some((kind, account));
            }
        }
        None
    }

    /// When an account may connect: every turn is given once.
    pub(crate) fn turn_to_connect(&mut self) -> Mono {
        let turn = self.next_connect.max(self.now);
        self.next_connect = turn + self.policy.connect_stagger;
        turn
    }

    /// Nothing works, waits for a slot or has a turn any more.
    pub(crate) fn clear_lines(&mut self) {
        self.working.clear();
        self.waiting.clear();
        self.next_connect = self.now;
    }

    fn store(&mut self, route: Route, lane: Lane, call: StoreCall, not_after: Mono) -> RequestId {
        let (patience, timeout) = match call {
            StoreCall::Commit(_) => (Patience::Write, self.policy.write_timeout),
            StoreCall::Get(_) | StoreCall::Query(_) => (Patience::Read, self.policy.read_timeout),
        };
        let id = self.request(route, Some(patience));
        let not_after = not_after.min(self.now + timeout);
        let not_after = if self.bug(Bug::EffectsNeverExpire) { Mono::NEVER } else { not_after };
        self.out.push_back(Output::Store(StoreRequest { id, not_after, lane, call }));
        id
    }

    fn request(&mut self, route: Route, patience: Option<Patience>) -> RequestId {
        let id = RequestId(self.next_request);
        self.next_request += 1;
        self.requests.insert(id, route);
        if let Some(patience) = patience {
            let timeout = match patience {
                Patience::Gateway => GATEWAY_TIMEOUT,
                Patience::Read => self.policy.read_timeout,
                Patience::Write => self.policy.write_timeout,
            };
            self.expiries.entry(patience).or_default().push_back((self.now + timeout, id));
        }
        id
    }
}

/// A lower bound of the store's time now, from what the store last said and the time since.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct StoreClock {
    seen: Option<(StoreTime, Mono)>,
    first: Option<(StoreTime, Mono)>,
}

impl StoreClock {
    /// Learns that the store's time was at least `time` when its answer arrived.
    pub(crate) fn observe(&mut self, time: StoreTime, now: Mono, ppm: u32) {
        if self.now(now, ppm).is_none_or(|estimate| estimate < time) {
            self.seen = Some((time, now));
        }
        if self.first.is_none() {
            self.first = Some((time, now));
        }
    }

    /// What the store's clock would show had it run like this process's own since the first
    /// answer: a local clock that was set right once. Good for nothing but to show what it breaks.
    pub(crate) fn local(&self, now: Mono) -> Option<StoreTime> {
        self.first.map(|(time, at)| time + now.since(at))
    }

    /// The store's time, or a little less; `None` before the store has said anything.
    pub(crate) fn now(&self, now: Mono, ppm: u32) -> Option<StoreTime> {
        let (time, at) = self.seen?;
        let elapsed = now.since(at);
        Some(time + elapsed.saturating_sub(elapsed.saturating_mul(ppm) / 1_000_000))
    }
}

const CLOSES_BEFORE_INCIDENT: u32 = 5;
const GATEWAY_TIMEOUT: Duration = Duration::from_secs(30);
const LONGEST_CLOSE_WAIT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::InstanceId;
    use crate::policy::Settings;

    fn host() -> Host {
        let settings = Settings::exclusive(InstanceId::parse("i").unwrap());
        Host::new(Policy::new(settings).unwrap(), [7; 32], Mono::from_millis(1_000))
    }

    #[test]
    fn turns_to_connect_are_a_stagger_apart_and_none_is_in_the_past() {
        let mut host = host();
        let stagger = host.policy.connect_stagger;
        let turns = [(); 3].map(|()| host.turn_to_connect());
        assert_eq!(turns, [host.now, host.now + stagger, host.now + stagger * 2]);
        host.now = host.now + stagger * 9;
        assert_eq!(host.turn_to_connect(), host.now);
    }

    #[test]
    fn runs_stand_in_line_with_their_own_kind() {
        let mut host = host();
        let ids = ["a", "b", "c"].map(|id| AccountId::parse(id).unwrap());
        let full = host.policy.auto_backfill.max_concurrency;
        host.working.insert(RunKind::AutoBackfill, full);
        host.stand_in_line(RunKind::AutoBackfill, &ids[0]);
        host.stand_in_line(RunKind::RecentSync, &ids[1]);
        host.stand_in_line(RunKind::AutoBackfill, &ids[2]);
        assert_eq!(host.next_in_line(), Some((RunKind::RecentSync, ids[1].clone())));
        assert_eq!(host.next_in_line(), None);
        host.working.insert(RunKind::AutoBackfill, full - 1);
        assert_eq!(host.next_in_line(), Some((RunKind::AutoBackfill, ids[0].clone())));
    }

    #[test]
    fn each_timer_has_a_name_of_its_own() {
        let account = AccountId::parse("a").unwrap();
        let of_account = [AccountTimer::Connect, AccountTimer::Phone, AccountTimer::Spool]
            .map(|timer| Timer::Account(account.clone(), timer));
        let timers = of_account.into_iter().chain([Timer::Poll, Timer::Renew, Timer::Scan]);
        let names: std::collections::BTreeSet<_> = timers.map(|timer| timer.name()).collect();
        assert_eq!(names.len(), 6);
    }

    #[test]
    fn belief_ends_at_the_deadline_itself() {
        let mut host = host();
        host.deadline = host.now + Duration::from_millis(1);
        assert!(host.believing());
        host.now = host.deadline;
        assert!(!host.believing());
    }

    #[test]
    fn after_a_session_everybody_begins_at_the_end_of_an_empty_line() {
        let mut host = host();
        let account = AccountId::parse("a").unwrap();
        host.turn_to_connect();
        host.stand_in_line(RunKind::RecentSync, &account);
        host.working.insert(RunKind::AutoBackfill, 99);
        host.clear_lines();
        assert_eq!((host.next_in_line(), host.has_slot(RunKind::AutoBackfill)), (None, true));
        assert_eq!(host.turn_to_connect(), host.now);
    }

    #[test]
    fn no_timer_is_set_for_the_moment_it_is_set_in() {
        let mut host = host();
        let (third, ms) = (Duration::from_millis(3), Duration::from_millis(1));
        assert!((0..100).all(|_| host.about(Duration::ZERO) == ms));
        let about: Vec<_> = (0..200).map(|_| host.about(Duration::from_secs(10))).collect();
        let (low, high) = (Duration::from_secs(8), Duration::from_secs(12));
        assert!(about.iter().all(|d| (low..=high).contains(d)));
        assert!(about.iter().any(|d| *d < low + (high - low) / 4));
        assert!(about.iter().any(|d| *d > high - (high - low) / 4));
        let drawn: std::collections::BTreeSet<_> =
            (0..200).map(|_| host.jitter(ms, third)).collect();
        assert_eq!(drawn.into_iter().collect::<Vec<_>>(), [ms, ms * 2, third]);
    }

    #[test]
    fn requests_that_waited_too_long_come_out_in_order_of_expiry() {
        let mut host = host();
        let sent = host.now;
        let (read, write) = (host.policy.read_timeout, host.policy.write_timeout);
        let get = host.get(Route::PollLock, Lane::Lease, Vec::new());
        host.now = sent + Duration::from_millis(1);
        let commit = host.commit(Route::Session, Lane::Lease, Vec::new(), Mono::NEVER);
        let query = host
            .query(Route::ScanAccounts, Query::all(DocPath::parse("a/b").unwrap().collection(), 1));
        let mut due = [(sent + read, get), (host.now + write, commit), (host.now + read, query)];
        due.sort();
        for (at, request) in due {
            assert_eq!(host.next_expiry(), Some(at));
            host.now = at - Duration::from_millis(1);
            assert_eq!(host.expired(), None);
            host.now = at;
            assert_eq!(host.expired(), Some(request));
            assert!(host.answered(request).is_some());
            assert_eq!(host.answered(request), None, "once");
        }
        assert_eq!((host.next_expiry(), host.expired()), (None, None));
    }

    #[test]
    fn what_is_forgotten_is_not_waited_for() {
        let mut host = host();
        let gone = host.get(Route::PollLock, Lane::Lease, Vec::new());
        let kept = host.get(Route::Session, Lane::Lease, Vec::new());
        host.forget(|route| *route == Route::PollLock);
        assert_eq!((host.answered(gone), host.answered(kept)), (None, Some(Route::Session)));
        assert_eq!(host.next_expiry(), None);
    }

    #[test]
    fn a_parse_takes_the_time_it_takes() {
        let mut host = host();
        let account = AccountId::parse("a").unwrap();
        let chunk = ChunkId(1);
        for call in [GatewayCall::Parse { chunk, from: 0 }, GatewayCall::Unspool { chunk }] {
            host.gateway(&account, AccountRoute::Spool(chunk), call, Mono::NEVER);
            assert_eq!(host.next_expiry(), None);
        }
        host.gateway(&account, AccountRoute::Connect, GatewayCall::Connect, Mono::NEVER);
        assert_eq!(host.next_expiry(), Some(host.now + GATEWAY_TIMEOUT));
    }

    #[test]
    fn a_close_is_repeated_at_growing_intervals_until_it_is_answered_for() {
        let mut host = host();
        let [a, b] = ["a", "b"].map(|id| AccountId::parse(id).unwrap());
        let connection = RequestId(77);
        let timer = Timer::Close(a.clone(), connection);
        let mut incidents = 0;
        let waits: Vec<_> = (0..8)
            .map(|_| {
                host.close(&a, connection);
                let is_incident = |o: &Output| matches!(o, Output::Event(Event::Incident { .. }));
                incidents += host.out.drain(..).filter(is_incident).count();
                host.timers.at(&timer).unwrap().since(host.now)
            })
            .collect();
        let first = host.policy.close_timeout * 2;
        assert_eq!(waits[..3], [first, first * 2, first * 4]);
        assert!(waits.is_sorted() && waits.last() == Some(&LONGEST_CLOSE_WAIT), "{waits:?}");
        assert_eq!(incidents, 1);
        assert!(host.is_closing(&a) && !host.is_closing(&b));
        assert!(!host.closed(&a, RequestId(78)) && host.is_closing(&a));
        assert!(host.closed(&a, connection) && !host.closed(&a, connection));
        assert!(!host.is_closing(&a) && !host.timers.is_set(&timer));
    }

    #[test]
    fn every_incident_has_a_document_of_its_own() {
        let mut host = host();
        for kind in ["a", "b", "c"] {
            host.incident(None, kind);
        }
        let paths: Vec<_> = host
            .out
            .iter()
            .filter_map(|output| match output {
                Output::Store(StoreRequest {
                    call: StoreCall::Commit(writes), not_after, ..
                }) => {
                    assert_eq!(*not_after, host.now + host.policy.write_timeout);
                    Some(writes[0].path.as_str())
                }
                _ => None,
            })
            .collect();
        assert_eq!(paths, [1, 2, 3].map(|n| format!("incidents/{}-{n}", host.boot)));
    }

    #[test]
    fn the_stores_time_is_never_estimated_too_late() {
        let mut clock = StoreClock::default();
        let (second, [t1, t2]) = (Duration::from_secs(1), [1_000, 2_000].map(Mono::from_millis));
        assert_eq!(clock.now(t1, 10_000), None);
        clock.observe(StoreTime::from_secs(100), t1, 10_000);
        assert_eq!(clock.now(t1, 10_000), Some(StoreTime::from_secs(100)));
        // A hundredth less than what has passed here.
        assert_eq!(clock.now(t2, 10_000), Some(StoreTime::from_millis(100_990)));
        clock.observe(StoreTime::from_millis(100_500), t2, 10_000);
        assert_eq!(clock.now(t2, 10_000), Some(StoreTime::from_millis(100_990)), "an older answer");
        clock.observe(StoreTime::from_millis(101_005), t2, 10_000);
        let later = clock.now(t2 + second, 10_000);
        assert_eq!(later, Some(StoreTime::from_millis(101_005 + 990)));
    }
}
