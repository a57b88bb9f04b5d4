//! A whole instance under arbitrary input: it never panics, never sleeps on output, does the same
//! again for the same input, and every request is answered or given up once.

use std::collections::BTreeMap;
use std::sync::Arc;

use backfill_core::coverage::{Mark, PageEnd};
use backfill_core::doc::{DocPath, Document, Value, Version};
use backfill_core::id::{AccountId, InstanceId, RequestId, ThreadId};
use backfill_core::instance::Instance;
use backfill_core::io::{
    Answer, ChunkCounts, ChunkId, CloseReason, Command, CommandId, GatewayCall, GatewayEvent,
    GatewayRequest, Hint, Ingested, Input, Output, PageFacts, Rejection, Source, StoreCall,
    StoreRequest, ThreadSpan,
};
use backfill_core::policy::{Policy, Settings};
use backfill_core::time::{Mono, StoreTime};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use sim::store::SimStore;

use crate::cases;

/// One input; what it names is chosen from what the instance has asked for and opened so far.
#[derive(Clone, Debug)]
enum Step {
    /// What the store holds for a request answers it
    Answer(Index),
    /// Anything answers some request, or one that never was
    AnswerAnyhow(Option<Index>, u8),
    Command(u8),
    Credentials(bool),
    /// So many requests are answered in their order, and connections open
    Flow(u8),
    Gateway(Index, u8, i64),
    Hint(u8),
    /// Somebody writes nonsense into a document that the instance has asked for
    Spoil(Index, u8, Value),
    Wait(i64),
}

fn step() -> impl Strategy<Value = Step> {
    let any_index = any::<Index>;
    prop_oneof![
        12 => any_index().prop_map(Step::Answer),
        3 => (prop::option::of(any_index()), any::<u8>())
            .prop_map(|(i, n)| Step::AnswerAnyhow(i, n)),
        3 => any::<u8>().prop_map(Step::Command),
        4 => (0_u8..40).prop_map(Step::Flow),
        1 => any::<bool>().prop_map(Step::Credentials),
        5 => (any_index(), any::<u8>(), number()).prop_map(|(i, n, m)| Step::Gateway(i, n, m)),
        1 => any::<u8>().prop_map(Step::Hint),
        2 => (any_index(), any::<u8>(), value()).prop_map(|(i, n, v)| Step::Spoil(i, n, v)),
        6 => prop_oneof![
            6 => 0_i64..60_000,
            1 => 0_i64..4_000_000_000,
            1 => -100_000_i64..0,
            1 => Just(i64::MAX),
        ].prop_map(Step::Wait),
    ]
}

fn number() -> impl Strategy<Value = i64> {
    prop_oneof![Just(i64::MIN), Just(i64::MAX), Just(0), -5_i64..5, any::<i64>()]
}

pub(crate) fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        number().prop_map(Value::Int),
        number().prop_map(|us| Value::Timestamp(StoreTime::from_micros(us))),
        "[a-z#:/_]{0,24}".prop_map(Value::from),
        Just(Value::from("dead")),
        Just(Value::from("connected")),
    ];
    leaf.prop_recursive(2, 8, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::Array),
            vec(("[a-z]{1,6}", inner), 0..4).prop_map(Value::map),
        ]
    })
}

/// The fields that decisions read.
const FIELDS: [&str; 24] = [
    "askedAt",
    "attempt",
    "attemptCount",
    "autoBackfillLeaseHolder",
    "autoBackfillLeaseUntil",
    "beat",
    "boot",
    "connectedBoot",
    "disconnectedSince",
    "epoch",
    "gapSeq",
    "gaps",
    "holderInstanceId",
    "lastAutoBackfillAttemptAt",
    "lastAutoBackfillStatus",
    "leaseUntil",
    "live",
    "owner",
    "since",
    "spoolCursor",
    "state",
    "status",
    "threadGaps",
    "ttlMs",
];

/// An instance, its store, and all it has asked for and not been answered.
pub(crate) struct Rig {
    instance: Instance,
    pub(crate) store: SimStore,
    now: u64,
    asked: Vec<StoreRequest>,
    wanted: Vec<GatewayRequest>,
    /// When each request was made, and how long its answer is waited for
    sent: BTreeMap<RequestId, (u64, Option<u64>)>,
    opened: Vec<RequestId>,
    known: Vec<DocPath>,
    highest: u64,
    log: String,
}

pub(crate) const NOW: StoreTime = StoreTime::from_secs(1_800_000_000);

pub(crate) fn account() -> AccountId {
    AccountId::parse("account_dev_0").expect("a path segment")
}

pub(crate) fn thread(n: i64) -> ThreadId {
    let jid = if n % 2 == 0 { "[object Object]" } else { "40711111111@s.whatsapp.net" };
    ThreadId::of_chat(&account(), jid).expect("a path segment")
}

impl Rig {
    pub(crate) fn new(shared: bool, beginning: u64) -> Self {
        let label = InstanceId::parse("i").expect("a path segment");
        let settings =
            if shared { Settings::shared(label, "c") } else { Settings::exclusive(label) };
        let policy = Policy::new(settings).expect("the defaults fit together");
        let mut store = SimStore::new();
        for path in [account().path(), thread(1).path()] {
            let fields = vec![
                ("accountId".into(), Value::from(account().text()).into()),
                ("foreign".into(), Value::from("kept").into()),
                ("lastMessageAt".into(), Value::Timestamp(NOW).into()),
                ("status".into(), Value::from("connecting").into()),
            ];
            let write = backfill_core::doc::Write::merge(
                path,
                backfill_core::doc::Precondition::Any,
                fields,
            );
            store.commit(NOW, &[write]).expect("a valid commit");
        }
        let mut rig = Self {
            instance: Instance::new(policy, [3; 32], Mono::from_millis(beginning)),
            store,
            now: beginning,
            asked: Vec::new(),
            wanted: Vec::new(),
            sent: BTreeMap::new(),
            opened: Vec::new(),
            known: vec![account().path()],
            highest: 0,
            log: String::new(),
        };
        rig.give(Input::Credentials(account(), true));
        rig
    }

    /// Answers requests in their order, at most so many, and says how many there were.
    pub(crate) fn flow(&mut self, most: u32) -> u32 {
        for answered in 0..most {
            if self.asked.is_empty() && self.wanted.is_empty() {
                return answered;
            }
            self.take(&Step::Flow(1));
        }
        most
    }

    pub(crate) fn wait(&mut self, ms: i64) {
        self.take(&Step::Wait(ms));
    }

    /// Answers a request. If it has been given up, that changes nothing, and if the same answer
    /// comes again, that changes nothing either.
    fn answer(&mut self, id: RequestId, answer: Answer) {
        let odd = self.log.contains("back") || self.now > u64::MAX / 4;
        if let Some((sent, Some(patience))) = self.sent.get(&id).copied()
            && !odd
            && self.now > sent + patience
        {
            self.give(Input::Timeout);
            self.give_in_vain(id, &answer);
            return;
        }
        self.give(Input::Answer(id, answer.clone()));
        if !odd {
            self.give_in_vain(id, &answer);
        }
    }

    fn give_in_vain(&mut self, id: RequestId, answer: &Answer) {
        let mut double = self.instance.clone();
        double.handle_input(Mono::from_millis(self.now), Input::Answer(id, answer.clone()));
        assert_eq!(double.poll_output(), None, "request {id:?} was answered already");
        assert!(double == self.instance, "request {id:?} was answered already");
    }

    pub(crate) fn give(&mut self, input: Input) {
        let now = Mono::from_millis(self.now);
        self.instance.handle_input(now, input);
        loop {
            let due = self.instance.poll_timeout();
            let Some(output) = self.instance.poll_output() else { break };
            assert!(
                due.is_some_and(|(at, _)| at <= now || self.log.contains("back")),
                "output waits until {due:?} at {now:?}"
            );
            self.log.push_str(&format!("{output:?}\n"));
            match output {
                Output::Store(request) => {
                    assert!(request.id.0 > self.highest, "requests are numbered upwards");
                    self.highest = request.id.0;
                    let patience = match request.call {
                        StoreCall::Commit(_) => self.instance.policy().write_timeout,
                        StoreCall::Get(_) | StoreCall::Query(_) => {
                            self.instance.policy().read_timeout
                        }
                    };
                    let patience = Some(patience.as_millis() as u64);
                    self.sent.insert(request.id, (self.now, patience));
                    match &request.call {
                        StoreCall::Commit(writes) => {
                            self.known.extend(writes.iter().map(|write| write.path.clone()));
                        }
                        StoreCall::Get(paths) => self.known.extend(paths.iter().cloned()),
                        StoreCall::Query(_) => {}
                    }
                    self.asked.push(request);
                }
                Output::Gateway(request) => {
                    assert!(request.id.0 > self.highest, "requests are numbered upwards");
                    self.highest = request.id.0;
                    if matches!(request.call, GatewayCall::Connect | GatewayCall::History { .. }) {
                        self.opened.push(request.id);
                    }
                    // How long a chunk takes depends on its size.
                    let endless = matches!(
                        request.call,
                        GatewayCall::Parse { .. }
                            | GatewayCall::Spool { .. }
                            | GatewayCall::Unspool { .. }
                    );
                    let patience = (!endless).then_some(GATEWAY_TIMEOUT);
                    self.sent.insert(request.id, (self.now, patience));
                    self.wanted.push(request);
                }
                Output::Event(_) | Output::Reply(..) | Output::Stopped => {}
            }
        }
        if let Some((at, reason)) = self.instance.poll_timeout() {
            let late = self.now > u64::MAX / 4;
            assert!(at > now || late || self.log.contains("back"), "due at once: {reason:?}");
        }
    }

    fn time(&self) -> StoreTime {
        NOW + std::time::Duration::from_millis(self.now)
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Answer(index) => {
                let all = self.asked.len() + self.wanted.len();
                if all == 0 {
                    return;
                }
                let at = index.index(all);
                if at < self.asked.len() {
                    let request = self.asked.remove(at);
                    let answer = self.serve(&request.call);
                    self.answer(request.id, answer);
                } else {
                    let request = self.wanted.remove(at - self.asked.len());
                    self.answer(request.id, Answer::Done);
                }
            }
            Step::AnswerAnyhow(index, n) => {
                let ids: Vec<RequestId> = self.asked.iter().map(|request| request.id).collect();
                let id = match index {
                    Some(index) if !ids.is_empty() => ids[index.index(ids.len())],
                    _ => RequestId(u64::from(*n) * 7),
                };
                let doc = Arc::new(Document {
                    path: account().path(),
                    fields: [("boot".into(), Value::Int(-1))].into(),
                    version: Version(-1),
                    update_time: StoreTime::from_micros(i64::MIN),
                });
                let read_time = StoreTime::from_micros(if n % 2 == 0 { i64::MIN } else { 0 });
                let answer = match n % 9 {
                    0 => Answer::Committed { commit_time: read_time, versions: Vec::new() },
                    1 => Answer::Conflict,
                    2 => Answer::Done,
                    3 => Answer::Found { read_time, docs: vec![doc] },
                    4 => Answer::Read { read_time, docs: Vec::new() },
                    5 => Answer::Read { read_time, docs: vec![Some(doc); 9] },
                    6 => Answer::Rejected(Rejection::Denied),
                    7 => Answer::Rejected(Rejection::Expired),
                    _ => Answer::Unknown,
                };
                self.give(Input::Answer(id, answer));
            }
            Step::Command(n) => {
                let command = match n % 64 {
                    0 => Command::Stop,
                    1..=3 => Command::RegenerateQr(account()),
                    4 => Command::DeleteAccount(account()),
                    _ => Command::Backfill(account()),
                };
                self.give(Input::Command(CommandId(u64::from(*n)), command));
            }
            Step::Credentials(here) => self.give(Input::Credentials(account(), *here)),
            Step::Flow(most) => {
                for _ in 0..*most {
                    if !self.asked.is_empty() {
                        let request = self.asked.remove(0);
                        let answer = self.serve(&request.call);
                        self.answer(request.id, answer);
                    } else if !self.wanted.is_empty() {
                        let request = self.wanted.remove(0);
                        self.answer(request.id, Answer::Done);
                        if request.call == GatewayCall::Connect {
                            let opened = GatewayEvent::Opened { connection: request.id };
                            self.give(Input::Gateway(account(), opened));
                        }
                    }
                }
            }
            Step::Gateway(index, n, number) => {
                let connection = match self.opened.len() {
                    0 => RequestId(u64::from(*n)),
                    // Mostly the latest: the others are over.
                    len if n % 4 > 0 => self.opened[len - 1],
                    len => self.opened[index.index(len)],
                };
                self.gateway(connection, *n, *number);
            }
            Step::Hint(n) => {
                let hint = [Hint::Accounts, Hint::Lock, Hint::Outbox][usize::from(n % 3)];
                self.give(Input::Hint(hint));
            }
            Step::Spoil(index, n, value) => {
                let path = self.known[index.index(self.known.len())].clone();
                let field = FIELDS[usize::from(*n) % FIELDS.len()];
                let write = backfill_core::doc::Write::merge(
                    path,
                    backfill_core::doc::Precondition::Any,
                    vec![(field.into(), value.clone().into())],
                );
                let _ = self.store.commit(self.time(), &[write]);
            }
            Step::Wait(ms) => {
                let next = self.now.saturating_add_signed(*ms);
                if next < self.now {
                    self.log.push_str("back\n");
                }
                self.now = next;
                self.give(Input::Timeout);
            }
        }
    }

    fn serve(&mut self, call: &StoreCall) -> Answer {
        let now = self.time();
        match call {
            StoreCall::Commit(writes) => match self.store.commit(now, writes) {
                Ok(done) => {
                    Answer::Committed { commit_time: done.commit_time, versions: done.versions }
                }
                Err(_) => Answer::Conflict,
            },
            StoreCall::Get(paths) => {
                let read = self.store.get(now, paths);
                Answer::Read { read_time: read.read_time, docs: read.docs }
            }
            StoreCall::Query(query) => match self.store.query(now, query) {
                Ok(found) => Answer::Found { read_time: found.read_time, docs: found.docs },
                Err(_) => Answer::Rejected(Rejection::Invalid),
            },
        }
    }

    fn gateway(&mut self, connection: RequestId, n: u8, number: i64) {
        let mark = Mark { second: number, id: Some("m".into()), from_me: false, participant: None };
        let span = ThreadSpan {
            thread: thread(number),
            twin: n.is_multiple_of(2).then(|| thread(number.wrapping_add(1))),
            low: mark.clone(),
            high: mark.clone(),
            messages: u32::MAX,
            end: PageEnd::Unstated,
        };
        let chunk = ChunkId(u64::from(n % 4));
        let ingested = |source| Ingested {
            source,
            messages: u32::MAX,
            threads: vec![span.clone(), span.clone()],
            newest_second: number,
        };
        let event = match n % 18 {
            0 => GatewayEvent::Chunk { chunk, spooled: number % 2 == 0 },
            1 => GatewayEvent::ChunkMissing { chunk },
            2 => GatewayEvent::Closed { connection, reason: CloseReason::Lost },
            3 => GatewayEvent::Closed { connection, reason: CloseReason::Replaced },
            4 => GatewayEvent::Closed { connection, reason: CloseReason::LoggedOut },
            5 => GatewayEvent::Closed { connection, reason: CloseReason::PairingExpired },
            6 => GatewayEvent::Drained { connection, announced: 3, stored: u32::from(n) },
            7 => GatewayEvent::IngestFailed { connection },
            8..=10 => GatewayEvent::Opened { connection },
            11 => {
                let page = PageFacts {
                    thread: thread(number),
                    oldest: Some(mark),
                    messages: 20,
                    end: PageEnd::MoreRemains,
                };
                GatewayEvent::Page { request: connection, page }
            }
            12 => GatewayEvent::Pairing { connection, qr: Some("q".into()), code: None },
            13 => GatewayEvent::Paired { connection },
            14 => GatewayEvent::Undecryptable { thread: thread(number), second: number },
            15 => {
                let source = Source::Chunk { chunk, cursor: u32::MAX };
                self.give(Input::Ingested(account(), ingested(source)));
                return;
            }
            16 => {
                let most = u32::MAX;
                let counts =
                    ChunkCounts { saved: most, skipped: most, errors: most, dry_run: false };
                GatewayEvent::ChunkStored { chunk, counts }
            }
            _ => {
                self.give(Input::Ingested(account(), ingested(Source::Realtime)));
                return;
            }
        };
        self.give(Input::Gateway(account(), event));
    }

    fn foreign_field(&self) -> Option<&str> {
        self.store.document(&account().path())?.str("foreign")
    }
}

/// How long the core waits for the gateway, in milliseconds.
const GATEWAY_TIMEOUT: u64 = 30_000;

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(256), ..ProptestConfig::default() })]

    #[test]
    fn nothing_upsets_an_instance(
        shared in any::<bool>(),
        beginning in prop_oneof![Just(0), 0_u64..1_000_000, Just(u64::MAX)],
        steps in vec(step(), 1..600),
    ) {
        let run = || {
            let mut rig = Rig::new(shared, beginning);
            for step in &steps {
                rig.take(step);
            }
            rig
        };
        let (once, again) = (run(), run());
        prop_assert_eq!(&once.log, &again.log, "the same inputs have the same outputs");
        prop_assert!(once.instance == again.instance);
        prop_assert_eq!(once.foreign_field(), Some("kept"));
    }
}
