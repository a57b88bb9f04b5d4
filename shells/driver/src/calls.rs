//! Calls of the store that always end.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backfill_core::doc::{DocPath, Query, Write};
use backfill_core::io::{Answer, Rejection, StoreCall};
use backfill_core::policy::Policy;
use backfill_core::time::{Mono, StoreTime};
use futures_util::Stream;
use futures_util::future::{Either, select};

use crate::port::{Committed, Found, Runtime, Snapshot, Store, StoreError};

/// A store, with the patience of one process.
#[derive(Clone)]
pub(crate) struct Calls<S, R> {
    store: S,
    pub(crate) runtime: R,
    read_timeout: Duration,
    write_timeout: Duration,
    /// The latest time the store told, and when
    told: Arc<Mutex<Option<(StoreTime, Mono)>>>,
}

impl<S: Store, R: Runtime> Calls<S, R> {
    pub(crate) fn new(store: S, runtime: R, policy: &Policy) -> Self {
        Self {
            store,
            runtime,
            read_timeout: policy.read_timeout,
            write_timeout: policy.write_timeout,
            told: Arc::default(),
        }
    }

    /// Carries out what the core wants.
    pub(crate) async fn carry_out(&self, call: StoreCall) -> Result<Answer, StoreError> {
        Ok(match call {
            StoreCall::Commit(writes) => {
                let Committed { commit_time, versions } = self.commit(writes).await?;
                Answer::Committed { commit_time, versions }
            }
            StoreCall::Get(paths) => {
                let Snapshot { read_time, docs } = self.get(&paths).await?;
                Answer::Read { read_time, docs }
            }
            StoreCall::Query(query) => {
                let Found { read_time, docs } = self.query(&query).await?;
                Answer::Found { read_time, docs }
            }
        })
    }

    /// About what the store's clock shows: good for bounds of hours, never for leases.
    pub(crate) async fn store_time(&self) -> Result<StoreTime, StoreError> {
        let told = *self.told.lock().unwrap_or_else(PoisonError::into_inner);
        match told {
            Some((time, at)) => Ok(time + self.runtime.now().since(at)),
            None => Ok(self.get(&[]).await?.read_time),
        }
    }

    fn note(&self, time: StoreTime) {
        let now = self.runtime.now();
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|(latest, _)| latest < time) {
            *told = Some((time, now));
        }
    }
}

impl<S: Store, R: Runtime> Store for Calls<S, R> {
    async fn get(&self, paths: &[DocPath]) -> Result<Snapshot, StoreError> {
        let read = within(&self.runtime, self.read_timeout, self.store.get(paths)).await;
        let snapshot = read.unwrap_or(Err(StoreError::Unavailable(None)))?;
        self.note(snapshot.read_time);
        Ok(snapshot)
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<Committed, StoreError> {
        let write = within(&self.runtime, self.write_timeout, self.store.commit(writes)).await;
        let committed = write.unwrap_or(Err(StoreError::Unknown(None)))?;
        self.note(committed.commit_time);
        Ok(committed)
    }

    async fn query(&self, query: &Query) -> Result<Found, StoreError> {
        let read = within(&self.runtime, self.read_timeout, self.store.query(query)).await;
        let found = read.unwrap_or(Err(StoreError::Unavailable(None)))?;
        self.note(found.read_time);
        Ok(found)
    }

    fn watch(&self, query: Query) -> impl Stream<Item = ()> + Send + 'static {
        self.store.watch(query)
    }
}

/// What the core is told when the store did not do what it was asked.
pub(crate) fn answer_to(error: &StoreError) -> Answer {
    match error {
        StoreError::Conflict(_) => Answer::Conflict,
        StoreError::Denied(_) => Answer::Rejected(Rejection::Denied),
        StoreError::Invalid { .. } => Answer::Rejected(Rejection::Invalid),
        StoreError::Unavailable(_) => Answer::Rejected(Rejection::Unavailable),
        StoreError::Unknown(_) => Answer::Unknown,
    }
}

/// Waits for `call`, but no longer than `limit`; then the call is dropped.
pub(crate) async fn within<R: Runtime, T>(
    runtime: &R,
    limit: Duration,
    call: impl Future<Output = T>,
) -> Option<T> {
    let end = runtime.now() + limit;
    let call = std::pin::pin!(call);
    match select(call, std::pin::pin!(reach(runtime, end))).await {
        Either::Left((done, _)) => Some(done),
        Either::Right(_) => None,
    }
}

/// Waits until the clock shows `at`, whatever the sleep says.
pub(crate) async fn reach<R: Runtime>(runtime: &R, at: Mono) {
    while runtime.now() < at {
        runtime.sleep_until(at).await;
    }
}
