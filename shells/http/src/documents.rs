//! The store, as the HTTP side uses it: any store behind one type.

use std::pin::Pin;
use std::sync::Arc;

use backfill_core::doc::{DocPath, Query, Write};
use backfill_driver::port::{Committed, Found, Snapshot, Store, StoreError};

/// A store of which only its documents are wanted. Clones reach the same.
#[derive(Clone)]
pub struct Documents(Arc<dyn Any>);

type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

trait Any: Send + Sync {
    fn get<'a>(&'a self, paths: &'a [DocPath]) -> Answer<'a, Snapshot>;
    fn commit(&self, writes: Vec<Write>) -> Answer<'_, Committed>;
    fn query<'a>(&'a self, query: &'a Query) -> Answer<'a, Found>;
}

impl<S: Store> Any for S {
    fn get<'a>(&'a self, paths: &'a [DocPath]) -> Answer<'a, Snapshot> {
        Box::pin(Store::get(self, paths))
    }

    fn commit(&self, writes: Vec<Write>) -> Answer<'_, Committed> {
        Box::pin(Store::commit(self, writes))
    }

    fn query<'a>(&'a self, query: &'a Query) -> Answer<'a, Found> {
        Box::pin(Store::query(self, query))
    }
}

impl Documents {
    /// The documents of a store.
    pub fn of(store: impl Store) -> Self {
        Self(Arc::new(store))
    }

    pub(crate) async fn get(&self, paths: &[DocPath]) -> Result<Snapshot, StoreError> {
        self.0.get(paths).await
    }

    pub(crate) async fn commit(&self, writes: Vec<Write>) -> Result<Committed, StoreError> {
        self.0.commit(writes).await
    }

    pub(crate) async fn query(&self, query: &Query) -> Result<Found, StoreError> {
        self.0.query(query).await
    }
}
