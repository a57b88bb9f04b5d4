//! What a store's use costs: the operations that Firestore bills, counted around any store.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use backfill_core::doc::{DocPath, Precondition, Query, Write, WriteOp};
use futures_util::Stream;

use crate::port::{Committed, Found, Snapshot, Store, StoreError};

/// A store that counts. Clones count together.
///
/// What a listener of [`Store::watch`] is sent is billed as reads too, but does not pass here.
#[derive(Clone)]
pub struct Counted<S> {
    store: S,
    counters: Arc<Counters>,
}

/// How many operations were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operations {
    /// Documents read, found or not; an empty query counts as one
    pub reads: u64,
    /// Documents written, those included that a write did not change, and fences
    pub writes: u64,
    /// Documents deleted
    pub deletes: u64,
}

#[derive(Default)]
struct Counters {
    reads: AtomicU64,
    writes: AtomicU64,
    deletes: AtomicU64,
}

impl<S> Counted<S> {
    /// Counts what is done with `store` from now on.
    pub fn new(store: S) -> Self {
        Self { store, counters: Arc::default() }
    }

    /// What was done so far. A commit whose outcome is unknown counts as made.
    pub fn operations(&self) -> Operations {
        Operations {
            reads: self.counters.reads.load(Ordering::Relaxed),
            writes: self.counters.writes.load(Ordering::Relaxed),
            deletes: self.counters.deletes.load(Ordering::Relaxed),
        }
    }
}

impl<S: Store> Store for Counted<S> {
    async fn get(&self, paths: &[DocPath]) -> Result<Snapshot, StoreError> {
        let snapshot = self.store.get(paths).await?;
        self.counters.reads.fetch_add(count(paths.len().max(1)), Ordering::Relaxed);
        Ok(snapshot)
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<Committed, StoreError> {
        let deletes = writes.iter().filter(|write| deletes(write)).count();
        let written = writes.len() - deletes;
        let answer = self.store.commit(writes).await;
        if matches!(answer, Ok(_) | Err(StoreError::Unknown(_))) {
            self.counters.writes.fetch_add(count(written), Ordering::Relaxed);
            self.counters.deletes.fetch_add(count(deletes), Ordering::Relaxed);
        }
        answer
    }

    async fn query(&self, query: &Query) -> Result<Found, StoreError> {
        let found = self.store.query(query).await?;
        self.counters.reads.fetch_add(count(found.docs.len().max(1)), Ordering::Relaxed);
        Ok(found)
    }

    fn watch(&self, query: Query) -> impl Stream<Item = ()> + Send + 'static {
        self.store.watch(query)
    }
}

/// Whether Firestore sees a delete: it checks that a document is absent by deleting it.
fn deletes(write: &Write) -> bool {
    write.op == WriteOp::Delete
        || write.op == WriteOp::Verify && write.precondition == Precondition::Absent
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
