//! Which document each message lies in: the names of its chat, and the names of its sender.
//!
//! A chat has up to two names, and so two threads, of which one leads to the other. Where a message
//! belongs may depend on documents that were not read yet; whatever is not known is noted, and all
//! is decided anew once it is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sha2::{Digest, Sha256};
use smol_str::{SmolStr, format_smolstr};

use super::Batch;
use super::facts::Rejection;
use super::item::{MessageItem, Sender, What};
use super::known::Missing;
use crate::alias::Alias;
use crate::doc::{DocPath, Document, PathError};
use crate::id::{ThreadId, hex};
use crate::jid::{Jid, JidKind};
use crate::message::Message;
use crate::thread::redirected;

/// The thread of a chat, by one of its names.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Thread {
    pub(super) jid: Jid,
    pub(super) id: ThreadId,
    pub(super) path: DocPath,
    /// What the paths of its messages begin with
    pub(super) messages: SmolStr,
    /// The thread of its LID
    pub(super) twin: Option<usize>,
    /// The thread in which its messages belong, if that is another
    pub(super) leads_to: Option<usize>,
    /// Whether a record calls the chat by this name
    pub(super) called: bool,
    /// Whether its summary may change
    pub(super) summed_up: bool,
}

/// A message document and what of this batch goes into it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Slot {
    pub(super) path: DocPath,
    /// The thread whose summary shows it
    pub(super) thread: usize,
    /// The thread it lies in, if its creator chose another
    pub(super) elsewhere: Option<ThreadId>,
    /// Where it lay before
    pub(super) moved_from: Option<DocPath>,
    pub(super) wa_id: SmolStr,
    pub(super) sender: Sender,
    pub(super) items: Vec<usize>,
}

/// Where a message document is, or would be.
struct Found {
    path: DocPath,
    exists: bool,
}

impl Batch {
    /// The thread of a chat as it is called; its twin, if known, becomes known as well.
    pub(super) fn thread(&mut self, jid: &Jid) -> Result<usize, Rejection> {
        if let Some(index) = self.thread_of.get(jid) {
            return Ok(*index);
        }
        if jid.kind() == JidKind::Status {
            return Err(Rejection::StatusUpdate);
        }
        // Fails only if the account's id is so long that no address fits beside it.
        let id =
            ThreadId::of_chat(&self.account, jid.as_str()).map_err(|_: PathError| Rejection::Id)?;
        let index = self.threads.len();
        self.threads.push(Thread {
            jid: jid.clone(),
            path: DocPath::parse(joined(&["threads/", id.as_str()]))
                .map_err(|_: PathError| Rejection::Id)?,
            messages: joined(&["threads/", id.as_str(), "/messages/"]),
            id,
            twin: None,
            leads_to: None,
            called: false,
            summed_up: false,
        });
        self.thread_of.insert(jid.clone(), index);
        let twins = Arc::clone(&self.twins);
        if let Some(lid) = twins.lid_of(jid) {
            let lid = self.thread(lid)?;
            self.threads[lid].leads_to = Some(index);
            self.threads[index].twin = Some(lid);
        }
        Ok(index)
    }

    /// Finds the document of every message.
    pub(super) fn place(&mut self, missing: &mut Missing) {
        self.slots.clear();
        for thread in &mut self.threads {
            thread.called = false;
            thread.summed_up = false;
        }
        let mut slot_at = BTreeMap::<DocPath, usize>::new();
        for i in 0..self.items.len() {
            match &self.items[i].what {
                What::Contact { path, .. } => {
                    self.known.look(path, missing);
                }
                What::Chat { thread, .. } => {
                    if let Some(home) = self.home(*thread, missing) {
                        self.threads[home].summed_up = true;
                    }
                }
                What::Message(item) => {
                    let (called, summed_up) = (item.thread, item.summed_up);
                    let Some(alias) = self.alias(item, missing) else { continue };
                    // Whatever the chat is called, the message's creator knew which one it is.
                    let chosen = alias.as_ref().and_then(|alias| self.person(&alias.thread));
                    let called = match chosen {
                        Some(chosen) => self.thread(&chosen).unwrap_or(called),
                        None => called,
                    };
                    let Some(home) = self.home(called, missing) else { continue };
                    self.threads[home].summed_up |= summed_up;
                    let slot = self.slot(i, home, alias, &slot_at, missing);
                    let Some(slot) = slot else { continue };
                    match slot_at.get(&slot.path) {
                        Some(index) => self.slots[*index].take(slot),
                        None => {
                            slot_at.insert(slot.path.clone(), self.slots.len());
                            self.slots.push(slot);
                        }
                    }
                }
            }
        }
        let mut leaving = BTreeSet::new();
        for slot in &mut self.slots {
            // Where odd documents make two messages of one, the first takes it along.
            slot.moved_from
                .take_if(|from| slot_at.contains_key(from) || !leaving.insert(from.clone()));
        }
        for thread in &self.threads {
            if thread.summed_up {
                self.known.look(&thread.path, missing);
            }
        }
    }

    /// The thread in which the messages of a chat belong that is called like `called`.
    fn home(&mut self, called: usize, missing: &mut Missing) -> Option<usize> {
        self.threads[called].called = true;
        let thread = &self.threads[called];
        if thread.jid.kind() != JidKind::Lid {
            if let Some(twin) = thread.twin {
                self.known.look(&self.threads[twin].path, missing);
            }
            return Some(called);
        }
        let known = self.twins.canonical(&thread.jid);
        let canonical = if known == &thread.jid {
            let doc = self.known.look(&thread.path, missing).flatten();
            let led = doc.and_then(|doc| redirected(&self.account, &doc.fields));
            let Some(led) = led else {
                self.threads[called].leads_to = None;
                return Some(called);
            };
            led
        } else {
            self.known.look(&thread.path, missing);
            known.clone()
        };
        let home = self.thread(&canonical).ok()?;
        self.threads[home].twin.get_or_insert(called);
        self.threads[called].leads_to = Some(home);
        Some(home)
    }

    /// The document of a message; `None` if more has to be read to know.
    fn slot(
        &self,
        index: usize,
        home: usize,
        alias: Option<Alias>,
        slot_at: &BTreeMap<DocPath, usize>,
        missing: &mut Missing,
    ) -> Option<Slot> {
        let What::Message(item) = &self.items[index].what else { return None };
        let thread = &self.threads[home];
        let mut slot = Slot {
            path: thread.path.clone(),
            thread: home,
            elsewhere: None,
            moved_from: None,
            wa_id: item.wa_id.clone(),
            sender: item.sender.clone(),
            items: vec![index],
        };
        if let Some(alias) = alias {
            let id = alias.message.as_str();
            let path = joined(&["threads/", alias.thread.as_str(), "/messages/", id]);
            let path = DocPath::parse(path).ok()?;
            self.known.look(&path, missing)?;
            slot.elsewhere = Some(alias.thread).filter(|id| *id != thread.id);
            slot.path = path;
            return Some(slot);
        }
        let here = self.find(home, item, slot_at, missing);
        if let Some(twin) = thread.twin
            && self.known.get(&self.threads[twin].path)?.is_some()
        {
            let there = self.find(twin, item, slot_at, missing)?;
            slot.moved_from = there.exists.then_some(there.path);
        }
        slot.path = here?.path;
        Some(slot)
    }

    /// The alias of a message, if it has one; `None` if it has to be read first.
    fn alias(&self, item: &MessageItem, missing: &mut Missing) -> Option<Option<Alias>> {
        let Some(path) = &item.alias else { return Some(None) };
        let alias =
            self.known.look(path, missing)?.and_then(|doc| Alias::parse(&self.account, doc));
        let chat = &self.threads[item.thread].jid;
        Some(alias.filter(|alias| self.may_be_chat(&alias.thread, chat)))
    }

    /// Whether a thread that the app chose may be that of a chat. An address that cannot be read may
    /// be any, and a LID whose phone number is not known may be anybody.
    fn may_be_chat(&self, thread: &ThreadId, chat: &Jid) -> bool {
        let Some(Ok(chosen)) = thread.jid(&self.account).map(Jid::parse) else { return true };
        let (chosen, chat) = (self.twins.canonical(&chosen), self.twins.canonical(chat));
        chosen == chat || (chosen.kind() != chat.kind() && chosen.is_person() && chat.is_person())
    }

    /// The person with whom a thread is.
    fn person(&self, thread: &ThreadId) -> Option<Jid> {
        let jid = Jid::parse(thread.jid(&self.account)?).ok()?;
        Some(self.twins.canonical(&jid).clone()).filter(Jid::is_person)
    }

    /// Where a thread has the document of a message, or would have it.
    fn find(
        &self,
        thread: usize,
        item: &MessageItem,
        slot_at: &BTreeMap<DocPath, usize>,
        missing: &mut Missing,
    ) -> Option<Found> {
        let called = item.thread == thread;
        let thread = &self.threads[thread];
        let plain = if called { item.plain.clone() } else { thread.message_path(&item.wa_id)? };
        let doc = self.known.look(&plain, missing)?;
        let free = match (slot_at.get(&plain), doc) {
            (Some(slot), _) => self.slots[*slot].sender.is(&item.sender),
            (None, Some(doc)) => self.is_message(doc, item),
            (None, None) => true,
        };
        if free {
            return Some(Found { path: plain, exists: doc.is_some() });
        }
        let sender = match &item.sender {
            Sender { outbound: Some(true), .. } => "me",
            Sender { person: Some(person), .. } => person.as_str(),
            Sender { .. } => thread.jid.as_str(),
        };
        let digest = hex(&Sha256::digest(sender.as_bytes()));
        let id = format_smolstr!("{}~{}", item.wa_id, &digest[..8]);
        let path = thread.message_path(&id)?;
        let doc = self.known.look(&path, missing)?;
        Some(Found { path, exists: doc.is_some() })
    }

    /// Whether a document that has the plain name of a message is that message's.
    fn is_message(&self, doc: &Document, item: &MessageItem) -> bool {
        let stored = Message::stored(&doc.fields, &self.twins, self.believable);
        let same_id = doc.str("waMessageId").is_none_or(|id| id == item.wa_id);
        same_id && Sender { outbound: stored.outbound, person: stored.sender }.is(&item.sender)
    }
}

impl Thread {
    /// The path of a message in it; `None` if it cannot be the id of a document.
    pub(super) fn message_path(&self, id: &str) -> Option<DocPath> {
        if id.contains('/') {
            return None;
        }
        DocPath::parse(joined(&[&self.messages, id])).ok()
    }
}

impl Slot {
    /// Takes in another mention of the same message.
    fn take(&mut self, other: Self) {
        self.items.extend(other.items);
        self.moved_from = self.moved_from.take().or(other.moved_from);
        if self.sender.person.is_none() {
            self.sender.person = other.sender.person;
        }
        if self.sender.outbound.is_none() {
            self.sender.outbound = other.sender.outbound;
        }
    }
}

fn joined(parts: &[&str]) -> SmolStr {
    SmolStr::from(parts.concat())
}
