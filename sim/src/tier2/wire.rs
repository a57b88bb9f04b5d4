//! What goes over the network, and the end of it in a process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backfill_core::coverage::Anchor;
use backfill_core::doc::{DocPath, Query, Write};
use backfill_core::id::{Epoch, RequestId, ThreadId};
use backfill_core::incoming::Record;
use backfill_core::io::{Answer, CloseReason, Command, Hint, Rejection, StoreCall};
use backfill_core::jid::Twins;
use backfill_driver::port::{Committed, Found, Snapshot, Store, StoreError};
use futures_channel::{mpsc, oneshot};
use futures_util::Stream;
use madsim::net::Endpoint;
use smol_str::SmolStr;

use super::World;
use crate::whatsapp::Mail;

/// Where the store listens.
pub(super) const STORE: &str = "10.0.0.1:1";
/// Where WhatsApp listens.
pub(super) const WHATSAPP: &str = "10.0.0.2:1";
/// Where operators are.
pub(super) const PEOPLE: &str = "10.0.0.3:1";
/// The network sorts messages by a tag; one is enough.
pub(super) const TAG: u64 = 1;

/// To the store.
pub(super) struct ToStore {
    pub(super) process: u32,
    pub(super) id: u64,
    pub(super) ask: AskStore,
}

pub(super) enum AskStore {
    /// For the checker: whether the core asks, and under which epoch its process then owned the
    /// account that the call is about
    Call { call: StoreCall, core: bool, epoch: Option<Epoch> },
    /// The spool of history chunks
    Spool(u16, AskSpool),
}

pub(super) enum AskSpool {
    Get(u64),
    List,
    Put(u64, Arc<Chunk>),
    Remove(u64),
}

/// To WhatsApp. A process's messages are numbered, so that they are heard in order.
pub(super) struct ToWhatsApp {
    pub(super) process: u32,
    pub(super) number: u64,
    pub(super) id: u64,
    pub(super) account: u16,
    pub(super) ask: AskWhatsApp,
}

pub(super) enum AskWhatsApp {
    Acknowledge { connection: u64, mail: Vec<Mail> },
    Close { connection: u64 },
    Connect { connection: u64 },
    History { connection: u64, request: u64, thread: ThreadId, anchor: Anchor, count: u32 },
    Logout,
    Send { connection: u64, outbox: SmolStr, thread: ThreadId, wa_id: SmolStr },
}

/// To a process.
pub(super) enum ToProcess {
    Answer(u64, Reply),
    /// Numbered, like those to WhatsApp
    Brought {
        number: u64,
        account: u16,
        connection: u64,
        brought: Brought,
    },
    Command(Command),
    Hint(Hint),
}

/// What a connection brings, with all that a client would see.
pub(super) enum Brought {
    Chunk(u64, Arc<Chunk>),
    ChunkMissing(u64),
    Closed(CloseReason),
    Live(Mail, Record),
    Offline(Vec<(Mail, Record)>),
    OfflineEnd(u32),
    Opened,
    /// `asker` is the process and the request that the phone answers
    Page {
        asker: (u32, u64),
        thread: ThreadId,
        more: bool,
        mail: Vec<Mail>,
        records: Vec<Record>,
        twins: Arc<Twins>,
    },
    Paired,
    Pairing,
    /// What it says, and what of it can be stored
    Undecryptable {
        thread: ThreadId,
        second: i64,
        mail: Mail,
        record: Record,
    },
}

/// A part of the history: conversations, what the checker knows them by, and whether the phone has
/// older messages of them.
pub(super) type Chunk = Vec<(bool, Vec<Mail>, Vec<Record>)>;

/// What somebody waits for.
pub(super) enum Reply {
    Answer(Answer),
    Chunk(Option<Arc<Chunk>>),
    Chunks { spooled: Vec<u64>, missing: Vec<u64> },
}

/// Puts numbered messages in order.
pub(super) struct InOrder<T> {
    next: u64,
    early: BTreeMap<u64, T>,
}

impl<T> Default for InOrder<T> {
    fn default() -> Self {
        Self { next: 0, early: BTreeMap::new() }
    }
}

impl<T> InOrder<T> {
    pub(super) fn arrived(&mut self, number: u64, message: T) {
        self.early.insert(number, message);
    }

    /// The next in order, if it is there.
    pub(super) fn next(&mut self) -> Option<T> {
        let next = self.early.remove(&self.next)?;
        self.next += 1;
        Some(next)
    }
}

/// A process's end of the network, and its way to the store.
#[derive(Clone)]
pub(super) struct Wire(Arc<Ends>);

struct Ends {
    world: World,
    endpoint: Endpoint,
    process: u32,
    requests: AtomicU64,
    numbers: AtomicU64,
    waiting: Mutex<BTreeMap<u64, oneshot::Sender<Reply>>>,
    hints: Mutex<BTreeMap<Hint, mpsc::UnboundedSender<()>>>,
}

impl Wire {
    pub(super) fn new(world: World, process: u32, endpoint: Endpoint) -> Self {
        Self(Arc::new(Ends {
            world,
            endpoint,
            process,
            requests: AtomicU64::new(0),
            numbers: AtomicU64::new(0),
            waiting: Mutex::default(),
            hints: Mutex::default(),
        }))
    }

    pub(super) fn process(&self) -> u32 {
        self.0.process
    }

    pub(super) fn world(&self) -> &World {
        &self.0.world
    }

    /// The next message that has arrived.
    pub(super) async fn receive(&self) -> ToProcess {
        receive(&self.0.endpoint).await
    }

    pub(super) fn answered(&self, id: u64, reply: Reply) {
        if let Some(waiting) = self.waiting().remove(&id) {
            waiting.send(reply).ok();
        }
    }

    pub(super) fn hint(&self, hint: Hint) {
        let hints = self.0.hints.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(watch) = hints.get(&hint) {
            watch.unbounded_send(()).ok();
        }
    }

    /// Asks the store; waits for ever if nothing comes back.
    pub(super) async fn ask_store(&self, ask: AskStore) -> Reply {
        let (id, waiting) = self.wait();
        let message = ToStore { process: self.0.process, id, ask };
        send(&self.0.endpoint, STORE, message).await;
        waiting.reply().await
    }

    /// Asks WhatsApp; the order of calls is the order of what WhatsApp hears.
    pub(super) fn ask_whatsapp(
        &self,
        account: u16,
        ask: AskWhatsApp,
    ) -> impl Future<Output = Answer> + Send + use<> {
        let (id, waiting) = self.wait();
        let number = self.0.numbers.fetch_add(1, Ordering::Relaxed);
        let message = ToWhatsApp { process: self.0.process, number, id, account, ask };
        let ends = Arc::clone(&self.0);
        // A message that has a number must leave, or nothing after it would be heard.
        madsim::task::spawn(async move { send(&ends.endpoint, WHATSAPP, message).await });
        async move {
            match waiting.reply().await {
                Reply::Answer(answer) => answer,
                Reply::Chunk(_) | Reply::Chunks { .. } => Answer::Unknown,
            }
        }
    }

    fn wait(&self) -> (u64, Waiting) {
        let id = self.0.requests.fetch_add(1, Ordering::Relaxed);
        let (done, reply) = oneshot::channel();
        self.waiting().insert(id, done);
        (id, Waiting { wire: self.clone(), id, reply })
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeMap<u64, oneshot::Sender<Reply>>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn call(&self, call: StoreCall, core: bool, epoch: Option<Epoch>) -> Answer {
        match self.ask_store(AskStore::Call { call, core, epoch }).await {
            Reply::Answer(answer) => answer,
            Reply::Chunk(_) | Reply::Chunks { .. } => Answer::Unknown,
        }
    }
}

/// An answer that is waited for; the waiting ends with it.
struct Waiting {
    wire: Wire,
    id: u64,
    reply: oneshot::Receiver<Reply>,
}

impl Waiting {
    async fn reply(mut self) -> Reply {
        match (&mut self.reply).await {
            Ok(reply) => reply,
            Err(oneshot::Canceled) => std::future::pending().await,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.wire.waiting().remove(&self.id);
    }
}

/// Sends a message; it may be lost.
pub(super) async fn send<M: Send + Sync + 'static>(from: &Endpoint, to: &str, message: M) {
    let to: SocketAddr = to.parse().expect("an address and a port");
    from.send_to_raw(to, TAG, Box::new(message)).await.ok();
}

/// The next message that has arrived.
pub(super) async fn receive<M: 'static>(at: &Endpoint) -> M {
    loop {
        match at.recv_from_raw(TAG).await {
            Ok((message, _)) => {
                return *message
                    .downcast()
                    .expect("who knows the address knows what is said there");
            }
            // The node is being reset.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Store for Wire {
    async fn get(&self, paths: &[DocPath]) -> Result<Snapshot, StoreError> {
        match self.call(StoreCall::Get(paths.to_vec()), false, None).await {
            Answer::Read { read_time, docs } => Ok(Snapshot { read_time, docs }),
            other => Err(failure(&other)),
        }
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<Committed, StoreError> {
        let (core, epoch) = self.0.world.look(|truth| truth.sends(self.0.process, &writes));
        match self.call(StoreCall::Commit(writes), core, epoch).await {
            Answer::Committed { commit_time, versions } => Ok(Committed { commit_time, versions }),
            other => Err(failure(&other)),
        }
    }

    async fn query(&self, query: &Query) -> Result<Found, StoreError> {
        match self.call(StoreCall::Query(query.clone()), false, None).await {
            Answer::Found { read_time, docs } => Ok(Found { read_time, docs }),
            other => Err(failure(&other)),
        }
    }

    fn watch(&self, query: Query) -> impl Stream<Item = ()> + Send + 'static {
        let (hint, hints) = mpsc::unbounded();
        let kind = match query.collection.as_str() {
            "accounts" => Hint::Accounts,
            "outbox" => Hint::Outbox,
            _ => Hint::Lock,
        };
        self.0.hints.lock().unwrap_or_else(PoisonError::into_inner).insert(kind, hint);
        hints
    }
}

fn failure(answer: &Answer) -> StoreError {
    match answer {
        Answer::Conflict => StoreError::Conflict(None),
        Answer::Rejected(Rejection::Denied) => StoreError::Denied(None),
        Answer::Rejected(Rejection::Invalid) => {
            StoreError::Invalid { reason: "the store says so".into() }
        }
        Answer::Rejected(_) => StoreError::Unavailable(None),
        _ => StoreError::Unknown(None),
    }
}

/// Names a request of a core among commits that are on their way.
pub(super) type Asked = (RequestId, Vec<Write>);
