//! Messages into the store: get, merge in the core, commit by compare-and-set.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backfill_core::doc::{
    DocPath, Document, FieldOp, FieldPath, Precondition, Version, Write, WriteOp,
};
use backfill_core::ingest::{Batch, Facts, Step};
use backfill_core::time::StoreTime;

use crate::port::{Committed, Store, StoreError};
use crate::semantics::{document_size, merged};

/// Stores batches. Clones share what they know of the store.
///
/// A call works on one batch and holds no more than it, so whoever calls decides how many are
/// under way and how much memory they take. Batches may overlap, come again, or be cut off at any
/// point: whatever the order, the same documents come out.
#[derive(Clone)]
pub struct Ingest<S> {
    store: S,
    known: Arc<Mutex<Known>>,
}

impl<S: Store> Ingest<S> {
    /// Ingests into `store`, remembering at most about `capacity` bytes of documents so as not to
    /// read them again.
    pub fn new(store: S, capacity: usize) -> Self {
        Self { store, known: Arc::new(Mutex::new(Known::new(capacity))) }
    }

    /// Stores a batch. `now` is about what the store's clock shows: what was read longer than a
    /// minute before is read again.
    ///
    /// One bad document does not fail its neighbours: it is among the rejected ones of the answer.
    ///
    /// # Errors
    /// What kept the store from doing it; a conflict only if there was one after the other. Part of
    /// the batch may be stored: calling again with the same batch goes on where it stopped.
    pub async fn store(&self, now: StoreTime, batch: &mut Batch) -> Result<Facts, StoreError> {
        let mut conflicts = 0;
        loop {
            match batch.step() {
                Step::Done => return Ok(batch.facts()),
                Step::Read(paths) => {
                    let docs = self.read(now, &paths).await?;
                    batch.on_docs(&docs);
                }
                Step::Commit(writes) => {
                    let changes = self.known().take(&writes);
                    match self.store.commit(writes).await {
                        Ok(committed) => {
                            self.known().put_changed(changes, &committed);
                            batch.on_committed();
                            conflicts = 0;
                        }
                        Err(StoreError::Invalid { .. }) => batch.on_refused(),
                        // Of those who conflict one gets through, so there is no need to wait.
                        Err(StoreError::Conflict(_)) if conflicts < CONFLICTS => {
                            batch.on_conflict();
                            conflicts += 1;
                        }
                        Err(e) => {
                            batch.on_conflict();
                            return Err(e);
                        }
                    }
                }
            }
        }
    }

    /// The documents, from memory where it has them. What it has may be old: then the commit's
    /// precondition fails, and by then it is forgotten.
    async fn read(
        &self,
        now: StoreTime,
        paths: &[DocPath],
    ) -> Result<Vec<Option<Arc<Document>>>, StoreError> {
        let mut docs: Vec<_> = {
            let mut known = self.known();
            paths.iter().map(|path| known.get(path, now)).collect()
        };
        let asked: Vec<usize> = (0..paths.len()).filter(|at| docs[*at].is_none()).collect();
        if !asked.is_empty() {
            let wanted: Vec<DocPath> = asked.iter().map(|at| paths[*at].clone()).collect();
            let snapshot = self.store.get(&wanted).await?;
            let mut known = self.known();
            for (at, doc) in asked.into_iter().zip(snapshot.docs) {
                known.put(paths[at].clone(), doc.clone(), snapshot.read_time);
                docs[at] = Some(doc);
            }
        }
        Ok(docs.into_iter().map(Option::flatten).collect())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Conflicts in a row after which a batch is given up.
const CONFLICTS: u32 = 50;
/// How long what was read is taken for what is there. A stale document costs a conflict at worst,
/// except that a chat whose messages have moved to another thread shows that only when read.
const FRESH: Duration = Duration::from_secs(60);
/// A document larger than this is not remembered: most of the memory would go to very few.
const LARGE: usize = 16_384;

/// Documents as they were read, the least recently used of which make room.
struct Known {
    capacity: usize,
    size: usize,
    uses: u64,
    docs: BTreeMap<DocPath, Remembered>,
    used: BTreeMap<u64, DocPath>,
}

struct Remembered {
    /// `None` if there was nothing
    doc: Option<Arc<Document>>,
    read_time: StoreTime,
    size: usize,
    /// Its place in the order of use
    use_number: u64,
}

/// What a commit does to a document that was remembered.
struct Change {
    /// Its place among the commit's writes
    write: usize,
    before: Arc<Document>,
    fields: Vec<(FieldPath, FieldOp)>,
}

impl Known {
    const fn new(capacity: usize) -> Self {
        Self { capacity, size: 0, uses: 0, docs: BTreeMap::new(), used: BTreeMap::new() }
    }

    fn get(&mut self, path: &DocPath, now: StoreTime) -> Option<Option<Arc<Document>>> {
        let remembered = self.docs.get_mut(path)?;
        if now.since(remembered.read_time) > FRESH {
            self.forget(path);
            return None;
        }
        self.uses += 1;
        self.used.remove(&remembered.use_number);
        remembered.use_number = self.uses;
        self.used.insert(self.uses, path.clone());
        Some(remembered.doc.clone())
    }

    fn put(&mut self, path: DocPath, doc: Option<Arc<Document>>, read_time: StoreTime) {
        self.forget(&path);
        let size = match &doc {
            Some(doc) => document_size(&path, &doc.fields),
            None => path.as_str().len(),
        };
        if size > LARGE {
            return;
        }
        self.uses += 1;
        self.size += size;
        self.used.insert(self.uses, path.clone());
        self.docs.insert(path, Remembered { doc, read_time, size, use_number: self.uses });
        while self.size > self.capacity {
            let Some(oldest) = self.used.values().next().cloned() else { return };
            self.forget(&oldest);
        }
    }

    /// Forgets what a commit is about; what it changes and how, as far as that was remembered.
    fn take(&mut self, writes: &[Write]) -> Vec<Change> {
        let mut changes = Vec::new();
        for (at, write) in writes.iter().enumerate() {
            let before = self.forget(&write.path);
            if let (Some(before), WriteOp::Merge(fields)) = (before, &write.op)
                && write.precondition == Precondition::Version(before.version)
            {
                changes.push(Change { write: at, before, fields: fields.clone() });
            }
        }
        changes
    }

    /// Remembers documents as a commit has left them. Those that it created are read when they are
    /// needed, which for most messages is never.
    fn put_changed(&mut self, changes: Vec<Change>, committed: &Committed) {
        for Change { write, before, fields } in changes {
            let path = &before.path;
            let after = merged(path, Some(&before.fields), &fields, committed.commit_time);
            let version: Option<Version> = committed.versions.get(write).copied().flatten();
            let (Ok(after), Some(version)) = (after, version) else { continue };
            let doc = Document {
                path: path.clone(),
                fields: after.unwrap_or_else(|| before.fields.clone()),
                version,
                update_time: committed.commit_time,
            };
            self.put(path.clone(), Some(Arc::new(doc)), committed.commit_time);
        }
    }

    fn forget(&mut self, path: &DocPath) -> Option<Arc<Document>> {
        let forgotten = self.docs.remove(path)?;
        self.used.remove(&forgotten.use_number);
        self.size -= forgotten.size;
        forgotten.doc
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Hand, Shelf};
    use backfill_core::id::AccountId;
    use backfill_core::incoming::{
        Content, Incoming, Key, MessageEvent, MessageKind, Record, SyncSource,
    };
    use backfill_core::ingest::Rejection;
    use futures_util::FutureExt;

    #[test]
    fn a_live_message_in_a_known_chat_reads_nothing_but_itself() {
        let w = World::new(1 << 20);
        assert_eq!(w.store(&["A"]).new, 1);
        w.store(&["B"]);
        for id in ["C", "D", "E"] {
            let (read, commits) = (w.shelf.documents_read(), w.shelf.commits());
            assert_eq!(w.store(&[id]).new, 1);
            assert_eq!(w.shelf.documents_read() - read, 1, "the thread is as the commit left it");
            assert_eq!(w.shelf.commits() - commits, 1);
        }
    }

    #[test]
    fn repeated_history_costs_reads_and_then_nothing() {
        let w = World::new(1 << 20);
        w.store(&["A", "B", "C"]);
        let (read, commits) = (w.shelf.documents_read(), w.shelf.commits());
        assert_eq!(w.store(&["C", "A", "B"]).new, 0);
        assert_eq!(w.shelf.documents_read() - read, 4, "three messages and their thread");
        assert_eq!(w.store(&["B", "A"]).new, 0);
        assert_eq!(w.shelf.documents_read() - read, 4);
        assert_eq!(w.shelf.commits(), commits);
    }

    #[test]
    fn what_others_changed_costs_a_conflict_and_is_not_undone() {
        let w = World::new(1 << 20);
        w.store(&["A"]);
        w.store(&["B"]);
        let thread = DocPath::parse(THREAD).unwrap();
        let edit = |n: i64| vec![("archived".into(), FieldOp::from(n))];
        w.shelf.put(&[Write::merge(thread, Precondition::Exists, edit(7))]).unwrap();
        let commits = w.shelf.commits();
        assert_eq!(w.store(&["C"]).new, 1);
        assert_eq!(w.shelf.commits() - commits, 2, "one was refused");
        let thread = w.shelf.document(THREAD).unwrap();
        assert_eq!(thread.int("archived"), Some(7));
        assert_eq!(thread.str("lastMessageText"), Some("C"));
    }

    #[test]
    fn what_was_read_long_ago_is_read_again() {
        let w = World::new(1 << 20);
        w.store(&["A"]);
        w.store(&["A"]);
        let read = w.shelf.documents_read();
        w.hand.pass(FRESH);
        w.store(&["A"]);
        assert_eq!(w.shelf.documents_read(), read);
        w.hand.pass(Duration::from_secs(1));
        w.store(&["A"]);
        assert_eq!(w.shelf.documents_read(), read + 2);
    }

    #[test]
    fn conflicts_without_end_are_given_up_and_the_batch_goes_on_later() {
        let w = World::new(1 << 20);
        w.shelf.refuse(CONFLICTS as usize + 1);
        let mut batch = w.batch(&["A", "B"]);
        let storing = w.ingest.store(w.now(), &mut batch).now_or_never();
        assert!(matches!(storing, Some(Err(StoreError::Conflict(_)))), "{storing:?}");
        let facts = w.ingest.store(w.now(), &mut batch).now_or_never().unwrap().unwrap();
        assert_eq!(facts.threads[0].new, 2);
    }

    #[test]
    fn a_message_whose_document_has_no_room_is_rejected_alone() {
        let w = World::new(1 << 20);
        let full = vec![("theirs".into(), FieldOp::from("x".repeat(1_000_000).as_str()))];
        let path = DocPath::parse(format!("{THREAD}/messages/B")).unwrap();
        w.shelf.put(&[Write::merge(path, Precondition::Absent, full)]).unwrap();
        let long = "B".repeat(100_000);
        let mut batch = w.batch(&["A", &long, "C"]);
        let facts = w.ingest.store(w.now(), &mut batch).now_or_never().unwrap().unwrap();
        let rejected: Vec<_> = facts.rejected.iter().map(|r| (r.record, r.reason)).collect();
        assert_eq!(rejected, [(1, Rejection::Store)]);
        for id in ["A", "C"] {
            assert!(w.shelf.document(&format!("{THREAD}/messages/{id}")).is_some());
        }
        assert_eq!(w.shelf.document(THREAD).unwrap().str("lastMessageText"), Some("C"));
    }

    #[test]
    fn memory_is_bounded_and_keeps_what_is_used() {
        let paths: Vec<DocPath> =
            (0..4).map(|n| DocPath::parse(format!("c/{n}")).unwrap()).collect();
        let size = paths[0].as_str().len();
        let mut known = Known::new(3 * size);
        for path in &paths[..3] {
            known.put(path.clone(), None, NOW);
        }
        assert_eq!(known.get(&paths[0], NOW), Some(None));
        known.put(paths[3].clone(), None, NOW);
        assert_eq!(known.get(&paths[1], NOW), None, "the least recently used made room");
        assert_eq!(known.get(&paths[0], NOW), Some(None));
        let large = [("b".into(), "x".repeat(LARGE).into())].into();
        let (path, version) = (paths[0].clone(), Version(1));
        let large = Document { path, fields: large, version, update_time: NOW };
        known.put(paths[0].clone(), Some(Arc::new(large)), NOW);
        assert_eq!(known.get(&paths[0], NOW), None, "too large");
        assert_eq!((known.docs.len(), known.used.len(), known.size), (2, 2, 2 * size));
    }

    const NOW: StoreTime = StoreTime::from_secs(1_800_000_000);
    const THREAD: &str = "threads/account_a__40700000001@s.whatsapp.net";

    struct World {
        hand: Hand,
        shelf: Shelf,
        ingest: Ingest<Shelf>,
    }

    impl World {
        fn new(capacity: usize) -> Self {
            let hand = Hand::default();
            let shelf = Shelf::new(&hand);
            Self { hand, shelf: shelf.clone(), ingest: Ingest::new(shelf, capacity) }
        }

        fn now(&self) -> StoreTime {
            self.shelf.get(&[]).now_or_never().unwrap().unwrap().read_time
        }

        /// A batch of messages, one a minute, each with its text's beginning as its id.
        fn batch(&self, texts: &[&str]) -> Batch {
            let message = |text: &&str| {
                let id = &text[..1];
                let key = Key {
                    id: id.into(),
                    remote_jid: "40700000001@s.whatsapp.net".into(),
                    from_me: false,
                    participant: None,
                };
                let body = (*text).into();
                let content = Content { kind: MessageKind::Text, body, ..Content::default() };
                Record::Message(Incoming {
                    key,
                    timestamp: 1_700_000_000 + i64::from(id.as_bytes()[0]) * 60,
                    source: SyncSource::Realtime,
                    event: MessageEvent::Content(content),
                })
            };
            let account = AccountId::parse("account_a").unwrap();
            let records = texts.iter().map(message).collect();
            Batch::new(&account, records, self.now(), &Arc::default())
        }

        /// What became of the one thread of these messages.
        fn store(&self, texts: &[&str]) -> backfill_core::ingest::ThreadFacts {
            let mut batch = self.batch(texts);
            let facts = self.ingest.store(self.now(), &mut batch).now_or_never().unwrap();
            facts.unwrap().threads.remove(0)
        }
    }
}
