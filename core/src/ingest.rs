//! Messages in, writes out: a batch of records becomes the fewest commits that store it.
//!
//! A [`Batch`] reads what is stored, puts it together with what arrived and writes the difference
//! with a precondition on every document it read, so that of two concurrent batches neither can
//! undo the other: the one that comes second reads again. What is put together only ever grows
//! (the modules `message`, `thread`, `contact`), so order, repetition and the split into batches do
//! not matter, and what is stored already costs reads, not writes.
//!
//! A message document is named by WhatsApp's id; another sender's message with the same id in one
//! chat by `id~` and 8 hexadecimal digits of SHA-256 of the sender (`me` for this account). Which
//! of the two comes first keeps the plain name: a document never changes its name, because readers
//! hold on to it. A message that our users sent is found through its [`Alias`].
//!
//! A chat that is called by a LID whose phone number is known, from [`Twins`] or because its thread
//! already leads elsewhere, is stored in the phone number's thread; the LID's thread gets
//! `redirectTo` and `canonicalThreadId`, and a message that lies there moves when it is mentioned
//! again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use sha2::{Digest, Sha256};
use smol_str::{SmolStr, format_smolstr};

use crate::alias::Alias;
use crate::contact::{self, Names};
use crate::doc::{
    DocPath, Document, FieldOp, FieldPath, Fields, PathError, Precondition, Value, Version, Write,
    WriteOp,
};
use crate::id::{AccountId, ThreadId, hex};
use crate::incoming::{Author, Chat, Contact, Incoming, MessageEvent, Record};
use crate::jid::{Jid, JidError, JidKind, Twins};
use crate::message::{Believable, Message, Place, Report, Seen};
use crate::thread::{Summary, ThreadPlace, redirect, redirected};
use crate::time::StoreTime;

/// Stores records of one account.
///
/// Ask [`step`](Self::step) what to do, do it, report it with one of the `on_…` methods, and so on
/// until it says [`Step::Done`].
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Batch {
    account: AccountId,
    believable: Believable,
    twins: Arc<Twins>,
    items: Vec<Item>,
    rejected: Vec<Rejected>,
    threads: Vec<Thread>,
    thread_of: BTreeMap<Jid, usize>,
    slots: Vec<Slot>,
    facts: Vec<ThreadFacts>,
    /// What is known of the store
    docs: BTreeMap<DocPath, Held>,
    /// What has to be read before anything else
    unread: Vec<DocPath>,
    groups: VecDeque<Group>,
    /// The group whose commit is not answered yet
    current: Option<Group>,
    /// What was committed while more remained
    settled: Vec<Write>,
    /// Documents that did not exist, or only for reports, in a plan before the current one
    new: BTreeSet<DocPath>,
    /// Documents that have to be written alone, to find out which of several the store refuses
    alone: BTreeSet<DocPath>,
    /// Documents that the store refuses
    refused: BTreeSet<DocPath>,
}

/// What to do next for a batch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Commit this, all or nothing; then call [`Batch::on_committed`], [`Batch::on_conflict`] or
    /// [`Batch::on_refused`]
    Commit(Vec<Write>),
    /// Everything is stored
    Done,
    /// Read these; then call [`Batch::on_docs`]
    Read(Vec<DocPath>),
}

/// What came of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Facts {
    /// Per thread that got messages or an entry of the chat list, in order of first appearance
    pub threads: Vec<ThreadFacts>,
    /// What could not be stored
    pub rejected: Vec<Rejected>,
}

/// What came of a batch for one thread.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ThreadFacts {
    /// The thread the messages were stored in
    pub thread: ThreadId,
    /// Its chat
    pub jid: Jid,
    /// The oldest of its messages in this batch; without those of unbelievable time
    pub oldest: Option<MessageMark>,
    /// The newest of its messages in this batch; without those of unbelievable time
    pub newest: Option<MessageMark>,
    /// How many messages were not stored before this batch looked
    pub new: u32,
    /// How many different messages came
    pub total: u32,
    /// How many of them are still not readable
    pub undecryptable: u32,
    /// Whether the thread did not exist before this batch looked
    pub is_new_thread: bool,
}

/// Where in a chat's history a message stands, and what it takes to name it to the phone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageMark {
    /// When it was sent, in seconds since the Unix epoch, as the server says
    pub second: i64,
    /// WhatsApp's id
    pub id: SmolStr,
    /// Whether this account sent it
    pub from_me: bool,
    /// In a group, who sent it, as it arrived
    pub participant: Option<SmolStr>,
}

/// A record that could not be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rejected {
    /// Its place among the batch's records, from 0
    pub record: usize,
    /// Why
    pub reason: Rejection,
}

/// Why a record could not be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Rejection {
    /// Somebody's address is none
    #[error("the author's address: {0}")]
    Author(JidError),
    /// The chat's address is none
    #[error("the chat's address: {0}")]
    Chat(JidError),
    /// Somebody edited or deleted what is not his
    #[error("only the sender may edit a message, and outside groups delete it")]
    Forbidden,
    /// The message's id cannot name a document
    #[error("the message id cannot be the id of a document")]
    Id,
    /// The sender's address is none
    #[error("the sender's address: {0}")]
    Sender(JidError),
    /// Status updates are not conversations
    #[error("a status update is not part of a conversation")]
    StatusUpdate,
    /// The store refuses the document
    #[error("the store refuses the document")]
    Store,
}

impl Batch {
    /// Prepares to store `records`, with what is known of `account`'s twins.
    ///
    /// `now` bounds the times that are believed: one more than a day later than that counts as a
    /// day later.
    pub fn new(
        account: &AccountId,
        records: Vec<Record>,
        now: StoreTime,
        twins: &Arc<Twins>,
    ) -> Self {
        let mut batch = Self {
            account: account.clone(),
            believable: Believable::until(now + A_DAY),
            twins: Arc::clone(twins),
            items: Vec::with_capacity(records.len()),
            rejected: Vec::new(),
            threads: Vec::new(),
            thread_of: BTreeMap::new(),
            slots: Vec::new(),
            facts: Vec::new(),
            docs: BTreeMap::new(),
            unread: Vec::new(),
            groups: VecDeque::new(),
            current: None,
            settled: Vec::new(),
            new: BTreeSet::new(),
            alone: BTreeSet::new(),
            refused: BTreeSet::new(),
        };
        for (record, given) in records.into_iter().enumerate() {
            let item = match given {
                Record::Chat(chat) => batch.chat(chat),
                Record::Contact(contact) => batch.contact(contact),
                Record::Message(message) => batch.message(message),
            };
            match item {
                Ok(what) => batch.items.push(Item { record, what }),
                Err(reason) => batch.rejected.push(Rejected { record, reason }),
            }
        }
        batch.plan();
        batch
    }

    /// What to do next.
    ///
    /// Asking again without having reported a commit's outcome counts as not knowing it: the batch
    /// then reads again what the commit was about.
    pub fn step(&mut self) -> Step {
        if self.current.is_some() {
            self.on_conflict();
        }
        if !self.unread.is_empty() {
            return Step::Read(self.asked().to_vec());
        }
        let Some(mut group) = self.groups.pop_front() else { return Step::Done };
        let more = !self.groups.is_empty();
        let writes = if more { group.writes.clone() } else { std::mem::take(&mut group.writes) };
        self.current = Some(group);
        Step::Commit(writes)
    }

    /// The documents that [`Step::Read`] asked for, in its order.
    pub fn on_docs(&mut self, docs: &[Option<Arc<Document>>]) {
        let answered = self.asked().len().min(docs.len());
        for (path, doc) in self.unread.drain(..answered).zip(docs) {
            self.docs.insert(path, Held { doc: doc.clone(), fresh: true });
        }
        if self.unread.is_empty() {
            self.plan();
        }
    }

    /// The commit was applied.
    pub fn on_committed(&mut self) {
        if let Some(group) = self.current.take() {
            self.settled.extend(group.writes);
        }
    }

    /// The commit was not applied because a precondition failed, or it is not known whether it
    /// was: the batch reads again what the commit was about.
    pub fn on_conflict(&mut self) {
        if let Some(group) = self.current.take() {
            self.apply_settled();
            for path in &group.paths {
                self.docs.remove(path);
            }
            self.plan();
        }
    }

    /// The store refuses the commit because of what it contains. The batch finds out which document
    /// it is, stores all others and lists its records as rejected.
    pub fn on_refused(&mut self) {
        let Some(group) = self.current.take() else { return };
        self.apply_settled();
        if group.units > 1 {
            self.alone.extend(group.paths);
        } else {
            for path in group.paths {
                let records = self.slots.iter().filter(|slot| slot.path == path);
                let records = records.flat_map(|slot| &slot.items).map(|i| self.items[*i].record);
                let reason = Rejection::Store;
                self.rejected.extend(records.map(|record| Rejected { record, reason }));
                self.refused.insert(path);
            }
        }
        self.plan();
    }

    /// What came of it; complete once [`step`](Self::step) has said [`Step::Done`].
    pub fn facts(&self) -> Facts {
        Facts { threads: self.facts.clone(), rejected: self.rejected.clone() }
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("account", &self.account)
            .field("records", &self.items.len())
            .field("rejected", &self.rejected)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for MessageMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessageMark({}, {}, from_me: {})", self.second, self.id, self.from_me)
    }
}

const A_DAY: Duration = Duration::from_secs(86_400);
/// Stores take 500 writes; some are left for what the shell adds to a commit.
const GROUP_WRITES: usize = 400;
/// The emulator takes 4 MiB, encoded.
const GROUP_BYTES: usize = 3_000_000;
/// At most this many documents in one read.
const READ_DOCS: usize = 400;

/// One record, parsed.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Item {
    record: usize,
    what: What,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum What {
    Chat { thread: usize, chat: Chat },
    Contact { path: DocPath, person: Jid, names: Names },
    Message(Box<MessageItem>),
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct MessageItem {
    /// The thread of the chat as it was called
    thread: usize,
    /// What its document is called there, if no other sender's has that name
    plain: DocPath,
    wa_id: SmolStr,
    sender: Sender,
    told: Message,
    /// When what it tells was sent
    at: StoreTime,
    /// Where the alias would be, if there is one
    alias: Option<DocPath>,
    /// Whether it is the message and not a report about it
    mark: Option<Option<MessageMark>>,
    /// Whether the thread's summary may depend on it
    summed_up: bool,
}

/// Who sent a message.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Sender {
    outbound: Option<bool>,
    person: Option<Jid>,
}

/// The thread of a chat, by one of its names.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Thread {
    jid: Jid,
    id: ThreadId,
    path: DocPath,
    /// What the paths of its messages begin with
    messages: SmolStr,
    /// The thread of its LID
    twin: Option<usize>,
    /// The thread in which its messages belong, if that is another
    leads_to: Option<usize>,
    /// Whether a record calls the chat by this name
    called: bool,
    /// Whether its summary may change
    summed_up: bool,
}

/// A message document and what of this batch goes into it.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Slot {
    path: DocPath,
    /// The thread whose summary shows it
    thread: usize,
    /// The thread it lies in, if its creator chose another
    elsewhere: Option<ThreadId>,
    /// Where it lay before
    moved_from: Option<DocPath>,
    wa_id: SmolStr,
    sender: Sender,
    items: Vec<usize>,
}

/// What is known of one document.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Held {
    doc: Option<Arc<Document>>,
    /// Whether its version is known; not after a commit of this batch
    fresh: bool,
}

/// One commit.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
struct Group {
    writes: Vec<Write>,
    paths: Vec<DocPath>,
    bytes: usize,
    /// How many independent parts it has
    units: usize,
}

/// Writes that are applied together.
type Unit = [Option<Write>; 2];

/// Where a message document is, or would be.
struct Found {
    path: DocPath,
    exists: bool,
}

impl Batch {
    fn chat(&mut self, chat: Chat) -> Result<What, Rejection> {
        let jid = Jid::parse(chat.jid.clone()).map_err(Rejection::Chat)?;
        Ok(What::Chat { thread: self.thread(&jid)?, chat })
    }

    fn contact(&mut self, contact: Contact) -> Result<What, Rejection> {
        let jid = Jid::parse(contact.jid.clone()).map_err(Rejection::Chat)?;
        let person = self.twins.canonical(&jid).clone();
        let path = contact::path(&self.account, &person).ok_or(Rejection::Id)?;
        Ok(What::Contact { path, person, names: Names::reported(contact) })
    }

    fn message(&mut self, message: Incoming) -> Result<What, Rejection> {
        let Incoming { key, timestamp, source, event } = message;
        let chat = Jid::parse(key.remote_jid).map_err(Rejection::Chat)?;
        let thread = self.thread(&chat)?;
        let plain = self.threads[thread].message_path(&key.id).ok_or(Rejection::Id)?;
        let outbound = key.from_me;
        // In a chat of two there is nobody else, whatever the participant says.
        let participant = key.participant.filter(|p| !chat.is_person() && !p.is_empty());
        let participant = participant.map(Jid::parse).transpose().map_err(Rejection::Sender)?;
        let canonical = |jid: &Jid| self.twins.canonical(jid).clone();
        let sender = Sender {
            outbound: Some(outbound),
            person: participant.as_ref().filter(|_| !outbound).map(canonical),
        };
        let by = match &event {
            MessageEvent::Edit { by, .. }
            | MessageEvent::Reaction { by, .. }
            | MessageEvent::Revoke { by } => match by {
                Author::Me => Some((true, None)),
                Author::Person(person) => {
                    let person = Jid::parse(person.clone()).map_err(Rejection::Author)?;
                    Some((false, Some(canonical(&person))))
                }
            },
            _ => None,
        };
        if let Some((own, person)) = &by {
            let by = Sender {
                outbound: Some(*own),
                person: person.clone().filter(|_| !chat.is_person()),
            };
            let allowed = match &event {
                MessageEvent::Edit { .. } => by.is(&sender),
                MessageEvent::Revoke { .. } => !chat.is_person() || by.is(&sender),
                _ => true,
            };
            if !allowed {
                return Err(Rejection::Forbidden);
            }
        }
        let by = by.map_or(SmolStr::default(), |(_, person)| {
            person.map_or(SmolStr::new_static("me"), |person| person.text())
        });
        let arrived =
            matches!(event, MessageEvent::Content(_) | MessageEvent::Undecryptable { .. });
        let summed_up = !matches!(event, MessageEvent::Reaction { .. } | MessageEvent::Receipt(_));
        let second = StoreTime::from_secs(timestamp);
        let believed = timestamp > 0 && self.believable.contains(second);
        let mark = arrived.then(|| {
            believed.then(|| MessageMark {
                second: timestamp,
                id: key.id.clone(),
                from_me: outbound,
                participant: participant.as_ref().map(Jid::text),
            })
        });
        let alias = if outbound { Alias::path(&self.account, &key.id) } else { None };
        let report = Report {
            outbound,
            remote_jid: chat.text(),
            participant: participant.map(|p| (p.text(), canonical(&p))),
            timestamp,
            source,
            by,
        };
        let told = Message::reported(report, event, self.believable);
        Ok(What::Message(Box::new(MessageItem {
            thread,
            plain,
            wa_id: key.id,
            sender,
            told,
            at: self.believable.clamp(second),
            alias,
            mark,
            summed_up,
        })))
    }

    /// The thread of a chat as it is called; its twin, if known, becomes known as well.
    fn thread(&mut self, jid: &Jid) -> Result<usize, Rejection> {
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

    fn asked(&self) -> &[DocPath] {
        &self.unread[..self.unread.len().min(READ_DOCS)]
    }

    /// Decides everything from what is known of the store; if that is not enough, what to read.
    fn plan(&mut self) {
        self.groups.clear();
        self.facts.clear();
        let mut reader = Reader::default();
        self.place(&mut reader);
        if reader.missing.is_empty() {
            let units = self.units(&mut reader);
            if reader.missing.is_empty() {
                self.groups = self.grouped(units);
            }
        }
        self.unread = reader.missing;
        self.unread.sort_unstable();
        self.unread.dedup();
    }

    /// Finds the document of every message.
    fn place(&mut self, reader: &mut Reader) {
        self.slots.clear();
        for thread in &mut self.threads {
            thread.called = false;
            thread.summed_up = false;
        }
        let mut slot_at = BTreeMap::<DocPath, usize>::new();
        for i in 0..self.items.len() {
            match &self.items[i].what {
                What::Contact { path, .. } => {
                    reader.look(&self.docs, path);
                }
                What::Chat { thread, .. } => {
                    if let Some(home) = self.home(*thread, reader) {
                        self.threads[home].summed_up = true;
                    }
                }
                What::Message(item) => {
                    let (called, summed_up) = (item.thread, item.summed_up);
                    let Some(alias) = self.alias(item, reader) else { continue };
                    // Whatever the chat is called, the message's creator knew which one it is.
                    let chosen = alias.as_ref().and_then(|alias| self.person(&alias.thread));
                    let called = match chosen {
                        Some(chosen) => self.thread(&chosen).unwrap_or(called),
                        None => called,
                    };
                    let Some(home) = self.home(called, reader) else { continue };
                    self.threads[home].summed_up |= summed_up;
                    let slot = self.slot(i, home, alias, &slot_at, reader);
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
                reader.look(&self.docs, &thread.path);
            }
        }
    }

    /// The thread in which the messages of a chat belong that is called like `called`.
    fn home(&mut self, called: usize, reader: &mut Reader) -> Option<usize> {
        self.threads[called].called = true;
        let thread = &self.threads[called];
        if thread.jid.kind() != JidKind::Lid {
            if let Some(twin) = thread.twin {
                reader.look(&self.docs, &self.threads[twin].path);
            }
            return Some(called);
        }
        let known = self.twins.canonical(&thread.jid);
        let canonical = if known == &thread.jid {
            let doc = match self.docs.get(&thread.path) {
                Some(held) => held.doc.as_ref(),
                None => {
                    reader.want(&thread.path);
                    None
                }
            };
            let led = doc.and_then(|doc| redirected(&doc.fields));
            let led = led.and_then(|id| ThreadId::parse(id).ok());
            let led = led.and_then(|id| Jid::parse(id.jid(&self.account)?).ok());
            let Some(led) = led.filter(|jid| jid.kind() == JidKind::User) else {
                self.threads[called].leads_to = None;
                return Some(called);
            };
            led
        } else {
            reader.look(&self.docs, &thread.path);
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
        reader: &mut Reader,
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
            reader.look(&self.docs, &path)?;
            slot.elsewhere = Some(alias.thread).filter(|id| *id != thread.id);
            slot.path = path;
            return Some(slot);
        }
        let here = self.find(home, item, slot_at, reader);
        if let Some(twin) = thread.twin
            && self.docs.get(&self.threads[twin].path)?.doc.is_some()
        {
            let there = self.find(twin, item, slot_at, reader)?;
            slot.moved_from = there.exists.then_some(there.path);
        }
        slot.path = here?.path;
        Some(slot)
    }

    /// The alias of a message, if it has one; `None` if it has to be read first.
    fn alias(&self, item: &MessageItem, reader: &mut Reader) -> Option<Option<Alias>> {
        let Some(path) = &item.alias else { return Some(None) };
        let alias = reader.look(&self.docs, path)?.and_then(|doc| Alias::parse(&self.account, doc));
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
        reader: &mut Reader,
    ) -> Option<Found> {
        let called = item.thread == thread;
        let thread = &self.threads[thread];
        let plain = if called { item.plain.clone() } else { thread.message_path(&item.wa_id)? };
        let doc = reader.look(&self.docs, &plain)?;
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
        let doc = reader.look(&self.docs, &path)?;
        Some(Found { path, exists: doc.is_some() })
    }

    /// Whether a document that has the plain name of a message is that message's.
    fn is_message(&self, doc: &Document, item: &MessageItem) -> bool {
        let stored = Message::stored(&doc.fields, &self.twins, self.believable);
        let same_id = doc.str("waMessageId").is_none_or(|id| id == item.wa_id);
        same_id && Sender { outbound: stored.outbound, person: stored.sender }.is(&item.sender)
    }

    /// Puts together what is stored and what arrived, and what has to be written for it.
    fn units(&mut self, reader: &mut Reader) -> Vec<Unit> {
        let account = self.account.text();
        let mut units = Vec::with_capacity(self.slots.len() + 2);
        let mut summaries: Vec<Summary> = Vec::with_capacity(self.threads.len());
        let mut facts: Vec<ThreadFacts> = Vec::with_capacity(self.threads.len());
        for thread in &self.threads {
            let doc = self.held(&thread.path);
            let mut summary =
                doc.map(|doc| Summary::stored(&doc.fields, self.believable)).unwrap_or_default();
            if let Some(twin) = thread.twin
                && let Some(twin) = self.held(&self.threads[twin].path)
            {
                summary.join(Summary::stored(&twin.fields, self.believable));
            }
            summaries.push(summary);
            facts.push(ThreadFacts {
                thread: thread.id.clone(),
                jid: thread.jid.clone(),
                oldest: None,
                newest: None,
                new: 0,
                total: 0,
                undecryptable: 0,
                is_new_thread: doc.is_none() || self.new.contains(&thread.path),
            });
        }
        let mut counted = vec![false; self.threads.len()];

        for slot in &self.slots {
            if self.refused.contains(&slot.path) {
                continue;
            }
            let thread = &self.threads[slot.thread];
            let held = self.docs.get(&slot.path);
            let doc = held.and_then(|held| held.doc.as_deref());
            let stored =
                |doc: &Document| Message::stored(&doc.fields, &self.twins, self.believable);
            let mut message = doc.map(stored).unwrap_or_default();
            let moved = slot.moved_from.as_ref().and_then(|path| self.held(path));
            if let Some(moved) = moved {
                message.join(stored(moved));
            }
            let new = doc.or(moved).is_none()
                || message.seen == Seen::Missing
                || self.new.contains(&slot.path);
            let mut otherwise = StoreTime::from_micros(i64::MAX);
            let (mut arrived, mut summed_up) = (false, false);
            for i in &slot.items {
                let What::Message(item) = &self.items[*i].what else { continue };
                message.join(item.told.clone());
                otherwise = otherwise.min(item.at);
                summed_up |= item.summed_up;
                let Some(mark) = &item.mark else { continue };
                arrived = true;
                if let Some(mark) = mark {
                    let facts = &mut facts[slot.thread];
                    if facts.oldest.as_ref().is_none_or(|oldest| mark < oldest) {
                        facts.oldest = Some(mark.clone());
                    }
                    if facts.newest.as_ref().is_none_or(|newest| mark > newest) {
                        facts.newest = Some(mark.clone());
                    }
                }
            }
            if arrived {
                let facts = &mut facts[slot.thread];
                facts.total += 1;
                facts.new += u32::from(new);
                facts.undecryptable += u32::from(message.seen == Seen::Undecryptable);
            }
            if summed_up && message.sent_at().is_some() {
                summaries[slot.thread].count(&thread.jid, &slot.wa_id, &message);
                counted[slot.thread] = true;
            }
            let id = slot.elsewhere.as_ref().unwrap_or(&thread.id);
            let chat = match slot.elsewhere.as_ref().and_then(|id| id.jid(&self.account)) {
                Some(chat) => chat.into(),
                None => thread.jid.text(),
            };
            let (thread, wa_id) = (&id.text(), &slot.wa_id);
            let place = Place { account: &account, thread, chat: &chat, wa_id };
            let before = doc.map(|doc| &doc.fields);
            let changes = message.render(before, &place, self.believable, otherwise);
            let mut ops = changes.finish();
            if let Some(moved) = moved {
                carry_over(&mut ops, before, &moved.fields);
            }
            let write = self.merge(&slot.path, ops, reader);
            let removal = slot.moved_from.as_ref().and_then(|path| self.remove(path, reader));
            if write.is_some() || removal.is_some() {
                units.push([write, removal]);
            }
        }

        for item in &self.items {
            if let What::Chat { thread, chat } = &item.what {
                let home = self.threads[*thread].leads_to.unwrap_or(*thread);
                summaries[home].list(chat, self.believable);
                counted[home] = true;
            }
        }
        for (index, thread) in self.threads.iter().enumerate() {
            let doc = self.held(&thread.path);
            let before = doc.map(|doc| &doc.fields);
            let place = ThreadPlace { account: &account, chat: &thread.jid };
            let ops = match thread.leads_to {
                Some(home) if thread.called || doc.is_some() => {
                    redirect(before, &place, &self.threads[home].id.text())
                }
                None if thread.summed_up && counted[index] => {
                    summaries[index].render(before, &place)
                }
                _ => continue,
            };
            units.extend(self.merge(&thread.path, ops, reader).map(|w| [Some(w), None]));
        }
        units.extend(self.contact_units(reader));

        let shown = |(index, facts): (usize, ThreadFacts)| {
            let relevant = facts.total > 0 || (self.threads[index].summed_up && counted[index]);
            relevant.then_some(facts)
        };
        self.facts = facts.into_iter().enumerate().filter_map(shown).collect();
        units
    }

    fn contact_units(&self, reader: &mut Reader) -> Vec<Unit> {
        let mut known = BTreeMap::<&DocPath, (&Jid, Names)>::new();
        for item in &self.items {
            if let What::Contact { path, person, names } = &item.what {
                let stored = || {
                    let doc = self.held(path);
                    (person, doc.map(|doc| Names::stored(&doc.fields)).unwrap_or_default())
                };
                known.entry(path).or_insert_with(stored).1.join(names.clone());
            }
        }
        let write = |(path, (person, names)): (&DocPath, (&Jid, Names))| {
            let before = self.held(path).map(|doc| &doc.fields);
            let ops = names.render(before, &self.account, person);
            self.merge(path, ops, reader).map(|write| [Some(write), None])
        };
        known.into_iter().filter_map(write).collect()
    }

    /// The write that makes these changes to the document as it was read.
    fn merge(
        &self,
        path: &DocPath,
        ops: Vec<(FieldPath, FieldOp)>,
        reader: &mut Reader,
    ) -> Option<Write> {
        if ops.is_empty() || self.refused.contains(path) {
            return None;
        }
        let precondition = self.unchanged(path, reader)?;
        Some(Write::merge(path.clone(), precondition, ops))
    }

    /// The write that removes a document as it was read, if it is there.
    fn remove(&self, path: &DocPath, reader: &mut Reader) -> Option<Write> {
        self.held(path)?;
        let precondition = self.unchanged(path, reader)?;
        Some(Write::delete(path.clone(), precondition))
    }

    fn unchanged(&self, path: &DocPath, reader: &mut Reader) -> Option<Precondition> {
        match self.docs.get(path) {
            Some(Held { doc, fresh: true }) => Some(Precondition::unchanged(doc.as_deref())),
            _ => {
                reader.want(path);
                None
            }
        }
    }

    fn held(&self, path: &DocPath) -> Option<&Document> {
        self.docs.get(path)?.doc.as_deref()
    }

    fn grouped(&self, units: Vec<Unit>) -> VecDeque<Group> {
        let mut groups = VecDeque::new();
        let mut open = Group::default();
        for unit in units {
            let writes = || unit.iter().flatten();
            let bytes: usize = writes().map(write_bytes).sum();
            let alone = writes().any(|write| self.alone.contains(&write.path));
            let full = open.writes.len() + writes().count() > GROUP_WRITES
                || open.bytes + bytes > GROUP_BYTES;
            if (full || alone) && open.units > 0 {
                groups.push_back(std::mem::take(&mut open));
            }
            open.bytes += bytes;
            open.units += 1;
            open.paths.extend(writes().map(|write| write.path.clone()));
            open.writes.extend(unit.into_iter().flatten());
            if alone {
                groups.push_back(std::mem::take(&mut open));
            }
        }
        if open.units > 0 {
            groups.push_back(open);
        }
        groups
    }

    /// Brings what is known of the store up to what this batch has committed.
    fn apply_settled(&mut self) {
        let absent = |path: &DocPath| {
            let doc = self.docs.get(path).and_then(|held| held.doc.as_deref());
            doc.is_none_or(|doc| doc.str("placeholder") == Some("missing"))
        };
        let slots = self
            .slots
            .iter()
            .filter(|slot| absent(&slot.path) && slot.moved_from.as_ref().is_none_or(absent));
        let threads = self.threads.iter().filter(|thread| absent(&thread.path));
        let new = slots.map(|slot| &slot.path).chain(threads.map(|thread| &thread.path));
        self.new.extend(new.cloned());
        for write in std::mem::take(&mut self.settled) {
            let held = self.docs.get(&write.path).and_then(|held| held.doc.as_deref());
            let doc = match write.op {
                WriteOp::Delete => None,
                WriteOp::Verify => continue,
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
}

impl Thread {
    /// The path of a message in it; `None` if it cannot be the id of a document.
    fn message_path(&self, id: &str) -> Option<DocPath> {
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

impl Sender {
    /// Whether both may be the same. A LID whose phone number is not known may be anybody: that
    /// two people use one id is far rarer than that one person is called by two names.
    fn is(&self, other: &Self) -> bool {
        match (self.outbound, other.outbound) {
            (Some(a), Some(b)) if a != b => false,
            (Some(true), Some(true)) => true,
            _ => match (&self.person, &other.person) {
                (Some(a), Some(b)) => a == b || a.kind() != b.kind(),
                _ => true,
            },
        }
    }
}

/// Looks documents up and remembers which are not known yet.
#[derive(Default)]
struct Reader {
    missing: Vec<DocPath>,
}

impl Reader {
    /// The document, or that there is none; `None` if that has to be read first.
    fn look<'a>(
        &mut self,
        docs: &'a BTreeMap<DocPath, Held>,
        path: &DocPath,
    ) -> Option<Option<&'a Document>> {
        match docs.get(path) {
            Some(held) => Some(held.doc.as_deref()),
            None => {
                self.want(path);
                None
            }
        }
    }

    fn want(&mut self, path: &DocPath) {
        self.missing.push(path.clone());
    }
}

fn joined(parts: &[&str]) -> SmolStr {
    SmolStr::from(parts.concat())
}

/// Takes what others wrote into a document along to where the message moves. What the message
/// itself has lost since, such as that it cannot be read, stays behind.
fn carry_over(ops: &mut Vec<(FieldPath, FieldOp)>, here: Option<&Fields>, there: &Fields) {
    for (name, value) in there.iter().filter(|(name, _)| !Message::renders(name)) {
        let known = here.is_some_and(|fields| fields.contains_key(name))
            || ops.iter().any(|(field, _)| field.as_str() == name);
        if let Some(field) = FieldPath::parse(name).filter(|f| !known && !f.as_str().contains('.'))
        {
            ops.push((field, FieldOp::Set(value.clone())));
        }
    }
}

/// About how many bytes a write takes.
fn write_bytes(write: &Write) -> usize {
    let ops = match &write.op {
        WriteOp::Delete | WriteOp::Verify => &[][..],
        WriteOp::Merge(ops) => ops,
    };
    let op_bytes = |(field, op): &(FieldPath, FieldOp)| {
        let value = match op {
            FieldOp::Remove | FieldOp::ServerTime => 0,
            FieldOp::Set(value) => value_bytes(value),
        };
        field.as_str().len() + value + 16
    };
    write.path.as_str().len() + 64 + ops.iter().map(op_bytes).sum::<usize>()
}

fn value_bytes(value: &Value) -> usize {
    8 + match value {
        Value::String(text) | Value::Reference(text) => text.len(),
        Value::Bytes(bytes) => bytes.len(),
        Value::Array(values) => values.iter().map(value_bytes).sum(),
        Value::Map(fields) => fields.iter().map(|(k, v)| k.len() + 8 + value_bytes(v)).sum(),
        Value::Null
        | Value::Bool(_)
        | Value::Int(_)
        | Value::Double(_)
        | Value::Timestamp(_)
        | Value::GeoPoint(..) => 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::alias::outbound_wa_id;
    use crate::id::{MessageId, OutboxId};
    use crate::incoming::{Content, Key, Media, MessageKind, Status, SyncSource};

    const NOW: StoreTime = StoreTime::from_secs(1_800_000_000);
    const PEER: &str = "40712345678@s.whatsapp.net";
    const LID: &str = "777@lid";
    const GROUP: &str = "123-456@g.us";

    #[test]
    fn a_message_and_its_thread_are_stored_in_one_commit() {
        let mut store = Store::default();
        let facts = store.ingest(vec![text("M1", 100, "hello")]);
        assert_eq!(store.commits, 1);

        let message = store.message(PEER, "M1");
        assert_eq!(message.str("body"), Some("hello"));
        assert_eq!(message.str("direction"), Some("inbound"));
        assert_eq!(message.str("status"), Some("delivered"));
        assert_eq!(message.str("messageType"), Some("text"));
        assert_eq!(message.str("syncSource"), Some("realtime"));
        assert_eq!(message.str("accountId"), Some("acc"));
        assert_eq!(message.str("clientJid"), Some(PEER));
        assert_eq!(message.str("threadId"), Some(format!("acc__{PEER}").as_str()));
        assert_eq!(message.str("waMessageId"), Some("M1"));
        assert_eq!(message.time("tsClient"), Some(StoreTime::from_secs(100)));
        assert_eq!(message.int("key.timestamp"), Some(100));
        assert_eq!(message.bool("key.fromMe"), Some(false));
        assert_eq!(message.str("key.remoteJid"), Some(PEER));
        assert_eq!(message.str("key.id"), Some("M1"));
        for stamp in ["createdAt", "updatedAt", "syncedAt"] {
            assert!(message.time(stamp).is_some(), "{stamp}");
        }

        let thread = store.thread(PEER);
        assert_eq!(thread.str("lastMessageText"), Some("hello"));
        assert_eq!(thread.str("lastMessagePreview"), Some("hello"));
        assert_eq!(thread.str("lastMessageDirection"), Some("inbound"));
        assert_eq!(thread.str("lastMessageSenderName"), Some("Ana"));
        assert_eq!(thread.time("lastMessageAt"), Some(StoreTime::from_secs(100)));
        assert_eq!(thread.int("lastMessageAtMs"), Some(100_000));
        assert_eq!(thread.str("displayName"), Some("Ana"));
        assert_eq!(thread.str("phoneE164"), Some("+40712345678"));
        assert_eq!(thread.bool("isLid"), Some(false));

        let [facts] = &facts.threads[..] else { panic!("{facts:?}") };
        assert_eq!((facts.new, facts.total, facts.is_new_thread), (1, 1, true));
        assert_eq!(facts.oldest, facts.newest);
        assert_eq!(facts.newest.as_ref().unwrap().second, 100);
    }

    #[test]
    fn what_was_confirmed_before_it_was_stored_is_marked_until_it_comes_the_usual_way() {
        let mut store = Store::default();
        let past = |id| Incoming { source: SyncSource::AtMostOnce, ..text(id, 100, "hello") };
        store.ingest(vec![past("M1"), past("M2")]);
        let history = Incoming { source: SyncSource::HistorySync, ..text("M1", 100, "hello") };
        store.ingest(vec![history, text("M2", 100, "hello")]);
        let mark = |id| store.message(PEER, id).bool("atMostOnce");
        assert_eq!((mark("M1"), mark("M2")), (Some(true), None));
        assert_eq!(store.message(PEER, "M1").str("syncSource"), Some("realtime"));
    }

    #[test]
    fn what_is_stored_already_costs_reads_and_no_write() {
        let mut store = Store::default();
        let records = || {
            let chat = Record::from(chat(PEER, "Ana"));
            vec![text("M1", 100, "hello").into(), text("M2", 101, "you").into(), chat]
        };
        store.ingest(records());
        let (commits, docs) = (store.commits, store.docs.clone());
        let facts = store.ingest(records());
        assert_eq!((store.commits, &store.docs), (commits, &docs));
        let [facts] = &facts.threads[..] else { panic!("{facts:?}") };
        assert_eq!((facts.new, facts.total, facts.is_new_thread), (0, 2, false));
    }

    #[test]
    fn a_bad_record_is_rejected_and_its_neighbours_are_stored() {
        let mut store = Store::default();
        let mut no_chat = text("M1", 100, "a");
        no_chat.key.remote_jid = "[object Object]".into();
        let mut slash = text("M/1", 100, "a");
        slash.key.id = "M/1".into();
        let mut status = text("M3", 100, "a");
        status.key.remote_jid = "status@broadcast".into();
        let mut sender = text("M4", 100, "a");
        sender.key.remote_jid = GROUP.into();
        sender.key.participant = Some("nobody".into());
        let stranger = about(
            "M2",
            110,
            MessageEvent::Edit { by: Author::Me, body: "forged".into(), at_ms: 110_000 },
        );
        let bad = [no_chat, slash, status, sender, stranger];
        let facts = store.ingest(bad.into_iter().chain([text("M2", 100, "good")]).collect());
        assert_eq!(
            facts.rejected.iter().map(|r| r.reason).collect::<Vec<_>>(),
            [
                Rejection::Chat(JidError::NoServer),
                Rejection::Id,
                Rejection::StatusUpdate,
                Rejection::Sender(JidError::NoServer),
                Rejection::Forbidden,
            ]
        );
        assert_eq!(store.message(PEER, "M2").str("body"), Some("good"));
        assert_eq!(store.docs.len(), 2);
    }

    #[test]
    fn old_history_does_not_move_the_summary_back() {
        let mut store = Store::default();
        store.ingest(vec![text("M2", 200, "new")]);
        store.ingest(vec![text("M1", 100, "old"), own("M0", 50, "older")]);
        let thread = store.thread(PEER);
        assert_eq!(thread.str("lastMessageText"), Some("new"));
        assert_eq!(thread.int("lastMessageAtMs"), Some(200_000));
        assert_eq!(thread.str("lastMessageDirection"), Some("inbound"));
    }

    #[test]
    fn an_own_message_moves_time_and_direction_and_keeps_the_inbound_text() {
        let mut store = Store::default();
        store.ingest(vec![text("M1", 100, "question"), own("M2", 200, "answer")]);
        let thread = store.thread(PEER);
        assert_eq!(thread.str("lastMessageText"), Some("question"));
        assert_eq!(thread.str("lastMessageDirection"), Some("outbound"));
        assert_eq!(thread.int("lastMessageAtMs"), Some(200_000));
        assert_eq!(thread.value("lastMessageSenderName"), Some(&Value::Null));
    }

    #[test]
    fn a_text_of_the_proxy_stays_until_the_next_inbound_one() {
        let mut store = Store::default();
        store.ingest(vec![text("M1", 100, "question")]);
        store.write(
            &format!("threads/acc__{PEER}"),
            &[
                ("lastMessageAt", StoreTime::from_millis(200_500).into()),
                ("lastMessageText", "from the app".into()),
                ("lastMessagePreview", "from the app".into()),
                ("lastMessageDirection", "outbound".into()),
            ],
        );
        // An edit of the earlier inbound message, history between, an own message after.
        store.ingest(vec![
            edit("M1", 210, "question?"),
            text("M2", 150, "history"),
            own("M3", 300, "x"),
        ]);
        let thread = store.thread(PEER);
        assert_eq!(thread.str("lastMessageText"), Some("from the app"));
        assert_eq!(thread.int("lastMessageAtMs"), Some(300_000));
        // Inbound after the proxy's text, though before the newest message.
        store.ingest(vec![text("M4", 250, "reply")]);
        let thread = store.thread(PEER);
        assert_eq!(thread.str("lastMessageText"), Some("reply"));
        assert_eq!(thread.str("lastMessagePreview"), Some("reply"));
        assert_eq!(thread.str("lastMessageDirection"), Some("outbound"));
    }

    #[test]
    fn edit_and_revoke_of_the_newest_message_change_the_preview() {
        let mut store = Store::default();
        store.ingest(vec![text("M1", 100, "first"), text("M2", 200, "second")]);
        store.ingest(vec![edit("M2", 210, "second!"), edit("M1", 220, "first!")]);
        assert_eq!(store.thread(PEER).str("lastMessageText"), Some("second!"));
        assert_eq!(store.message(PEER, "M1").str("body"), Some("first!"));
        store.ingest(vec![revoke("M2", 300)]);
        assert_eq!(store.thread(PEER).str("lastMessageText"), Some(""));
        let message = store.message(PEER, "M2");
        assert_eq!((message.str("body"), message.bool("revoked")), (Some(""), Some(true)));
        store.ingest(vec![text("M2", 200, "second"), edit("M2", 400, "again")]);
        assert_eq!(store.message(PEER, "M2").str("body"), Some(""));
        assert_eq!(store.thread(PEER).str("lastMessageText"), Some(""));
    }

    #[test]
    fn reports_before_their_message_wait_unseen() {
        let mut store = Store::default();
        let love = reaction("M1", 150, "love", Author::Me);
        store.ingest(vec![love, about("M1", 160, MessageEvent::Receipt(Status::Read))]);
        let stub = store.message(PEER, "M1");
        assert_eq!(stub.value("tsClient"), None);
        assert_eq!(stub.str("placeholder"), Some("missing"));
        assert!(!store.docs.contains_key(format!("threads/acc__{PEER}").as_str()));
        let facts = store.ingest(vec![text("M1", 100, "hello")]);
        assert_eq!(facts.threads[0].new, 1);
        let message = store.message(PEER, "M1");
        assert_eq!(message.time("tsClient"), Some(StoreTime::from_secs(100)));
        assert_eq!(message.value("placeholder"), None);
        assert_eq!(message.str("status"), Some("read"));
        let reactions = message.value("reactions").and_then(Value::as_map).unwrap();
        let mine = reactions["me"].as_map().unwrap();
        assert_eq!(mine["text"].as_str(), Some("love"));
    }

    #[test]
    fn an_edit_before_its_message_is_shown_at_once() {
        let mut store = Store::default();
        store.ingest(vec![edit("M1", 150, "better")]);
        let stub = store.message(PEER, "M1");
        assert_eq!(stub.time("tsClient"), Some(StoreTime::from_secs(150)));
        assert_eq!((stub.str("body"), stub.str("messageType")), (Some("better"), Some("text")));
        let mut picture = text("M1", 100, "worse");
        picture.event = MessageEvent::Content(Content {
            kind: MessageKind::Image,
            body: "worse".into(),
            media: Some(Box::new(Media { mimetype: Some("image/png".into()), ..Media::default() })),
            ..Content::default()
        });
        store.ingest(vec![picture]);
        let message = store.message(PEER, "M1");
        assert_eq!(message.time("tsClient"), Some(StoreTime::from_secs(100)));
        assert_eq!(message.str("body"), Some("better"));
        assert_eq!(message.str("messageType"), Some("image"));
        assert_eq!(message.str("media.mimetype"), Some("image/png"));
        assert_eq!(message.str("media.type"), Some("image"));
        assert_eq!(store.thread(PEER).str("lastMessageText"), Some("better"));
    }

    #[test]
    fn a_status_never_goes_down_and_receipts_keep_their_earliest_time() {
        let mut store = Store::default();
        store.ingest(vec![own("M1", 100, "x")]);
        let receipt = |at, status| {
            let mut receipt = about("M1", at, MessageEvent::Receipt(status));
            receipt.key.from_me = true;
            receipt
        };
        store.ingest(vec![receipt(120, Status::Read), receipt(110, Status::Delivered)]);
        store.ingest(vec![receipt(130, Status::Delivered), receipt(140, Status::Failed)]);
        let message = store.message(PEER, "M1");
        assert_eq!(message.str("status"), Some("read"));
        assert_eq!(message.time("deliveredAt"), Some(StoreTime::from_secs(110)));
        assert_eq!(message.time("readAt"), Some(StoreTime::from_secs(120)));
    }

    #[test]
    fn failed_comes_only_from_queued_and_ends_when_the_message_was_sent_after_all() {
        let mut store = Store::default();
        let outbox = OutboxId::parse("f00d").unwrap();
        store.optimistic(&outbox, PEER);
        let wa_id = outbound_wa_id(&outbox);
        let receipt = |status| {
            let mut receipt = about(&wa_id, 130, MessageEvent::Receipt(status));
            receipt.key.from_me = true;
            vec![receipt]
        };
        store.ingest(receipt(Status::Failed));
        assert_eq!(store.message(PEER, "f00d").str("status"), Some("failed"));
        store.ingest(receipt(Status::Sent));
        store.ingest(receipt(Status::Failed));
        assert_eq!(store.message(PEER, "f00d").str("status"), Some("sent"));
    }

    #[test]
    fn history_and_receipts_find_the_document_that_the_app_made() {
        let mut store = Store::default();
        let outbox = OutboxId::parse("f00d").unwrap();
        store.optimistic(&outbox, PEER);
        let wa_id = outbound_wa_id(&outbox);
        let mut receipt = about(&wa_id, 130, MessageEvent::Receipt(Status::Delivered));
        receipt.key.from_me = true;
        store.ingest(vec![receipt]);
        let message = store.message(PEER, "f00d");
        assert_eq!(message.str("status"), Some("delivered"));
        assert_eq!(message.str("waMessageId"), Some(&*wa_id));
        assert_eq!(message.str("clientMessageId"), Some("c1"));
        // 2027-01-15T08:00:00.250Z, now a timestamp
        let claimed = StoreTime::from_millis(1_800_000_000_250);
        assert_eq!(message.time("tsClient"), Some(claimed));
        store.ingest(vec![own(&wa_id, 1_800_000_000, "from the app")]);
        let message = store.message(PEER, "f00d");
        assert_eq!(message.time("tsClient"), Some(StoreTime::from_secs(1_800_000_000)));
        assert_eq!(message.str("clientMessageId"), Some("c1"));
        assert!(!store.exists(PEER, &wa_id));
    }

    #[test]
    fn another_senders_message_with_the_same_id_gets_its_own_document() {
        let mut store = Store::default();
        let (ana, bob) = ("1@s.whatsapp.net", "2@s.whatsapp.net");
        store.ingest(vec![from(ana, "M1", 100, "a"), from(bob, "M1", 101, "b")]);
        store.ingest(vec![from(bob, "M1", 101, "b"), from(ana, "M1", 100, "a")]);
        assert_eq!(store.message(GROUP, "M1").str("body"), Some("a"));
        // SHA-256 of "2@s.whatsapp.net"
        let other = format!("M1~{}", &hex(&Sha256::digest(bob.as_bytes()))[..8]);
        assert_eq!(store.message(GROUP, &other).str("body"), Some("b"));
        assert_eq!(store.message(GROUP, &other).str("senderJid"), Some(bob));
        // A forged edit or revoke by Bob hits only Bob's message.
        let mut forged = edit("M1", 200, "forged");
        forged.key = from(bob, "M1", 0, "").key;
        forged.event = MessageEvent::Edit {
            by: Author::Person(bob.into()),
            body: "forged".into(),
            at_ms: 200_000,
        };
        store.ingest(vec![forged]);
        assert_eq!(store.message(GROUP, "M1").str("body"), Some("a"));
        assert_eq!(store.message(GROUP, &other).str("body"), Some("forged"));
    }

    #[test]
    fn a_participant_is_one_person_under_both_names() {
        let mut store = Store::default();
        store.ingest(vec![from("9@lid", "M1", 100, "a")]);
        store.ingest(vec![from("1@s.whatsapp.net", "M1", 100, "a")]);
        assert_eq!(store.message(GROUP, "M1").str("senderJid"), Some("1@s.whatsapp.net"));
        assert_eq!(store.docs.len(), 2);
    }

    #[test]
    fn a_chat_called_by_its_lid_is_stored_under_the_phone_number() {
        let mut store = Store::default();
        let twins = twins();
        let mut by_lid = text("M1", 100, "hello");
        by_lid.key.remote_jid = LID.into();
        let facts = store.ingest_with(vec![by_lid.into()], &twins);
        assert_eq!(facts.threads[0].jid.as_str(), PEER);
        assert_eq!(store.message(PEER, "M1").str("clientJid"), Some(PEER));
        let twin = store.thread(LID);
        let canonical = format!("acc__{PEER}");
        assert_eq!(twin.str("redirectTo"), Some(canonical.as_str()));
        assert_eq!(twin.str("canonicalThreadId"), Some(canonical.as_str()));
        assert_eq!(twin.bool("isLid"), Some(true));
        assert_eq!(twin.value("lastMessageAt"), None);
        assert!(!store.exists(LID, "M1"));
    }

    #[test]
    fn a_mapping_learnt_late_redirects_the_twin_and_moves_what_is_mentioned_again() {
        let mut store = Store::default();
        let by_lid = |id: &str, at, body| {
            let mut message = text(id, at, body);
            message.key.remote_jid = LID.into();
            message
        };
        store.ingest(vec![by_lid("M1", 100, "one"), by_lid("M2", 200, "two")]);
        assert_eq!(store.thread(LID).bool("isLid"), Some(true));
        store.write(&format!("threads/acc__{LID}/messages/M1"), &[("starred", true.into())]);
        // By phone number, from a page; the mapping is known now.
        store.ingest_with(vec![text("M1", 100, "one").into()], &twins());
        assert!(!store.exists(LID, "M1"));
        let moved = store.message(PEER, "M1");
        assert_eq!(moved.bool("starred"), Some(true));
        assert_eq!(moved.str("threadId"), Some(format!("acc__{PEER}").as_str()));
        // The summary is that of both.
        assert_eq!(store.thread(PEER).str("lastMessageText"), Some("two"));
        assert_eq!(store.thread(LID).str("redirectTo"), Some(format!("acc__{PEER}").as_str()));
        // Somebody who does not know the mapping follows the redirect.
        store.ingest(vec![by_lid("M3", 300, "three")]);
        assert_eq!(store.message(PEER, "M3").str("body"), Some("three"));
        assert!(!store.exists(LID, "M3"));
    }

    #[test]
    fn a_message_that_becomes_readable_as_it_moves_is_no_placeholder() {
        let broken = || about("M1", 100, MessageEvent::Undecryptable { sender_name: None });
        let mut store = Store::default();
        let mut by_lid = broken();
        by_lid.key.remote_jid = LID.into();
        store.ingest(vec![by_lid]);
        store.ingest_with(vec![text("M1", 100, "one").into()], &twins());
        assert!(!store.exists(LID, "M1"));
        let moved = store.message(PEER, "M1");
        assert_eq!((moved.str("body"), moved.value("placeholder")), (Some("one"), None));
    }

    #[test]
    fn far_future_times_are_clamped_once_and_kept_raw() {
        let mut store = Store::default();
        store.ingest(vec![text("M1", 4_000_000_000, "from 2096")]);
        let clamped = NOW + A_DAY;
        let message = store.message(PEER, "M1");
        assert_eq!(message.time("tsClient"), Some(clamped));
        assert_eq!(message.int("key.timestamp"), Some(4_000_000_000));
        assert_eq!(store.thread(PEER).time("lastMessageAt"), Some(clamped));
        let commits = store.commits;
        store.now = NOW + A_DAY;
        let facts = store.ingest(vec![text("M1", 4_000_000_000, "from 2096")]);
        assert_eq!(store.commits, commits);
        assert_eq!(facts.threads[0].newest, None);
        store.ingest(vec![text("M2", -5, "before time"), text("M3", 0, "no time")]);
        assert_eq!(store.message(PEER, "M2").time("tsClient"), Some(StoreTime::EPOCH));
    }

    #[test]
    fn a_message_beats_its_undecryptable_form_in_any_order() {
        let broken =
            || about("M1", 100, MessageEvent::Undecryptable { sender_name: Some("Ana".into()) });
        let mut one = Store::default();
        let facts = one.ingest(vec![broken()]);
        assert_eq!(facts.threads[0].undecryptable, 1);
        assert_eq!(one.message(PEER, "M1").str("placeholder"), Some("undecryptable"));
        assert_eq!(one.thread(PEER).int("lastMessageAtMs"), Some(100_000));
        let facts = one.ingest(vec![text("M1", 100, "hello")]);
        assert_eq!((facts.threads[0].undecryptable, facts.threads[0].new), (0, 0));
        let mut other = Store::default();
        other.ingest(vec![text("M1", 100, "hello")]);
        other.ingest(vec![broken()]);
        assert_eq!(one.content(), other.content());
    }

    #[test]
    fn the_chat_list_makes_threads_that_show() {
        let mut store = Store::default();
        let mut dated = chat(GROUP, "Team");
        dated.last_message_at = Some(500);
        dated.archived = Some(true);
        let facts = store
            .ingest_with(vec![Record::from(dated), chat(PEER, "Ana Pop").into()], &Arc::default());
        assert_eq!(facts.threads.len(), 2);
        let team = store.thread(GROUP);
        assert_eq!(team.int("lastMessageAtMs"), Some(500_000));
        assert_eq!(team.str("displayName"), Some("Team"));
        assert_eq!(team.bool("archived"), Some(true));
        assert_eq!(team.value("phone"), None);
        assert_eq!(store.thread(PEER).time("lastMessageAt"), Some(StoreTime::EPOCH));
        // A push name does not replace what the phone calls the chat.
        store.ingest(vec![text("M1", 100, "hello")]);
        assert_eq!(store.thread(PEER).str("displayName"), Some("Ana Pop"));
    }

    #[test]
    fn the_latest_word_on_a_contact_counts() {
        let contact = |name: &str, as_of| Contact {
            jid: PEER.into(),
            name: Some(name.into()),
            as_of,
            ..Contact::default()
        };
        let mut store = Store::default();
        store.ingest_with(vec![contact("Ana", 2).into()], &Arc::default());
        store.ingest_with(vec![contact("Old", 1).into()], &Arc::default());
        let path = format!("contacts/acc__{PEER}");
        assert_eq!(store.docs[path.as_str()].str("name"), Some("Ana"));
        store
            .ingest_with(vec![contact("New", 3).into(), contact("Mid", 2).into()], &Arc::default());
        assert_eq!(store.docs[path.as_str()].str("name"), Some("New"));
    }

    #[test]
    fn fields_of_others_survive() {
        let mut store = Store::default();
        store.ingest(vec![text("M1", 100, "hello")]);
        store.write(&format!("threads/acc__{PEER}"), &[("photoUrl", "p".into())]);
        let media = Value::map([("thumb", Value::from("t"))]);
        let message = format!("threads/acc__{PEER}/messages/M1");
        store.write(&message, &[("starred", true.into()), ("media", media)]);
        let mut picture = text("M1", 100, "hello");
        picture.event = MessageEvent::Content(Content {
            kind: MessageKind::Image,
            body: "hello".into(),
            media: Some(Box::default()),
            ..Content::default()
        });
        store.ingest(vec![picture, text("M2", 200, "more")]);
        assert_eq!(store.thread(PEER).str("photoUrl"), Some("p"));
        let message = store.message(PEER, "M1");
        assert_eq!(message.bool("starred"), Some(true));
        assert_eq!(message.str("media.thumb"), Some("t"));
        assert_eq!(message.str("media.type"), Some("image"));
    }

    #[test]
    fn large_batches_are_split_and_every_conflict_is_repaired() {
        let mut store = Store::default();
        let records: Vec<_> = (0..1_000).map(|i| text(&format!("M{i}"), 100 + i, "x")).collect();
        // Somebody else edits the last message and the thread before every commit.
        let mut batch = store.batch(records.into_iter().map(Record::from).collect());
        let mut conflicts = 0;
        loop {
            match batch.step() {
                Step::Done => break,
                Step::Read(paths) => batch.on_docs(&store.get(&paths)),
                Step::Commit(writes) => {
                    assert!(writes.len() <= GROUP_WRITES);
                    if conflicts < 3 {
                        let at = 2_000 + conflicts;
                        store.ingest(vec![edit("M999", at, &format!("edit {conflicts}"))]);
                        store.ingest(vec![text("later", 5_000, "later")]);
                    }
                    if store.commit(writes) {
                        batch.on_committed();
                    } else {
                        conflicts += 1;
                        batch.on_conflict();
                    }
                }
            }
        }
        assert!(conflicts >= 2, "{conflicts}");
        assert_eq!(store.message(PEER, "M999").str("body"), Some("edit 2"));
        assert_eq!(store.thread(PEER).str("lastMessageText"), Some("later"));
        assert_eq!(batch.facts().threads[0].total, 1_000);
        assert_eq!(store.docs.len(), 1_002);
    }

    #[test]
    fn a_commit_without_answer_is_read_again_and_not_repeated_if_it_was_applied() {
        let mut store = Store::default();
        let mut batch = store.batch(vec![text("M1", 100, "hello").into()]);
        let Step::Read(paths) = batch.step() else { panic!() };
        batch.on_docs(&store.get(&paths));
        let Step::Commit(writes) = batch.step() else { panic!() };
        assert!(store.commit(writes));
        let Step::Read(paths) = batch.step() else { panic!() };
        batch.on_docs(&store.get(&paths));
        assert_eq!(batch.step(), Step::Done);
        assert_eq!(batch.facts().threads[0].new, 1);
    }

    #[test]
    fn a_document_that_the_store_refuses_does_not_hold_up_the_others() {
        let mut store = Store { refuse: Some("bad"), ..Store::default() };
        let facts = store.ingest(vec![text("good", 100, "a"), text("bad", 200, "b")]);
        let reason = Rejection::Store;
        assert_eq!(facts.rejected, [Rejected { record: 1, reason }]);
        assert!(store.exists(PEER, "good"));
        assert_eq!(store.thread(PEER).str("lastMessageText"), Some("a"));
    }

    /// A store in memory, and what the tests ask of it.
    struct Store {
        docs: BTreeMap<DocPath, Arc<Document>>,
        now: StoreTime,
        version: i64,
        commits: u32,
        refuse: Option<&'static str>,
    }

    impl Default for Store {
        fn default() -> Self {
            Self { docs: BTreeMap::new(), now: NOW, version: 0, commits: 0, refuse: None }
        }
    }

    impl Store {
        fn get(&self, paths: &[DocPath]) -> Vec<Option<Arc<Document>>> {
            paths.iter().map(|path| self.docs.get(path).cloned()).collect()
        }

        fn commit(&mut self, writes: Vec<Write>) -> bool {
            let holds = |w: &Write| match w.precondition {
                Precondition::Absent => !self.docs.contains_key(&w.path),
                Precondition::Version(v) => {
                    self.docs.get(&w.path).is_some_and(|doc| doc.version == v)
                }
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

        fn write(&mut self, path: &str, fields: &[(&'static str, Value)]) {
            let ops = fields.iter().map(|(k, v)| (FieldPath::new(k), v.clone().into()));
            let path = DocPath::parse(path).unwrap();
            assert!(self.commit(vec![Write::merge(path, Precondition::Any, ops.collect())]));
            self.commits -= 1;
        }

        fn batch(&self, records: Vec<Record>) -> Batch {
            Batch::new(&account(), records, self.now, &Arc::default())
        }

        fn ingest(&mut self, records: Vec<impl Into<Record>>) -> Facts {
            self.ingest_with(records.into_iter().map(Into::into).collect(), &Arc::default())
        }

        fn ingest_with(&mut self, records: Vec<Record>, twins: &Arc<Twins>) -> Facts {
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
        fn optimistic(&mut self, outbox: &OutboxId, jid: &str) {
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

        fn message(&self, jid: &str, id: &str) -> &Document {
            &self.docs[format!("threads/acc__{jid}/messages/{id}").as_str()]
        }

        fn exists(&self, jid: &str, id: &str) -> bool {
            self.docs.contains_key(format!("threads/acc__{jid}/messages/{id}").as_str())
        }

        fn thread(&self, jid: &str) -> &Document {
            &self.docs[format!("threads/acc__{jid}").as_str()]
        }

        fn content(&self) -> BTreeMap<&DocPath, Fields> {
            let stamps = ["createdAt", "syncedAt", "updatedAt"];
            let plain = |doc: &Document| {
                let mut fields = doc.fields.clone();
                fields.retain(|name, _| !stamps.contains(&name.as_str()));
                fields
            };
            self.docs.iter().map(|(path, doc)| (path, plain(doc))).collect()
        }
    }

    fn account() -> AccountId {
        AccountId::parse("acc").unwrap()
    }

    fn twins() -> Arc<Twins> {
        let mut twins = Twins::default();
        twins.link(Jid::parse(LID).unwrap(), Jid::parse(PEER).unwrap());
        Arc::new(twins)
    }

    fn about(id: &str, at: i64, event: MessageEvent) -> Incoming {
        Incoming {
            key: Key { id: id.into(), remote_jid: PEER.into(), from_me: false, participant: None },
            timestamp: at,
            source: SyncSource::Realtime,
            event,
        }
    }

    fn text(id: &str, at: i64, body: &str) -> Incoming {
        let content = Content {
            kind: MessageKind::Text,
            body: body.into(),
            sender_name: Some("Ana".into()),
            ..Content::default()
        };
        about(id, at, MessageEvent::Content(content))
    }

    fn own(id: &str, at: i64, body: &str) -> Incoming {
        let mut message = text(id, at, body);
        message.key.from_me = true;
        message
    }

    fn from(sender: &str, id: &str, at: i64, body: &str) -> Incoming {
        let mut message = text(id, at, body);
        message.key.remote_jid = GROUP.into();
        message.key.participant = Some(sender.into());
        message
    }

    fn edit(id: &str, at: i64, body: &str) -> Incoming {
        let by = Author::Person(PEER.into());
        about(id, at, MessageEvent::Edit { by, body: body.into(), at_ms: at * 1_000 })
    }

    fn revoke(id: &str, at: i64) -> Incoming {
        about(id, at, MessageEvent::Revoke { by: Author::Person(PEER.into()) })
    }

    fn reaction(id: &str, at: i64, emoji: &str, by: Author) -> Incoming {
        about(id, at, MessageEvent::Reaction { by, emoji: emoji.into(), at_ms: at * 1_000 })
    }

    fn chat(jid: &str, name: &str) -> Chat {
        Chat { jid: jid.into(), name: Some(name.into()), as_of: 10, ..Chat::default() }
    }
}
