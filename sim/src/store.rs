//! The simulated store: every document of the world, in one value.
//!
//! It means what the contract suite says, without I/O, clock or randomness. Cloning it is cheap:
//! copies share what neither of them changes.

use std::collections::BTreeMap;
use std::sync::Arc;

use backfill_core::doc::{DocPath, Document, Query, Version, Write, WriteOp};
use backfill_core::time::StoreTime;
use backfill_driver::port::{Committed, Found, Snapshot, StoreError};
use backfill_driver::semantics;
use smol_str::SmolStr;

/// All documents of a simulated world.
///
/// `now` is the store's clock. A store's clock never goes back: a `now` before the latest commit
/// counts as the time of that commit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct SimStore {
    collections: Arc<BTreeMap<SmolStr, Collection>>,
    /// The version given last; the counter goes on across deletes, so none is given twice
    last_version: i64,
    last_commit: StoreTime,
}

/// Documents by id.
type Collection = Arc<BTreeMap<SmolStr, Arc<Document>>>;

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
        let docs = self
            .collections
            .get(query.collection.as_str())
            .map(|collection| semantics::find(query, collection.values()))
            .unwrap_or_default();
        Ok(Found { read_time: now.max(self.last_commit), docs })
    }

    /// The document at `path`.
    pub fn document(&self, path: &DocPath) -> Option<&Arc<Document>> {
        let (collection, id) = split(path);
        self.collections.get(collection)?.get(id)
    }

    /// The documents of one collection, by id.
    pub fn collection(&self, path: &str) -> impl Iterator<Item = &Arc<Document>> {
        self.collections.get(path).into_iter().flat_map(|docs| docs.values())
    }

    /// Every document, collection by collection.
    pub fn documents(&self) -> impl Iterator<Item = &Arc<Document>> {
        self.collections.values().flat_map(|docs| docs.values())
    }

    /// The time of the latest commit.
    pub fn last_commit(&self) -> StoreTime {
        self.last_commit
    }

    fn put(&mut self, path: &DocPath, doc: Option<Arc<Document>>) {
        let (name, id) = split(path);
        let collections = Arc::make_mut(&mut self.collections);
        match doc {
            Some(doc) => {
                if !collections.contains_key(name) {
                    collections.insert(name.into(), Collection::default());
                }
                let Some(collection) = collections.get_mut(name) else { return };
                let docs = Arc::make_mut(collection);
                match docs.get_mut(id) {
                    Some(slot) => *slot = doc,
                    None => {
                        docs.insert(id.into(), doc);
                    }
                }
            }
            None => {
                let Some(collection) = collections.get_mut(name) else { return };
                let docs = Arc::make_mut(collection);
                docs.remove(id);
                if docs.is_empty() {
                    collections.remove(name);
                }
            }
        }
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
