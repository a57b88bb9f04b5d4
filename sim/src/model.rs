//! A small world in one value: a few real instances, one store, and requests that get lost, come
//! late or come twice. What may happen next is a list of actions, so that a search can try them
//! all and a random schedule any of them; the same properties are checked after every step.
//!
//! The gateway does what it is told at once. Clocks run within the declared bound.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use backfill_core::doc::{DocPath, FieldOp, Precondition, Value, Write, WriteOp};
use backfill_core::id::{AccountId, RequestId};
use backfill_core::instance::Instance;
use backfill_core::io::{
    Answer, CloseReason, Command, CommandId, Event, GatewayCall, GatewayEvent, GatewayRequest,
    Input, Lane, Mode, Output, Rejection, StoreCall, StoreRequest,
};
use backfill_core::policy::{InstanceMode, Policy, Settings};
use backfill_core::time::{Mono, StoreTime};
use backfill_driver::port::StoreError;

use crate::store::SimStore;

/// A world at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// Milliseconds since the beginning
    now: u64,
    store: SimStore,
    nodes: Vec<Arc<Node>>,
    /// Commits on their way, whose senders may have given them up or be gone
    flying: Vec<Flight>,
    accounts: Vec<AccountId>,
    /// The epoch of the latest accepted write about each account
    accepted: BTreeMap<AccountId, u64>,
    reached: BTreeSet<Reached>,
    broken: Option<Broken>,
}

/// Something that may happen next. Nodes and requests are named by their position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// A process dies; what it has sent flies on
    Crash(usize),
    /// Nothing that a node asks of the store arrives any more
    Cut(usize),
    /// A request of a node reaches the store and is answered
    Deliver(usize, usize),
    /// Like [`Action::Deliver`], and the commit arrives a second time some day
    DeliverTwice(usize, usize),
    /// A request leaves its node and arrives some day
    Fly(usize, usize),
    /// The store can be reached again
    Heal(usize),
    /// A flying commit arrives; who still waits for it hears the outcome
    Land(usize),
    /// A request never arrives
    Lose(usize, usize),
    /// A commit arrives, its answer never does
    LoseAnswer(usize, usize),
    /// A process stands still
    Pause(usize),
    /// A commit arrives while its sender stands still; it hears the outcome when it goes on
    PauseOver(usize, usize),
    /// A dead process starts anew
    Restart(usize),
    /// A process goes on
    Resume(usize),
    /// A process is told to stop
    Stop(usize),
    /// Time passes, until some process wants to be called or for this many milliseconds
    Wait(u64),
}

/// What a run of the world came to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reached {
    /// Somebody connected an account
    Connected,
    /// A session was marked dead by another
    DeadMark,
    /// A commit came too late and was refused
    LateRefused,
    /// An outcome was unknown
    Unknown,
    /// An account had a second owner
    Takeover,
}

/// A property that does not hold, as verification.md numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Broken {
    /// Output waits, and the next call is wanted later than now
    Asleep,
    /// S1: an epoch fell, or its owner changed without it
    EpochFell,
    /// A session that was dead lives again
    Revived,
    /// S2: two believe to own one account, or to hold the lock
    TwoOwners,
    /// S3: a write of an earlier owner was accepted
    StaleWrite,
    /// S4: one account has two connections that can act
    TwoConnections,
    /// S5: an effect could start that its lease does not cover
    Uncovered,
    /// S6: something went out while passive
    Passive,
    /// S9: a commit follows another of unknown outcome, without a read between
    Unread,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Node {
    core: Option<Instance>,
    settings: Arc<Settings>,
    /// How much faster its clock runs than the store's, in parts per million
    rate_ppm: i32,
    starts: u8,
    paused: bool,
    cut: bool,
    pending: VecDeque<Pending>,
    /// Answers that wait for it to go on
    mail: VecDeque<(RequestId, Answer)>,
    connections: BTreeMap<AccountId, RequestId>,
    /// Documents with a commit whose outcome it has not heard or read
    unread: BTreeMap<DocPath, RequestId>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Pending {
    id: RequestId,
    not_after: Mono,
    call: StoreCall,
    /// The account that it is about, and the epoch that its sender believed in
    about: Option<(AccountId, u64)>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Flight {
    node: usize,
    start: u8,
    pending: Pending,
}

/// The shortest terms that the policy accepts with timeouts of a second, and no ticks.
pub fn short_terms(label: &str, mode: InstanceMode) -> Settings {
    let label = backfill_core::id::InstanceId::parse(label).expect("a label is a path segment");
    let mut s = Settings { mode, ..Settings::exclusive(label) };
    s.session_term = Duration::from_secs(9);
    s.session_renewal = Duration::from_millis(2_500);
    s.margin = Duration::from_secs(1);
    s.close_timeout = Duration::from_secs(1);
    s.read_timeout = Duration::from_secs(1);
    s.write_timeout = Duration::from_secs(1);
    s.passive_retry = Duration::from_secs(3);
    s.lock_delay = Duration::from_secs(1);
    s.stop_timeout = Duration::from_secs(2);
    s.account_scan = Duration::from_secs(20);
    s.rebalance_interval = Duration::from_secs(40);
    s.residency = Duration::from_secs(40);
    s.unowned_bound = Duration::from_secs(10);
    s.outbox.poll = Duration::from_secs(3_600);
    s.auto_backfill.enabled = false;
    s.recent_sync.enabled = false;
    s.realtime_stamp = Duration::from_secs(60);
    s
}

impl World {
    /// Processes that start together over a store that holds some linked accounts.
    ///
    /// # Panics
    /// If the settings do not fit together.
    pub fn new(settings: Vec<Settings>, accounts: usize) -> Self {
        let accounts: Vec<AccountId> = (0..accounts)
            .map(|n| AccountId::parse(format!("account_dev_{n}")).expect("a path segment"))
            .collect();
        let mut store = SimStore::new();
        for id in &accounts {
            let fields = vec![
                ("status".into(), FieldOp::from("connected")),
                ("foreign".into(), Value::map([("kept", Value::from(true))]).into()),
            ];
            store
                .commit(EPOCH, &[Write::merge(id.path(), Precondition::Absent, fields)])
                .expect("a valid commit");
        }
        let nodes = settings
            .into_iter()
            .enumerate()
            .map(|(n, settings)| {
                Arc::new(Node {
                    core: None,
                    settings: Arc::new(settings),
                    rate_ppm: if n % 2 == 0 { -10_000 } else { 10_000 },
                    starts: 0,
                    paused: false,
                    cut: false,
                    pending: VecDeque::new(),
                    mail: VecDeque::new(),
                    connections: BTreeMap::new(),
                    unread: BTreeMap::new(),
                })
            })
            .collect();
        let mut world = Self {
            now: 0,
            store,
            nodes,
            flying: Vec::new(),
            accounts,
            accepted: BTreeMap::new(),
            reached: BTreeSet::new(),
            broken: None,
        };
        for n in 0..world.nodes.len() {
            world.start(n);
        }
        world
    }

    /// The first property that broke, if one did.
    pub fn broken(&self) -> Option<Broken> {
        self.broken
    }

    /// What has been seen so far.
    pub fn reached(&self, what: Reached) -> bool {
        self.reached.contains(&what)
    }

    /// Milliseconds since the beginning.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// The store.
    pub fn store(&self) -> &SimStore {
        &self.store
    }

    /// How many processes there are.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// How many commits fly.
    pub fn flying(&self) -> usize {
        self.flying.len()
    }

    /// The core of a process that runs.
    pub fn core(&self, n: usize) -> Option<&Instance> {
        self.nodes.get(n)?.core.as_ref()
    }

    /// Whether a process stands still.
    pub fn is_paused(&self, n: usize) -> bool {
        self.nodes[n].paused
    }

    /// Whether a process cannot reach the store.
    pub fn is_cut(&self, n: usize) -> bool {
        self.nodes[n].cut
    }

    /// How many requests a process has at hand.
    pub fn pending(&self, n: usize) -> usize {
        self.nodes[n].pending.len()
    }

    /// How many accounts are connected somewhere.
    pub fn connected(&self) -> usize {
        let open: BTreeSet<&AccountId> =
            self.nodes.iter().flat_map(|node| node.connections.keys()).collect();
        open.len()
    }

    /// Whether what others wrote on the accounts is still there.
    pub fn foreign_fields_survive(&self) -> bool {
        self.accounts.iter().all(|id| {
            let doc = self.store.document(&id.path());
            doc.is_some_and(|doc| doc.bool("foreign.kept") == Some(true))
        })
    }

    /// Lets everything go well until the time has come.
    pub fn calm(&mut self, until: u64) {
        while self.now < until && self.broken.is_none() {
            self.serve_reads();
            match (0..self.nodes.len()).find(|n| self.awaits_store(*n)) {
                Some(n) => self.act(Action::Deliver(n, 0)),
                None => self.act(Action::Wait(until - self.now)),
            }
        }
        self.serve_reads();
    }

    /// Whether a process that can go on has a request at hand.
    pub fn awaits_store(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        node.core.is_some() && !node.paused && !node.pending.is_empty()
    }

    /// Answers all reads that are at hand, and loses what cut-off processes ask for.
    pub fn serve_reads(&mut self) {
        while let Some((n, at)) = (0..self.nodes.len()).find_map(|n| {
            let node = &self.nodes[n];
            let ready = !node.paused && node.core.is_some();
            let read = |p: &Pending| node.cut || !matches!(p.call, StoreCall::Commit(_));
            node.pending.iter().position(read).filter(|_| ready).map(|at| (n, at))
        }) {
            let act = if self.nodes[n].cut { Action::Lose(n, at) } else { Action::Deliver(n, at) };
            self.act(act);
        }
    }

    /// Does it, if it can be done now, and checks every property.
    pub fn act(&mut self, action: Action) {
        match action {
            Action::Crash(n) => {
                let Some(node) = self.node(n) else { return };
                node.core = None;
                node.paused = false;
                node.connections.clear();
                node.mail.clear();
                node.unread.clear();
                node.pending.clear();
            }
            Action::Cut(n) => {
                if let Some(node) = self.node(n) {
                    node.cut = true;
                }
            }
            Action::Heal(n) => {
                if let Some(node) = self.node(n) {
                    node.cut = false;
                }
            }
            Action::Deliver(n, at) => {
                let Some(pending) = self.take(n, at) else { return };
                let (id, answer) = (pending.id, self.serve(&pending));
                self.feed(n, Input::Answer(id, answer));
            }
            Action::DeliverTwice(n, at) => {
                let Some(pending) = self.take(n, at) else { return };
                let (id, answer) = (pending.id, self.serve(&pending));
                self.fly(n, pending);
                self.feed(n, Input::Answer(id, answer));
            }
            Action::Fly(n, at) => {
                let Some(pending) = self.take(n, at) else { return };
                self.fly(n, pending);
            }
            Action::Land(at) => {
                if at >= self.flying.len() {
                    return;
                }
                let flight = self.flying.remove(at);
                let answer = self.serve(&flight.pending);
                if answer == Answer::Conflict {
                    self.reached.insert(Reached::LateRefused);
                }
                let node = &self.nodes[flight.node];
                if node.starts == flight.start && node.core.is_some() {
                    let id = flight.pending.id;
                    if node.paused {
                        if let Some(node) = self.node(flight.node) {
                            node.mail.push_back((id, answer));
                        }
                    } else {
                        self.feed(flight.node, Input::Answer(id, answer));
                    }
                }
            }
            Action::Lose(n, at) => {
                self.take(n, at);
            }
            Action::LoseAnswer(n, at) => {
                let Some(pending) = self.take(n, at) else { return };
                self.serve(&pending);
            }
            Action::Pause(n) => {
                if let Some(node) = self.node(n) {
                    node.paused = true;
                }
            }
            Action::PauseOver(n, at) => {
                let Some(pending) = self.take(n, at) else { return };
                let answer = self.serve(&pending);
                if let Some(node) = self.node(n) {
                    node.paused = true;
                    node.mail.push_back((pending.id, answer));
                }
            }
            Action::Restart(n) => {
                if self.nodes.get(n).is_some_and(|node| node.core.is_none()) {
                    self.start(n);
                }
            }
            Action::Resume(n) => {
                let Some(node) = self.node(n) else { return };
                node.paused = false;
                let mail = std::mem::take(&mut node.mail);
                // Whatever woke first is handled first: here the answers.
                for (id, answer) in mail {
                    self.feed(n, Input::Answer(id, answer));
                }
                self.feed(n, Input::Timeout);
            }
            Action::Stop(n) => self.feed(n, Input::Command(CommandId(1), Command::Stop)),
            Action::Wait(longest) => self.wait(longest),
        }
        self.check();
    }

    fn wait(&mut self, longest: u64) {
        let due = (0..self.nodes.len()).filter_map(|n| self.due(n)).min();
        let end = self.now + longest.max(1);
        self.now = due.map_or(end, |due| due.clamp(self.now + 1, end));
        for n in 0..self.nodes.len() {
            if self.due(n).is_some_and(|due| due <= self.now) {
                self.feed(n, Input::Timeout);
            }
        }
    }

    /// When a process that runs wants to be called.
    fn due(&self, n: usize) -> Option<u64> {
        let node = &self.nodes[n];
        let (at, _) = node.core.as_ref().filter(|_| !node.paused)?.poll_timeout()?;
        Some(node.real(at))
    }

    fn start(&mut self, n: usize) {
        let now = self.now;
        let Some(node) = self.node(n) else { return };
        node.starts += 1;
        let mut seed = [0; 32];
        (seed[0], seed[1]) = (u8::try_from(n).unwrap_or(u8::MAX), node.starts);
        let policy = Policy::new((*node.settings).clone()).expect("the settings fit together");
        node.core = Some(Instance::new(policy, seed, node.mono(now)));
        for account in self.accounts.clone() {
            self.feed(n, Input::Credentials(account, true));
        }
        self.feed(n, Input::Timeout);
    }

    fn node(&mut self, n: usize) -> Option<&mut Node> {
        self.nodes.get_mut(n).map(Arc::make_mut)
    }

    fn take(&mut self, n: usize, at: usize) -> Option<Pending> {
        let node = self.nodes.get(n)?;
        if node.paused || node.core.is_none() {
            return None;
        }
        let now = node.mono(self.now);
        let pending = self.node(n)?.pending.remove(at)?;
        if now > pending.not_after {
            self.feed(n, Input::Answer(pending.id, Answer::Rejected(Rejection::Expired)));
            return None;
        }
        Some(pending)
    }

    fn fly(&mut self, n: usize, pending: Pending) {
        if matches!(pending.call, StoreCall::Commit(_)) && self.flying.len() < MOST_FLYING {
            let start = self.nodes[n].starts;
            self.flying.push(Flight { node: n, start, pending });
        }
    }

    /// What the store makes of a request.
    fn serve(&mut self, pending: &Pending) -> Answer {
        let now = EPOCH + Duration::from_millis(self.now);
        match &pending.call {
            StoreCall::Get(paths) => {
                let read = self.store.get(now, paths);
                Answer::Read { read_time: read.read_time, docs: read.docs }
            }
            StoreCall::Query(query) => match self.store.query(now, query) {
                Ok(found) => Answer::Found { read_time: found.read_time, docs: found.docs },
                Err(_) => Answer::Rejected(Rejection::Invalid),
            },
            StoreCall::Commit(writes) => {
                let before = self.store.clone();
                match self.store.commit(now, writes) {
                    Ok(done) => {
                        self.accept(&before, writes, pending.about.as_ref());
                        Answer::Committed { commit_time: done.commit_time, versions: done.versions }
                    }
                    Err(StoreError::Conflict(_)) => Answer::Conflict,
                    Err(_) => Answer::Rejected(Rejection::Invalid),
                }
            }
        }
    }

    /// A commit was applied: S1 and S3.
    fn accept(&mut self, before: &SimStore, writes: &[Write], about: Option<&(AccountId, u64)>) {
        for write in writes {
            let path = &write.path;
            let dead = |store: &SimStore| {
                store.document(path).is_some_and(|doc| doc.str("state") == Some("dead"))
            };
            if path.as_str().starts_with("instances/")
                && write.op != WriteOp::Delete
                && dead(before)
                && !dead(&self.store)
            {
                self.breaks(Broken::Revived);
            }
            let owned = path.as_str() == "coordination/lock" || path.id() == "connection";
            if !owned || write.op == WriteOp::Verify {
                continue;
            }
            let state = |store: &SimStore| {
                let doc = store.document(path);
                let epoch = doc.and_then(|doc| doc.count("epoch")).unwrap_or(0);
                (epoch, doc.and_then(|doc| doc.str("owner").map(str::to_owned)))
            };
            let (old, new) = (state(before), state(&self.store));
            if new.0 < old.0 || (new.1.is_some() && new.1 != old.1 && new.0 == old.0) {
                self.breaks(Broken::EpochFell);
            }
            let account = self.accounts.iter().find(|id| id.connection_path() == *path);
            if let (Some(id), true) = (account, new.0 > old.0) {
                if old.1.is_some() {
                    self.reached.insert(Reached::Takeover);
                }
                self.accepted.insert(id.clone(), new.0);
            }
        }
        if let Some((id, epoch)) = about {
            let latest = self.accepted.entry(id.clone()).or_insert(0);
            let stale = *epoch < *latest;
            *latest = (*latest).max(*epoch);
            if stale {
                self.breaks(Broken::StaleWrite);
            }
        }
    }

    /// Gives a process something, and takes what it wants.
    fn feed(&mut self, n: usize, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let now = self.now;
            let Some(node) = self.node(n) else { return };
            let mono = node.mono(now);
            let Some(core) = node.core.as_mut() else { return };
            let held_before = covers(core);
            let passive_before = matches!(core.mode(), Mode::Passive(_));
            if let Input::Answer(id, Answer::Committed { .. } | Answer::Rejected(_)) = &input {
                node.unread.retain(|_, request| request != id);
            }
            core.handle_input(mono, input);
            let mut outputs = Vec::new();
            let mut asleep = false;
            loop {
                let due = core.poll_timeout();
                let Some(output) = core.poll_output() else { break };
                asleep |= due.is_none_or(|(at, _)| at > mono);
                outputs.push(output);
            }
            let held_after = covers(core);
            let passive = passive_before && matches!(core.mode(), Mode::Passive(_));
            let stopped = outputs.contains(&Output::Stopped);
            if asleep {
                self.breaks(Broken::Asleep);
            }
            for output in outputs {
                let cover =
                    |id: &AccountId| held_after.get(id).or_else(|| held_before.get(id)).copied();
                match output {
                    Output::Event(Event::UnknownOutcome { .. }) => {
                        self.reached.insert(Reached::Unknown);
                    }
                    Output::Event(Event::DeadMarked { .. }) => {
                        self.reached.insert(Reached::DeadMark);
                    }
                    Output::Event(_) | Output::Reply(..) | Output::Stopped => {}
                    Output::Gateway(request) => {
                        self.judge_gateway(&request, passive, cover(&request.account));
                        inputs.extend(self.gateway(n, mono, request));
                    }
                    Output::Store(request) => self.send(n, request, passive, cover),
                }
            }
            if stopped && let Some(node) = self.node(n) {
                node.core = None;
                node.connections.clear();
                node.pending.clear();
                node.unread.clear();
            }
        }
    }

    /// S5 and S6 of what is asked of the gateway.
    fn judge_gateway(
        &mut self,
        request: &GatewayRequest,
        passive: bool,
        cover: Option<(u64, Mono)>,
    ) {
        if matches!(request.call, GatewayCall::Close { .. }) {
            return;
        }
        if passive {
            self.breaks(Broken::Passive);
        }
        if cover.is_none_or(|(_, until)| request.not_after > until) {
            self.breaks(Broken::Uncovered);
        }
    }

    fn gateway(&mut self, n: usize, mono: Mono, request: GatewayRequest) -> Vec<Input> {
        let GatewayRequest { id, account, not_after, call } = request;
        let Some(node) = self.node(n) else { return Vec::new() };
        if mono > not_after {
            return vec![Input::Answer(id, Answer::Rejected(Rejection::Expired))];
        }
        match call {
            GatewayCall::Connect => {
                node.connections.insert(account.clone(), id);
                self.reached.insert(Reached::Connected);
                let opened = GatewayEvent::Opened { connection: id };
                vec![Input::Answer(id, Answer::Done), Input::Gateway(account, opened)]
            }
            GatewayCall::Close { connection } => {
                if node.connections.get(&account) == Some(&connection) {
                    node.connections.remove(&account);
                }
                let closed = GatewayEvent::Closed { connection, reason: CloseReason::Asked };
                vec![Input::Answer(id, Answer::Done), Input::Gateway(account, closed)]
            }
            GatewayCall::Recover => vec![Input::Answer(id, Answer::Done)],
            _ => vec![Input::Answer(id, Answer::Rejected(Rejection::Unavailable))],
        }
    }

    /// A request to the store goes out: S5, S6 and S9.
    fn send(
        &mut self,
        n: usize,
        request: StoreRequest,
        passive: bool,
        cover: impl Fn(&AccountId) -> Option<(u64, Mono)>,
    ) {
        let StoreRequest { id, not_after, lane, call } = request;
        let mut pending = Pending { id, not_after, call, about: None };
        let mut broken = Vec::new();
        if let StoreCall::Commit(writes) = &pending.call {
            let own = |path: &str| {
                path.starts_with("instances/")
                    || path == "coordination/lock"
                    || path == "wa_metrics/longrun/locks/wa_connection"
            };
            if passive && !writes.iter().all(|write| own(write.path.as_str())) {
                broken.push(Broken::Passive);
            }
            let about = self.accounts.iter().find(|account| {
                let root = account.path();
                writes.iter().any(|write| {
                    let rest = write.path.as_str().strip_prefix(root.as_str());
                    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
                        && (write.path.id() != "connection" || write.op == WriteOp::Verify)
                })
            });
            if let Some(account) = about {
                match cover(account) {
                    Some((epoch, until)) => {
                        pending.about = Some((account.clone(), epoch));
                        if not_after > until {
                            broken.push(Broken::Uncovered);
                        }
                    }
                    None => broken.push(Broken::Uncovered),
                }
            }
        }
        let node = Arc::make_mut(&mut self.nodes[n]);
        match &pending.call {
            StoreCall::Commit(_) if lane == Lane::Lease => {
                let head = pending.head().cloned();
                if head.is_some_and(|head| node.unread.insert(head, id).is_some()) {
                    broken.push(Broken::Unread);
                }
            }
            StoreCall::Get(paths) => {
                for path in paths {
                    node.unread.remove(path);
                }
            }
            StoreCall::Commit(_) | StoreCall::Query(_) => {}
        }
        node.pending.push_back(pending);
        for broken in broken {
            self.breaks(broken);
        }
    }

    /// S2 and S4, at this instant.
    fn check(&mut self) {
        let mut owners: BTreeMap<Option<&AccountId>, u32> = BTreeMap::new();
        let mut connections: BTreeMap<&AccountId, u32> = BTreeMap::new();
        for node in &self.nodes {
            let Some(core) = &node.core else { continue };
            let mono = node.mono(self.now);
            for (account, belief) in core.beliefs() {
                *owners.entry(Some(account)).or_insert(0) += u32::from(mono < belief.until);
            }
            if let Some(belief) = core.lock_belief() {
                *owners.entry(None).or_insert(0) += u32::from(mono < belief.until);
            }
            if !node.paused {
                for account in node.connections.keys() {
                    *connections.entry(account).or_insert(0) += 1;
                }
            }
        }
        let two_owners = owners.values().any(|n| *n > 1);
        let two_connections = connections.values().any(|n| *n > 1);
        if two_owners {
            self.breaks(Broken::TwoOwners);
        }
        if two_connections {
            self.breaks(Broken::TwoConnections);
        }
    }

    fn breaks(&mut self, broken: Broken) {
        self.broken.get_or_insert(broken);
    }
}

impl Node {
    fn mono(&self, real: u64) -> Mono {
        let drift = i128::from(real) * i128::from(self.rate_ppm) / 1_000_000;
        Mono::from_millis(u64::try_from(i128::from(real) + drift).unwrap_or(0))
    }

    /// The first millisecond at which the node's clock has reached `mono`.
    fn real(&self, mono: Mono) -> u64 {
        let ms = i128::from(mono.as_millis());
        let estimate = ms * 1_000_000 / i128::from(1_000_000 + self.rate_ppm);
        let mut real = u64::try_from(estimate).unwrap_or(u64::MAX).saturating_sub(2);
        while self.mono(real) < mono && real < u64::MAX / 4 {
            real += 1;
        }
        real
    }
}

impl Pending {
    /// The document whose version the whole commit depends on.
    fn head(&self) -> Option<&DocPath> {
        let StoreCall::Commit(writes) = &self.call else { return None };
        writes.first().map(|write| &write.path)
    }
}

/// What a core believes to own, with epoch and end.
fn covers(core: &Instance) -> BTreeMap<AccountId, (u64, Mono)> {
    core.beliefs().map(|(id, belief)| (id.clone(), (belief.epoch.0, belief.until))).collect()
}

const EPOCH: StoreTime = StoreTime::from_secs(1_000_000);
const MOST_FLYING: usize = 3;
