//! Accounts, keys, a common store with leases, and chance.

use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};

use backfill_core::doc::{DocPath, Precondition, Version, Write};
use backfill_core::id::AccountId;
use backfill_driver::port::Store;
use gateway_whatsapp::{SessionKeys, Sessions};
use store_sqlite::SqliteStore;

pub(crate) const NEW_KEY: &str = "new:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
pub(crate) const OLD_KEY: &str = "old:AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

pub(crate) fn account(number: u64) -> AccountId {
    AccountId::parse(format!("account_test_{number:032x}")).unwrap()
}

pub(crate) fn keys(setting: &str) -> SessionKeys {
    SessionKeys::parse(setting).unwrap()
}

/// A common store, in which accounts can be acquired
pub(crate) struct Common {
    pub(crate) store: SqliteStore,
    epoch: AtomicI64,
    _directory: Option<tempfile::TempDir>,
}

impl Common {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let common = Self::within(directory.path());
        Self { _directory: Some(directory), ..common }
    }

    /// In a directory that outlives this process, whose claims differ from those of any other.
    pub(crate) fn within(directory: &Path) -> Self {
        let store = SqliteStore::open(&directory.join("common.sqlite")).unwrap();
        let epoch = AtomicI64::new(i64::from(std::process::id()) << 32);
        Self { store, epoch, _directory: None }
    }

    /// Takes the account from whoever has it; the version fences the new owner's writes.
    pub(crate) async fn acquire(&self, account: &AccountId) -> Version {
        let epoch = self.epoch.fetch_add(1, Ordering::Relaxed);
        let lease = account.connection_path();
        let write = Write::merge(lease, Precondition::Any, vec![("epoch".into(), epoch.into())]);
        self.store.commit(vec![write]).await.unwrap().versions[0].unwrap()
    }

    /// Sessions of an owner that has just acquired the account.
    pub(crate) async fn sessions(&self, account: &AccountId) -> Sessions<SqliteStore> {
        let fence = self.acquire(account).await;
        sessions(self.store.clone(), NEW_KEY, fence)
    }
}

pub(crate) fn sessions<S: Store>(store: S, setting: &str, fence: Version) -> Sessions<S> {
    Sessions::shared(store, keys(setting), move |_| Some(fence))
}

/// A document of an account's session
pub(crate) fn document(account: &AccountId, name: &str) -> DocPath {
    DocPath::new(&account.path().child("session"), name).unwrap()
}

/// Chance that can be repeated
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    pub(crate) fn bytes(&mut self, length: u64) -> Vec<u8> {
        (0..length).map(|_| self.roll(256) as u8).collect()
    }

    pub(crate) fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.roll(of.len() as u64) as usize]
    }
}
