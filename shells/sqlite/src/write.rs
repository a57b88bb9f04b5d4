//! Commits, on the one connection of a process that writes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use backfill_core::doc::{
    CollectionPath, DocPath, FieldPath, Fields, Precondition, Version, Write, WriteOp,
};
use backfill_core::time::StoreTime;
use backfill_driver::port::{Committed, StoreError};
use backfill_driver::semantics::{field_at, holds, merged};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use crate::clock::Clock;
use crate::failure::{damaged, not_done, refusal, unknown};
use crate::schema::{INDEXES, is_current};
use crate::{codec, key};

/// So many collections are remembered by id.
const KNOWN_COLLECTIONS: usize = 20_000;

pub(crate) struct Writer {
    db: Connection,
    clock: Arc<Clock>,
    collections: BTreeMap<CollectionPath, i64>,
    /// How many groups any process had committed when this one last looked
    commits: i64,
    /// How many of them were this one's
    own_commits: i64,
}

/// What became of a group of commits.
pub(crate) struct Outcome {
    /// One answer per commit, in their order
    pub(crate) answers: Vec<Result<Committed, StoreError>>,
    /// The collections in which something changed
    pub(crate) changed: BTreeSet<CollectionPath>,
    /// Whether other processes have committed since the last group
    pub(crate) contended: bool,
}

impl Writer {
    pub(crate) fn new(db: Connection, clock: Arc<Clock>) -> rusqlite::Result<Self> {
        let commits = db.query_row("SELECT commits FROM state", [], |row| row.get(0))?;
        Ok(Self { db, clock, collections: BTreeMap::new(), commits, own_commits: 0 })
    }

    /// Applies several commits in one transaction: one wait for the disk for all of them.
    pub(crate) fn commit(&mut self, group: &[Vec<Write>]) -> Outcome {
        match self.attempt(group) {
            Ok(outcome) => outcome,
            Err(error) => {
                // Ids of collections that were rolled back must not be remembered.
                self.collections.clear();
                let answer = |durable: &Failed| match durable {
                    Failed::AtCommit(e) => unknown(e.to_string()),
                    Failed::Before(e) => not_done_again(e),
                    Failed::Taken => StoreError::Conflict(None),
                };
                Outcome {
                    answers: group.iter().map(|_| Err(answer(&error))).collect(),
                    changed: BTreeSet::new(),
                    contended: false,
                }
            }
        }
    }

    /// How many groups this process has committed.
    pub(crate) fn own_commits(&self) -> i64 {
        self.own_commits
    }

    fn attempt(&mut self, group: &[Vec<Write>]) -> Result<Outcome, Failed> {
        let tx = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        if !is_current(&tx)? {
            return Err(Failed::Before(refusal("a newer program has migrated the file")));
        }
        let (last_commit, last_version, commits): (i64, i64, i64) = tx
            .prepare_cached("SELECT last_commit, last_version, commits FROM state")?
            .query_row([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let commit_time = self.clock.now().max(StoreTime::from_micros(last_commit));
        let mut apply = Apply {
            tx: &tx,
            lone: group.len() == 1,
            collections: &mut self.collections,
            commit_time,
            last_version,
            changed: BTreeSet::new(),
        };
        let mut answers = Vec::with_capacity(group.len());
        for writes in group {
            answers.push(apply.commit(writes)?);
        }
        let (changed, last_version) = (apply.changed, apply.last_version);
        let contended = commits != self.commits;
        if changed.is_empty() && self.clock.promised(commit_time) {
            tx.rollback()?;
            self.commits = commits;
        } else {
            let horizon = self.clock.horizon_after(commit_time);
            tx.prepare_cached(
                "UPDATE state SET horizon = max(horizon, ?), last_commit = ?, last_version = ?, \
                 commits = ?",
            )?
            .execute(params![
                horizon,
                commit_time.as_micros(),
                last_version,
                commits + 1
            ])?;
            tx.commit().map_err(Failed::AtCommit)?;
            self.clock.promise(horizon);
            self.commits = commits + 1;
            self.own_commits += 1;
        }
        if self.collections.len() > KNOWN_COLLECTIONS {
            self.collections.clear();
        }
        Ok(Outcome { answers, changed, contended })
    }
}

/// Why a group was not committed.
enum Failed {
    /// The disk may have it or not
    AtCommit(rusqlite::Error),
    /// It was rolled back
    Before(rusqlite::Error),
    /// It was rolled back, because a document that its only commit creates is there already
    Taken,
}

impl From<rusqlite::Error> for Failed {
    fn from(e: rusqlite::Error) -> Self {
        Self::Before(e)
    }
}

/// SQLite's errors cannot be cloned, and each commit of a group gets one.
fn not_done_again(e: &rusqlite::Error) -> StoreError {
    not_done(match e {
        rusqlite::Error::SqliteFailure(code, message) => {
            rusqlite::Error::SqliteFailure(*code, message.clone())
        }
        other => refusal(other.to_string()),
    })
}

/// One transaction under way.
struct Apply<'a> {
    tx: &'a Transaction<'a>,
    /// There is one commit only: if it fails half-way, the transaction does. So what it creates
    /// need not be looked for first.
    lone: bool,
    collections: &'a mut BTreeMap<CollectionPath, i64>,
    commit_time: StoreTime,
    last_version: i64,
    changed: BTreeSet<CollectionPath>,
}

/// A document as it lies in the file.
struct Row {
    id: i64,
    version: Version,
    fields: Fields,
}

/// What a write will do, once every precondition of its commit is known to hold.
enum Change {
    Delete(Row),
    Insert(Fields, Version),
    Update(Row, Fields, Version),
}

impl Apply<'_> {
    /// Applies one commit, or nothing of it.
    fn commit(&mut self, writes: &[Write]) -> Result<Result<Committed, StoreError>, Failed> {
        let mut changes = Vec::with_capacity(writes.len());
        let mut versions = Vec::with_capacity(writes.len());
        let mut last_version = self.last_version;
        for write in writes {
            let creates =
                write.precondition == Precondition::Absent && matches!(write.op, WriteOp::Merge(_));
            let before = if self.lone && creates { None } else { self.row(&write.path)? };
            let version = before.as_ref().map(|row| row.version);
            if !holds(write.precondition, version) {
                return Ok(Err(StoreError::Conflict(None)));
            }
            versions.push(match &write.op {
                WriteOp::Verify => version,
                WriteOp::Delete => {
                    changes.extend(before.map(|row| (write, Change::Delete(row))));
                    None
                }
                WriteOp::Merge(ops) => {
                    let old = before.as_ref().map(|row| &row.fields);
                    match merged(&write.path, old, ops, self.commit_time) {
                        Err(e) => return Ok(Err(e)),
                        Ok(None) => version,
                        Ok(Some(fields)) => {
                            last_version += 1;
                            let version = Version(last_version);
                            changes.push((
                                write,
                                match before {
                                    None => Change::Insert(fields, version),
                                    Some(row) => Change::Update(row, fields, version),
                                },
                            ));
                            Some(version)
                        }
                    }
                }
            });
        }
        for (write, change) in changes {
            let collection = write.path.collection();
            self.apply(&collection, write.path.id(), change)?;
            self.changed.insert(collection);
        }
        self.last_version = last_version;
        Ok(Ok(Committed { commit_time: self.commit_time, versions }))
    }

    fn row(&mut self, path: &DocPath) -> rusqlite::Result<Option<Row>> {
        let Some(collection) = self.known_collection(&path.collection())? else {
            return Ok(None);
        };
        self.tx
            .prepare_cached(
                "SELECT id, version, fields FROM documents WHERE collection = ? AND name = ?",
            )?
            .query_row(params![collection, path.id()], |row| {
                let fields = codec::decode(row.get_ref(2)?.as_blob()?).ok_or_else(damaged)?;
                Ok(Row { id: row.get(0)?, version: Version(row.get(1)?), fields })
            })
            .optional()
    }

    fn apply(
        &mut self,
        collection: &CollectionPath,
        name: &str,
        change: Change,
    ) -> Result<(), Failed> {
        let id = self.collection(collection)?;
        let time = self.commit_time.as_micros();
        match change {
            Change::Delete(row) => {
                self.tx.prepare_cached("DELETE FROM documents WHERE id = ?")?.execute([row.id])?;
                self.index(collection, id, name, row.id, Some(&row.fields), None)?;
            }
            Change::Insert(fields, version) => {
                let inserted = self
                    .tx
                    .prepare_cached(
                        "INSERT INTO documents(collection, name, version, update_time, fields) \
                         VALUES(?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    )?
                    .execute(params![id, name, version.0, time, codec::encode(&fields)])?;
                if inserted == 0 {
                    return Err(Failed::Taken);
                }
                let row = self.tx.last_insert_rowid();
                self.index(collection, id, name, row, None, Some(&fields))?;
            }
            Change::Update(row, fields, version) => {
                self.tx
                    .prepare_cached(
                        "UPDATE documents SET version = ?, update_time = ?, fields = ? \
                         WHERE id = ?",
                    )?
                    .execute(params![version.0, time, codec::encode(&fields), row.id])?;
                self.index(collection, id, name, row.id, Some(&row.fields), Some(&fields))?;
            }
        }
        Ok(())
    }

    /// Moves a document's index entries from where they were to where they belong.
    fn index(
        &self,
        collection: &CollectionPath,
        id: i64,
        name: &str,
        document: i64,
        before: Option<&Fields>,
        after: Option<&Fields>,
    ) -> rusqlite::Result<()> {
        for (index, fields) in (0_i64..).zip(&INDEXES) {
            if fields.0 != collection.name() {
                continue;
            }
            let old = before.and_then(|doc| entry(doc, fields.1, name));
            let new = after.and_then(|doc| entry(doc, fields.1, name));
            if old == new {
                continue;
            }
            if let Some(old) = old {
                self.tx
                    .prepare_cached(
                        "DELETE FROM entries WHERE field_index = ? AND collection = ? AND key = ?",
                    )?
                    .execute(params![index, id, old])?;
            }
            if let Some(new) = new {
                self.tx
                    .prepare_cached("INSERT INTO entries VALUES(?, ?, ?, ?)")?
                    .execute(params![index, id, new, document])?;
            }
        }
        Ok(())
    }

    fn known_collection(&mut self, path: &CollectionPath) -> rusqlite::Result<Option<i64>> {
        if let Some(id) = self.collections.get(path) {
            return Ok(Some(*id));
        }
        let id: Option<i64> = self
            .tx
            .prepare_cached("SELECT id FROM collections WHERE path = ?")?
            .query_row([path.as_str()], |row| row.get(0))
            .optional()?;
        if let Some(id) = id {
            self.collections.insert(path.clone(), id);
        }
        Ok(id)
    }

    fn collection(&mut self, path: &CollectionPath) -> rusqlite::Result<i64> {
        if let Some(id) = self.known_collection(path)? {
            return Ok(id);
        }
        self.tx
            .prepare_cached("INSERT INTO collections(path) VALUES(?)")?
            .execute([path.as_str()])?;
        let id = self.tx.last_insert_rowid();
        self.collections.insert(path.clone(), id);
        Ok(id)
    }
}

/// The key of a document in an index; `None` if it lacks one of the fields.
fn entry(doc: &Fields, fields: &[FieldPath], name: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(64);
    for field in fields {
        key::push(&mut out, field_at(doc, field)?);
    }
    out.extend(name.as_bytes());
    Some(out)
}
