//! Messages in, writes out: a batch of records becomes the fewest commits that store it.
//!
//! A [`Batch`] reads what is stored, puts it together with what arrived and writes the difference
//! with a precondition on every document it read, so that of two concurrent batches neither can
//! undo the other: the one that comes second reads again. What is put together only ever grows
//! (the modules `message`, `thread`, `contact`), so order, repetition and the split into batches do
//! not matter, and what is stored already costs reads, not writes.
//!
//! A message document is named by WhatsApp's id; another sender's message with the same id in one
//! chat by `id~` and 8 hexadecimal digits of SHA-256 of the sender (`me` for this account). Which
//! of the two comes first keeps the plain name: a document never changes its name, because readers
//! hold on to it. A message that our users sent is found through its
//! [`Alias`](crate::alias::Alias).
//!
//! A chat that is called by a LID whose phone number is known, from [`Twins`] or because its thread
//! already leads elsewhere, is stored in the phone number's thread; the LID's thread gets
//! `redirectTo` and `canonicalThreadId`, and a message that lies there moves when it is mentioned
//! again.

mod difference;
mod facts;
mod group;
mod item;
mod known;
mod place;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use facts::{Facts, MessageMark, Rejected, Rejection, ThreadFacts};

use crate::doc::{DocPath, Document, Write};
use crate::id::AccountId;
use crate::incoming::Record;
use crate::jid::{Jid, Twins};
use crate::message::Believable;
use crate::time::StoreTime;
use group::{Group, grouped};
use item::Item;
use known::{Known, Missing};
use place::{Slot, Thread};

/// Stores records of one account.
///
/// Ask [`step`](Self::step) what to do, do it, report it with one of the `on_…` methods, and so on
/// until it says [`Step::Done`].
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Batch {
    account: AccountId,
    believable: Believable,
    twins: Arc<Twins>,
    items: Vec<Item>,
    rejected: Vec<Rejected>,
    threads: Vec<Thread>,
    thread_of: BTreeMap<Jid, usize>,
    slots: Vec<Slot>,
    facts: Vec<ThreadFacts>,
    known: Known,
    /// What has to be read before anything else
    unread: Vec<DocPath>,
    groups: VecDeque<Group>,
    /// The group whose commit is not answered yet
    current: Option<Group>,
    /// What was committed while more remained
    settled: Vec<Write>,
    /// Documents that did not exist, or only for reports, in a plan before the current one
    new: BTreeSet<DocPath>,
    /// Documents that have to be written alone, to find out which of several the store refuses
    alone: BTreeSet<DocPath>,
    /// Documents that the store refuses
    refused: BTreeSet<DocPath>,
}

/// What to do next for a batch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Commit this, all or nothing; then call [`Batch::on_committed`], [`Batch::on_conflict`] or
    /// [`Batch::on_refused`]
    Commit(Vec<Write>),
    /// Everything is stored
    Done,
    /// Read these; then call [`Batch::on_docs`]
    Read(Vec<DocPath>),
}

impl Batch {
    /// Prepares to store `records`, with what is known of `account`'s twins.
    ///
    /// `now` bounds the times that are believed: one more than a day later than that counts as a
    /// day later.
    pub fn new(
        account: &AccountId,
        records: Vec<Record>,
        now: StoreTime,
        twins: &Arc<Twins>,
    ) -> Self {
        let mut batch = Self {
            account: account.clone(),
            believable: Believable::until(now + A_DAY),
            twins: Arc::clone(twins),
            items: Vec::with_capacity(records.len()),
            rejected: Vec::new(),
            threads: Vec::new(),
            thread_of: BTreeMap::new(),
            slots: Vec::new(),
            facts: Vec::new(),
            known: Known::default(),
            unread: Vec::new(),
            groups: VecDeque::new(),
            current: None,
            settled: Vec::new(),
            new: BTreeSet::new(),
            alone: BTreeSet::new(),
            refused: BTreeSet::new(),
        };
        for (record, given) in records.into_iter().enumerate() {
            match batch.item(given) {
                Ok(what) => batch.items.push(Item { record, what }),
                Err(reason) => batch.rejected.push(Rejected { record, reason }),
            }
        }
        batch.plan();
        batch
    }

    /// What to do next.
    ///
    /// Asking again without having reported a commit's outcome counts as not knowing it: the batch
    /// then reads again what the commit was about.
    pub fn step(&mut self) -> Step {
        if self.current.is_some() {
            self.on_conflict();
        }
        if !self.unread.is_empty() {
            return Step::Read(self.asked().to_vec());
        }
        let Some(mut group) = self.groups.pop_front() else { return Step::Done };
        let more = !self.groups.is_empty();
        let writes = if more { group.writes.clone() } else { std::mem::take(&mut group.writes) };
        self.current = Some(group);
        Step::Commit(writes)
    }

    /// The documents that [`Step::Read`] asked for, in its order.
    pub fn on_docs(&mut self, docs: &[Option<Arc<Document>>]) {
        let answered = self.asked().len().min(docs.len());
        for (path, doc) in self.unread.drain(..answered).zip(docs) {
            self.known.learn(path, doc.clone());
        }
        if self.unread.is_empty() {
            self.plan();
        }
    }

    /// The commit was applied.
    pub fn on_committed(&mut self) {
        if let Some(group) = self.current.take() {
            self.settled.extend(group.writes);
        }
    }

    /// The commit was not applied because a precondition failed, or it is not known whether it
    /// was: the batch reads again what the commit was about.
    pub fn on_conflict(&mut self) {
        if let Some(group) = self.current.take() {
            self.apply_settled();
            for path in &group.paths {
                self.known.forget(path);
            }
            self.plan();
        }
    }

    /// The store refuses the commit because of what it contains. The batch finds out which document
    /// it is, stores all others and lists its records as rejected.
    pub fn on_refused(&mut self) {
        let Some(group) = self.current.take() else { return };
        self.apply_settled();
        if group.units > 1 {
            self.alone.extend(group.paths);
        } else {
            for path in group.paths {
                let records = self.slots.iter().filter(|slot| slot.path == path);
                let records = records.flat_map(|slot| &slot.items).map(|i| self.items[*i].record);
                let reason = Rejection::Store;
                self.rejected.extend(records.map(|record| Rejected { record, reason }));
                self.refused.insert(path);
            }
        }
        self.plan();
    }

    /// What came of it; complete once [`step`](Self::step) has said [`Step::Done`].
    pub fn facts(&self) -> Facts {
        Facts { threads: self.facts.clone(), rejected: self.rejected.clone() }
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("account", &self.account)
            .field("records", &self.items.len())
            .field("rejected", &self.rejected)
            .finish_non_exhaustive()
    }
}

const A_DAY: Duration = Duration::from_secs(86_400);
/// At most this many documents in one read.
const READ_DOCS: usize = 400;

impl Batch {
    fn asked(&self) -> &[DocPath] {
        &self.unread[..self.unread.len().min(READ_DOCS)]
    }

    /// Decides everything from what is known of the store; if that is not enough, what to read.
    fn plan(&mut self) {
        self.groups.clear();
        self.facts.clear();
        let mut missing = Missing::default();
        self.place(&mut missing);
        if missing.is_empty() {
            let units = self.units(&mut missing);
            if missing.is_empty() {
                self.groups = grouped(units, &self.alone);
            }
        }
        self.unread = missing.into_paths();
    }

    /// Brings what is known of the store up to what this batch has committed.
    fn apply_settled(&mut self) {
        let absent = |path: &DocPath| {
            self.known.held(path).is_none_or(|doc| doc.str("placeholder") == Some("missing"))
        };
        let slots = self
            .slots
            .iter()
            .filter(|slot| absent(&slot.path) && slot.moved_from.as_ref().is_none_or(absent));
        let threads = self.threads.iter().filter(|thread| absent(&thread.path));
        let new = slots.map(|slot| &slot.path).chain(threads.map(|thread| &thread.path));
        self.new.extend(new.cloned());
        for write in std::mem::take(&mut self.settled) {
            self.known.apply(write);
        }
    }
}
