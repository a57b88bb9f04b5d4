//! One open session: its rows in memory, its book in the store, and the commits between them.
//!
//! A call changes the rows at once and then waits until a commit has carried the change. Whoever
//! finds no commit under way sends one, with everything that has changed meanwhile; the others
//! wait for it. There is no task of its own: a call that is cancelled leaves its commit to the
//! next one, which finds out what became of it.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backfill_core::id::AccountId;
use backfill_driver::port::Store;

use super::book::{Book, COMMIT_BYTES, Cargo, Place, Sent};
use super::error::SessionError;
use super::keys::Seal;
use super::rows::{Edit, Rows};

pub(crate) struct Keeper<S> {
    account: AccountId,
    rows: Mutex<Rows>,
    /// Held while a commit is under way; gone once closed
    book: tokio::sync::Mutex<Option<Book<S>>>,
    /// Given back when closed or dropped
    turn: Mutex<Option<Turn>>,
}

/// The right to use an account's session, which one at a time has.
pub(crate) struct Turn {
    account: AccountId,
    taken: Arc<Mutex<BTreeSet<AccountId>>>,
}

impl Turn {
    pub(crate) fn take(
        account: &AccountId,
        taken: &Arc<Mutex<BTreeSet<AccountId>>>,
    ) -> Result<Self, SessionError> {
        if !lock(taken).insert(account.clone()) {
            return Err(SessionError::AlreadyOpen);
        }
        Ok(Self { account: account.clone(), taken: Arc::clone(taken) })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.taken).remove(&self.account);
    }
}

impl<S: Store> Keeper<S> {
    pub(crate) async fn open(
        store: S,
        place: Place,
        seal: Seal,
        turn: Turn,
    ) -> Result<Self, SessionError> {
        let account = place.account.clone();
        let (book, rows) = Book::open(store, place, seal).await?;
        let outdated = book.is_outdated();
        let keeper = Self {
            account,
            rows: Mutex::new(rows),
            book: tokio::sync::Mutex::new(Some(book)),
            turn: Mutex::new(Some(turn)),
        };
        if outdated && let Some(book) = &mut *keeper.book.lock().await {
            keeper.empty_journal(book).await?;
        }
        Ok(keeper)
    }

    /// Reads rows.
    pub(crate) fn read<T>(&self, read: impl FnOnce(&Rows) -> T) -> T {
        read(&lock(&self.rows))
    }

    /// Changes rows, and waits until the changes are durable.
    pub(crate) async fn write<T>(
        &self,
        change: impl FnOnce(&mut Edit<'_>) -> T,
    ) -> Result<T, SessionError> {
        let (value, ticket) = {
            let mut rows = lock(&self.rows);
            let mut edit = rows.edit()?;
            (change(&mut edit), edit.end()?)
        };
        if let Some(ticket) = ticket {
            self.settle(ticket).await?;
        }
        Ok(value)
    }

    /// Why no change is taken any more, if so.
    pub(crate) fn refusal(&self) -> Option<SessionError> {
        lock(&self.rows).refusal().cloned()
    }

    /// Makes everything durable and lets go of the store, whatever came of it.
    pub(crate) async fn close(&self) -> Result<(), SessionError> {
        let mut book = self.book.lock().await;
        let Some(mut open) = book.take() else { return Ok(()) };
        let refusal = self.refusal();
        let result = match refusal {
            Some(refusal) => Err(refusal),
            None if lock(&self.rows).is_settled() && !open.has_flight() => Ok(()),
            None => {
                let ticket = lock(&self.rows).ticket();
                self.commit(&mut open, ticket).await
            }
        };
        lock(&self.rows).refuse(SessionError::Closed);
        // A store may have threads to wait for.
        let closed = tokio::task::spawn_blocking(move || drop(open)).await;
        drop(lock(&self.turn).take());
        if closed.is_err() {
            tracing::warn!(account = %self.account, "[realtime] a session's store did not end well");
        }
        result
    }

    async fn settle(&self, ticket: u64) -> Result<(), SessionError> {
        let mut book = self.book.lock().await;
        if let Some(outcome) = lock(&self.rows).outcome(ticket) {
            return outcome;
        }
        let Some(book) = &mut *book else { return Err(SessionError::Closed) };
        let result = self.commit(book, ticket).await;
        if let Err(e) = &result {
            lock(&self.rows).fail(e.clone());
        } else if book.is_full() && self.empty_journal(book).await.is_err() {
            // The journal goes on; the next commit tries again.
            tracing::warn!(account = %self.account, "[realtime] the journal of a session was not emptied");
        }
        result
    }

    /// Commits what has changed until those with this ticket need not wait any more.
    async fn commit(&self, book: &mut Book<S>, ticket: u64) -> Result<(), SessionError> {
        self.finish(book).await?;
        loop {
            {
                let mut rows = lock(&self.rows);
                if let Some(outcome) = rows.outcome(ticket)
                    && outcome.is_ok()
                {
                    return outcome;
                }
                let keys = rows.depart(COMMIT_BYTES);
                let departed = rows.all_departed();
                if keys.is_empty() {
                    rows.landed(&[], departed);
                    return Ok(());
                }
                if let Err((keys, e)) = book.write_entry(&rows, keys, departed) {
                    rows.turned_back(keys);
                    return Err(e);
                }
            }
            self.finish(book).await?;
        }
    }

    /// Writes pages until the journal is empty.
    async fn empty_journal(&self, book: &mut Book<S>) -> Result<(), SessionError> {
        book.plan_pages(&mut lock(&self.rows));
        loop {
            book.write_pages(&lock(&self.rows))?;
            if let Some(Cargo::Pages(true)) = self.finish(book).await? {
                return Ok(());
            }
        }
    }

    /// Sends what is ready, and notes what came of it.
    async fn finish(&self, book: &mut Book<S>) -> Result<Option<Cargo>, SessionError> {
        let Some(sent) = book.send().await else { return Ok(None) };
        let mut rows = lock(&self.rows);
        match sent {
            Sent::Landed(cargo) => {
                if let Cargo::Rows(keys, ticket) = &cargo {
                    rows.landed(keys, *ticket);
                }
                Ok(Some(cargo))
            }
            Sent::Refused(cargo, e) => {
                if let Cargo::Rows(keys, _) = cargo {
                    rows.turned_back(keys);
                }
                if matches!(e, SessionError::Fenced) {
                    rows.refuse(SessionError::Fenced);
                }
                Err(e)
            }
            Sent::Unknown(e) => Err(e),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
