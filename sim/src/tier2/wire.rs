//! What goes over the network, and the end of it in a process.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backfill_core::coverage::Anchor;
use backfill_core::doc::{DocPath, Query, Write};
use backfill_core::id::{Epoch, RequestId, ThreadId};
use backfill_core::incoming::Record;
use backfill_core::io::{Answer, CloseReason, Hint, Rejection, StoreCall};
use backfill_core::jid::Twins;
use backfill_driver::port::{Committed, Found, Snapshot, Store, StoreError};
use futures_channel::{mpsc, oneshot};
use futures_util::{FutureExt, Stream};
use madsim::net::{Endpoint, Receiver, Sender};
use smol_str::SmolStr;

use super::World;
use crate::whatsapp::Mail;

/// Where the store listens.
pub(super) const STORE: SocketAddr = at(Ipv4Addr::new(10, 0, 0, 1));
/// Where WhatsApp listens.
pub(super) const WHATSAPP: SocketAddr = at(Ipv4Addr::new(10, 0, 0, 2));
/// Where operators are.
pub(super) const PEOPLE: SocketAddr = at(Ipv4Addr::new(10, 0, 0, 3));

/// Where a process is.
pub(super) fn address(process: u32) -> SocketAddr {
    at(Ipv4Addr::from(PROCESSES + process))
}

/// The first of the addresses of processes.
const PROCESSES: u32 = u32::from_be_bytes([10, 1, 0, 0]);

const fn at(ip: Ipv4Addr) -> SocketAddr {
    SocketAddr::V4(SocketAddrV4::new(ip, 1))
}

/// To the store.
pub(super) struct ToStore {
    pub(super) id: u64,
    pub(super) ask: AskStore,
}

/// From the store.
pub(super) enum FromStore {
    Answer(u64, Reply),
    Hint(Hint),
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

/// To WhatsApp.
pub(super) struct ToWhatsApp {
    pub(super) account: u16,
    pub(super) say: SayToWhatsApp,
}

pub(super) enum SayToWhatsApp {
    Acknowledge { connection: u64, mail: Vec<Mail> },
    Ask(u64, AskWhatsApp),
}

pub(super) enum AskWhatsApp {
    Close { connection: u64 },
    Connect { connection: u64 },
    History { connection: u64, request: u64, thread: ThreadId, anchor: Anchor, count: u32 },
    Logout,
    Send { connection: u64, outbox: SmolStr, thread: ThreadId, wa_id: SmolStr },
}

/// From WhatsApp.
pub(super) enum FromWhatsApp {
    Answer(u64, Answer),
    Brought { account: u16, connection: u64, brought: Brought },
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

/// One end of a connection. What is said here arrives at the other end, a while later and in order.
pub(super) struct Line<M>(Sender, PhantomData<fn(M)>);

impl<M: Send + Sync + 'static> Line<M> {
    /// Says something; if the other end is gone, nobody hears it.
    pub(super) fn say(&self, message: M) {
        self.0.send(Box::new(message)).now_or_never();
    }
}

/// The other direction of a connection.
pub(super) struct Ear<M>(Receiver, PhantomData<fn() -> M>);

impl<M: 'static> Ear<M> {
    /// What was said next; `None` when the other end is gone and everything was heard.
    pub(super) async fn hear(&mut self) -> Option<M> {
        let message = self.0.recv().await.ok()?;
        Some(*message.downcast().expect("both ends of a connection say what the other expects"))
    }
}

/// Connects to a server.
pub(super) async fn connect<T, F>(from: &Endpoint, to: SocketAddr) -> (Line<T>, Ear<F>) {
    let (line, ear) = from.connect1(to).await.expect("servers are there before processes");
    (Line(line, PhantomData), Ear(ear, PhantomData))
}

/// A server's lines to processes.
pub(super) struct Lines<M>(Arc<Mutex<BTreeMap<u32, Line<M>>>>);

impl<M> Clone for Lines<M> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<M: Send + Sync + 'static> Lines<M> {
    pub(super) fn new() -> Self {
        Self(Arc::default())
    }

    /// Says something to a process, if it is there.
    pub(super) fn say(&self, process: u32, message: M) {
        if let Some(line) = self.lines().get(&process) {
            line.say(message);
        }
    }

    /// Waits for a process that connects.
    pub(super) async fn accept<F>(&self, at: &Endpoint) -> (u32, Ear<F>) {
        let (line, ear, from) = at.accept1().await.expect("a server stays");
        let process = match from.ip() {
            IpAddr::V4(ip) => u32::from(ip) - PROCESSES,
            IpAddr::V6(_) => unreachable!("all addresses are of the other kind"),
        };
        self.lines().insert(process, Line(line, PhantomData));
        (process, Ear(ear, PhantomData))
    }

    /// A process is gone.
    pub(super) fn forget(&self, process: u32) {
        self.lines().remove(&process);
    }

    fn lines(&self) -> MutexGuard<'_, BTreeMap<u32, Line<M>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A process's end of the network, and its way to the store.
#[derive(Clone)]
pub(super) struct Wire(Arc<Ends>);

struct Ends {
    world: World,
    process: u32,
    store: Line<ToStore>,
    whatsapp: Line<ToWhatsApp>,
    requests: AtomicU64,
    waiting: Mutex<BTreeMap<u64, oneshot::Sender<Reply>>>,
    hints: Mutex<BTreeMap<Hint, mpsc::UnboundedSender<()>>>,
}

impl Wire {
    pub(super) fn new(
        world: World,
        process: u32,
        store: Line<ToStore>,
        whatsapp: Line<ToWhatsApp>,
    ) -> Self {
        Self(Arc::new(Ends {
            world,
            process,
            store,
            whatsapp,
            requests: AtomicU64::new(0),
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
        let p = self.0.process;
        if !self.0.world.look(|truth| truth.is_cut_off(p, true)) {
            self.0.store.say(ToStore { id, ask });
        }
        waiting.reply().await
    }

    /// Asks WhatsApp; the order of calls is the order of what WhatsApp hears.
    pub(super) fn ask_whatsapp(
        &self,
        account: u16,
        ask: AskWhatsApp,
    ) -> impl Future<Output = Answer> + Send + use<> {
        let (id, waiting) = self.wait();
        self.0.whatsapp.say(ToWhatsApp { account, say: SayToWhatsApp::Ask(id, ask) });
        async move {
            match waiting.reply().await {
                Reply::Answer(answer) => answer,
                Reply::Chunk(_) | Reply::Chunks { .. } => Answer::Unknown,
            }
        }
    }

    /// Tells WhatsApp that messages need not be delivered again.
    pub(super) fn acknowledge(&self, account: u16, connection: u64, mail: Vec<Mail>) {
        let say = SayToWhatsApp::Acknowledge { connection, mail };
        self.0.whatsapp.say(ToWhatsApp { account, say });
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
