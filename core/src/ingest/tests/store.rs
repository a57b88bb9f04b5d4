//! A store in memory, and what the tests ask of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use smol_str::SmolStr;

use super::super::{Batch, Facts, Step};
use super::{NOW, account};
use crate::alias::Alias;
use crate::doc::{
    DocPath, Document, FieldOp, FieldPath, Fields, Precondition, Value, Version, Write, WriteOp,
};
use crate::id::{MessageId, OutboxId, ThreadId};
use crate::incoming::Record;
use crate::jid::Twins;
use crate::time::StoreTime;

/// A store that does what it is told, at once.
pub(super) struct Store {
    pub(super) docs: BTreeMap<DocPath, Arc<Document>>,
    pub(super) now: StoreTime,
    pub(super) version: i64,
    pub(super) commits: u32,
    pub(super) refuse: Option<&'static str>,
}

impl Default for Store {
    fn default() -> Self {
        Self { docs: BTreeMap::new(), now: NOW, version: 0, commits: 0, refuse: None }
    }
}

impl Store {
    pub(super) fn get(&self, paths: &[DocPath]) -> Vec<Option<Arc<Document>>> {
        paths.iter().map(|path| self.docs.get(path).cloned()).collect()
    }

    pub(super) fn commit(&mut self, writes: Vec<Write>) -> bool {
        let holds = |w: &Write| match w.precondition {
            Precondition::Absent => !self.docs.contains_key(&w.path),
            Precondition::Version(v) => self.docs.get(&w.path).is_some_and(|doc| doc.version == v),
            Precondition::Any => true,
            Precondition::Exists => self.docs.contains_key(&w.path),
        };
        if !writes.iter().all(holds) {
            return false;
        }
        self.commits += 1;
        for Write { path, op, .. } in writes {
            self.version += 1;
            match op {
                WriteOp::Verify => {}
                WriteOp::Delete => {
                    self.docs.remove(&path);
                }
                WriteOp::Merge(ops) => {
                    let before = self.docs.get(&path);
                    let mut fields = before.map(|d| d.fields.clone()).unwrap_or_default();
                    for (field, op) in ops {
                        let name = SmolStr::new(field.as_str());
                        match op {
                            FieldOp::Remove => fields.remove(&name),
                            FieldOp::ServerTime => fields.insert(name, self.now.into()),
                            FieldOp::Set(value) => fields.insert(name, value),
                        };
                    }
                    let doc = Document {
                        path: path.clone(),
                        fields,
                        version: Version(self.version),
                        update_time: self.now,
                    };
                    self.docs.insert(path, Arc::new(doc));
                }
            }
        }
        true
    }

    pub(super) fn write(&mut self, path: &str, fields: &[(&'static str, Value)]) {
        let ops = fields.iter().map(|(k, v)| (FieldPath::new(k), v.clone().into()));
        let path = DocPath::parse(path).unwrap();
        assert!(self.commit(vec![Write::merge(path, Precondition::Any, ops.collect())]));
        self.commits -= 1;
    }

    pub(super) fn batch(&self, records: Vec<Record>) -> Batch {
        Batch::new(&account(), records, self.now, &Arc::default())
    }

    pub(super) fn ingest(&mut self, records: Vec<impl Into<Record>>) -> Facts {
        self.ingest_with(records.into_iter().map(Into::into).collect(), &Arc::default())
    }

    pub(super) fn ingest_with(&mut self, records: Vec<Record>, twins: &Arc<Twins>) -> Facts {
        let mut batch = Batch::new(&account(), records, self.now, twins);
        for _ in 0..1_000 {
            match batch.step() {
                Step::Done => return batch.facts(),
                Step::Read(paths) => batch.on_docs(&self.get(&paths)),
                Step::Commit(writes) => {
                    let bad = |w: &Write| Some(w.path.id()) == self.refuse;
                    if writes.iter().any(bad) {
                        batch.on_refused();
                    } else if self.commit(writes) {
                        batch.on_committed();
                    } else {
                        batch.on_conflict();
                    }
                }
            }
        }
        panic!("the batch does not end")
    }

    /// What the app's proxy and the claim leave before a message is sent.
    pub(super) fn optimistic(&mut self, outbox: &OutboxId, jid: &str) {
        let thread = ThreadId::of_chat(&account(), jid).unwrap();
        self.write(
            &format!("threads/{}/messages/{}", thread.as_str(), outbox.as_str()),
            &[
                ("direction", "outbound".into()),
                ("status", "queued".into()),
                ("body", "from the app".into()),
                ("clientMessageId", "c1".into()),
                ("tsClient", "2027-01-15T08:00:00.250Z".into()),
            ],
        );
        let message = MessageId::parse(outbox.as_str()).unwrap();
        let alias = Alias { thread, message };
        assert!(self.commit(vec![alias.record(&account(), outbox)]));
    }

    pub(super) fn message(&self, jid: &str, id: &str) -> &Document {
        &self.docs[format!("threads/acc__{jid}/messages/{id}").as_str()]
    }

    pub(super) fn exists(&self, jid: &str, id: &str) -> bool {
        self.docs.contains_key(format!("threads/acc__{jid}/messages/{id}").as_str())
    }

    pub(super) fn thread(&self, jid: &str) -> &Document {
        &self.docs[format!("threads/acc__{jid}").as_str()]
    }

    pub(super) fn content(&self) -> BTreeMap<&DocPath, Fields> {
        let stamps = ["createdAt", "syncedAt", "updatedAt"];
        let plain = |doc: &Document| {
            let mut fields = doc.fields.clone();
            fields.retain(|name, _| !stamps.contains(&name.as_str()));
            fields
        };
        self.docs.iter().map(|(path, doc)| (path, plain(doc))).collect()
    }
}
