//! What the core needs from the world, as traits.

use std::sync::Arc;

use backfill_core::doc::{DocPath, Document, Query, Version, Write};
use backfill_core::io::{Answer, GatewayRequest};
use backfill_core::time::{Mono, StoreTime};
use futures_util::Stream;

/// WhatsApp, as far as one process speaks to it: the real client or a simulated one.
///
/// What happens by itself is reported through a [`Handle`](crate::Handle).
pub trait Gateway: Clone + Send + Sync + 'static {
    /// Does what is asked, and says what came of it.
    ///
    /// The calls of one account are polled for the first time in the order in which the core
    /// decided them, one after the other; after that they run side by side. So a call that has to
    /// be known to a later one, as a connection to the call that closes it, must leave its mark
    /// before it first waits. `not_after` has been checked just before the first poll; who waits
    /// before the effect itself checks it again.
    ///
    /// A call that takes too long counts as [`Answer::Unknown`]; it goes on, and its end changes
    /// nothing. So whatever it reports must be right however late.
    fn execute(&self, request: GatewayRequest) -> impl Future<Output = Answer> + Send;
}

/// The clock and the tasks of a process.
pub trait Runtime: Clone + Send + Sync + 'static {
    /// This process's own clock. It counts through suspend.
    fn now(&self) -> Mono;

    /// Ends when the clock shows `at` or, at worst, a little earlier. If the clock counts on while
    /// the machine sleeps, so does this.
    fn sleep_until(&self, at: Mono) -> impl Future<Output = ()> + Send + 'static;

    /// Runs a task on its own.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static);
}

/// A document store: SQLite, Firestore or a simulated one. The contract suite pins what it means.
///
/// Every call must end: an implementation bounds its own waiting and answers
/// [`StoreError::Unknown`] when it gives up after it may have sent something. It never retries a
/// commit by itself.
pub trait Store: Clone + Send + Sync + 'static {
    /// Reads documents at one point in time, in the order of `paths`.
    fn get(&self, paths: &[DocPath]) -> impl Future<Output = Result<Snapshot, StoreError>> + Send;

    /// Applies all writes or none, if every precondition holds.
    ///
    /// At most 500 writes; a document may appear once as a merge or delete, and besides that
    /// any number of times as a verify.
    fn commit(
        &self,
        writes: Vec<Write>,
    ) -> impl Future<Output = Result<Committed, StoreError>> + Send;

    /// Finds documents of one collection.
    fn query(&self, query: &Query) -> impl Future<Output = Result<Found, StoreError>> + Send;

    /// Tells that the answer to `query` may have changed. A hint: it may come late, twice, for
    /// nothing, or not at all. Ends only when the store is gone for good.
    fn watch(&self, query: Query) -> impl Stream<Item = ()> + Send + 'static;
}

/// The answer to a `get`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The store's time at which the documents were read
    pub read_time: StoreTime,
    /// One entry per path asked for; `None` where there is no document
    pub docs: Vec<Option<Arc<Document>>>,
}

/// The answer to a commit that was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The store's time of the commit: the update time of every document that it changed
    pub commit_time: StoreTime,
    /// Per write, the version of its document after the commit; `None` after a delete, and after
    /// a verify if the store does not say
    pub versions: Vec<Option<Version>>,
}

/// The answer to a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The store's time at which the documents were read
    pub read_time: StoreTime,
    /// What was found, in the order asked for
    pub docs: Vec<Arc<Document>>,
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A precondition failed; nothing was applied
    #[error("a precondition failed")]
    Conflict(#[source] Option<Cause>),
    /// The credentials do not allow it; nothing was applied
    #[error("the store denies access")]
    Denied(#[source] Option<Cause>),
    /// The request itself is wrong; nothing was applied
    #[error("the store refuses the request: {reason}")]
    Invalid {
        /// What is wrong with it, without any document content
        reason: String,
    },
    /// The store was not reached; nothing was applied
    #[error("the store is not available")]
    Unavailable(#[source] Option<Cause>),
    /// No answer: it may have been applied, or may yet be
    #[error("no answer from the store; the outcome is unknown")]
    Unknown(#[source] Option<Cause>),
}

/// The underlying failure.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A wait that somebody owns.
pub(crate) type Sleep = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;
