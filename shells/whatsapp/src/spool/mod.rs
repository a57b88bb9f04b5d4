//! Where history waits between its arrival and its last commit.

mod common;
mod disk;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use backfill_core::id::AccountId;
use backfill_core::io::ChunkId;
use backfill_driver::port::{Store, StoreError};

use crate::chunk::Chunk;
use crate::session::SessionKeys;
use common::Common;
use disk::Disk;

/// Where history waits until it is stored.
#[derive(Clone)]
pub struct Spool(Place);

#[derive(Clone)]
enum Place {
    Common(SessionKeys),
    Disk(PathBuf),
}

impl Spool {
    /// In files below a directory of this host, which is created, readable for its owner only.
    pub fn disk(directory: PathBuf) -> Self {
        Self(Place::Disk(directory))
    }

    /// In the common store, encrypted, so that whoever owns the account next finds it: for sessions
    /// that lie there too.
    pub fn shared(keys: SessionKeys) -> Self {
        Self(Place::Common(keys))
    }

    pub(crate) fn open<S: Store>(&self, store: &S) -> Arc<dyn Keep> {
        match &self.0 {
            Place::Common(keys) => Arc::new(Common::new(store.clone(), keys.clone())),
            Place::Disk(directory) => Arc::new(Disk::new(directory.clone())),
        }
    }
}

/// A place that keeps chunks. What it says it has done survives a power loss.
#[async_trait]
pub(crate) trait Keep: Send + Sync {
    /// Keeps a chunk; keeping it again changes nothing.
    async fn put(&self, account: &AccountId, chunk: ChunkId, it: &Chunk) -> Result<(), Lost>;

    /// Gives a chunk back; `None` if there is none.
    async fn get(&self, account: &AccountId, chunk: ChunkId) -> Result<Option<Chunk>, Lost>;

    /// The chunks of an account, oldest first.
    async fn list(&self, account: &AccountId) -> Result<Vec<ChunkId>, Lost>;

    /// Forgets a chunk, if there is one.
    async fn remove(&self, account: &AccountId, chunk: ChunkId) -> Result<(), Lost>;

    /// Forgets all there is of an account.
    async fn clear(&self, account: &AccountId) -> Result<(), Lost>;

    /// Notes how many chunks were announced and have not arrived.
    async fn note(&self, account: &AccountId, expected: u64) -> Result<(), Lost>;

    /// What was noted last.
    async fn noted(&self, account: &AccountId) -> Result<u64, Lost>;
}

/// Why a chunk could not be kept or given back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    /// What was kept is not what was given
    #[error("a spooled chunk is damaged")]
    Damaged,
    /// The disk does not do what it is told
    #[error("the spool's files cannot be used")]
    Io(#[from] std::io::Error),
    /// The key is missing, or the system gives no random bytes
    #[error("the spool cannot be encrypted or decrypted")]
    Sealed,
    /// The store does not do what it is told
    #[error("the spool's store failed")]
    Store(#[from] StoreError),
}
