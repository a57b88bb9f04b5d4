//! Where linked devices keep what they must not lose: identity, ratchets, keys and what has been
//! decrypted but not stored.
//!
//! There is one implementation of the client's storage traits, over the driver's
//! [`Store`] port, and two places for it:
//!
//! - **local**: one SQLite file per account in a directory of this host.
//! - **shared**: in the common store, below the account's document, so that the credentials follow
//!   the account to whoever owns it. It is encrypted, and every commit is fenced by the version of
//!   the connection lease: a former owner cannot change anything.
//!
//! A session is read once, when it is opened; from then on every read is answered from memory, and
//! an idle account costs no operation. A write returns when it is durable; writes that come
//! together share a commit. Only what is merely forgotten (a decrypted message that has been
//! stored, a used one-time key, what has expired) may wait for the next commit, or for
//! [`Session::close`]: after a crash it is still there, which does no harm.

mod app_state;
mod book;
mod device;
mod error;
mod keeper;
mod keys;
mod local;
mod protocol;
mod record;
mod rows;
mod secrets;
mod signal;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use backfill_core::doc::Version;
use backfill_core::id::AccountId;
use backfill_driver::port::Store;
use wacore::store::traits::Backend;

pub use error::SessionError;
pub use keys::{KeyError, SessionKeys};

use book::Place;
use keeper::{Keeper, Turn};
pub(crate) use keys::{Label, Seal};
use local::Directory;

/// Where the sessions of all accounts are kept. Clones know of each other's open sessions.
#[derive(Clone)]
pub struct Sessions<S> {
    kept: Kept<S>,
    taken: Arc<Mutex<BTreeSet<AccountId>>>,
}

type Fence = Arc<dyn Fn(&AccountId) -> Option<Version> + Send + Sync>;

#[derive(Clone)]
enum Kept<S> {
    Local(Directory),
    Shared { store: S, keys: SessionKeys, fence: Fence },
}

/// The open session of one account.
///
/// Once closed, or once the backend and all its clones are dropped, it can be opened again.
/// Dropping it without closing is like a crash: what was durable stays so.
pub struct Session {
    /// For the client
    pub backend: Arc<dyn Backend>,
    keeper: Arc<dyn Open>,
}

impl<S: Store> Sessions<S> {
    /// Sessions in files of this host, one per account, in a directory that is made if need be.
    /// Both are accessible for their owner only.
    ///
    /// No two processes may use one directory at the same time.
    pub fn local(directory: impl Into<PathBuf>) -> Self {
        Self::new(Kept::Local(Directory::new(directory.into())))
    }

    /// Sessions in the common store.
    ///
    /// `fence` gives the version of the account's connection lease while this process owns it:
    /// `handle.look(|instance| instance.fence(account))`. It is asked once, when a session is
    /// opened.
    pub fn shared(
        store: S,
        keys: SessionKeys,
        fence: impl Fn(&AccountId) -> Option<Version> + Send + Sync + 'static,
    ) -> Self {
        Self::new(Kept::Shared { store, keys, fence: Arc::new(fence) })
    }

    /// Opens the session of an account, or begins one if there is none.
    ///
    /// # Errors
    /// [`SessionError::AlreadyOpen`]; [`SessionError::NotOwned`] if there is no fence; and if the
    /// store fails, or anything is damaged or cannot be decrypted: never is a session that is
    /// there taken for none.
    pub async fn open(&self, account: &AccountId) -> Result<Session, SessionError> {
        let turn = Turn::take(account, &self.taken)?;
        match &self.kept {
            Kept::Local(directory) => {
                let store = directory.open(account).await?;
                let place = Place { account: account.clone(), fence: None };
                Ok(Session::new(Keeper::open(store, place, Seal::Checked, turn).await?))
            }
            Kept::Shared { store, keys, fence } => {
                let place = owned(account, fence)?;
                let seal = Seal::Encrypted(keys.clone());
                Ok(Session::new(Keeper::open(store.clone(), place, seal, turn).await?))
            }
        }
    }

    /// The accounts whose linked devices lie on this host. Empty for sessions in the common store,
    /// which lie on no host. An account whose file cannot be read is one of them: opening it says
    /// what is wrong.
    ///
    /// # Errors
    /// [`SessionError`] if the directory cannot be read.
    pub async fn known(&self) -> Result<Vec<AccountId>, SessionError> {
        let mut known = Vec::new();
        if let Kept::Local(directory) = &self.kept {
            for account in directory.accounts().await? {
                if !matches!(self.is_paired(&account).await, Ok(false)) {
                    known.push(account);
                }
            }
        }
        Ok(known)
    }

    /// Whether the account has a linked device. It may be open meanwhile.
    ///
    /// # Errors
    /// [`SessionError`] if the store cannot be read.
    pub async fn is_paired(&self, account: &AccountId) -> Result<bool, SessionError> {
        match &self.kept {
            Kept::Local(directory) if !directory.has(account).await? => Ok(false),
            Kept::Local(directory) => {
                book::is_paired(&directory.open(account).await?, account).await
            }
            Kept::Shared { store, .. } => book::is_paired(store, account).await,
        }
    }

    /// Looks whether the session of an account could be opened here, whoever has it now. Nothing
    /// is said of sessions on this host: no key opens them.
    ///
    /// # Errors
    /// Why it could not: [`SessionError::UnknownKey`] and [`SessionError::Undecryptable`] with
    /// another key than it was sealed with.
    pub async fn check(&self, account: &AccountId) -> Result<(), SessionError> {
        let Kept::Shared { store, keys, .. } = &self.kept else { return Ok(()) };
        let place = Place { account: account.clone(), fence: None };
        book::check(store.clone(), place, Seal::Encrypted(keys.clone())).await
    }

    /// Forgets the session of an account that was logged out or deleted. It must be closed.
    ///
    /// # Errors
    /// [`SessionError::AlreadyOpen`] while it is open; [`SessionError::NotOwned`] and
    /// [`SessionError::Fenced`] if the account belongs to somebody else.
    pub async fn wipe(&self, account: &AccountId) -> Result<(), SessionError> {
        let _turn = Turn::take(account, &self.taken)?;
        match &self.kept {
            Kept::Local(directory) => directory.remove(account).await,
            Kept::Shared { store, keys, fence } => {
                let place = owned(account, fence)?;
                book::wipe(store, place, Seal::Encrypted(keys.clone())).await
            }
        }
    }

    fn new(kept: Kept<S>) -> Self {
        Self { kept, taken: Arc::default() }
    }
}

impl Session {
    fn new<S: Store>(keeper: Keeper<S>) -> Self {
        let keeper = Arc::new(keeper);
        Self { backend: keeper.clone(), keeper }
    }

    /// Whether somebody else has the account now. Every write fails then; only closing helps.
    pub fn is_fenced(&self) -> bool {
        self.keeper.is_fenced()
    }

    /// Makes everything durable and gives the session back, even if somebody still holds the
    /// backend, which then takes no more writes.
    ///
    /// # Errors
    /// [`SessionError`] if something could not be made durable; the session is closed all the
    /// same.
    pub async fn close(self) -> Result<(), SessionError> {
        self.keeper.close().await
    }
}

/// A session, whatever store it lies in.
#[async_trait]
trait Open: Send + Sync {
    fn is_fenced(&self) -> bool;
    async fn close(&self) -> Result<(), SessionError>;
}

#[async_trait]
impl<S: Store> Open for Keeper<S> {
    fn is_fenced(&self) -> bool {
        matches!(self.refusal(), Some(SessionError::Fenced))
    }

    async fn close(&self) -> Result<(), SessionError> {
        Self::close(self).await
    }
}

fn owned(account: &AccountId, fence: &Fence) -> Result<Place, SessionError> {
    let fence = fence(account).ok_or(SessionError::NotOwned)?;
    Ok(Place { account: account.clone(), fence: Some(fence) })
}
