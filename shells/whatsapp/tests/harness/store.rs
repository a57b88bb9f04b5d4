//! A store that tests look into, break and kill.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backfill_core::doc::{DocPath, Document, Query, Version, Write, WriteOp};
use backfill_core::time::StoreTime;
use backfill_driver::port::{Committed, Found, Snapshot, Store, StoreError};
use backfill_driver::semantics;
use futures_util::{Stream, StreamExt, stream};
use store_sqlite::SqliteStore;
use tokio::sync::watch;
use tokio::time::Instant;

/// A store as one process sees it; clones are the same store.
#[derive(Clone)]
pub(crate) struct TestStore {
    inner: Inner,
    changes: watch::Sender<u64>,
    /// Commits of messages fail while this is set
    pub(crate) broken: Arc<AtomicBool>,
    life: Life,
    /// Time that calls took, in nanoseconds
    spent: Arc<AtomicU64>,
}

#[derive(Clone)]
enum Inner {
    Memory(Memory),
    Sqlite(SqliteStore),
}

/// Ends a process at its nth step.
#[derive(Clone, Default)]
pub(crate) struct Life {
    dead: Arc<AtomicBool>,
    steps: Arc<AtomicU64>,
    /// The step that is the last; 0 for none
    last: Arc<AtomicU64>,
    died: Arc<tokio::sync::Notify>,
}

impl Life {
    pub(crate) fn ending_after(steps: u64) -> Self {
        let life = Self::default();
        life.last.store(steps, Ordering::Relaxed);
        life
    }

    /// One thing happens; does not return in a process that is dead.
    pub(crate) async fn step(&self) {
        let step = self.steps.fetch_add(1, Ordering::AcqRel) + 1;
        if step == self.last.load(Ordering::Relaxed) {
            self.end();
        }
        if self.dead.load(Ordering::Acquire) {
            std::future::pending::<()>().await;
        }
    }

    pub(crate) fn end(&self) {
        self.dead.store(true, Ordering::Release);
        self.died.notify_one();
    }

    pub(crate) async fn ended(&self) {
        self.died.notified().await;
    }
}

impl TestStore {
    pub(crate) fn memory() -> Self {
        Self::new(Inner::Memory(Memory::default()))
    }

    pub(crate) fn sqlite(store: SqliteStore) -> Self {
        Self::new(Inner::Sqlite(store))
    }

    fn new(inner: Inner) -> Self {
        Self {
            inner,
            changes: watch::Sender::new(0),
            broken: Arc::default(),
            life: Life::default(),
            spent: Arc::default(),
        }
    }

    /// The same store as another process sees it.
    pub(crate) fn of(&self, life: &Life) -> Self {
        Self { life: life.clone(), ..self.clone() }
    }

    /// Time that calls took, of those that overlap each.
    pub(crate) fn spent(&self) -> Duration {
        Duration::from_nanos(self.spent.load(Ordering::Relaxed))
    }

    async fn timed<T>(&self, call: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let done = call.await;
        let took = u64::try_from(begun.elapsed().as_nanos()).unwrap();
        self.spent.fetch_add(took, Ordering::Relaxed);
        done
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// All documents of a memory store whose path begins like this.
    pub(crate) fn documents(&self, prefix: &str) -> Vec<Arc<Document>> {
        let Inner::Memory(memory) = &self.inner else { panic!("only of a store in memory") };
        let state = memory.0.lock().unwrap();
        let docs = state.docs.values().filter(|doc| doc.path.as_str().starts_with(prefix));
        docs.cloned().collect()
    }

    async fn applied(&self, writes: Vec<Write>) -> Result<Committed, StoreError> {
        let done = match &self.inner {
            Inner::Memory(memory) => memory.commit(&writes),
            Inner::Sqlite(store) => self.timed(store.commit(writes)).await,
        };
        self.changes.send_modify(|changes| *changes += 1);
        done
    }
}

impl Store for TestStore {
    async fn get(&self, paths: &[DocPath]) -> Result<Snapshot, StoreError> {
        self.life.step().await;
        match &self.inner {
            Inner::Memory(memory) => memory.get(paths),
            Inner::Sqlite(store) => self.timed(store.get(paths)).await,
        }
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<Committed, StoreError> {
        let message = |write: &Write| write.path.as_str().contains("/messages/");
        if self.broken.load(Ordering::Acquire) && writes.iter().any(message) {
            return Err(StoreError::Unavailable(None));
        }
        self.life.step().await;
        let done = self.applied(writes).await;
        self.life.step().await;
        done
    }

    async fn query(&self, query: &Query) -> Result<Found, StoreError> {
        self.life.step().await;
        match &self.inner {
            Inner::Memory(memory) => memory.query(query),
            Inner::Sqlite(store) => self.timed(store.query(query)).await,
        }
    }

    fn watch(&self, _: Query) -> impl Stream<Item = ()> + Send + 'static {
        stream::unfold(self.changes.subscribe(), |mut changes| async move {
            changes.changed().await.ok()?;
            Some(((), changes))
        })
        .boxed()
    }
}

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    docs: BTreeMap<DocPath, Arc<Document>>,
    version: i64,
    time: i64,
}

impl State {
    fn now(&mut self) -> StoreTime {
        // Every moment is later than the one before.
        self.time = (wacore::time::now_millis() * 1_000).max(self.time + 1);
        StoreTime::from_micros(self.time)
    }
}

impl Memory {
    fn get(&self, paths: &[DocPath]) -> Result<Snapshot, StoreError> {
        let mut state = self.0.lock().unwrap();
        let docs = paths.iter().map(|path| state.docs.get(path).cloned()).collect();
        Ok(Snapshot { read_time: state.now(), docs })
    }

    fn query(&self, query: &Query) -> Result<Found, StoreError> {
        semantics::check_query(query)?;
        let mut state = self.0.lock().unwrap();
        let read_time = state.now();
        let within = |path: &DocPath| path.collection() == query.collection;
        let docs = state.docs.iter().filter(|(path, _)| within(path)).map(|(_, doc)| doc);
        Ok(Found { read_time, docs: semantics::find(query, docs) })
    }

    fn commit(&self, writes: &[Write]) -> Result<Committed, StoreError> {
        semantics::check_commit(writes)?;
        let mut state = self.0.lock().unwrap();
        let commit_time = state.now();
        let version_of =
            |state: &State, path: &DocPath| state.docs.get(path).map(|doc| doc.version);
        for write in writes {
            if !semantics::holds(write.precondition, version_of(&state, &write.path)) {
                return Err(StoreError::Conflict(None));
            }
        }
        let mut changed = Vec::new();
        for write in writes {
            if let WriteOp::Merge(fields) = &write.op {
                let before = state.docs.get(&write.path).map(|doc| &doc.fields);
                changed.push(semantics::merged(&write.path, before, fields, commit_time)?);
            }
        }
        let mut changed = changed.into_iter();
        let mut versions = Vec::new();
        for write in writes {
            let path = write.path.clone();
            versions.push(match &write.op {
                WriteOp::Verify => version_of(&state, &path),
                WriteOp::Delete => state.docs.remove(&path).and(None),
                WriteOp::Merge(_) => match changed.next().flatten() {
                    None => version_of(&state, &path),
                    Some(fields) => {
                        state.version += 1;
                        let version = Version(state.version);
                        let doc = Document {
                            path: path.clone(),
                            fields,
                            version,
                            update_time: commit_time,
                        };
                        state.docs.insert(path, Arc::new(doc));
                        Some(version)
                    }
                },
            });
        }
        Ok(Committed { commit_time, versions })
    }
}
