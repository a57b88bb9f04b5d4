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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doc::{Value, WriteOp};
    use crate::id::InstanceId;
    use crate::io::{Output, StoreCall};
    use crate::policy::{Policy, Settings};
    use crate::time::StoreTime;

    const NOW: StoreTime = StoreTime::from_secs(1_000_000);

    fn host() -> Host {
        let settings = Settings::exclusive(InstanceId::parse("i").unwrap());
        Host::new(Policy::new(settings).unwrap(), [7; 32], Mono::from_millis(1_000))
    }

    fn doc(path: &str, age: Duration, owner: Option<&str>) -> Arc<Document> {
        let owner = owner.map(|owner| ("owner".into(), Value::from(owner)));
        Arc::new(Document {
            path: DocPath::parse(path).unwrap(),
            fields: owner.into_iter().collect(),
            version: Version(3),
            update_time: NOW - age,
        })
    }

    fn asked(host: &mut Host) -> Vec<StoreCall> {
        let calls = host.out.drain(..).filter_map(|output| match output {
            Output::Store(request) => Some(request.call),
            _ => None,
        });
        calls.collect()
    }

    /// Two sessions died a day and a second ago, one of which owns the account, and one a day ago.
    fn found(host: &mut Host) -> Garbage {
        let mut garbage = Garbage::default();
        let second = Duration::from_secs(1);
        let dead =
            [("instances/a", AGE + second), ("instances/b", AGE + second), ("instances/c", AGE)];
        let docs = dead.map(|(path, age)| doc(path, age, None)).into();
        let account = AccountId::parse("acc").unwrap();
        garbage.on_found(host, Answer::Found { read_time: NOW, docs }, [&account].into_iter());
        garbage
    }

    #[test]
    fn the_dead_are_looked_for_once_an_hour() {
        let (mut host, mut garbage) = (host(), Garbage::default());
        for (minutes, looks) in [(0, 1), (59, 0), (1, 1), (1, 0), (60, 1)] {
            host.now = host.now + Duration::from_secs(minutes * 60);
            garbage.begin(&mut host);
            assert_eq!(asked(&mut host).len(), looks);
        }
    }

    #[test]
    fn what_nothing_names_a_day_after_its_death_is_removed() {
        let mut host = host();
        let mut garbage = found(&mut host);
        let calls = asked(&mut host);
        let [StoreCall::Get(paths)] = &calls[..] else { panic!("{calls:?}") };
        assert_eq!(paths.len(), 3, "what the account names, and what the lock");
        let owned = doc("accounts/acc/leases/connection", AGE, Some("b"));
        let docs = vec![Some(owned), None, None];
        garbage.on_read(&mut host, 3, Answer::Read { read_time: NOW, docs });
        let calls = asked(&mut host);
        let [StoreCall::Commit(writes)] = &calls[..] else { panic!("{calls:?}") };
        let [write] = &writes[..] else { panic!("{writes:?}") };
        assert_eq!((write.path.as_str(), &write.op), ("instances/a", &WriteOp::Delete));
        assert_eq!(write.precondition, Precondition::Version(Version(3)));
    }

    #[test]
    fn nothing_is_removed_unless_all_was_read_that_can_name_it() {
        let short = Answer::Read { read_time: NOW, docs: vec![None, None] };
        for answer in [short, Answer::Unknown] {
            let mut host = host();
            let mut garbage = found(&mut host);
            asked(&mut host);
            garbage.on_read(&mut host, 3, answer);
            assert_eq!(asked(&mut host), []);
        }
    }
}
