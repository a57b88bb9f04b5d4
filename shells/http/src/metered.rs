//! A store whose calls are measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use backfill_core::doc::{DocPath, Query, Write};
use backfill_core::time::Mono;
use backfill_driver::port::{Committed, Found, Runtime, Snapshot, Store, StoreError};
use futures_util::Stream;

use crate::metrics::Metrics;

/// A store whose calls are measured, and that knows whether it was reached. Clones share that.
#[derive(Clone)]
pub struct Metered<S, R> {
    store: S,
    runtime: R,
    metrics: Arc<Metrics>,
    reached: Reached,
}

/// Whether a store answered the latest call. Clones show the same.
#[derive(Clone, Debug, Default)]
pub struct Reached(Arc<AtomicU8>);

impl Reached {
    /// Whether it did; false before the first call.
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed) == YES
    }

    /// It did not answer for so long that nobody waits any more.
    pub fn gave_up(&self) {
        self.0.store(UNREACHABLE, Ordering::Relaxed);
    }

    /// Why it did not, in one word; `None` before the first call.
    pub(crate) fn failure(&self) -> Option<&'static str> {
        match self.0.load(Ordering::Relaxed) {
            DENIED => Some("store_denies_access"),
            UNREACHABLE => Some("store_unreachable"),
            _ => None,
        }
    }
}

impl<S: Store, R: Runtime> Metered<S, R> {
    /// Measures what is done with `store` from now on.
    pub fn new(store: S, runtime: R, metrics: Arc<Metrics>) -> Self {
        Self { store, runtime, metrics, reached: Reached::default() }
    }

    /// Whether the store is reached.
    pub fn reached(&self) -> Reached {
        self.reached.clone()
    }

    async fn measured<T>(
        &self,
        name: &'static str,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let begun: Mono = self.runtime.now();
        let answer = call.await;
        self.metrics.time(name, &[], self.runtime.now().since(begun));
        let failure = answer.as_ref().err().map(reason);
        if let Some(reason) = failure {
            self.metrics.add("wa_store_failures_total", &[("reason", reason)], 1);
        }
        let reached = match failure {
            Some("denied") => DENIED,
            Some("unavailable" | "unknown") => UNREACHABLE,
            _ => YES,
        };
        self.reached.0.store(reached, Ordering::Relaxed);
        answer
    }
}

impl<S: Store, R: Runtime> Store for Metered<S, R> {
    async fn get(&self, paths: &[DocPath]) -> Result<Snapshot, StoreError> {
        self.measured("wa_store_read_seconds", self.store.get(paths)).await
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<Committed, StoreError> {
        self.measured("wa_store_commit_seconds", self.store.commit(writes)).await
    }

    async fn query(&self, query: &Query) -> Result<Found, StoreError> {
        self.measured("wa_store_read_seconds", self.store.query(query)).await
    }

    fn watch(&self, query: Query) -> impl Stream<Item = ()> + Send + 'static {
        self.store.watch(query)
    }
}

const UNREACHABLE: u8 = 1;
const DENIED: u8 = 2;
const YES: u8 = 3;

const fn reason(error: &StoreError) -> &'static str {
    match error {
        StoreError::Conflict(_) => "conflict",
        StoreError::Denied(_) => "denied",
        StoreError::Invalid { .. } => "invalid",
        StoreError::Unavailable(_) => "unavailable",
        StoreError::Unknown(_) => "unknown",
    }
}
