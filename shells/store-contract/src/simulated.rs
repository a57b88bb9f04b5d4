use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use backfill_core::doc::{DocPath, Query, Write};
use backfill_core::time::StoreTime;
use backfill_driver::port::{Committed, Found, Snapshot, Store, StoreError};
use futures_util::Stream;
use sim::store::SimStore;
use tokio::sync::watch;

use crate::Fixture;

/// Simulated stores behind the port, by space; every call advances their clock a little.
#[derive(Clone, Default)]
pub struct Simulated {
    spaces: Arc<Mutex<BTreeMap<String, SharedStore>>>,
}

impl Fixture for Simulated {
    type Store = SharedStore;

    async fn open(&self, space: &str) -> SharedStore {
        let mut spaces = self.spaces.lock().unwrap_or_else(PoisonError::into_inner);
        spaces.entry(space.into()).or_default().clone()
    }
}

/// One simulated store, shared by its clients.
#[derive(Clone, Default)]
pub struct SharedStore {
    state: Arc<Mutex<(SimStore, StoreTime)>>,
    commits: watch::Sender<()>,
}

impl SharedStore {
    async fn with<T>(&self, f: impl FnOnce(&mut SimStore, StoreTime) -> T) -> T {
        // A real store would keep the caller waiting, and others would have their turn.
        tokio::task::yield_now().await;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (store, now) = &mut *state;
        *now = StoreTime::from_micros(now.as_micros() + 250);
        f(store, *now)
    }
}

impl Store for SharedStore {
    async fn get(&self, paths: &[DocPath]) -> Result<Snapshot, StoreError> {
        Ok(self.with(|store, now| store.get(now, paths)).await)
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<Committed, StoreError> {
        let committed = self.with(|store, now| store.commit(now, &writes)).await?;
        self.commits.send_replace(());
        Ok(committed)
    }

    async fn query(&self, query: &Query) -> Result<Found, StoreError> {
        self.with(|store, now| store.query(now, query)).await
    }

    fn watch(&self, _: Query) -> impl Stream<Item = ()> + Send + 'static {
        futures_util::stream::unfold(self.commits.subscribe(), async |mut commits| {
            commits.changed().await.ok().map(|()| ((), commits))
        })
    }
}

/// A store whose hints are all lost.
#[derive(Clone)]
pub struct Deaf<S>(pub S);

impl<S: Store> Store for Deaf<S> {
    async fn get(&self, paths: &[DocPath]) -> Result<Snapshot, StoreError> {
        self.0.get(paths).await
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<Committed, StoreError> {
        self.0.commit(writes).await
    }

    async fn query(&self, query: &Query) -> Result<Found, StoreError> {
        self.0.query(query).await
    }

    fn watch(&self, _: Query) -> impl Stream<Item = ()> + Send + 'static {
        futures_util::stream::pending()
    }
}
