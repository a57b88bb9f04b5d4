//! Records in, items out: addresses are read, and nobody tells what is not his to tell.

use smol_str::SmolStr;

use super::Batch;
use super::facts::{MessageMark, Rejection};
use crate::alias::Alias;
use crate::contact::{self, Names};
use crate::doc::DocPath;
use crate::incoming::{Author, Chat, Contact, Incoming, MessageEvent, Record};
use crate::jid::Jid;
use crate::message::{Message, Report};
use crate::time::StoreTime;

/// One record, parsed.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Item {
    pub(super) record: usize,
    pub(super) what: What,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum What {
    Chat { thread: usize, chat: Chat },
    Contact { path: DocPath, person: Jid, names: Names },
    Message(Box<MessageItem>),
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct MessageItem {
    /// The thread of the chat as it was called
    pub(super) thread: usize,
    /// What its document is called there, if no other sender's has that name
    pub(super) plain: DocPath,
    pub(super) wa_id: SmolStr,
    pub(super) sender: Sender,
    pub(super) told: Message,
    /// When what it tells was sent
    pub(super) at: StoreTime,
    /// Where the alias would be, if there is one
    pub(super) alias: Option<DocPath>,
    /// Whether it is the message and not a report about it
    pub(super) mark: Option<Option<MessageMark>>,
    /// Whether the thread's summary may depend on it
    pub(super) summed_up: bool,
}

/// Who sent a message.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Sender {
    pub(super) outbound: Option<bool>,
    /// In a group, unless it was this account
    pub(super) person: Option<Jid>,
}

impl Batch {
    /// What a record tells.
    pub(super) fn item(&mut self, record: Record) -> Result<What, Rejection> {
        match record {
            Record::Chat(chat) => self.chat(chat),
            Record::Contact(contact) => self.contact(contact),
            Record::Message(message) => self.message(message),
        }
    }

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
        let author = self.author(&event)?;
        if author.as_ref().is_some_and(|author| !is_allowed(&event, author, &sender, &chat)) {
            return Err(Rejection::Forbidden);
        }
        let by = author.map_or(SmolStr::default(), |author| {
            author.person.map_or(SmolStr::new_static("me"), |person| person.text())
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

    /// Who did it, for what somebody does to a message.
    fn author(&self, event: &MessageEvent) -> Result<Option<Sender>, Rejection> {
        let by = match event {
            MessageEvent::Edit { by, .. }
            | MessageEvent::Reaction { by, .. }
            | MessageEvent::Revoke { by } => by,
            _ => return Ok(None),
        };
        let person = match by {
            Author::Me => None,
            Author::Person(person) => {
                let person = Jid::parse(person.clone()).map_err(Rejection::Author)?;
                Some(self.twins.canonical(&person).clone())
            }
        };
        Ok(Some(Sender { outbound: Some(person.is_none()), person }))
    }
}

/// Whether somebody may do this to a message: edit one's own, delete it, or anybody's in a group,
/// whose administrators may.
fn is_allowed(event: &MessageEvent, author: &Sender, sender: &Sender, chat: &Jid) -> bool {
    // In a chat of two, persons have no names.
    let person = author.person.clone().filter(|_| !chat.is_person());
    let author = Sender { person, ..*author };
    match event {
        MessageEvent::Edit { .. } => author.is(sender),
        MessageEvent::Revoke { .. } => !chat.is_person() || author.is(sender),
        _ => true,
    }
}

impl Sender {
    /// Whether both may be the same. A LID whose phone number is not known may be anybody: that
    /// two people use one id is far rarer than that one person is called by two names.
    pub(super) fn is(&self, other: &Self) -> bool {
        match (self.outbound, other.outbound) {
            (Some(a), Some(b)) if a != b => false,
            _ => match (&self.person, &other.person) {
                (Some(a), Some(b)) => a == b || a.kind() != b.kind(),
                _ => true,
            },
        }
    }
}
