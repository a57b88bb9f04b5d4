//! What a store's use costs: the operations that Firestore bills, counted around any store.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use backfill_core::doc::{DocPath, Precondition, Query, Write, WriteOp};
use futures_util::Stream;

use crate::port::{Committed, Found, Snapshot, Store, StoreError};

/// A store that counts. Clones count together.
///
/// The same calls count the same whichever store is behind it. What a listener of
/// [`Store::watch`] is sent is billed as reads too, but does not pass here.
#[derive(Clone)]
pub struct Counted<S> {
    store: S,
    counters: Arc<Counters>,
}

/// How many operations were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operations {
    /// Documents read, found or not, each once per call; a call that reads none counts as one
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
        let different: BTreeSet<&DocPath> = paths.iter().collect();
        self.counters.reads.fetch_add(count(different.len().max(1)), Ordering::Relaxed);
        Ok(snapshot)
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<Committed, StoreError> {
        let sent = writes.iter().filter(|write| !says_nothing(write)).count();
        let deletes = writes.iter().filter(|write| deletes(write)).count();
        let answer = self.store.commit(writes).await;
        if matches!(answer, Ok(_) | Err(StoreError::Unknown(_))) {
            // A commit of nothing is made of a read, for the time.
            self.counters.reads.fetch_add(u64::from(sent == 0), Ordering::Relaxed);
            self.counters.writes.fetch_add(count(sent - deletes), Ordering::Relaxed);
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

/// Whether Firestore is not even told of a write.
fn says_nothing(write: &Write) -> bool {
    write.op == WriteOp::Verify && write.precondition == Precondition::Any
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Hand, Mood, Shelf};
    use backfill_core::doc::{CollectionPath, FieldOp};
    use futures_util::FutureExt;

    #[test]
    fn operations_are_counted_as_they_are_billed() {
        let shelf = Shelf::new(&Hand::default());
        let store = Counted::new(shelf.clone());
        let path = |p: &str| DocPath::parse(p).unwrap();
        let put = |p, n: i64| {
            let fields = vec![("n".into(), FieldOp::from(n))];
            Write::merge(path(p), Precondition::Any, fields)
        };
        let spent = |before: Operations| {
            let now = store.operations();
            (now.reads - before.reads, now.writes - before.writes, now.deletes - before.deletes)
        };
        let commit = |writes: Vec<Write>| {
            let before = store.operations();
            // Whether it was applied is seen in what it cost.
            let _ = store.commit(writes).now_or_never();
            spent(before)
        };
        let delete = Write::delete(path("c/b"), Precondition::Any);
        let fence = |precondition| Write::verify(path("c/fence"), precondition);
        assert_eq!(commit(vec![put("c/a", 1), put("c/b", 1), put("c/c", 1)]), (0, 3, 0));
        assert_eq!(commit(vec![put("c/a", 1)]), (0, 1, 0), "nothing changed, and it costs");
        assert_eq!(commit(vec![put("c/a", 2), delete, fence(Precondition::Absent)]), (0, 1, 2));
        assert_eq!(commit(vec![put("c/a", 3), fence(Precondition::Any)]), (0, 1, 0));
        assert_eq!(commit(vec![put("c/a", 4), fence(Precondition::Exists)]), (0, 0, 0), "refused");
        assert_eq!(commit(vec![put("c/fence", 1), put("c/d", 1)]), (0, 2, 0));
        assert_eq!(commit(vec![put("c/a", 4), fence(Precondition::Exists)]), (0, 2, 0));
        assert_eq!(commit(vec![]), (1, 0, 0));

        let get = |paths: &[&str]| {
            let before = store.operations();
            let paths: Vec<DocPath> = paths.iter().map(|p| path(p)).collect();
            store.get(&paths).now_or_never().unwrap().unwrap();
            spent(before)
        };
        assert_eq!(get(&["c/a", "c/none", "c/a"]), (2, 0, 0));
        assert_eq!(get(&[]), (1, 0, 0));
        let query = |collection, limit| {
            let before = store.operations();
            let query = Query::all(CollectionPath::root(collection), limit);
            store.query(&query).now_or_never().unwrap().unwrap();
            spent(before)
        };
        assert_eq!(query("c", 10), (4, 0, 0));
        assert_eq!(query("c", 3), (3, 0, 0));
        assert_eq!(query("none", 10), (1, 0, 0));

        shelf.set(Mood::Down);
        assert_eq!(commit(vec![put("c/a", 9)]), (0, 0, 0));
    }
}
