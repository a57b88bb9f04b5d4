//! Messages on their way into the store: read, put together, commit, and only then acknowledge.
//!
//! Per account at most two tasks store at a time, one what arrives live and one history, each in
//! the order of arrival; live messages that wait for one another go into one batch. What is still
//! to be stored is bounded: beyond that the methods wait before they take anything.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backfill_core::coverage::PageEnd;
use backfill_core::id::{AccountId, RequestId, ThreadId};
use backfill_core::incoming::Record;
use backfill_core::ingest::{Batch, Facts, Rejected};
use backfill_core::io::{ChunkId, GatewayEvent, Ingested, Input, PageFacts, Source};
use backfill_core::jid::Twins;
use futures_channel::{mpsc, oneshot};
use futures_util::StreamExt;

use crate::calls::{Calls, reach};
use crate::handle::{Arrival, Handle};
use crate::ingest::Ingest;
use crate::permits::{Permit, Permits};
use crate::port::{Runtime, Store, StoreError};

/// Records of one account, to be stored together.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// Whose they are
    pub account: AccountId,
    /// What arrived, in order of arrival
    pub records: Vec<Record>,
    /// What is known of the account's twins
    pub twins: Arc<Twins>,
}

/// Why messages may not be acknowledged.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Withhold {
    /// Somebody else may own the account by now
    #[error("this process does not own the account any more")]
    NotOwner,
    /// They are not in the store
    #[error(transparent)]
    NotStored(#[from] NotStored),
}

/// Why messages are not stored, or not now.
#[derive(Clone, Debug, thiserror::Error)]
pub enum NotStored {
    /// The instance has ended
    #[error("the instance has ended")]
    Ended,
    /// The store failed again and again; this is what it said last
    #[error("the messages could not be stored: {0}")]
    Failed(Arc<StoreError>),
}

impl Handle {
    /// Stores what came live or from the offline queue over `connection`, and reports it. `Ok` means
    /// that it is durable, except for what is listed, which never can be, and may be acknowledged
    /// at this moment.
    ///
    /// # Errors
    /// It must not be acknowledged: the server is to deliver it again. If it could not be stored,
    /// that is reported as well, and the connection will be closed.
    pub async fn realtime(
        &self,
        connection: RequestId,
        parcel: Parcel,
    ) -> Result<Vec<Rejected>, Withhold> {
        let account = parcel.account.clone();
        let begun = self.now();
        let stored = self.store(Way::Live, parcel).await;
        self.note_realtime(begun);
        match stored {
            Ok(facts) if self.believes(&account) => Ok(facts.rejected),
            Ok(_) => Err(Withhold::NotOwner),
            Err(not_stored) => {
                self.report(account, GatewayEvent::IngestFailed { connection });
                Err(not_stored.into())
            }
        }
    }

    /// Stores what the phone sent of `thread` when asked for history, and reports it: as the answer
    /// to `request` if a request of this process is waiting for it. `end` tells whether the phone
    /// has older messages.
    ///
    /// # Errors
    /// It is not stored; whoever asked will ask again.
    pub async fn page(
        &self,
        request: Option<RequestId>,
        thread: ThreadId,
        end: PageEnd,
        parcel: Parcel,
    ) -> Result<Vec<Rejected>, NotStored> {
        let account = parcel.account.clone();
        let facts = self.store(Way::History, parcel).await?;
        match request {
            Some(request) => {
                let page = PageFacts::new(thread, &facts, end);
                self.report(account, GatewayEvent::Page { request, page });
            }
            None => self.ingested(account, Ingested::new(Source::LatePage, &facts, end)),
        }
        Ok(facts.rejected)
    }

    /// Stores one conversation of a history chunk, and reports that `cursor` conversations of the
    /// chunk are durable now. Gives what came of it.
    ///
    /// # Errors
    /// It is not stored.
    pub async fn conversation(
        &self,
        chunk: ChunkId,
        cursor: u32,
        end: PageEnd,
        parcel: Parcel,
    ) -> Result<Facts, NotStored> {
        let account = parcel.account.clone();
        let facts = self.store(Way::History, parcel).await?;
        self.ingested(account, Ingested::new(Source::Chunk { chunk, cursor }, &facts, end));
        Ok(facts)
    }

    async fn store(&self, way: Way, parcel: Parcel) -> Result<Facts, NotStored> {
        let intake = self.intake();
        let _room = intake.room.of(way).take().await;
        let Parcel { account, records, twins } = parcel;
        let (done, stored) = oneshot::channel();
        intake.push((account, way), Waiting { records, twins, done });
        stored.await.unwrap_or(Err(NotStored::Ended))
    }

    fn ingested(&self, account: AccountId, ingested: Ingested) {
        self.inbox().usual(Arrival::Input(Input::Ingested(account, ingested)));
    }
}

/// What waits to be stored.
pub(crate) struct Intake {
    /// An entry is there as long as its task is
    lanes: Mutex<BTreeMap<Lane, VecDeque<Waiting>>>,
    wake: mpsc::UnboundedSender<Lane>,
    room: PerWay,
}

/// The other end of an [`Intake`]: starts its tasks.
pub(crate) struct Woken(mpsc::UnboundedReceiver<Lane>);

type Lane = (AccountId, Way);

/// How messages come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    History,
    Live,
}

/// Permits for each way: history never keeps live messages waiting.
#[derive(Clone)]
struct PerWay {
    history: Permits,
    live: Permits,
}

impl PerWay {
    fn new(count: usize) -> Self {
        Self { history: Permits::new(count), live: Permits::new(count) }
    }

    const fn of(&self, way: Way) -> &Permits {
        match way {
            Way::History => &self.history,
            Way::Live => &self.live,
        }
    }
}

struct Waiting {
    records: Vec<Record>,
    twins: Arc<Twins>,
    done: oneshot::Sender<Result<Facts, NotStored>>,
}

impl Intake {
    pub(crate) fn new() -> (Self, Woken) {
        let (wake, woken) = mpsc::unbounded();
        (Self { lanes: Mutex::default(), wake, room: PerWay::new(PARCELS) }, Woken(woken))
    }

    /// Lets nothing more in, and gives up what waits.
    pub(crate) fn close(&self) {
        self.wake.close_channel();
        self.lanes().values_mut().for_each(VecDeque::clear);
    }

    fn push(&self, lane: Lane, waiting: Waiting) {
        let mut lanes = self.lanes();
        if let Some(queue) = lanes.get_mut(&lane) {
            queue.push_back(waiting);
        } else if self.wake.unbounded_send(lane.clone()).is_ok() {
            lanes.insert(lane, VecDeque::from([waiting]));
        }
    }

    /// Takes out what goes into the next batch; if there is nothing, the lane's task is to end.
    fn next(&self, lane: &Lane) -> Vec<Waiting> {
        let mut lanes = self.lanes();
        let Some(queue) = lanes.get_mut(lane) else { return Vec::new() };
        let mut next: Vec<Waiting> = queue.pop_front().into_iter().collect();
        let mut records = next.first().map_or(0, |first| first.records.len());
        while lane.1 == Way::Live
            && let Some(waiting) = queue.front()
            && records + waiting.records.len() <= LIVE_RECORDS
            && next.first().is_some_and(|first| first.twins == waiting.twins)
        {
            records += waiting.records.len();
            next.extend(queue.pop_front());
        }
        if next.is_empty() {
            lanes.remove(lane);
        }
        next
    }

    fn lanes(&self) -> MutexGuard<'_, BTreeMap<Lane, VecDeque<Waiting>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Woken {
    /// Starts a task for every lane that has something to store, until the intake is closed.
    pub(crate) async fn serve<S: Store, R: Runtime>(mut self, handle: Handle, calls: Calls<S, R>) {
        let at_once = PerWay::new(BATCHES_AT_ONCE);
        let ingest = Ingest::new(calls.clone(), REMEMBERED);
        while let Some(lane) = self.0.next().await {
            let (handle, calls, at_once) = (handle.clone(), calls.clone(), at_once.clone());
            let ingest = ingest.clone();
            let runtime = calls.runtime.clone();
            runtime.spawn(async move {
                loop {
                    let permit = at_once.of(lane.1).take().await;
                    let next = handle.intake().next(&lane);
                    if next.is_empty() {
                        return;
                    }
                    store_together(&handle, &calls, &ingest, &lane, next, permit).await;
                }
            });
        }
    }
}

/// Stores what several wait for as one batch, and tells each of them.
async fn store_together<S: Store, R: Runtime>(
    handle: &Handle,
    calls: &Calls<S, R>,
    ingest: &Ingest<Calls<S, R>>,
    (account, way): &Lane,
    parcels: Vec<Waiting>,
    _permit: Permit,
) {
    let mut records = Vec::new();
    let mut twins = Arc::default();
    let mut waiting = Vec::with_capacity(parcels.len());
    for parcel in parcels {
        let from = records.len();
        records.extend(parcel.records);
        waiting.push((from..records.len(), parcel.done));
        twins = parcel.twins;
    }
    let result = store(calls, ingest, account, records, &twins).await;
    if let (Way::Live, Ok(facts)) = (way, &result) {
        let ingested = Ingested::new(Source::Realtime, facts, PageEnd::Unstated);
        handle.ingested(account.clone(), ingested);
    }
    for (range, done) in waiting {
        let mine = |rejected: &Rejected| {
            let record = rejected.record.checked_sub(range.start)?;
            (record < range.len()).then_some(Rejected { record, ..*rejected })
        };
        let result = result.as_ref().map_err(NotStored::clone).map(|facts| Facts {
            threads: facts.threads.clone(),
            rejected: facts.rejected.iter().filter_map(mine).collect(),
        });
        // Whoever waited may have left; the messages are stored all the same.
        done.send(result).ok();
    }
}

/// Stores records of one account, and tries again when something goes wrong, but not for ever.
async fn store<S: Store, R: Runtime>(
    calls: &Calls<S, R>,
    ingest: &Ingest<Calls<S, R>>,
    account: &AccountId,
    records: Vec<Record>,
    twins: &Arc<Twins>,
) -> Result<Facts, NotStored> {
    let mut patience = Patience { failures: 0 };
    let now = loop {
        match calls.store_time().await {
            Ok(now) => break now,
            Err(error) => patience.failed(&calls.runtime, error).await?,
        }
    };
    let mut batch = Batch::new(account, records, now, twins);
    loop {
        match ingest.store(now, &mut batch).await {
            Ok(facts) => return Ok(facts),
            Err(error) => patience.failed(&calls.runtime, error).await?,
        }
    }
}

/// How much more goes wrong before a batch is given up.
struct Patience {
    failures: u32,
}

impl Patience {
    async fn failed<R: Runtime>(
        &mut self,
        runtime: &R,
        error: StoreError,
    ) -> Result<(), NotStored> {
        self.failures += 1;
        if self.failures >= FAILURES {
            return Err(NotStored::Failed(Arc::new(error)));
        }
        reach(runtime, runtime.now() + Duration::from_millis(100 << self.failures)).await;
        Ok(())
    }
}

/// Batches of one process and way under way at once.
const BATCHES_AT_ONCE: usize = 16;
/// Failures after which a batch is given up.
const FAILURES: u32 = 4;
/// Live messages that go into one batch at most, unless they came together.
const LIVE_RECORDS: usize = 400;
/// Parcels of one way that wait or are being stored at once.
const PARCELS: usize = 256;
/// Bytes of documents that a process remembers so as not to read them again.
const REMEMBERED: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Hand, Mood, Shelf};
    use crate::{Driver, Observer};
    use backfill_core::doc::{FieldOp, Precondition, Value, Write};
    use backfill_core::incoming::{Content, Incoming, Key, MessageEvent, MessageKind, SyncSource};
    use backfill_core::io::{Answer, Command, GatewayCall, GatewayRequest, Reply};
    use backfill_core::policy::{Policy, Settings};
    use backfill_core::time::Mono;

    #[test]
    fn messages_are_durable_before_they_may_be_acknowledged_and_reported_in_order() {
        let w = World::owner();
        let first = w.realtime(&["A1"]);
        w.hand.settle();
        assert!(acknowledged(&first));
        assert_eq!(w.messages(), 1);
        let before = w.store.commits();
        // What waits goes into one batch, and what cannot be stored disturbs nobody else.
        let all = [w.realtime(&["A2"]), w.realtime(&["A3", "a/b"]), w.realtime(&["A4"])];
        w.hand.settle();
        let rejected: Vec<_> = all
            .iter()
            .map(|end| end.lock().unwrap().clone().unwrap().unwrap())
            .map(|rejected| rejected.iter().map(|r| r.record).collect::<Vec<_>>())
            .collect();
        assert_eq!(rejected, [vec![], vec![1], vec![]]);
        assert_eq!(w.messages(), 4);
        assert!(w.store.commits() - before <= 2, "one batch, and the core's stamp");
        assert_eq!(w.reported(), ["ingested 1", "ingested 3"]);
    }

    #[test]
    fn a_conflict_is_read_again_and_a_lost_answer_too() {
        let w = World::owner();
        w.store.refuse(3);
        let end = w.realtime(&["A1"]);
        w.hand.settle();
        assert!(acknowledged(&end));
        w.store.set(Mood::Silent);
        let end = w.realtime(&["A2"]);
        w.hand.pass(Duration::from_secs(1));
        w.store.set(Mood::Fine);
        assert!(end.lock().unwrap().is_none());
        w.hand.pass(Duration::from_secs(4));
        assert!(acknowledged(&end));
        assert_eq!(w.messages(), 2);
    }

    #[test]
    fn what_cannot_be_stored_is_withheld_and_the_connection_closes() {
        let w = World::owner();
        w.store.set(Mood::Down);
        let end = w.realtime(&["A1"]);
        w.hand.pass(Duration::from_secs(5));
        let said = withheld(&end).unwrap().to_string();
        assert_eq!(said, "the messages could not be stored: the store is not available");
        assert_eq!(w.reported(), ["failed"]);
        assert!(w.gateway.calls().contains(&"close"));
    }

    #[test]
    fn who_does_not_believe_any_more_acknowledges_nothing() {
        let w = World::owner();
        assert!(w.handle.believes(&account()));
        // The session is not renewed: after its deadline nothing is believed.
        w.store.set(Mood::Down);
        w.hand.pass(Duration::from_secs(120));
        w.store.set(Mood::Fine);
        let end = w.realtime(&["A1"]);
        w.hand.settle();
        assert!(!w.handle.believes(&account()));
        assert!(matches!(withheld(&end), Some(Withhold::NotOwner)));
        assert_eq!(w.messages(), 1, "stored all the same");
    }

    #[test]
    fn history_is_stored_in_order_whatever_goes_wrong() {
        let w = World::owner();
        w.store.set(Mood::Down);
        let hand_in = |cursor| {
            let end = w.conversation(cursor);
            w.hand.settle();
            end
        };
        let ends: Vec<_> = (1..=6).map(hand_in).collect();
        w.hand.pass(Duration::from_millis(500));
        w.store.refuse(3);
        w.store.set(Mood::Fine);
        w.hand.pass(Duration::from_secs(2));
        assert!(ends.iter().all(|end| matches!(*end.lock().unwrap(), Some(Ok(_)))));
        let thread = "threads/account_a__40700000001@s.whatsapp.net";
        let stored = |n| w.store.document(&format!("{thread}/messages/H{n}")).unwrap().version;
        assert!((1..6).all(|n| stored(n) < stored(n + 1)), "each after the one before");
    }

    #[test]
    fn what_waits_is_bounded_and_history_keeps_no_live_message_waiting() {
        let w = World::owner();
        w.store.set(Mood::Silent);
        let waiting = PARCELS + 20;
        for cursor in 0..waiting {
            w.conversation(u32::try_from(cursor).unwrap());
        }
        w.hand.settle();
        let room = &w.handle.intake().room;
        assert_eq!((room.history.free(), room.history.waiting()), (0, 20));
        let taken: usize = w.handle.intake().lanes().values().map(VecDeque::len).sum();
        assert_eq!(taken, PARCELS - 1, "and one is under way");
        w.store.set(Mood::Fine);
        let live = w.realtime(&["A1"]);
        w.hand.settle();
        assert!(acknowledged(&live));
        assert_eq!((room.live.free(), room.live.waiting()), (PARCELS, 0));
        w.hand.pass(Duration::from_secs(5));
        assert_eq!((room.history.free(), room.history.waiting()), (PARCELS, 0));
        assert_eq!(w.messages(), waiting + 1);
    }

    #[test]
    fn so_many_accounts_are_stored_at_once_and_each_in_its_turn() {
        let w = World::owner();
        w.store.set(Mood::Silent);
        let read = w.store.documents_read();
        let ends: Vec<_> = (0..BATCHES_AT_ONCE + 5)
            .map(|n| {
                let account = AccountId::parse(format!("account_{n}")).unwrap();
                w.hand_in(account, 1)
            })
            .collect();
        w.hand.settle();
        assert_eq!(w.store.documents_read() - read, 2 * BATCHES_AT_ONCE, "a message, a thread");
        w.store.set(Mood::Fine);
        w.hand.pass(Duration::from_secs(10));
        assert!(ends.iter().all(|end| matches!(*end.lock().unwrap(), Some(Ok(_)))));
    }

    #[test]
    fn after_a_stop_commands_and_messages_find_nobody() {
        let w = World::owner();
        let handle = w.handle.clone();
        let reply = w.hand.start(async move { handle.command(Command::Stop).await });
        w.hand.pass(Duration::from_secs(15));
        assert_eq!(*reply.lock().unwrap(), Some(Ok(Reply::Accepted)));
        assert!(w.ended.lock().unwrap().is_some(), "the loop ends");
        let owner = w.store.document("coordination/lock").unwrap();
        let boot = owner.str("owner").map(|boot| format!("instances/{boot}"));
        let state = boot.and_then(|boot| w.store.document(&boot)?.str("state").map(str::to_owned));
        assert!(state.is_none_or(|state| state == "dead"), "everything is free");
        let handle = w.handle.clone();
        let late = w.hand.start(async move { handle.command(Command::Stop).await });
        let end = w.realtime(&["A1"]);
        w.hand.settle();
        assert_eq!(*late.lock().unwrap(), Some(Err(crate::Ended)));
        assert!(matches!(withheld(&end), Some(Withhold::NotStored(NotStored::Ended))));
    }

    type End = Arc<Mutex<Option<Result<Vec<Rejected>, Withhold>>>>;
    type HistoryEnd = Arc<Mutex<Option<Result<Facts, NotStored>>>>;

    /// Whether all of it is stored and may be acknowledged.
    fn acknowledged(end: &End) -> bool {
        matches!(&*end.lock().unwrap(), Some(Ok(rejected)) if rejected.is_empty())
    }

    fn withheld(end: &End) -> Option<Withhold> {
        end.lock().unwrap().clone()?.err()
    }

    struct World {
        hand: Hand,
        store: Shelf,
        handle: Handle,
        gateway: Willing,
        seen: Seen,
        ended: Arc<Mutex<Option<()>>>,
    }

    impl World {
        /// A running instance that owns an account and is connected.
        fn owner() -> Self {
            let hand = Hand::default();
            hand.pass(Duration::from_secs(1));
            let store = Shelf::new(&hand);
            let fields = vec![
                ("status".into(), Value::from("disconnected").into()),
                ("createdAt".into(), FieldOp::ServerTime),
            ];
            store.put(&[Write::merge(account().path(), Precondition::Absent, fields)]).unwrap();
            let label = backfill_core::id::InstanceId::parse("i").unwrap();
            let policy = Policy::new(Settings::exclusive(label)).unwrap();
            let seen = Seen::default();
            let driver = Driver::new(policy, [7; 32], store.clone(), hand.clone(), seen.clone());
            let handle = driver.handle();
            handle.credentials(account(), true);
            let gateway = Willing { handle: handle.clone(), calls: Arc::default() };
            let ended = hand.start(driver.run(gateway.clone()));
            hand.pass(Duration::from_secs(3));
            let world = Self { hand, store, handle, gateway, seen, ended };
            assert!(world.handle.believes(&account()), "{:?}", world.store.paths());
            assert!(world.gateway.calls().contains(&"connect"));
            world
        }

        fn realtime(&self, ids: &[&str]) -> End {
            let records = ids.iter().map(|id| message(id)).collect();
            let parcel = Parcel { account: account(), records, twins: Arc::default() };
            let handle = self.handle.clone();
            let connection = self.gateway.connection();
            self.hand.start(async move { handle.realtime(connection, parcel).await })
        }

        /// One message as a conversation of a history chunk.
        fn conversation(&self, cursor: u32) -> HistoryEnd {
            self.hand_in(account(), cursor)
        }

        fn hand_in(&self, account: AccountId, cursor: u32) -> HistoryEnd {
            let records = vec![message(&format!("H{cursor}"))];
            let parcel = Parcel { account, records, twins: Arc::default() };
            let (handle, chunk) = (self.handle.clone(), ChunkId(1));
            let end = PageEnd::Unstated;
            self.hand.start(async move { handle.conversation(chunk, cursor, end, parcel).await })
        }

        fn messages(&self) -> usize {
            self.store.paths().iter().filter(|path| path.contains("/messages/")).count()
        }

        fn reported(&self) -> Vec<String> {
            self.seen.0.lock().unwrap().clone()
        }
    }

    /// Notes what is said about messages.
    #[derive(Clone, Default)]
    struct Seen(Arc<Mutex<Vec<String>>>);

    impl Observer for Seen {
        fn input(&mut self, _: Mono, input: &Input) {
            let mut seen = self.0.lock().unwrap();
            match input {
                Input::Ingested(_, ingested) => {
                    seen.push(format!("ingested {}", ingested.messages))
                }
                Input::Gateway(_, GatewayEvent::IngestFailed { .. }) => seen.push("failed".into()),
                _ => {}
            }
        }
    }

    /// Opens and closes as asked.
    #[derive(Clone)]
    struct Willing {
        handle: Handle,
        calls: Arc<Mutex<Vec<(&'static str, RequestId)>>>,
    }

    impl Willing {
        fn calls(&self) -> Vec<&'static str> {
            self.calls.lock().unwrap().iter().map(|(call, _)| *call).collect()
        }

        fn connection(&self) -> RequestId {
            self.calls.lock().unwrap().iter().find(|(call, _)| *call == "connect").unwrap().1
        }
    }

    impl crate::port::Gateway for Willing {
        async fn execute(&self, request: GatewayRequest) -> Answer {
            let GatewayRequest { id, account, call, .. } = request;
            let event = match call {
                GatewayCall::Connect => Some(("connect", GatewayEvent::Opened { connection: id })),
                GatewayCall::Close { connection } => {
                    let reason = backfill_core::io::CloseReason::Asked;
                    Some(("close", GatewayEvent::Closed { connection, reason }))
                }
                _ => None,
            };
            if let Some((name, event)) = event {
                self.calls.lock().unwrap().push((name, id));
                self.handle.report(account, event);
            }
            Answer::Done
        }
    }

    fn account() -> AccountId {
        AccountId::parse("account_a").unwrap()
    }

    fn message(id: &str) -> Record {
        let key = Key {
            id: id.into(),
            remote_jid: "40700000001@s.whatsapp.net".into(),
            from_me: false,
            participant: None,
        };
        let content = Content { kind: MessageKind::Text, body: "hi".into(), ..Content::default() };
        Record::Message(Incoming {
            key,
            timestamp: 1_800_000_000,
            source: SyncSource::Realtime,
            event: MessageEvent::Content(content),
        })
    }
}
