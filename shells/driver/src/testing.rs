//! A clock, tasks and a store that tests move by hand.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use backfill_core::doc::{DocPath, Document, Query, Version, Write, WriteOp};
use backfill_core::time::{Mono, StoreTime};
use futures_util::{Stream, stream};

use crate::port::{Committed, Found, Runtime, Snapshot, Store, StoreError};
use crate::semantics;

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Time passes only when a test says so; tasks run newest first, which no code may rely on.
#[derive(Clone, Default)]
pub(crate) struct Hand(Arc<Mutex<State>>, Arc<Flag>);

#[derive(Default)]
struct State {
    now: u64,
    tasks: Vec<Task>,
    spawned: Vec<Task>,
    sleeps: Vec<(u64, Waker)>,
}

#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Hand {
    /// Runs all tasks until all of them wait.
    pub(crate) fn settle(&self) {
        let waker = Waker::from(Arc::clone(&self.1));
        let mut cx = Context::from_waker(&waker);
        loop {
            self.1.0.store(false, Ordering::Relaxed);
            let mut tasks = {
                let mut state = self.0.lock().unwrap();
                let spawned = std::mem::take(&mut state.spawned);
                state.tasks.extend(spawned);
                std::mem::take(&mut state.tasks)
            };
            tasks.reverse();
            tasks.retain_mut(|task| task.as_mut().poll(&mut cx).is_pending());
            tasks.reverse();
            let mut state = self.0.lock().unwrap();
            state.tasks = tasks;
            if state.spawned.is_empty() && !self.1.0.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    /// Lets time pass, and runs what is due at each moment.
    pub(crate) fn pass(&self, time: Duration) {
        self.settle();
        let end = self.0.lock().unwrap().now + time.as_millis() as u64;
        loop {
            {
                let mut state = self.0.lock().unwrap();
                let next = state.sleeps.iter().map(|(at, _)| *at).min();
                state.now = next.unwrap_or(end).clamp(state.now, end);
                let now = state.now;
                let due = state.sleeps.extract_if(.., |(at, _)| *at <= now);
                due.for_each(|(_, waker)| waker.wake());
                if now == end && next.is_none_or(|next| next > end) {
                    return;
                }
            }
            self.settle();
        }
    }

    /// Runs a task, and gives what it ends with once it has.
    pub(crate) fn start<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Arc<Mutex<Option<T>>> {
        let end = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&end);
        self.spawn(async move {
            let value = task.await;
            *slot.lock().unwrap() = Some(value);
        });
        end
    }
}

impl Runtime for Hand {
    fn now(&self) -> Mono {
        Mono::from_millis(self.0.lock().unwrap().now)
    }

    fn sleep_until(&self, at: Mono) -> impl Future<Output = ()> + Send + 'static {
        let hand = self.clone();
        poll_fn(move |cx| {
            let mut state = hand.0.lock().unwrap();
            if state.now >= at.as_millis() {
                return Poll::Ready(());
            }
            state.sleeps.push((at.as_millis(), cx.waker().clone()));
            Poll::Pending
        })
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.lock().unwrap().spawned.push(Box::pin(task));
    }
}

/// What a store does with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    /// What it is asked
    Fine,
    /// It refuses everything
    Down,
    /// It does what it is asked, and never answers
    Silent,
}

/// A store in memory.
#[derive(Clone)]
pub(crate) struct Shelf {
    hand: Hand,
    state: Arc<Mutex<ShelfState>>,
}

struct ShelfState {
    docs: BTreeMap<DocPath, Arc<Document>>,
    version: i64,
    mood: Mood,
    commits: usize,
    documents_read: usize,
    conflicts: usize,
}

impl Shelf {
    pub(crate) fn new(hand: &Hand) -> Self {
        let state = ShelfState {
            docs: BTreeMap::new(),
            version: 0,
            mood: Mood::Fine,
            commits: 0,
            documents_read: 0,
            conflicts: 0,
        };
        Self { hand: hand.clone(), state: Arc::new(Mutex::new(state)) }
    }

    pub(crate) fn set(&self, mood: Mood) {
        self.state.lock().unwrap().mood = mood;
    }

    /// So many commits are refused from now on, whatever they say.
    pub(crate) fn refuse(&self, conflicts: usize) {
        self.state.lock().unwrap().conflicts = conflicts;
    }

    /// How many commits have reached it.
    pub(crate) fn commits(&self) -> usize {
        self.state.lock().unwrap().commits
    }

    /// How many documents it was asked for by path.
    pub(crate) fn documents_read(&self) -> usize {
        self.state.lock().unwrap().documents_read
    }

    pub(crate) fn document(&self, path: &str) -> Option<Arc<Document>> {
        self.state.lock().unwrap().docs.get(&DocPath::parse(path).unwrap()).cloned()
    }

    pub(crate) fn paths(&self) -> Vec<String> {
        self.state.lock().unwrap().docs.keys().map(ToString::to_string).collect()
    }

    /// Commits without waiting.
    pub(crate) fn put(&self, writes: &[Write]) -> Result<Committed, StoreError> {
        let commit_time = self.time();
        let mut state = self.state.lock().unwrap();
        state.commits += 1;
        if state.conflicts > 0 {
            state.conflicts -= 1;
            return Err(StoreError::Conflict(None));
        }
        let mut docs = state.docs.clone();
        let mut versions = Vec::new();
        for write in writes {
            let before = docs.get(&write.path).cloned();
            let version = before.as_ref().map(|doc| doc.version);
            if !semantics::holds(write.precondition, version) {
                return Err(StoreError::Conflict(None));
            }
            versions.push(match &write.op {
                WriteOp::Verify => version,
                WriteOp::Delete => docs.remove(&write.path).and(None),
                WriteOp::Merge(fields) => {
                    let before = before.as_ref().map(|doc| &doc.fields);
                    match semantics::merged(&write.path, before, fields, commit_time)? {
                        None => version,
                        Some(fields) => {
                            state.version += 1;
                            let version = Version(state.version);
                            let path = write.path.clone();
                            let update_time = commit_time;
                            let doc = Document { path, fields, version, update_time };
                            docs.insert(write.path.clone(), Arc::new(doc));
                            Some(version)
                        }
                    }
                }
            });
        }
        state.docs = docs;
        Ok(Committed { commit_time, versions })
    }

    fn time(&self) -> StoreTime {
        StoreTime::from_secs(1_800_000_000) + self.hand.now().since(Mono::ZERO)
    }

    async fn answer<T>(
        &self,
        answer: impl FnOnce() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mood = self.state.lock().unwrap().mood;
        if mood == Mood::Down {
            return Err(StoreError::Unavailable(None));
        }
        let answer = answer();
        if mood == Mood::Silent {
            return std::future::pending().await;
        }
        answer
    }
}

impl Store for Shelf {
    async fn get(&self, paths: &[DocPath]) -> Result<Snapshot, StoreError> {
        let read = || {
            let mut state = self.state.lock().unwrap();
            state.documents_read += paths.len();
            paths.iter().map(|path| state.docs.get(path).cloned()).collect()
        };
        self.answer(|| Ok(Snapshot { read_time: self.time(), docs: read() })).await
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<Committed, StoreError> {
        self.answer(|| self.put(&writes)).await
    }

    async fn query(&self, query: &Query) -> Result<Found, StoreError> {
        let read = || {
            let state = self.state.lock().unwrap();
            let within = |path: &&DocPath| path.collection() == query.collection;
            let docs: Vec<&Arc<Document>> =
                state.docs.iter().filter(|(path, _)| within(path)).map(|(_, d)| d).collect();
            semantics::find(query, docs.into_iter())
        };
        self.answer(|| Ok(Found { read_time: self.time(), docs: read() })).await
    }

    fn watch(&self, _: Query) -> impl Stream<Item = ()> + Send + 'static {
        stream::pending()
    }
}
