//! One account as this process's gateway knows it, whether connected or not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use backfill_core::id::{AccountId, RequestId, ThreadId};
use backfill_core::incoming::{Contact, SyncSource};
use backfill_core::io::ChunkId;
use backfill_core::jid::{Jid, Twins};
use smol_str::SmolStr;

use crate::chunk::{Chunk, Expected};
use crate::link::Link;

pub(crate) struct Account {
    pub(crate) id: AccountId,
    /// Held by whoever uses the account's session: a connection until nothing of it is left, and
    /// who wipes it
    pub(crate) session: Arc<tokio::sync::Mutex<()>>,
    /// Held while the phone is being asked, so that an answer does not come before it is known
    /// what was asked
    pub(crate) asking: tokio::sync::Mutex<()>,
    expected: Expected,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Connections that are not closed; each lives as long as it is run
    links: BTreeMap<RequestId, Weak<Link>>,
    twins: Arc<Twins>,
    /// Requests for history that wait for an answer, by the id under which they were sent
    asked: BTreeMap<SmolStr, Asked>,
    /// Chunks that arrived and are not in the spool
    chunks: BTreeMap<ChunkId, Chunk>,
    /// Chunks that were lost, until the core has noted it for good
    missing: BTreeSet<ChunkId>,
    /// The names that people were last seen with
    names: BTreeMap<SmolStr, Contact>,
}

/// A request for history.
#[derive(Clone)]
pub(crate) struct Asked {
    pub(crate) request: RequestId,
    pub(crate) thread: ThreadId,
    pub(crate) source: SyncSource,
}

impl Account {
    pub(crate) fn new(id: AccountId) -> Self {
        Self {
            id,
            session: Arc::default(),
            asking: tokio::sync::Mutex::default(),
            expected: Expected::default(),
            state: Mutex::default(),
        }
    }

    /// History that was announced.
    pub(crate) fn expected(&self) -> &Expected {
        &self.expected
    }

    /// A connection is to be opened.
    pub(crate) fn add_link(&self, link: &Arc<Link>) {
        self.state().links.insert(link.id, Arc::downgrade(link));
    }

    /// Nothing of a connection will act any more.
    pub(crate) fn remove_link(&self, connection: RequestId) {
        self.state().links.remove(&connection);
    }

    pub(crate) fn link(&self, connection: RequestId) -> Option<Arc<Link>> {
        self.state().links.get(&connection)?.upgrade()
    }

    pub(crate) fn links(&self) -> Vec<Arc<Link>> {
        self.state().links.values().filter_map(Weak::upgrade).collect()
    }

    /// The connection that can be used.
    pub(crate) fn open_link(&self) -> Option<Arc<Link>> {
        self.links().into_iter().rev().find(|link| link.is_open())
    }

    pub(crate) fn twins(&self) -> Arc<Twins> {
        Arc::clone(&self.state().twins)
    }

    /// Learns which LIDs and phone numbers are one person.
    pub(crate) fn learn(&self, pairs: impl IntoIterator<Item = (Jid, Jid)>) {
        let mut state = self.state();
        for (lid, pn) in pairs {
            // Most pairs are no news, and news cost a copy of all that others hold.
            if state.twins.lid_of(&pn) != Some(&lid) || state.twins.canonical(&lid) != &pn {
                Arc::make_mut(&mut state.twins).link(lid, pn);
            }
        }
    }

    /// Whether a person's names are news.
    pub(crate) fn note_names(&self, contact: &Contact) -> bool {
        let mut state = self.state();
        let known = state.names.get(&contact.jid);
        let same = known.is_some_and(|known| {
            known.notify == contact.notify && known.verified_name == contact.verified_name
        });
        if same {
            return false;
        }
        if state.names.len() >= KNOWN_NAMES {
            // To forget costs a repetition, to remember everybody costs without bound.
            state.names.clear();
        }
        state.names.insert(contact.jid.clone(), contact.clone());
        true
    }

    /// What was not stored is not known either.
    pub(crate) fn forget_names(&self) {
        self.state().names.clear();
    }

    pub(crate) fn note_asked(&self, id: SmolStr, asked: Asked) {
        let mut state = self.state();
        while state.asked.len() >= REMEMBERED_REQUESTS {
            let oldest = state.asked.iter().min_by_key(|(_, asked)| asked.request);
            let Some(oldest) = oldest.map(|(id, _)| id.clone()) else { break };
            state.asked.remove(&oldest);
        }
        state.asked.insert(id, asked);
    }

    /// What was asked under an id; the first answer takes it.
    pub(crate) fn take_asked(&self, id: &str) -> Option<Asked> {
        self.state().asked.remove(id)
    }

    /// Keeps a chunk until it is spooled.
    pub(crate) fn add_chunk(&self, chunk: ChunkId, arrived: Chunk) {
        self.state().chunks.insert(chunk, arrived);
    }

    pub(crate) fn chunk(&self, chunk: ChunkId) -> Option<Chunk> {
        self.state().chunks.get(&chunk).cloned()
    }

    pub(crate) fn remove_chunk(&self, chunk: ChunkId) -> Option<Chunk> {
        self.state().chunks.remove(&chunk)
    }

    pub(crate) fn chunks(&self) -> Vec<ChunkId> {
        self.state().chunks.keys().copied().collect()
    }

    pub(crate) fn add_missing(&self, chunk: ChunkId) {
        self.state().missing.insert(chunk);
    }

    pub(crate) fn is_missing(&self, chunk: ChunkId) -> bool {
        self.state().missing.contains(&chunk)
    }

    pub(crate) fn remove_missing(&self, chunk: ChunkId) {
        self.state().missing.remove(&chunk);
    }

    pub(crate) fn missing(&self) -> Vec<ChunkId> {
        self.state().missing.iter().copied().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// People whose names are remembered per account.
const KNOWN_NAMES: usize = 4_096;
/// One request is in flight at a time; answers to the latest few are still told apart.
const REMEMBERED_REQUESTS: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_latest_requests_are_remembered_and_each_is_answered_once() {
        let account = Account::new(AccountId::parse("a").unwrap());
        for number in 0..100 {
            let asked = Asked {
                request: RequestId(number),
                thread: ThreadId::parse("a__1@g.us").unwrap(),
                source: SyncSource::Backfill,
            };
            account.note_asked(smol_str::format_smolstr!("id{number}"), asked);
        }
        assert!(account.take_asked("id83").is_none());
        assert_eq!(account.take_asked("id84").unwrap().request, RequestId(84));
        assert!(account.take_asked("id84").is_none());
    }

    #[test]
    fn a_name_is_news_once() {
        let account = Account::new(AccountId::parse("a").unwrap());
        let mut contact = Contact { jid: "1@lid".into(), ..Contact::default() };
        contact.notify = Some("Ana".into());
        assert!(account.note_names(&contact));
        contact.as_of = 9;
        assert!(!account.note_names(&contact));
        contact.notify = Some("Ana P".into());
        assert!(account.note_names(&contact));
    }
}
