//! A few instances over one store, in a world where nothing goes wrong unless a test says so.

use backfill_core::doc::{DocPath, Document, FieldOp, FieldPath, Precondition, Value, Write};
use backfill_core::id::{AccountId, InstanceId, RequestId};
use backfill_core::instance::Instance;
use backfill_core::io::{
    Answer, CloseReason, Command, CommandId, Event, GatewayCall, GatewayEvent, GatewayRequest,
    Hint, Input, Lane, Mode, Output, Rejection, Reply, StoreCall, StoreRequest,
};
use backfill_core::policy::{Credentials, Policy, Settings};
use backfill_core::time::{Mono, StoreTime};
use sim::store::SimStore;
use std::time::Duration;

/// Every answer comes at once, and connections open and close as they are told.
pub(crate) struct Rig {
    pub(crate) store: SimStore,
    pub(crate) nodes: Vec<Node>,
    now: u64,
}

/// One process.
pub(crate) struct Node {
    pub(crate) instance: Instance,
    /// What the gateway was asked, and when, in milliseconds
    pub(crate) calls: Vec<(u64, GatewayRequest)>,
    /// What the store was asked
    pub(crate) asked: Vec<StoreRequest>,
    pub(crate) events: Vec<(u64, Event)>,
    pub(crate) replies: Vec<(CommandId, Reply)>,
    pub(crate) stopped: bool,
    /// Connections open by themselves; otherwise the test says what becomes of them
    pub(crate) opens: bool,
    /// The gateway carries out and answers a call to close
    pub(crate) closes: bool,
    /// What the gateway answers to calls other than to close; `None`: the test answers
    pub(crate) answers: fn(&GatewayCall) -> Option<Answer>,
    /// Store requests for which this is true wait until the test answers them
    pub(crate) holds: fn(&StoreRequest) -> bool,
    pub(crate) held: Vec<StoreRequest>,
    /// Changes in the store are told to it
    pub(crate) hinted: bool,
    commands: u64,
}

/// The store's time when the clocks of all processes show zero.
const BEGINNING: StoreTime = StoreTime::from_secs(1_800_000_000);

impl Rig {
    pub(crate) fn new(settings: impl IntoIterator<Item = Settings>) -> Self {
        let nodes = settings.into_iter().enumerate().map(|(i, settings)| {
            let policy = Policy::new(settings).expect("settings that fit together");
            Node {
                instance: Instance::new(policy, [i as u8 + 1; 32], Mono::from_millis(0)),
                calls: Vec::new(),
                asked: Vec::new(),
                events: Vec::new(),
                replies: Vec::new(),
                stopped: false,
                opens: true,
                closes: true,
                answers: |call| match call {
                    GatewayCall::History { .. } => Some(Answer::Rejected(Rejection::Unavailable)),
                    _ => Some(Answer::Done),
                },
                holds: |_| false,
                held: Vec::new(),
                hinted: false,
                commands: 0,
            }
        });
        Self { store: SimStore::new(), nodes: nodes.collect(), now: 0 }
    }

    /// One process in exclusive mode, with the credentials of every account.
    pub(crate) fn exclusive() -> Self {
        let credentials = Credentials::Shared;
        Self::new([Settings { credentials, ..Settings::exclusive(label(0)) }])
    }

    /// How long it has been running, in milliseconds.
    pub(crate) fn now(&self) -> u64 {
        self.now
    }

    pub(crate) fn time(&self) -> StoreTime {
        BEGINNING + Duration::from_millis(self.now)
    }

    /// Writes as somebody who is no instance would; whoever is told of changes is told.
    pub(crate) fn write(&mut self, path: &DocPath, fields: &[(&'static str, Value)]) {
        let fields = fields
            .iter()
            .map(|(name, value)| (FieldPath::new(name), FieldOp::from(value.clone())))
            .collect();
        self.commit(&[Write::merge(path.clone(), Precondition::Any, fields)]);
    }

    pub(crate) fn put(&mut self, path: &DocPath, fields: Vec<(FieldPath, FieldOp)>) {
        self.commit(&[Write::merge(path.clone(), Precondition::Any, fields)]);
    }

    pub(crate) fn delete(&mut self, path: &DocPath) {
        self.commit(&[Write::delete(path.clone(), Precondition::Any)]);
    }

    /// An account as somebody adds it through HTTP, or as it has been.
    pub(crate) fn add_account(&mut self, number: u16, status: &'static str) -> AccountId {
        let id = AccountId::parse(format!("account_dev_{number:08}")).unwrap();
        self.write(&id.path(), &[("name", "A".into()), ("status", status.into())]);
        id
    }

    pub(crate) fn doc(&self, path: &DocPath) -> Option<&Document> {
        self.store.document(path).map(|doc| &**doc)
    }

    pub(crate) fn status(&self, account: &AccountId) -> Option<&str> {
        self.doc(&account.path())?.str("status")
    }

    /// Which process owns an account, by its session.
    pub(crate) fn owner(&self, account: &AccountId) -> Option<usize> {
        let doc = self.doc(&account.connection_path())?;
        let owner = doc.str("owner")?;
        self.nodes.iter().position(|node| node.instance.boot().as_str() == owner)
    }

    pub(crate) fn give(&mut self, node: usize, input: Input) {
        let now = Mono::from_millis(self.now);
        self.nodes[node].instance.handle_input(now, input);
        self.drain(node);
    }

    pub(crate) fn tell(&mut self, node: usize, account: &AccountId, event: GatewayEvent) {
        self.give(node, Input::Gateway(account.clone(), event));
    }

    pub(crate) fn command(&mut self, node: usize, command: Command) -> Reply {
        self.nodes[node].commands += 1;
        let id = CommandId(self.nodes[node].commands);
        self.give(node, Input::Command(id, command));
        let reply = self.nodes[node].replies.iter().find(|(replied, _)| *replied == id);
        reply.expect("every command is answered at once").1.clone()
    }

    /// Answers a request of the store that was held back, as the store is now.
    pub(crate) fn release(&mut self, node: usize, request: &StoreRequest) {
        let answer = self.serve(request);
        self.give(node, Input::Answer(request.id, answer));
    }

    /// Lets so much time pass.
    pub(crate) fn pass(&mut self, ms: u64) {
        let end = self.now + ms;
        loop {
            let due = |node: &Node| node.instance.poll_timeout().map(|(at, _)| at.as_millis());
            let next = self.nodes.iter().filter(|node| !node.stopped).filter_map(due).min();
            let at = next.filter(|at| *at <= end);
            self.now = self.now.max(at.unwrap_or(end));
            for node in 0..self.nodes.len() {
                if !self.nodes[node].stopped {
                    self.give(node, Input::Timeout);
                }
            }
            if at.is_none() {
                return;
            }
        }
    }

    /// Lets time pass until something is so.
    ///
    /// # Panics
    /// If it does not come about within `ms`.
    pub(crate) fn until(&mut self, ms: u64, mut so: impl FnMut(&Self) -> bool) {
        let end = self.now + ms;
        while !so(self) {
            assert!(self.now < end, "it did not come about within {ms} ms");
            self.pass(50);
        }
    }

    fn commit(&mut self, writes: &[Write]) -> Answer {
        let now = self.time();
        let Ok(done) = self.store.commit(now, writes) else { return Answer::Conflict };
        let touches = |collection: &str| {
            writes.iter().any(|w| {
                !matches!(w.op, backfill_core::doc::WriteOp::Verify)
                    && w.path.collection().as_str() == collection
            })
        };
        for (collection, hint) in
            [("accounts", Hint::Accounts), ("coordination", Hint::Lock), ("outbox", Hint::Outbox)]
        {
            for node in 0..self.nodes.len() {
                if touches(collection) && self.nodes[node].hinted && !self.nodes[node].stopped {
                    let now = Mono::from_millis(self.now);
                    // What it wants then lies in its queue until its next turn.
                    self.nodes[node].instance.handle_input(now, Input::Hint(hint));
                }
            }
        }
        Answer::Committed { commit_time: done.commit_time, versions: done.versions }
    }

    fn serve(&mut self, request: &StoreRequest) -> Answer {
        if Mono::from_millis(self.now) > request.not_after {
            return Answer::Rejected(Rejection::Expired);
        }
        let now = self.time();
        match &request.call {
            StoreCall::Commit(writes) => self.commit(writes),
            StoreCall::Get(paths) => {
                let read = self.store.get(now, paths);
                Answer::Read { read_time: read.read_time, docs: read.docs }
            }
            StoreCall::Query(query) => {
                let found = self.store.query(now, query).expect("a valid query");
                Answer::Found { read_time: found.read_time, docs: found.docs }
            }
        }
    }

    fn drain(&mut self, node: usize) {
        while let Some(output) = self.nodes[node].instance.poll_output() {
            let it = &mut self.nodes[node];
            match output {
                Output::Event(event) => it.events.push((self.now, event)),
                Output::Reply(id, reply) => it.replies.push((id, reply)),
                Output::Stopped => it.stopped = true,
                Output::Store(request) => {
                    it.asked.push(request.clone());
                    if (it.holds)(&request) {
                        it.held.push(request);
                        continue;
                    }
                    let answer = self.serve(&request);
                    let now = Mono::from_millis(self.now);
                    let it = &mut self.nodes[node];
                    it.instance.handle_input(now, Input::Answer(request.id, answer));
                }
                Output::Gateway(request) => self.gateway(node, request),
            }
        }
    }

    fn gateway(&mut self, node: usize, request: GatewayRequest) {
        let (now, mono) = (self.now, Mono::from_millis(self.now));
        let it = &mut self.nodes[node];
        it.calls.push((now, request.clone()));
        let GatewayRequest { id, account, call, .. } = request;
        let closed = |connection| GatewayEvent::Closed { connection, reason: CloseReason::Asked };
        let mut give = |input| it.instance.handle_input(mono, input);
        match call {
            GatewayCall::Connect => {
                let answer = (it.answers)(&call);
                let opens = it.opens && answer == Some(Answer::Done);
                if let Some(answer) = answer {
                    give(Input::Answer(id, answer));
                }
                if opens {
                    give(Input::Gateway(account.clone(), GatewayEvent::Opened { connection: id }));
                    let drained = GatewayEvent::Drained { connection: id, announced: 0, stored: 0 };
                    give(Input::Gateway(account, drained));
                }
            }
            GatewayCall::Close { connection } => {
                if it.closes {
                    give(Input::Answer(id, Answer::Done));
                    give(Input::Gateway(account, closed(connection)));
                }
            }
            call => {
                if let Some(answer) = (it.answers)(&call) {
                    give(Input::Answer(id, answer));
                }
            }
        }
    }
}

impl Node {
    pub(crate) fn is_active(&self) -> bool {
        self.instance.mode() == Mode::Active
    }

    /// The calls of the gateway that are of interest, with the time and what they are called.
    pub(crate) fn called<T>(
        &self,
        of_interest: impl Fn(&GatewayCall) -> Option<T>,
    ) -> Vec<(u64, RequestId, T)> {
        let calls = self.calls.iter();
        calls.filter_map(|(at, r)| Some((*at, r.id, of_interest(&r.call)?))).collect()
    }

    /// When connections of an account were opened, and as what.
    pub(crate) fn connects(&self, account: &AccountId) -> Vec<(u64, RequestId)> {
        self.calls
            .iter()
            .filter(|(_, r)| r.account == *account && r.call == GatewayCall::Connect)
            .map(|(at, r)| (*at, r.id))
            .collect()
    }

    /// When a connection was told to close.
    pub(crate) fn closings(&self, of: RequestId) -> Vec<u64> {
        self.calls
            .iter()
            .filter(|(_, r)| r.call == GatewayCall::Close { connection: of })
            .map(|(at, _)| *at)
            .collect()
    }

    /// The queries of a collection, with the lane they were sent in.
    pub(crate) fn queries(&self, collection: &str) -> Vec<(Lane, &StoreRequest)> {
        self.asked
            .iter()
            .filter(
                |r| matches!(&r.call, StoreCall::Query(q) if q.collection.as_str() == collection),
            )
            .map(|r| (r.lane, r))
            .collect()
    }
}

pub(crate) fn label(number: u8) -> InstanceId {
    InstanceId::parse(format!("i{number}")).unwrap()
}
