//! A store in which something goes wrong.

use std::sync::{Arc, Mutex};

use backfill_core::doc::{DocPath, Query, Write};
use backfill_driver::port::{Committed, Found, Snapshot, Store, StoreError};
use futures_util::Stream;
use tokio::sync::Notify;

use crate::session::harness::Dice;

/// A store whose commits fail in every way that the port allows, or stop at a certain one.
#[derive(Clone)]
pub(crate) struct Trial<S> {
    store: S,
    state: Arc<Mutex<State>>,
    /// Told when the commit at which it stops has come
    pub(crate) stopped: Arc<Notify>,
}

struct State {
    dice: Dice,
    /// One commit in so many goes wrong; none if zero
    faults: u64,
    /// So many commits until it stops
    until: Option<u64>,
    /// Whether the last one is applied
    applied: bool,
    /// Sent, given up on, and still on its way
    late: Vec<Vec<Write>>,
    commits: u64,
}

impl<S> Trial<S> {
    /// One commit in so many goes wrong.
    pub(crate) fn faulty(store: S, seed: u64, faults: u64) -> Self {
        Self::new(store, seed, faults, None, true)
    }

    /// The store stops answering at a commit, which may still be applied.
    pub(crate) fn stopping(store: S, commits: u64, applied: bool) -> Self {
        Self::new(store, 0, 0, Some(commits), applied)
    }

    /// It goes wrong first, and then stops.
    pub(crate) fn dying(store: S, seed: u64, faults: u64, commits: u64, applied: bool) -> Self {
        Self::new(store, seed, faults, Some(commits), applied)
    }

    pub(crate) fn commits(&self) -> u64 {
        self.state.lock().unwrap().commits
    }

    fn new(store: S, seed: u64, faults: u64, until: Option<u64>, applied: bool) -> Self {
        let dice = Dice::new(seed);
        let state = State { dice, faults, until, applied, late: Vec::new(), commits: 0 };
        Self { store, state: Arc::new(Mutex::new(state)), stopped: Arc::default() }
    }
}

enum Fate {
    Fine,
    Contention,
    Down,
    Late,
    Lost,
    Stopped(bool),
    Unanswered,
}

impl<S: Store> Store for Trial<S> {
    async fn get(&self, paths: &[DocPath]) -> Result<Snapshot, StoreError> {
        self.store.get(paths).await
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<Committed, StoreError> {
        let (fate, late) = {
            let mut state = self.state.lock().unwrap();
            state.commits += 1;
            let faults = state.faults;
            let (until, commits) = (state.until, state.commits);
            let fate = match until {
                Some(until) if commits >= until => Fate::Stopped(state.applied),
                _ if faults == 0 || state.dice.roll(faults) != 0 => Fate::Fine,
                _ => match state.dice.roll(5) {
                    0 => Fate::Contention,
                    1 => Fate::Down,
                    2 => Fate::Late,
                    3 => Fate::Lost,
                    _ => Fate::Unanswered,
                },
            };
            // What is late arrives at some time, or never.
            let arrives = !state.late.is_empty() && state.dice.roll(3) == 0;
            (fate, arrives.then(|| state.late.remove(0)))
        };
        if let Some(late) = late {
            // Nobody waits for its answer.
            let _ = self.store.commit(late).await;
        }
        match fate {
            Fate::Fine => self.store.commit(writes).await,
            Fate::Contention => Err(StoreError::Conflict(None)),
            Fate::Down => Err(StoreError::Unavailable(None)),
            Fate::Late => {
                self.state.lock().unwrap().late.push(writes);
                Err(StoreError::Unknown(None))
            }
            Fate::Lost => Err(StoreError::Unknown(None)),
            Fate::Stopped(applied) => {
                let first = {
                    let mut state = self.state.lock().unwrap();
                    std::mem::replace(&mut state.applied, false)
                };
                if applied && first {
                    let _ = self.store.commit(writes).await;
                }
                self.stopped.notify_one();
                std::future::pending().await
            }
            Fate::Unanswered => {
                let _ = self.store.commit(writes).await;
                Err(StoreError::Unknown(None))
            }
        }
    }

    async fn query(&self, query: &Query) -> Result<Found, StoreError> {
        self.store.query(query).await
    }

    fn watch(&self, query: Query) -> impl Stream<Item = ()> + Send + 'static {
        self.store.watch(query)
    }
}
