//! What a batch knows of the store, and what it has to read before it can decide.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::doc::{DocPath, Document, FieldOp, Precondition, Value, Version, Write, WriteOp};
use crate::time::StoreTime;

/// What is known of the store.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Known {
    docs: BTreeMap<DocPath, Held>,
}

/// What is known of one document.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Held {
    doc: Option<Arc<Document>>,
    /// Whether its version is known; not after a commit of this batch
    fresh: bool,
}

/// What turned out to be missing while something was decided.
#[derive(Default)]
pub(super) struct Missing {
    paths: Vec<DocPath>,
}

impl Known {
    /// The document, or that there is none, if that is known.
    pub(super) fn get(&self, path: &DocPath) -> Option<Option<&Document>> {
        self.docs.get(path).map(|held| held.doc.as_deref())
    }

    /// The document, if it is known to exist.
    pub(super) fn held(&self, path: &DocPath) -> Option<&Document> {
        self.get(path)?
    }

    /// The document, or that there is none; `None` if that has to be read first.
    pub(super) fn look(&self, path: &DocPath, missing: &mut Missing) -> Option<Option<&Document>> {
        let known = self.get(path);
        if known.is_none() {
            missing.want(path);
        }
        known
    }

    /// What holds only while the document is as it is known; `None` if it has to be read first.
    pub(super) fn unchanged(&self, path: &DocPath, missing: &mut Missing) -> Option<Precondition> {
        match self.docs.get(path) {
            Some(Held { doc, fresh: true }) => Some(Precondition::unchanged(doc.as_deref())),
            _ => {
                missing.want(path);
                None
            }
        }
    }

    /// It was read.
    pub(super) fn learn(&mut self, path: DocPath, doc: Option<Arc<Document>>) {
        self.docs.insert(path, Held { doc, fresh: true });
    }

    /// Somebody else may have written it.
    pub(super) fn forget(&mut self, path: &DocPath) {
        self.docs.remove(path);
    }

    /// A write of this batch was applied: what the document contains is known, its version is not.
    pub(super) fn apply(&mut self, write: Write) {
        let held = self.held(&write.path);
        let doc = match write.op {
            WriteOp::Delete => None,
            WriteOp::Verify => return,
            WriteOp::Merge(ops) => {
                let mut fields = held.map(|doc| doc.fields.clone()).unwrap_or_default();
                for (field, op) in ops {
                    match op {
                        FieldOp::Remove => fields.remove(field.as_str()),
                        // The value does not matter, only that there is one.
                        FieldOp::ServerTime => {
                            fields.insert(field.as_str().into(), Value::from(StoreTime::EPOCH))
                        }
                        FieldOp::Set(value) => fields.insert(field.as_str().into(), value),
                    };
                }
                Some(Arc::new(Document {
                    path: write.path.clone(),
                    fields,
                    version: Version(0),
                    update_time: StoreTime::EPOCH,
                }))
            }
        };
        self.docs.insert(write.path, Held { doc, fresh: false });
    }
}

impl Missing {
    pub(super) fn want(&mut self, path: &DocPath) {
        self.paths.push(path.clone());
    }

    /// Whether all that was looked for is known.
    pub(super) fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// What has to be read, each once.
    pub(super) fn into_paths(mut self) -> Vec<DocPath> {
        self.paths.sort_unstable();
        self.paths.dedup();
        self.paths
    }
}
