//! What a thread's document says of its messages, as a value that only ever grows.
//!
//! The inbox shows when the newest message was sent, in which direction and by whom, and the text
//! of the newest inbound one that has a text. Each is the greatest of all candidates, so it never
//! moves backwards and does not depend on the order of arrival. Messages of one second are ordered
//! by WhatsApp's id: arrival differs between live messages, history and several instances, and the
//! id is the only thing on which all of them agree. It decides a preview line and nothing else;
//! the order in which people read messages is `tsClient`'s.
//!
//! An edit or revoke of the message whose text is shown changes that text; a revoke leaves it
//! empty. The app's proxy writes its own text, time and direction when it queues a message; that
//! is recognised by not being what was last written here (which `ingest` remembers) and is then
//! one more candidate, dated by the time the proxy gave.

use std::time::Duration;

use smol_str::SmolStr;

use crate::changes::Changes;
use crate::doc::{FieldOp, FieldPath, Fields, Value};
use crate::id::{AccountId, ThreadId};
use crate::incoming::{Chat, MAX_LABEL_BYTES, clip};
use crate::jid::{Jid, JidKind};
use crate::message::{Believable, Message};
use crate::time::StoreTime;

/// What is known of a thread's newest messages, its name and its archive mark.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Summary {
    at: Option<StoreTime>,
    newest: Option<Newest>,
    text: Option<Latest>,
    name: Option<Name>,
    archived: Option<(i64, bool)>,
}

/// The newest message.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Newest {
    at: StoreTime,
    id: SmolStr,
    outbound: Option<bool>,
    sender_name: SmolStr,
}

/// The newest inbound text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Latest {
    at: StoreTime,
    id: SmolStr,
    changed: i64,
    text: SmolStr,
}

/// What a chat is called.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Name {
    rank: Rank,
    as_of: i64,
    text: SmolStr,
}

/// Where a name comes from; a better source beats a worse one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Rank {
    /// The phone number
    Number = 0,
    /// What the other side calls itself
    Push = 1,
    /// What the phone or a person of ours calls the chat
    Chosen = 2,
}

/// Where a thread belongs.
pub(crate) struct ThreadPlace<'a> {
    pub(crate) account: &'a SmolStr,
    pub(crate) chat: &'a Jid,
}

impl Summary {
    /// What a thread's document tells. Fields of unexpected types tell nothing.
    pub(crate) fn stored(fields: &Fields, believable: Believable) -> Self {
        let own = fields.get(INGEST.as_str()).and_then(Value::as_map);
        let own = |name: &str| own.and_then(|own| own.get(name));
        let own_time = |name| own(name).and_then(Value::as_time);
        let own_int = |name| own(name).and_then(Value::as_int);
        let own_text = |name| own(name).and_then(Value::as_str).map(SmolStr::new);
        let shown = |field: &FieldPath| fields.get(field.as_str()).and_then(Value::as_str);

        let shown_at = match fields.get(LAST_MESSAGE_AT.as_str()) {
            Some(Value::Timestamp(at)) => Some(*at),
            _ => {
                let ms = fields.get(LAST_MESSAGE_AT_MS.as_str()).and_then(Value::as_int);
                ms.map(StoreTime::from_millis)
            }
        };
        // A time decades ahead, as older software stored it, would stay for decades.
        let shown_at = shown_at.filter(|at| believable.contains(*at));
        let own_at = own_time("at");
        let outbound = match shown(&LAST_MESSAGE_DIRECTION) {
            Some("inbound") => Some(false),
            Some("outbound") => Some(true),
            _ => None,
        };
        let sender_name = shown(&LAST_MESSAGE_SENDER_NAME).map(SmolStr::new).unwrap_or_default();
        let moved = shown_at.filter(|at| own_at.is_none_or(|own| *at > own));
        let newest = match (moved, own_time("newestAt"), own_text("newestId")) {
            (Some(at), _, _) => Some(Newest { at, id: FOREIGN, outbound, sender_name }),
            (None, Some(at), Some(id)) => Some(Newest { at, id, outbound, sender_name }),
            _ => None,
        };

        let own_latest = match (own_time("textAt"), own_text("textId"), own_text("text")) {
            (Some(at), Some(id), Some(text)) => {
                Some(Latest { at, id, changed: own_int("textChanged").unwrap_or(0), text })
            }
            _ => None,
        };
        let own_shown = own_latest.as_ref().map_or("", |own| &own.text);
        let foreign = [LAST_MESSAGE_TEXT, LAST_MESSAGE_PREVIEW]
            .iter()
            .filter_map(shown)
            .find(|text| !text.is_empty() && *text != own_shown);
        let text = match foreign {
            Some(text) => {
                // Later than what it replaced, whatever the time beside it says.
                let after = own_latest.map(|own| own.at + Duration::from_micros(1));
                let at = shown_at.max(after).unwrap_or_default();
                Some(Latest { at, id: FOREIGN, changed: 0, text: preview(&text.into()) })
            }
            None => own_latest,
        };

        let own_name = own_text("name").map(|text| Name {
            rank: Rank::from_int(own_int("nameRank")),
            as_of: own_int("nameAsOf").unwrap_or(0),
            text,
        });
        let shown_name = shown(&DISPLAY_NAME).filter(|shown| !shown.is_empty());
        let name = match shown_name {
            Some(shown) if own_name.as_ref().is_none_or(|own| *own.text != *shown) => {
                let rank = if is_number(shown) { Rank::Number } else { Rank::Chosen };
                let as_of = match &own_name {
                    Some(own) if own.rank == Rank::Chosen => own.as_of.saturating_add(1),
                    _ => 0,
                };
                Some(Name { rank, as_of, text: clip(shown.into(), MAX_LABEL_BYTES) }).max(own_name)
            }
            _ => own_name,
        };
        let archived = fields.get(ARCHIVED.as_str()).and_then(Value::as_bool);
        Self {
            at: shown_at.max(own_at),
            newest,
            text,
            name,
            archived: archived.map(|archived| (own_int("archivedAsOf").unwrap_or(0), archived)),
        }
    }

    /// Takes a message of the chat into account, once the server's time of it is known. Who makes a
    /// document before that, moves the thread by himself.
    pub(crate) fn count(&mut self, chat: &Jid, wa_id: &SmolStr, message: &Message) {
        let Some(at) = message.sent_at() else { return };
        let inbound = message.outbound != Some(true);
        let sender_name = if inbound { message.sender_name().clone() } else { SmolStr::default() };
        self.at = self.at.max(Some(at));
        if inbound {
            if let Some((changed, text)) = message.latest_text() {
                let text = preview(text);
                raise(&mut self.text, Latest { at, id: wa_id.clone(), changed, text });
            }
            if chat.is_person() && !sender_name.is_empty() {
                let (as_of, text) = (at.as_secs(), sender_name.clone());
                raise(&mut self.name, Name { rank: Rank::Push, as_of, text });
            }
        }
        let outbound = Some(!inbound);
        raise(&mut self.newest, Newest { at, id: wa_id.clone(), outbound, sender_name });
    }

    /// Takes an entry of the chat list into account.
    pub(crate) fn list(&mut self, chat: &Chat, believable: Believable) {
        let at = StoreTime::from_secs(chat.last_message_at.unwrap_or(0));
        self.at = self.at.max(Some(believable.clamp(at)));
        if let Some(name) = chat.name.as_ref().filter(|name| !name.is_empty()) {
            let text = clip(name.clone(), MAX_LABEL_BYTES);
            raise(&mut self.name, Name { rank: Rank::Chosen, as_of: chat.as_of, text });
        }
        if let Some(archived) = chat.archived {
            raise(&mut self.archived, (chat.as_of, archived));
        }
    }

    /// Puts together what two tell: a twin's summary goes into its canonical thread's.
    pub(crate) fn join(&mut self, other: Self) {
        self.at = self.at.max(other.at);
        self.newest = self.newest.take().max(other.newest);
        self.text = self.text.take().max(other.text);
        self.name = self.name.take().max(other.name);
        self.archived = self.archived.max(other.archived);
    }

    /// What has to change in a thread's document that holds `before`, so that it tells this.
    pub(crate) fn render(
        &self,
        before: Option<&Fields>,
        place: &ThreadPlace<'_>,
    ) -> Vec<(FieldPath, FieldOp)> {
        let mut to = Changes::against(before);
        to.set(ACCOUNT_ID, place.account.clone());
        to.set(CLIENT_JID, place.chat.text());
        to.set(IS_LID, place.chat.kind() == JidKind::Lid);
        let number = place.chat.phone();
        if let Some(phone) = &number {
            to.set_if_no_text(PHONE, phone.clone());
            to.set_if_no_text(PHONE_E164, phone.clone());
            to.set_if_no_text(PHONE_NUMBER, phone.clone());
        }
        let by_number = number.map(|text| Name { rank: Rank::Number, as_of: 0, text });
        let name = self.name.clone().max(by_number);
        // Without a time a thread would never show: the inbox orders by it.
        let at = self.at.unwrap_or_default();
        to.set(LAST_MESSAGE_AT, at);
        to.set(LAST_MESSAGE_AT_MS, at.as_millis());
        let mut own = Vec::with_capacity(12);
        let mut remember = |field, value| own.push((SmolStr::new_static(field), value));
        remember("at", at.into());
        if let Some(newest) = &self.newest {
            if let Some(outbound) = newest.outbound {
                let direction = if outbound { "outbound" } else { "inbound" };
                to.set(LAST_MESSAGE_DIRECTION, direction);
            }
            let sender = Some(newest.sender_name.clone()).filter(|name| !name.is_empty());
            to.set(LAST_MESSAGE_SENDER_NAME, sender);
            remember("newestAt", newest.at.into());
            remember("newestId", newest.id.clone().into());
        }
        if let Some(Latest { at, id, changed, text }) = &self.text {
            to.set(LAST_MESSAGE_TEXT, text.clone());
            to.set(LAST_MESSAGE_PREVIEW, text.clone());
            remember("textAt", (*at).into());
            remember("textId", id.clone().into());
            remember("textChanged", (*changed).into());
            remember("text", text.clone().into());
        }
        if let Some(Name { rank, as_of, text }) = name {
            to.set(DISPLAY_NAME, text.clone());
            remember("name", text.into());
            remember("nameRank", i64::from(rank as u8).into());
            remember("nameAsOf", as_of.into());
        }
        if let Some((as_of, archived)) = self.archived {
            to.set(ARCHIVED, archived);
            remember("archivedAsOf", as_of.into());
        }
        to.set(INGEST, Value::map(own));
        to.finish()
    }
}

/// What has to change in the document of a LID's thread, so that it leads to its canonical one.
pub(crate) fn redirect(
    before: Option<&Fields>,
    place: &ThreadPlace<'_>,
    canonical: &SmolStr,
) -> Vec<(FieldPath, FieldOp)> {
    let mut to = Changes::against(before);
    to.set(ACCOUNT_ID, place.account.clone());
    to.set(CLIENT_JID, place.chat.text());
    to.set(IS_LID, place.chat.kind() == JidKind::Lid);
    to.set(REDIRECT_TO, canonical.clone());
    to.set(CANONICAL_THREAD_ID, canonical.clone());
    to.finish()
}

/// The chat to whose thread the document of a LID's thread leads, if it leads anywhere.
pub(crate) fn redirected(account: &AccountId, fields: &Fields) -> Option<Jid> {
    let target = |field: &FieldPath| fields.get(field.as_str())?.as_str();
    let target = [CANONICAL_THREAD_ID, REDIRECT_TO].iter().find_map(target)?;
    let target = ThreadId::parse(target).ok()?;
    Jid::parse(target.jid(account)?).ok().filter(|jid| jid.kind() == JidKind::User)
}

impl Rank {
    fn from_int(n: Option<i64>) -> Self {
        match n {
            Some(1) => Self::Push,
            Some(2) => Self::Chosen,
            _ => Self::Number,
        }
    }
}

const ACCOUNT_ID: FieldPath = FieldPath::new("accountId");
const ARCHIVED: FieldPath = FieldPath::new("archived");
const CANONICAL_THREAD_ID: FieldPath = FieldPath::new("canonicalThreadId");
const CLIENT_JID: FieldPath = FieldPath::new("clientJid");
const DISPLAY_NAME: FieldPath = FieldPath::new("displayName");
const INGEST: FieldPath = FieldPath::new("ingest");
const IS_LID: FieldPath = FieldPath::new("isLid");
const LAST_MESSAGE_AT: FieldPath = FieldPath::new("lastMessageAt");
const LAST_MESSAGE_AT_MS: FieldPath = FieldPath::new("lastMessageAtMs");
const LAST_MESSAGE_DIRECTION: FieldPath = FieldPath::new("lastMessageDirection");
const LAST_MESSAGE_PREVIEW: FieldPath = FieldPath::new("lastMessagePreview");
const LAST_MESSAGE_SENDER_NAME: FieldPath = FieldPath::new("lastMessageSenderName");
const LAST_MESSAGE_TEXT: FieldPath = FieldPath::new("lastMessageText");
const PHONE: FieldPath = FieldPath::new("phone");
const PHONE_E164: FieldPath = FieldPath::new("phoneE164");
const PHONE_NUMBER: FieldPath = FieldPath::new("phoneNumber");
const REDIRECT_TO: FieldPath = FieldPath::new("redirectTo");

/// Stands for the id of what others wrote; less than any, so that the message itself, once it is
/// known, takes the place of what older software wrote about it.
const FOREIGN: SmolStr = SmolStr::new_static("");

const PREVIEW_CHARS: usize = 100;

fn raise<T: Ord>(mine: &mut Option<T>, other: T) {
    if mine.as_ref().is_none_or(|mine| other > *mine) {
        *mine = Some(other);
    }
}

fn preview(text: &SmolStr) -> SmolStr {
    if text.len() <= PREVIEW_CHARS {
        return text.clone();
    }
    match text.char_indices().nth(PREVIEW_CHARS) {
        Some((end, _)) => SmolStr::new(&text[..end]),
        None => text.clone(),
    }
}

/// Whether a name is only a number or an address, which any real name beats.
fn is_number(name: &str) -> bool {
    name.contains('@') || name.chars().all(|c| c.is_ascii_digit() || "+-() .".contains(c))
}
