//! The state of one session in memory: everything the client has stored, as small rows.
//!
//! Reading never goes further than here. Every change is noted, so that the next commit carries
//! it; what could not be committed stays noted, so the store always holds what this process once
//! held, with nothing missing in between.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::error::SessionError;

/// The largest value of one row, in bytes: it must fit into one commit with all around it.
pub(crate) const LARGEST_VALUE: usize = 2_500_000;

/// What a row is about. The numbers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Table {
    Device = 1,
    Identity = 2,
    Session = 3,
    PreKey = 4,
    SignedPreKey = 5,
    SenderKey = 6,
    SyncKey = 7,
    LatestSyncKey = 8,
    Collection = 9,
    MutationMac = 10,
    SenderKeyDevice = 11,
    Lid = 12,
    Phone = 13,
    BaseKey = 14,
    DeviceList = 15,
    GroupMetadata = 16,
    ContactToken = 17,
    SentMessage = 18,
    PendingInbound = 19,
    MessageSecret = 20,
}

impl Table {
    /// Whether its rows change again and again. Others are written once, and perhaps removed;
    /// they lie in other pages, or these would be written anew with every change.
    fn changes(number: u8) -> bool {
        const KEPT: [Table; 8] = [
            Table::Identity,
            Table::PreKey,
            Table::MutationMac,
            Table::Lid,
            Table::Phone,
            Table::DeviceList,
            Table::GroupMetadata,
            Table::MessageSecret,
        ];
        !KEPT.iter().any(|table| *table as u8 == number)
    }
}

/// Names a row: its table, then what names it there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(Arc<[u8]>);

impl Key {
    pub(crate) fn new(table: Table, name: impl AsRef<[u8]>) -> Self {
        let name = name.as_ref();
        let mut key = Vec::with_capacity(1 + name.len());
        key.push(table as u8);
        key.extend(name);
        Self(key.into())
    }

    /// A row that belongs to something that has several.
    pub(crate) fn nested(table: Table, owner: &str, name: impl AsRef<[u8]>) -> Self {
        let mut key = Self::owned(table, owner).0.to_vec();
        key.extend(name.as_ref());
        Self(key.into())
    }

    /// What all rows that belong to `owner` begin with, and no others.
    pub(crate) fn owned(table: Table, owner: &str) -> Self {
        let mut key = Vec::with_capacity(5 + owner.len());
        key.push(table as u8);
        key.extend((owner.len() as u32).to_be_bytes());
        key.extend(owner.as_bytes());
        Self(key.into())
    }

    /// A row that is only ever looked up by its whole name, which is not kept.
    pub(crate) fn hashed(table: Table, name: &[&str]) -> Self {
        let mut digest = Sha256::new();
        for part in name {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        Self::new(table, &digest.finalize()[..16])
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        Self(bytes.into())
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// What names it in its table.
    pub(crate) fn name(&self) -> &[u8] {
        &self.0[1..]
    }

    pub(crate) fn changes(&self) -> bool {
        Table::changes(self.0[0])
    }
}

impl Borrow<[u8]> for Key {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

/// A value, and the page it lies in; zero if it has only been in the journal so far.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) value: Box<[u8]>,
    pub(crate) page: u32,
}

/// All rows, and which of them the store does not have yet.
#[derive(Default)]
pub(crate) struct Rows {
    rows: BTreeMap<Key, Row>,
    /// Changed since they were last put into a commit
    changed: BTreeSet<Key>,
    /// In a commit whose outcome is not known
    flying: BTreeSet<Key>,
    /// Pages that have lost a row since they were last written
    vacated: BTreeSet<u32>,
    /// Counts the calls that wait for their changes to be durable
    ticket: u64,
    durable: u64,
    failed: Option<(u64, SessionError)>,
    refusal: Option<SessionError>,
    /// Whether the device is linked
    pub(crate) paired: bool,
}

impl Rows {
    pub(crate) fn new(rows: BTreeMap<Key, Row>, paired: bool) -> Self {
        // Made at once the map takes less memory than made row by row.
        let rows = rows.into_iter().collect();
        Self { rows, paired, ..Self::default() }
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&[u8]> {
        Some(&self.rows.get(key)?.value)
    }

    pub(crate) fn has(&self, key: &Key) -> bool {
        self.rows.contains_key(key)
    }

    /// All rows whose keys begin like this, in the order of their keys.
    pub(crate) fn beginning<'a>(
        &'a self,
        prefix: &Key,
    ) -> impl DoubleEndedIterator<Item = (&'a Key, &'a [u8])> + use<'a> {
        let end = after(prefix);
        let end = end.as_deref().map_or(std::ops::Bound::Unbounded, std::ops::Bound::Excluded);
        self.rows
            .range::<[u8], _>((std::ops::Bound::Included(prefix.as_bytes()), end))
            .map(|(key, row)| (key, &*row.value))
    }

    /// All rows of a table, in the order of their keys.
    pub(crate) fn table(
        &self,
        table: Table,
    ) -> impl DoubleEndedIterator<Item = (&Key, &[u8])> + use<'_> {
        self.beginning(&Key::new(table, []))
    }

    /// Begins a change, unless none is taken any more.
    pub(crate) fn edit(&mut self) -> Result<Edit<'_>, SessionError> {
        match &self.refusal {
            Some(refusal) => Err(refusal.clone()),
            None => Ok(Edit { rows: self, waits: false, refused: None }),
        }
    }

    /// Takes no more changes from now on.
    pub(crate) fn refuse(&mut self, reason: SessionError) {
        self.refusal.get_or_insert(reason);
    }

    pub(crate) fn refusal(&self) -> Option<&SessionError> {
        self.refusal.as_ref()
    }

    /// A number for a call that waits until all changes made so far are durable.
    pub(crate) fn ticket(&mut self) -> u64 {
        self.ticket += 1;
        self.ticket
    }

    /// What became of the changes a ticket stands for; `None` if nobody has tried yet.
    pub(crate) fn outcome(&self, ticket: u64) -> Option<Result<(), SessionError>> {
        if self.durable >= ticket {
            return Some(Ok(()));
        }
        if let Some(refusal) = &self.refusal {
            return Some(Err(refusal.clone()));
        }
        let (failed, error) = self.failed.as_ref()?;
        (*failed >= ticket).then(|| Err(error.clone()))
    }

    /// The keys for the next commit, as many as fit into so many bytes but at least one; empty if
    /// everything is durable or on its way.
    pub(crate) fn depart(&mut self, limit: usize) -> Vec<Key> {
        let (mut keys, mut bytes) = (Vec::new(), 0);
        while let Some(key) = self.changed.first() {
            bytes += 16 + key.as_bytes().len() + self.get(key).map_or(0, <[u8]>::len);
            if !keys.is_empty() && bytes > limit {
                break;
            }
            keys.extend(self.changed.pop_first());
        }
        self.flying.extend(keys.iter().cloned());
        keys
    }

    /// The ticket of the last change that is not left behind; `None` if some are.
    pub(crate) fn all_departed(&self) -> Option<u64> {
        self.changed.is_empty().then_some(self.ticket)
    }

    /// A commit with these keys has been applied.
    pub(crate) fn landed(&mut self, keys: &[Key], ticket: Option<u64>) {
        for key in keys {
            self.flying.remove(key);
        }
        if let Some(ticket) = ticket {
            self.durable = self.durable.max(ticket);
        }
    }

    /// A commit with these keys has not been applied; the next one carries them.
    pub(crate) fn turned_back(&mut self, keys: Vec<Key>) {
        for key in keys {
            self.flying.remove(&key);
            self.changed.insert(key);
        }
    }

    /// Whoever waits so far is told that it failed.
    pub(crate) fn fail(&mut self, error: SessionError) {
        self.failed = Some((self.ticket, error));
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.changed.is_empty() && self.flying.is_empty()
    }

    /// The pages that have lost a row since this was last asked.
    pub(crate) fn take_vacated(&mut self) -> BTreeSet<u32> {
        std::mem::take(&mut self.vacated)
    }

    /// Keys that no commit has carried since they changed.
    pub(crate) fn changed(&self) -> &BTreeSet<Key> {
        &self.changed
    }

    pub(crate) fn row_mut(&mut self, key: &Key) -> Option<&mut Row> {
        self.rows.get_mut(key)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = (&Key, &Row)> {
        self.rows.iter()
    }
}

/// A change of rows under way.
pub(crate) struct Edit<'a> {
    rows: &'a mut Rows,
    waits: bool,
    refused: Option<SessionError>,
}

impl Edit<'_> {
    /// Sets a row.
    pub(crate) fn put(&mut self, key: Key, value: impl Into<Box<[u8]>>) {
        let value = value.into();
        if value.len() > LARGEST_VALUE {
            let (bytes, limit) = (value.len(), LARGEST_VALUE);
            self.refused.get_or_insert(SessionError::TooLarge { bytes, limit });
            return;
        }
        match self.rows.rows.get_mut(&key) {
            Some(row) if row.value == value => return self.wait_for(&key),
            Some(row) => row.value = value,
            None => {
                self.rows.rows.insert(key.clone(), Row { value, page: 0 });
            }
        }
        self.rows.changed.insert(key);
        self.waits = true;
    }

    /// Removes a row; says whether there was one.
    pub(crate) fn remove(&mut self, key: &Key) -> bool {
        let removed = self.forget(key);
        if removed {
            self.waits = true;
        } else {
            self.wait_for(key);
        }
        removed
    }

    /// Removes a row that does no harm if it is still there after a crash: the call does not wait
    /// for it, the next commit carries it. Says whether there was one.
    pub(crate) fn forget(&mut self, key: &Key) -> bool {
        let Some(row) = self.rows.rows.remove(key) else { return false };
        if row.page != 0 {
            self.rows.vacated.insert(row.page);
        }
        self.rows.changed.insert(key.clone());
        true
    }

    /// Removes all rows that satisfy the condition; returns how many.
    pub(crate) fn forget_where(
        &mut self,
        table: Table,
        condition: impl Fn(&Key, &[u8]) -> bool,
    ) -> u32 {
        let found: Vec<Key> = self
            .rows
            .table(table)
            .filter(|(key, value)| condition(key, value))
            .map(|(key, _)| key.clone())
            .collect();
        for key in &found {
            self.forget(key);
        }
        u32::try_from(found.len()).unwrap_or(u32::MAX)
    }

    /// Removes all rows that satisfy the condition, and waits for it.
    pub(crate) fn remove_where(&mut self, table: Table, condition: impl Fn(&Key, &[u8]) -> bool) {
        self.waits |= self.forget_where(table, condition) > 0;
    }

    /// Removes all rows whose keys begin like this, and waits for it.
    pub(crate) fn remove_beginning(&mut self, prefix: &Key) {
        let found: Vec<Key> = self.rows.beginning(prefix).map(|(key, _)| key.clone()).collect();
        for key in found {
            self.remove(&key);
        }
    }

    pub(crate) fn rows(&self) -> &Rows {
        self.rows
    }

    /// Notes whether the device is linked.
    pub(crate) fn set_paired(&mut self, paired: bool) {
        self.rows.paired = paired;
    }

    /// Ends the change: the ticket to wait for, if the caller has to wait.
    pub(crate) fn end(self) -> Result<Option<u64>, SessionError> {
        match self.refused {
            Some(refused) => Err(refused),
            None => Ok(self.waits.then(|| self.rows.ticket())),
        }
    }

    /// Nothing has changed, but what is there may not be durable yet.
    fn wait_for(&mut self, key: &Key) {
        self.waits |= self.rows.changed.contains(key) || self.rows.flying.contains(key);
    }
}

/// The first key after all that begin like this.
fn after(prefix: &Key) -> Option<Vec<u8>> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return Some(end);
        }
    }
    None
}
