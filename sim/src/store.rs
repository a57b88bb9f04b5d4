//! The simulated store: every document of the world, in one value.
//!
//! It means what the contract suite says, without I/O, clock or randomness. Cloning it is cheap:
//! copies share what neither of them changes.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use backfill_core::doc::{
    Comparison, DocPath, Document, FieldPath, Query, Value, Version, Write, WriteOp,
};
use backfill_core::time::StoreTime;
use backfill_driver::port::{Committed, Found, Snapshot, StoreError};
use backfill_driver::semantics;
use smol_str::SmolStr;

/// All documents of a simulated world.
///
/// `now` is the store's clock. A store's clock never goes back: a `now` before the latest commit
/// counts as the time of that commit.
#[derive(Clone, Debug, Default)]
pub struct SimStore {
    /// Where each document is, by a digest of its path; more than one where digests are equal
    slots: Arc<BTreeMap<u64, Vec<usize>>>,
    documents: Arc<Vec<Option<Arc<Document>>>>,
    /// By a digest of their path
    collections: Arc<BTreeMap<u64, Vec<Arc<Collection>>>>,
    /// The version given last; the counter goes on across deletes, so none is given twice
    last_version: i64,
    last_commit: StoreTime,
}

/// The documents of one collection, by id.
#[derive(Clone, Debug)]
struct Collection {
    path: SmolStr,
    ids: BTreeMap<SmolStr, usize>,
    /// The field whose value queries ask for, and the ids by that value
    index: Option<(&'static str, BTreeMap<Value, BTreeSet<SmolStr>>)>,
}

/// Fields by which queries choose from large collections.
const INDEXES: [(&str, &str); 2] = [("outbox", "status"), ("threads", "accountId")];

impl SimStore {
    /// A store without documents.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads documents, in the order of `paths`.
    pub fn get(&self, now: StoreTime, paths: &[DocPath]) -> Snapshot {
        let docs = paths.iter().map(|path| self.document(path).cloned()).collect();
        Snapshot { read_time: now.max(self.last_commit), docs }
    }

    /// Applies all writes or none.
    ///
    /// A write that changes nothing leaves version and update time of its document alone.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if a precondition fails, [`StoreError::Invalid`] if the commit
    /// breaks a limit; nothing is applied then.
    pub fn commit(&mut self, now: StoreTime, writes: &[Write]) -> Result<Committed, StoreError> {
        semantics::check_commit(writes)?;
        let commit_time = now.max(self.last_commit);
        let mut last_version = self.last_version;
        let mut changes: Vec<(&DocPath, Option<Arc<Document>>)> = Vec::with_capacity(writes.len());
        let mut versions = Vec::with_capacity(writes.len());
        for write in writes {
            let before = self.document(&write.path);
            if !semantics::holds(write.precondition, before.map(|doc| doc.version)) {
                return Err(StoreError::Conflict(None));
            }
            let version = before.map(|doc| doc.version);
            versions.push(match &write.op {
                WriteOp::Verify => version,
                WriteOp::Delete => {
                    if before.is_some() {
                        changes.push((&write.path, None));
                    }
                    None
                }
                WriteOp::Merge(fields) => {
                    let before = before.map(|doc| &doc.fields);
                    match semantics::merged(&write.path, before, fields, commit_time)? {
                        None => version,
                        Some(fields) => {
                            last_version += 1;
                            let version = Version(last_version);
                            let doc = Document {
                                path: write.path.clone(),
                                fields,
                                version,
                                update_time: commit_time,
                            };
                            changes.push((&write.path, Some(Arc::new(doc))));
                            Some(version)
                        }
                    }
                }
            });
        }
        for (path, doc) in changes {
            self.put(path, doc);
        }
        self.last_version = last_version;
        self.last_commit = commit_time;
        Ok(Committed { commit_time, versions })
    }

    /// Finds documents of one collection.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] if the query breaks a rule.
    pub fn query(&self, now: StoreTime, query: &Query) -> Result<Found, StoreError> {
        semantics::check_query(query)?;
        let docs = match self.find_collection(query.collection.as_str()) {
            None => Vec::new(),
            Some(collection) => match collection.indexed(query) {
                Some(ids) => {
                    let slots = ids.into_iter().flatten().filter_map(|id| collection.ids.get(id));
                    let docs: Vec<_> = slots.filter_map(|slot| self.at(*slot)).collect();
                    semantics::find(query, docs.into_iter())
                }
                None => semantics::find(query, collection.ids.values().filter_map(|s| self.at(*s))),
            },
        };
        Ok(Found { read_time: now.max(self.last_commit), docs })
    }

    /// The document at `path`.
    pub fn document(&self, path: &DocPath) -> Option<&Arc<Document>> {
        self.at(self.slot(path)?)
    }

    /// The documents of one collection, by id.
    pub fn collection(&self, path: &str) -> impl Iterator<Item = &Arc<Document>> {
        let collection = self.find_collection(path).into_iter();
        collection.flat_map(|c| c.ids.values()).filter_map(|slot| self.at(*slot))
    }

    /// Every document, collection by collection.
    pub fn documents(&self) -> impl Iterator<Item = &Arc<Document>> {
        let collections = self.collections.values().flatten();
        collections.flat_map(|c| c.ids.values()).filter_map(|slot| self.at(*slot))
    }

    /// The time of the latest commit.
    pub fn last_commit(&self) -> StoreTime {
        self.last_commit
    }

    fn at(&self, slot: usize) -> Option<&Arc<Document>> {
        self.documents.get(slot)?.as_ref()
    }

    fn slot(&self, path: &DocPath) -> Option<usize> {
        let slots = self.slots.get(&digest(path.as_str()))?;
        slots.iter().copied().find(|slot| self.at(*slot).is_some_and(|doc| doc.path == *path))
    }

    fn find_collection(&self, path: &str) -> Option<&Collection> {
        let same = self.collections.get(&digest(path))?;
        same.iter().find(|collection| collection.path == path).map(Arc::as_ref)
    }

    fn put(&mut self, path: &DocPath, doc: Option<Arc<Document>>) {
        let slot = self.slot(path);
        let (name, id) = split(path);
        let old = slot.and_then(|slot| self.at(slot)).cloned();
        let indexed = INDEXES.iter().any(|(collection, _)| *collection == name);
        match (slot, doc) {
            (Some(slot), Some(doc)) => {
                if indexed {
                    self.with_collection(name, |c| c.reindex(id, old.as_deref(), Some(&doc)));
                }
                Arc::make_mut(&mut self.documents)[slot] = Some(doc);
            }
            (None, Some(doc)) => {
                let slot = self.documents.len();
                self.with_collection(name, |collection| {
                    collection.ids.insert(id.into(), slot);
                    collection.reindex(id, None, Some(&doc));
                });
                Arc::make_mut(&mut self.documents).push(Some(doc));
                Arc::make_mut(&mut self.slots).entry(digest(path.as_str())).or_default().push(slot);
            }
            (Some(slot), None) => {
                let key = digest(name);
                self.with_collection(name, |collection| {
                    collection.ids.remove(id);
                    collection.reindex(id, old.as_deref(), None);
                });
                let collections = Arc::make_mut(&mut self.collections);
                if let Some(same) = collections.get_mut(&key) {
                    same.retain(|collection| !collection.ids.is_empty());
                    if same.is_empty() {
                        collections.remove(&key);
                    }
                }
                Arc::make_mut(&mut self.documents)[slot] = None;
                let slots = Arc::make_mut(&mut self.slots);
                if let Some(same) = slots.get_mut(&digest(path.as_str())) {
                    same.retain(|other| *other != slot);
                }
            }
            (None, None) => {}
        }
    }

    /// Changes a collection, which comes into being if need be.
    fn with_collection(&mut self, name: &str, change: impl FnOnce(&mut Collection)) {
        let same = Arc::make_mut(&mut self.collections).entry(digest(name)).or_default();
        let at = same.iter().position(|collection| collection.path == name);
        let at = at.unwrap_or_else(|| {
            let index = INDEXES.iter().find(|(collection, _)| *collection == name);
            same.push(Arc::new(Collection {
                path: name.into(),
                ids: BTreeMap::new(),
                index: index.map(|(_, field)| (*field, BTreeMap::new())),
            }));
            same.len() - 1
        });
        change(Arc::make_mut(&mut same[at]));
    }
}

impl Collection {
    /// The ids among which everything is that a query can find, if the index knows; none if there
    /// is nothing.
    fn indexed(&self, query: &Query) -> Option<Option<&BTreeSet<SmolStr>>> {
        let (field, ids) = self.index.as_ref()?;
        let filter = query
            .filters
            .iter()
            .find(|filter| filter.op == Comparison::Equal && filter.field.as_str() == *field)?;
        // Numbers of different types may be equal; texts are equal only to themselves.
        matches!(filter.value, Value::String(_)).then(|| ids.get(&filter.value))
    }

    fn reindex(&mut self, id: &str, old: Option<&Document>, new: Option<&Document>) {
        let Some((field, ids)) = &mut self.index else { return };
        let field = FieldPath::new(field);
        let value = |doc: &Document| semantics::field_at(&doc.fields, &field).cloned();
        let (old, new) = (old.and_then(value), new.and_then(value));
        if old == new {
            return;
        }
        if let Some(old) = old
            && let Some(same) = ids.get_mut(&old)
        {
            same.remove(id);
            if same.is_empty() {
                ids.remove(&old);
            }
        }
        if let Some(new) = new {
            ids.entry(new).or_default().insert(id.into());
        }
    }
}

/// Two stores are equal if they hold the same and go on alike.
impl PartialEq for SimStore {
    fn eq(&self, other: &Self) -> bool {
        (self.last_version, self.last_commit) == (other.last_version, other.last_commit)
            && self.documents().eq(other.documents())
    }
}

impl Eq for SimStore {}

impl Hash for SimStore {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.last_version, self.last_commit).hash(state);
        self.documents().for_each(|doc| doc.hash(state));
    }
}

/// A short name for a path: alike on every machine, and nearly always one path's alone.
fn digest(path: &str) -> u64 {
    let mut digest = path.len() as u64;
    for part in path.as_bytes().chunks(8) {
        let mut bytes = [0; 8];
        bytes[..part.len()].copy_from_slice(part);
        digest =
            (digest.rotate_left(5) ^ u64::from_le_bytes(bytes)).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
    digest ^ digest >> 32
}

fn split(path: &DocPath) -> (&str, &str) {
    path.as_str().rsplit_once('/').unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use backfill_core::doc::{CollectionPath, Direction, FieldOp, Precondition, Value};

    fn path(p: &str) -> DocPath {
        DocPath::parse(p).unwrap()
    }

    fn put(p: &str, precondition: Precondition, n: i64) -> Write {
        Write::merge(path(p), precondition, vec![("n".into(), FieldOp::from(n))])
    }

    const T1: StoreTime = StoreTime::from_secs(1);
    const T2: StoreTime = StoreTime::from_secs(2);

    #[test]
    fn a_failed_precondition_leaves_nothing_behind() {
        let mut store = SimStore::new();
        store.commit(T1, &[put("c/a", Precondition::Absent, 1)]).unwrap();
        let before = store.clone();
        let writes = [put("c/b", Precondition::Any, 2), put("c/a", Precondition::Absent, 3)];
        assert!(matches!(store.commit(T2, &writes), Err(StoreError::Conflict(None))));
        assert_eq!(store, before);
    }

    #[test]
    fn versions_go_on_across_a_delete_and_stay_at_a_no_op() {
        let mut store = SimStore::new();
        let first = store.commit(T1, &[put("c/a", Precondition::Any, 1)]).unwrap().versions[0];
        let same = store.commit(T2, &[put("c/a", Precondition::Any, 1)]).unwrap().versions[0];
        assert_eq!(first, same);
        assert_eq!(store.document(&path("c/a")).unwrap().update_time, T1);
        store.commit(T2, &[Write::delete(path("c/a"), Precondition::Exists)]).unwrap();
        let again = store.commit(T2, &[put("c/a", Precondition::Absent, 1)]).unwrap().versions[0];
        assert!(again > first);
    }

    #[test]
    fn time_never_goes_back() {
        let mut store = SimStore::new();
        store.commit(T2, &[put("c/a", Precondition::Any, 1)]).unwrap();
        assert_eq!(store.get(T1, &[]).read_time, T2);
        assert_eq!(store.commit(T1, &[put("c/a", Precondition::Any, 2)]).unwrap().commit_time, T2);
    }

    #[test]
    fn copies_do_not_see_each_other() {
        let mut store = SimStore::new();
        store.commit(T1, &[put("c/a", Precondition::Any, 1)]).unwrap();
        let copy = store.clone();
        store.commit(T1, &[put("c/a", Precondition::Any, 2)]).unwrap();
        assert_eq!(copy.document(&path("c/a")).unwrap().value("n"), Some(&Value::Int(1)));
    }

    #[test]
    fn queries_see_one_collection_in_the_order_asked_for() {
        let mut store = SimStore::new();
        let writes: Vec<_> = [("c/a", 1), ("c/b", 3), ("c/d", 3), ("c/a/c/x", 9), ("d/a", 9)]
            .map(|(p, n)| put(p, Precondition::Any, n))
            .into();
        store.commit(T1, &writes).unwrap();
        let query =
            Query::all(CollectionPath::root("c"), 9).order_by("n".into(), Direction::Descending);
        let found = store.query(T1, &query).unwrap();
        let ids: Vec<_> = found.docs.iter().map(|d| d.path.id()).collect();
        assert_eq!(ids, ["d", "b", "a"]);
        assert_eq!(store.documents().count(), 5);
    }
}
