//! What goes into an [`Instance`](crate::instance::Instance) and what comes out of it.
//!
//! Every effect has a [`RequestId`] and a `not_after`; every answer names the request it answers.
//! Message bodies never pass here: gateways and ingest tasks handle them, the instance sees facts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use smol_str::SmolStr;

use crate::coverage::{Anchor, Mark, PageEnd};
use crate::doc::{DocPath, Document, Query, Version, Write};
use crate::id::{AccountId, BootId, Epoch, OutboxId, RequestId, ThreadId};
use crate::ingest::{Facts, ThreadFacts};
use crate::time::{Mono, StoreTime};

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Input {
    /// An effect was answered
    Answer(RequestId, Answer),
    /// Somebody asks for something
    Command(CommandId, Command),
    /// Whether the credentials of an account lie on this host
    Credentials(AccountId, bool),
    /// WhatsApp or the gateway reports about an account
    Gateway(AccountId, GatewayEvent),
    /// Something may have changed in the store; may come late, twice, for nothing or never
    Hint(Hint),
    /// Messages became durable
    Ingested(AccountId, Ingested),
    /// Time has passed; also the way to begin
    Timeout,
}

/// What came of an effect.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Answer {
    /// A commit was applied
    Committed {
        /// The store's time of the commit
        commit_time: StoreTime,
        /// Per write, the version of its document after the commit, where the store says so
        versions: Vec<Option<Version>>,
    },
    /// A precondition of a commit failed; nothing was applied
    Conflict,
    /// The gateway did what it was asked
    Done,
    /// The answer to a query
    Found {
        /// The store's time of the read
        read_time: StoreTime,
        /// What was found
        docs: Vec<Arc<Document>>,
    },
    /// The answer to a read
    Read {
        /// The store's time of the read
        read_time: StoreTime,
        /// Per path, the document, if there is one
        docs: Vec<Option<Arc<Document>>>,
    },
    /// It did not happen and will not
    Rejected(Rejection),
    /// It may have happened, or may yet happen
    Unknown,
}

/// Why an effect did not happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Rejection {
    /// Access is denied
    Denied,
    /// `not_after` had passed before the effect could start
    Expired,
    /// The request itself cannot be carried out
    Invalid,
    /// The other side cannot be reached now
    Unavailable,
}

/// Names a command, so that its reply finds its way back; chosen by the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct CommandId(pub u64);

/// What somebody asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Command {
    /// Run a backfill now, in spite of cooldown and backoff
    Backfill(AccountId),
    /// Log the account out, wipe its credentials, mark it deleted
    DeleteAccount(AccountId),
    /// Try to pair anew
    RegenerateQr(AccountId),
    /// Hand everything over and end
    Stop,
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reply {
    /// It is under way
    Accepted,
    /// It was under way already
    AlreadyInProgress,
    /// There is no such account
    AccountNotFound,
    /// The account's state does not allow it
    InvalidState {
        /// The account's status
        status: SmolStr,
    },
    /// Another instance owns the account
    NotOwner {
        /// Which one, if known
        owner: Option<SmolStr>,
    },
    /// This instance is passive
    Passive,
}

/// What may have changed in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Hint {
    /// The collection `accounts`
    Accounts,
    /// `coordination/lock` or the session of its owner
    Lock,
    /// The collection `outbox`
    Outbox,
}

/// What WhatsApp or the gateway reports about one account.
///
/// `connection` is the request that opened the connection; reports about another one are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum GatewayEvent {
    /// A history chunk reached this process; it is not durable yet unless `spooled`
    Chunk {
        /// Names the chunk within the account
        chunk: ChunkId,
        /// It lies in the spool already, left over from an earlier owner or process
        spooled: bool,
    },
    /// A history chunk was announced and will not arrive. Reported anew with every
    /// [`GatewayCall::Recover`] until [`GatewayCall::Unspool`] says that it is noted
    ChunkMissing {
        /// Names the chunk within the account
        chunk: ChunkId,
    },
    /// All of a history chunk was read, and what is to be stored of it is durable. Reported before
    /// [`GatewayCall::Parse`] is answered
    ChunkStored {
        /// Which chunk
        chunk: ChunkId,
        /// What came of it
        counts: ChunkCounts,
    },
    /// The connection is closed; nothing of it will act any more
    Closed {
        /// Which connection
        connection: RequestId,
        /// Why
        reason: CloseReason,
    },
    /// The offline queue has been delivered
    Drained {
        /// Which connection
        connection: RequestId,
        /// How many the server had announced
        announced: u32,
        /// How many became durable
        stored: u32,
    },
    /// A message cannot be stored now; its redelivery needs a new connection
    IngestFailed {
        /// Which connection
        connection: RequestId,
    },
    /// Logged in; messages may arrive
    Opened {
        /// Which connection
        connection: RequestId,
    },
    /// The phone answered a request for history, and its messages are durable
    Page {
        /// The request
        request: RequestId,
        /// What it brought
        page: PageFacts,
    },
    /// A code to link this device
    Pairing {
        /// Which connection
        connection: RequestId,
        /// For the picture
        qr: Option<SmolStr>,
        /// For typing in
        code: Option<SmolStr>,
    },
    /// The device was linked
    Paired {
        /// Which connection
        connection: RequestId,
    },
    /// A message arrived that could not be decrypted
    Undecryptable {
        /// In which thread
        thread: ThreadId,
        /// Its time, in seconds
        second: i64,
    },
}

/// Names a history chunk within its account, in order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ChunkId(pub u64);

/// What came of the messages of a history chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ChunkCounts {
    /// Messages that were not stored before
    pub saved: u32,
    /// Messages that were stored already, or are not to be stored in a dry run
    pub skipped: u32,
    /// What could not be stored and never can
    pub errors: u32,
    /// Nothing was to be stored
    pub dry_run: bool,
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum CloseReason {
    /// We closed it
    Asked,
    /// The device was unlinked; its credentials are void
    LoggedOut,
    /// The network or the server ended it
    Lost,
    /// Nobody scanned the code in time
    PairingExpired,
    /// Another connection with the same credentials took its place
    Replaced,
}

impl CloseReason {
    /// In `snake_case`, as documents name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::LoggedOut => "logged_out",
            Self::Lost => "lost",
            Self::PairingExpired => "pairing_expired",
            Self::Replaced => "replaced",
        }
    }
}

/// What a page of history brought, after its messages became durable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PageFacts {
    /// The thread
    pub thread: ThreadId,
    /// The oldest message of the page
    pub oldest: Option<Mark>,
    /// How many messages it had
    pub messages: u32,
    /// Whether older ones remain on the phone
    pub end: PageEnd,
}

impl PageFacts {
    /// What came of the batch of a page that was asked for with this thread.
    pub fn new(thread: ThreadId, facts: &Facts, end: PageEnd) -> Self {
        let found = facts.threads.first();
        Self {
            thread,
            oldest: found.and_then(|thread| thread.oldest.as_ref()).map(Mark::from),
            messages: found.map_or(0, |thread| thread.total),
            end,
        }
    }
}

/// Messages that became durable without having been asked for by a run.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Ingested {
    /// How they came
    pub source: Source,
    /// How many
    pub messages: u32,
    /// Per thread: the oldest and the newest of them, and how many
    pub threads: Vec<ThreadSpan>,
    /// The server time of the newest of them, in seconds
    pub newest_second: i64,
}

impl Ingested {
    /// What came of a batch that came like this. Nobody has to be told of threads that got no
    /// message of believable time.
    pub fn new(source: Source, facts: &Facts, end: PageEnd) -> Self {
        let span = |thread: &ThreadFacts| {
            Some(ThreadSpan {
                thread: thread.thread.clone(),
                twin: thread.twin.clone(),
                low: thread.oldest.as_ref()?.into(),
                high: thread.newest.as_ref()?.into(),
                messages: thread.total,
                end,
            })
        };
        let threads: Vec<ThreadSpan> = facts.threads.iter().filter_map(span).collect();
        Self {
            source,
            messages: threads.iter().map(|thread| thread.messages).sum(),
            newest_second: threads.iter().map(|thread| thread.high.second).max().unwrap_or(0),
            threads,
        }
    }
}

/// What became durable of one thread.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ThreadSpan {
    /// The thread
    pub thread: ThreadId,
    /// The thread of the chat's other name, if it has one, which leads to this one
    pub twin: Option<ThreadId>,
    /// The oldest message
    pub low: Mark,
    /// The newest message
    pub high: Mark,
    /// How many
    pub messages: u32,
    /// For history: whether older ones remain on the phone
    pub end: PageEnd,
}

/// How messages came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum Source {
    /// Part of a history chunk; `cursor` conversations of it are durable
    Chunk {
        /// Which chunk
        chunk: ChunkId,
        /// How many conversations of it are durable
        cursor: u32,
    },
    /// A page that answers no request of this process
    LatePage,
    /// Live or from the offline queue
    Realtime,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Output {
    /// For logs and metrics; needs no answer
    Event(Event),
    /// For the gateway; answered
    Gateway(GatewayRequest),
    /// The answer to a command
    Reply(CommandId, Reply),
    /// Nothing is left to do after [`Command::Stop`]
    Stopped,
    /// For the store; answered
    Store(StoreRequest),
}

/// Something for the store to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StoreRequest {
    /// Its answer carries this
    pub id: RequestId,
    /// If this has passed when the call would start: [`Rejection::Expired`]
    pub not_after: Mono,
    /// Lease traffic goes before everything else
    pub lane: Lane,
    /// What to do
    pub call: StoreCall,
}

/// Which requests go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Sessions, ownership and leases
    Lease,
    /// Everything else
    Work,
}

/// What a store is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StoreCall {
    /// Apply all writes or none
    Commit(Vec<Write>),
    /// Read documents
    Get(Vec<DocPath>),
    /// Find documents
    Query(Query),
}

/// Something for the gateway to do.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GatewayRequest {
    /// Its answer carries this
    pub id: RequestId,
    /// For which account
    pub account: AccountId,
    /// If this has passed when the effect would start: [`Rejection::Expired`]
    pub not_after: Mono,
    /// What to do
    pub call: GatewayCall,
}

/// What a gateway is asked. Except where it says otherwise, the answer is [`Answer::Done`],
/// [`Answer::Rejected`] or [`Answer::Unknown`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum GatewayCall {
    /// Close the connection; followed by [`GatewayEvent::Closed`], also if it was closed already
    Close {
        /// Which connection
        connection: RequestId,
    },
    /// Open a connection, named by the request's id; pairs if there are no credentials
    Connect,
    /// Ask the phone for the messages before `anchor`
    History {
        /// In which thread
        thread: ThreadId,
        /// Before which message
        anchor: Anchor,
        /// At most how many
        count: u32,
        /// Which kind of run asks: the messages' `syncSource`
        run: RunKind,
    },
    /// Unlink this device, and wipe its credentials
    Logout,
    /// Parse a spooled chunk and make its messages durable, from a conversation on;
    /// [`Ingested`] tells the progress
    Parse {
        /// Which chunk
        chunk: ChunkId,
        /// How many conversations to skip
        from: u32,
    },
    /// Report what lies in the spool, as [`GatewayEvent::Chunk`]
    Recover,
    /// Send the message of a claimed outbox document under this WhatsApp id
    Send {
        /// Which document
        outbox: OutboxId,
        /// Under which WhatsApp id
        wa_id: SmolStr,
    },
    /// Make a history chunk durable as it is
    Spool {
        /// Which chunk
        chunk: ChunkId,
    },
    /// Remove a history chunk whose messages are all durable
    Unspool {
        /// Which chunk
        chunk: ChunkId,
    },
}

/// The two kinds of run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RunKind {
    /// Extend history downwards to the configured depth
    AutoBackfill,
    /// Close holes
    RecentSync,
}

/// Why a run was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trigger {
    /// The account connected
    Connect,
    /// Somebody asked
    Manual,
    /// A tick
    Periodic,
}

/// Why an account was passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Skip {
    /// An attempt was made too recently
    Backoff,
    /// A complete run ended too recently
    Cooldown,
    /// A foreign instance holds the account's lease
    HeldByOther,
    /// Nothing to do
    Idle,
    /// The tick has started as many as it may
    TickCap,
    /// A run is under way
    Running,
}

/// What a session, a lock or a lease is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// `accounts/{id}/leases/connection`
    Account(AccountId),
    /// `coordination/lock`
    Lock,
    /// `accounts/{id}/leases/autoBackfill` or `…/recentSync`
    Run(AccountId, RunKind),
}

/// What happened, for logs and metrics.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A connection opened or closed
    Connection {
        /// Of which account
        account: AccountId,
        /// Its state now
        state: &'static str,
    },
    /// A session other than the own was marked dead
    DeadMarked {
        /// Which one
        boot: BootId,
    },
    /// A write was refused because somebody else owns the account now
    Fenced {
        /// What was lost
        key: Key,
    },
    /// A hole in a thread's history was closed, opened, or given up
    Hole {
        /// Of which account
        account: AccountId,
        /// What happened to it
        change: HoleChange,
    },
    /// Something an operator should know
    Incident {
        /// Of which account, if of one
        account: Option<AccountId>,
        /// In `snake_case`
        kind: &'static str,
    },
    /// A lease was lost against our will
    LeaseLost {
        /// Which one
        key: Key,
    },
    /// A lease was given back
    LeaseReleased {
        /// Which one
        key: Key,
    },
    /// A lease was taken
    LeaseTaken {
        /// Which one
        key: Key,
        /// Its fencing token
        epoch: Epoch,
    },
    /// The mode changed
    Mode {
        /// The mode now
        mode: Mode,
    },
    /// A run ended
    RunEnded {
        /// Of which account
        account: AccountId,
        /// Of which kind
        kind: RunKind,
        /// How
        result: RunResult,
    },
    /// A run started
    RunStarted {
        /// Of which account
        account: AccountId,
        /// Of which kind
        kind: RunKind,
        /// Why
        trigger: Trigger,
    },
    /// This process's session began
    SessionStarted {
        /// Under which name
        boot: BootId,
    },
    /// This process's session ended: it holds nothing any more
    SessionEnded {
        /// Which one
        boot: BootId,
        /// It was ended on purpose
        graceful: bool,
    },
    /// An account was passed over outside a tick
    Skipped {
        /// Which account
        account: AccountId,
        /// Which kind of run
        kind: RunKind,
        /// Why
        reason: Skip,
    },
    /// A tick was decided
    Tick {
        /// For which kind of run
        kind: RunKind,
        /// How many accounts are connected here
        connected: u32,
        /// How many runs it started
        started: u32,
        /// How many it passed over, by reason
        skipped: BTreeMap<Skip, u32>,
    },
    /// The outcome of a commit was unknown
    UnknownOutcome {
        /// About what
        key: Option<Key>,
    },
}

/// What happened to a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HoleChange {
    /// The phone does not answer for it
    Exhausted,
    /// It is closed
    Filled,
    /// A disconnection may have lost messages
    Suspected,
}

/// What an instance does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// It serves accounts
    Active,
    /// It waits for its turn
    Passive(PassiveReason),
    /// It closes down what it has
    SteppingDown,
}

/// Why an instance is passive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PassiveReason {
    /// WhatsApp could not be reached for too long
    CutOff,
    /// Another live process has the same `INSTANCE_ID` and is older
    DuplicateInstanceId,
    /// Another instance holds the lock
    HeldByOther,
    /// A foreign instance holds the compat lock
    HeldByForeign,
    /// Nothing is known yet, or the store cannot be reached
    Starting,
    /// It was told to stop
    Stopped,
}

/// How a run ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RunResult {
    /// Nothing went wrong
    pub ok: bool,
    /// Why it failed, in `snake_case`
    pub error: Option<&'static str>,
    /// Threads looked at
    pub threads: u32,
    /// Messages that pages brought
    pub messages: u32,
    /// Requests without a useful answer
    pub errors: u32,
    /// Threads that are not complete yet
    pub remaining: u32,
    /// How long it took
    pub duration: Duration,
}

impl RunResult {
    /// Whether nothing went wrong and nothing is left to do.
    pub const fn is_complete(&self) -> bool {
        self.ok && self.remaining == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_name_each_reason_why_a_connection_ended() {
        use CloseReason::{Asked, LoggedOut, Lost, PairingExpired, Replaced};
        assert_eq!(
            [Asked, LoggedOut, Lost, PairingExpired, Replaced].map(CloseReason::as_str),
            ["asked", "logged_out", "lost", "pairing_expired", "replaced"]
        );
    }
}
