//! Placeholder.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex};

use backfill_core::id::AccountId;
use wacore::store::InMemoryBackend;
use wacore::store::traits::Backend;

/// Sessions in memory.
#[derive(Clone)]
pub struct Sessions<S>(Arc<Mutex<BTreeMap<AccountId, Arc<dyn Backend>>>>, PhantomData<S>);

impl<S> Default for Sessions<S> {
    fn default() -> Self {
        Self(Arc::default(), PhantomData)
    }
}

#[allow(clippy::unwrap_used, missing_docs)]
impl<S> Sessions<S> {
    pub async fn open(&self, account: &AccountId) -> Result<Arc<dyn Backend>, std::io::Error> {
        let mut all = self.0.lock().unwrap();
        Ok(all.entry(account.clone()).or_insert_with(|| Arc::new(InMemoryBackend::new())).clone())
    }

    pub async fn wipe(&self, account: &AccountId) -> Result<(), std::io::Error> {
        self.0.lock().unwrap().remove(account);
        Ok(())
    }

    pub async fn here(&self) -> Result<Vec<AccountId>, std::io::Error> {
        Ok(self.0.lock().unwrap().keys().cloned().collect())
    }
}
