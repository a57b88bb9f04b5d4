//! The simulated store: every document of the world, in one value.
//!
//! It means what the contract suite says, without I/O, clock or randomness. Cloning it is cheap:
//! copies share what neither of them changes.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hash, Hasher};
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
    /// Where each document is; one that was deleted keeps its place
    places: Arc<HashMap<DocPath, usize, BuildHasherDefault<PathHasher>>>,
    documents: Arc<Vec<Option<Arc<Document>>>>,
    collections: Arc<HashMap<SmolStr, usize, BuildHasherDefault<PathHasher>>>,
    /// In the order in which they came into being
    contents: Arc<Vec<Arc<Collection>>>,
    /// The version given last; the counter goes on across deletes, so none is given twice
    last_version: i64,
    last_commit: StoreTime,
}

/// What became of the document of one write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The document before
    pub before: Option<Arc<Document>>,
    /// The document after, of a commit that was applied
    pub after: Option<Arc<Document>>,
}

/// By id, where each document is.
type Places = BTreeMap<SmolStr, usize>;

/// The documents of one collection.
#[derive(Clone, Debug)]
struct Collection {
    path: SmolStr,
    ids: Places,
    /// The field whose value queries ask for, and the documents by that value
    index: Option<(&'static str, BTreeMap<Value, Places>)>,
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
        self.commit_showing(now, writes, &mut Vec::with_capacity(writes.len()))
    }

    /// Like [`commit`](Self::commit), and shows in `changes` what each write found and left, also
    /// if nothing was applied.
    ///
    /// # Errors
    /// Those of [`commit`](Self::commit).
    pub fn commit_showing(
        &mut self,
        now: StoreTime,
        writes: &[Write],
        changes: &mut Vec<Change>,
    ) -> Result<Committed, StoreError> {
        changes.clear();
        let places: Vec<Option<usize>> = writes.iter().map(|w| self.place(&w.path)).collect();
        changes.extend(places.iter().map(|place| {
            let before = place.and_then(|place| self.at(place)).cloned();
            Change { before, after: None }
        }));
        semantics::check_commit(writes)?;
        let commit_time = now.max(self.last_commit);
        let mut last_version = self.last_version;
        for (write, Change { before, after }) in writes.iter().zip(&mut *changes) {
            if !semantics::holds(write.precondition, before.as_ref().map(|doc| doc.version)) {
                return Err(StoreError::Conflict(None));
            }
            *after = match &write.op {
                WriteOp::Verify => before.clone(),
                WriteOp::Delete => None,
                WriteOp::Merge(fields) => {
                    let known = before.as_ref().map(|doc| &doc.fields);
                    match semantics::merged(&write.path, known, fields, commit_time)? {
                        None => before.clone(),
                        Some(fields) => {
                            last_version += 1;
                            Some(Arc::new(Document {
                                path: write.path.clone(),
                                fields,
                                version: Version(last_version),
                                update_time: commit_time,
                            }))
                        }
                    }
                }
            };
        }
        for ((write, place), change) in writes.iter().zip(places).zip(&*changes) {
            if write.op != WriteOp::Verify {
                self.put(&write.path, place, change);
            }
        }
        self.last_version = last_version;
        self.last_commit = commit_time;
        let version = |change: &Change| change.after.as_ref().map(|doc| doc.version);
        Ok(Committed { commit_time, versions: changes.iter().map(version).collect() })
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
                Some(None) => Vec::new(),
                Some(Some(ids)) => semantics::find(query, ids.values().filter_map(|p| self.at(*p))),
                None => semantics::find(query, collection.ids.values().filter_map(|p| self.at(*p))),
            },
        };
        Ok(Found { read_time: now.max(self.last_commit), docs })
    }

    /// The document at `path`.
    pub fn document(&self, path: &DocPath) -> Option<&Arc<Document>> {
        self.at(self.place(path)?)
    }

    /// The documents of one collection, by id.
    pub fn collection(&self, path: &str) -> impl Iterator<Item = &Arc<Document>> {
        let collection = self.find_collection(path).into_iter();
        collection.flat_map(|c| c.ids.values()).filter_map(|place| self.at(*place))
    }

    /// Every document, collection by collection.
    pub fn documents(&self) -> impl Iterator<Item = &Arc<Document>> {
        let mut collections: Vec<&Arc<Collection>> = self.contents.iter().collect();
        collections.sort_unstable_by_key(|collection| &collection.path);
        let places = collections.into_iter().flat_map(|collection| collection.ids.values());
        places.filter_map(|place| self.at(*place))
    }

    /// The time of the latest commit.
    pub fn last_commit(&self) -> StoreTime {
        self.last_commit
    }

    fn at(&self, place: usize) -> Option<&Arc<Document>> {
        self.documents.get(place)?.as_ref()
    }

    fn place(&self, path: &DocPath) -> Option<usize> {
        self.places.get(path).copied()
    }

    fn find_collection(&self, path: &str) -> Option<&Collection> {
        Some(&self.contents[*self.collections.get(path)?])
    }

    fn put(&mut self, path: &DocPath, place: Option<usize>, change: &Change) {
        let Change { before, after } = change;
        let (name, id) = split(path);
        if before.is_some() != after.is_some()
            || INDEXES.iter().any(|(indexed, _)| *indexed == name)
        {
            let place = place.unwrap_or(self.documents.len());
            let collection = self.collection_mut(name);
            if after.is_none() {
                collection.ids.remove(id);
            } else if before.is_none() {
                collection.ids.insert(id.into(), place);
            }
            collection.reindex(id, place, before.as_deref(), after.as_deref());
        }
        match (place, after) {
            (Some(place), after) => Arc::make_mut(&mut self.documents)[place].clone_from(after),
            (None, Some(after)) => {
                Arc::make_mut(&mut self.places).insert(path.clone(), self.documents.len());
                Arc::make_mut(&mut self.documents).push(Some(Arc::clone(after)));
            }
            (None, None) => {}
        }
    }

    /// A collection, which comes into being if need be.
    fn collection_mut(&mut self, name: &str) -> &mut Collection {
        let place = self.collections.get(name).copied().unwrap_or_else(|| {
            let index = INDEXES.iter().find(|(collection, _)| *collection == name);
            let place = self.contents.len();
            Arc::make_mut(&mut self.collections).insert(name.into(), place);
            Arc::make_mut(&mut self.contents).push(Arc::new(Collection {
                path: name.into(),
                ids: BTreeMap::new(),
                index: index.map(|(_, field)| (*field, BTreeMap::new())),
            }));
            place
        });
        Arc::make_mut(&mut Arc::make_mut(&mut self.contents)[place])
    }
}

impl Collection {
    /// The ids among which everything is that a query can find, if the index knows; none if there
    /// is nothing.
    fn indexed(&self, query: &Query) -> Option<Option<&Places>> {
        let (field, ids) = self.index.as_ref()?;
        let filter = query
            .filters
            .iter()
            .find(|filter| filter.op == Comparison::Equal && filter.field.as_str() == *field)?;
        // Numbers of different types may be equal; texts are equal only to themselves.
        matches!(filter.value, Value::String(_)).then(|| ids.get(&filter.value))
    }

    fn reindex(&mut self, id: &str, place: usize, old: Option<&Document>, new: Option<&Document>) {
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
            ids.entry(new).or_default().insert(id.into(), place);
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

/// Hashes paths fast, and alike in every process.
#[derive(Clone, Copy, Debug, Default)]
struct PathHasher(u64);

impl Hasher for PathHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (parts, rest) = bytes.as_chunks();
        let rest = rest.iter().rev().fold(0, |rest, byte| rest << 8 | u64::from(*byte));
        for part in parts.iter().map(|part| u64::from_le_bytes(*part)).chain([rest]) {
            self.0 = (self.0.rotate_left(5) ^ part).wrapping_mul(0x517c_c1b7_2722_0a95);
        }
    }

    fn finish(&self) -> u64 {
        // The table takes the low bits, and products mix the high ones.
        self.0 ^ self.0 >> 32
    }
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
