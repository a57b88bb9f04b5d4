//! Messages into the store: get, merge in the core, commit by compare-and-set.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backfill_core::doc::{DocPath, Document, Write, WriteOp};
use backfill_core::ingest::{Batch, Facts, Step};

use crate::port::{Store, StoreError};
use crate::semantics::document_size;

/// After so many commits of one batch that were refused or lost, the store has the word.
const PATIENCE: u32 = 50;

/// A document of more bytes than this is not remembered, so that the number bounds the memory.
const REMEMBERED_BYTES: usize = 16_384;

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
    /// Ingests into `store`, remembering at most `capacity` documents so as not to read them again.
    pub fn new(store: S, capacity: usize) -> Self {
        let known = Known { capacity, now: 0, docs: BTreeMap::new(), used: BTreeMap::new() };
        Self { store, known: Arc::new(Mutex::new(known)) }
    }

    /// Stores a batch.
    ///
    /// One bad document does not fail its neighbours: it is among the rejected ones of the answer.
    ///
    /// # Errors
    /// What kept the store from doing it. Part of the batch may be stored; calling again with the
    /// same batch goes on where it stopped.
    pub async fn store(&self, batch: &mut Batch) -> Result<Facts, StoreError> {
        let mut setbacks = 0;
        loop {
            match batch.step() {
                Step::Done => return Ok(batch.facts()),
                Step::Read(paths) => {
                    let docs = self.read(&paths).await?;
                    batch.on_docs(&docs);
                }
                Step::Commit(writes) => {
                    let paths: Vec<DocPath> = writes.iter().map(|w| w.path.clone()).collect();
                    let moved = moves(&writes);
                    match self.store.commit(writes).await {
                        Ok(_) => {
                            self.known().forget(moved.iter());
                            batch.on_committed();
                        }
                        Err(StoreError::Invalid { .. }) => batch.on_refused(),
                        Err(e @ (StoreError::Conflict(_) | StoreError::Unknown(_))) => {
                            self.known().forget(paths.iter());
                            batch.on_conflict();
                            setbacks += 1;
                            if setbacks > PATIENCE {
                                return Err(e);
                            }
                        }
                        Err(e) => {
                            self.known().forget(paths.iter());
                            return Err(e);
                        }
                    }
                }
            }
        }
    }

    /// The documents, from memory where it has them. What it has may be old: then the commit's
    /// precondition fails, and it is forgotten.
    async fn read(&self, paths: &[DocPath]) -> Result<Vec<Option<Arc<Document>>>, StoreError> {
        let mut docs: Vec<_> = {
            let mut known = self.known();
            paths.iter().map(|path| known.get(path)).collect()
        };
        let unknown = |docs: &[Option<_>], at: &usize| docs[*at].is_none();
        let asked: Vec<usize> = (0..paths.len()).filter(|at| unknown(&docs, at)).collect();
        if !asked.is_empty() {
            let wanted: Vec<DocPath> = asked.iter().map(|at| paths[*at].clone()).collect();
            let read = self.store.get(&wanted).await?.docs;
            let mut known = self.known();
            for (at, doc) in asked.into_iter().zip(read) {
                known.put(paths[at].clone(), doc.clone());
                docs[at] = Some(doc);
            }
        }
        Ok(docs.into_iter().map(Option::flatten).collect())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The documents that a commit changes.
fn moves(writes: &[Write]) -> Vec<DocPath> {
    let changing = writes.iter().filter(|write| write.op != WriteOp::Verify);
    changing.map(|write| write.path.clone()).collect()
}

/// Documents as they were read, the least recently used of which make room.
struct Known {
    capacity: usize,
    now: u64,
    /// What there was, `None` for nothing, and when it was last used
    docs: BTreeMap<DocPath, (Option<Arc<Document>>, u64)>,
    used: BTreeMap<u64, DocPath>,
}

impl Known {
    fn get(&mut self, path: &DocPath) -> Option<Option<Arc<Document>>> {
        let (doc, used) = self.docs.get_mut(path)?;
        self.now += 1;
        self.used.remove(used);
        *used = self.now;
        self.used.insert(self.now, path.clone());
        Some(doc.clone())
    }

    fn put(&mut self, path: DocPath, doc: Option<Arc<Document>>) {
        if doc.as_ref().is_some_and(|doc| document_size(&path, &doc.fields) > REMEMBERED_BYTES) {
            return;
        }
        self.now += 1;
        self.used.insert(self.now, path.clone());
        if let Some((_, used)) = self.docs.insert(path, (doc, self.now)) {
            self.used.remove(&used);
        }
        if self.docs.len() > self.capacity
            && let Some((_, oldest)) = self.used.pop_first()
        {
            self.docs.remove(&oldest);
        }
    }

    fn forget<'a>(&mut self, paths: impl Iterator<Item = &'a DocPath>) {
        for path in paths {
            if let Some((_, used)) = self.docs.remove(path) {
                self.used.remove(&used);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bounded_and_keeps_what_is_used() {
        let mut known = Known { capacity: 3, now: 0, docs: BTreeMap::new(), used: BTreeMap::new() };
        let path = |n: i32| DocPath::parse(format!("c/{n}")).unwrap();
        for n in 0..3 {
            known.put(path(n), None);
        }
        assert_eq!(known.get(&path(0)), Some(None));
        known.put(path(3), None);
        assert_eq!(known.get(&path(1)), None, "the least recently used made room");
        assert_eq!(known.get(&path(0)), Some(None));
        known.forget([path(0), path(9)].iter());
        assert_eq!(known.get(&path(0)), None);
        assert_eq!(known.docs.len(), known.used.len());
    }
}
