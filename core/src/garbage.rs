//! Sessions that have been dead for long, and when they may be forgotten.
//!
//! The document of a dead session is still needed while something names it: as the owner of the
//! lock or of an account, or as the one that connected and did not say that it disconnected. So
//! before any is deleted, all that can name one is read. A dead session is never named anew.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use smol_str::SmolStr;

use crate::account;
use crate::doc::{
    CollectionPath, Comparison, Cursor, DocPath, Document, Precondition, Query, Version, Write,
};
use crate::host::{Host, Route};
use crate::id::AccountId;
use crate::io::{Answer, Lane};
use crate::lock::lock_path;
use crate::session::{LIVE, OWNER};
use crate::time::Mono;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Garbage {
    /// Not before this
    next: Mono,
    /// The last one of the page before, unless that was the end: those that are still named must
    /// not hide the others
    after: Option<SmolStr>,
    /// Dead for long, and not found named yet
    unnamed: BTreeMap<SmolStr, Version>,
    /// What can name one and has not been read yet
    unread: Vec<DocPath>,
}

impl Garbage {
    /// Looks for sessions to forget, unless somebody did a short while ago.
    pub(crate) fn begin(&mut self, host: &mut Host) {
        if host.now < self.next {
            return;
        }
        self.next = host.now + EVERY;
        let after = self.after.take().map(|id| Cursor { keys: Vec::new(), id });
        let all = Query::all(CollectionPath::root("instances"), AT_ONCE);
        let dead = Query { after, ..all };
        host.query(Route::Garbage, dead.filter(LIVE, Comparison::Equal, false));
    }

    /// Dead sessions were found; `accounts` are all there are.
    pub(crate) fn on_found<'a>(
        &mut self,
        host: &mut Host,
        answer: Answer,
        accounts: impl Iterator<Item = &'a AccountId>,
    ) {
        let Answer::Found { read_time, docs } = answer else { return };
        let last = docs.last().filter(|_| docs.len() >= AT_ONCE as usize);
        self.after = last.map(|doc| doc.path.id().into());
        self.unnamed = docs
            .iter()
            .filter(|doc| read_time.since(doc.update_time) > AGE)
            .map(|doc| (SmolStr::new(doc.path.id()), doc.version))
            .collect();
        if self.unnamed.is_empty() {
            return;
        }
        let names = accounts.flat_map(|id| [id.connection_path(), id.sync_path()]);
        self.unread = names.chain([lock_path()]).collect();
        self.read_on(host);
    }

    /// Some of what can name a session was read.
    pub(crate) fn on_read(&mut self, host: &mut Host, count: usize, answer: Answer) {
        let docs = match answer {
            Answer::Read { docs, .. } if docs.len() == count => docs,
            // What is not known may name any of them.
            _ => {
                self.unnamed.clear();
                self.unread.clear();
                return;
            }
        };
        for doc in docs.iter().flatten() {
            self.strike(doc);
        }
        self.read_on(host);
    }

    fn strike(&mut self, doc: &Arc<Document>) {
        for field in [&OWNER, &account::CONNECTED_BOOT] {
            if let Some(named) = doc.str(field.as_str()) {
                self.unnamed.remove(named);
            }
        }
    }

    fn read_on(&mut self, host: &mut Host) {
        if self.unnamed.is_empty() {
            self.unread.clear();
            return;
        }
        let paths = self.unread.split_off(self.unread.len().saturating_sub(PATHS_PER_READ));
        if !paths.is_empty() {
            host.get(Route::GarbageNames(paths.len()), Lane::Work, paths);
            return;
        }
        let instances = CollectionPath::root("instances");
        let writes = std::mem::take(&mut self.unnamed)
            .into_iter()
            .filter_map(|(boot, version)| {
                let path = DocPath::new(&instances, &boot).ok()?;
                Some(Write::delete(path, Precondition::Version(version)))
            })
            .collect();
        let not_after = host.deadline;
        host.commit(Route::Nobody, Lane::Work, writes, not_after);
    }
}

const AGE: Duration = Duration::from_secs(24 * 3_600);
const AT_ONCE: u32 = 20;
const EVERY: Duration = Duration::from_secs(3_600);
const PATHS_PER_READ: usize = 100;
