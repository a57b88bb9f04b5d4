//! What gateways hand in: messages, what happens to messages, chats and contacts.
//!
//! Text is taken as WhatsApp gave it; [`Batch`](crate::ingest::Batch) parses it and rejects what
//! cannot be stored. `Debug` shows no content and no address.

use std::fmt;
use std::sync::Arc;

use smol_str::SmolStr;

use crate::doc::{Fields, Value};

/// One thing to store.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Record {
    /// A conversation of the chat list
    Chat(Chat),
    /// A person's names
    Contact(Contact),
    /// A message, or what happened to one
    Message(Incoming),
}

/// A message, or what happened to one.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Incoming {
    /// The message itself; for an edit, a reaction, a receipt or a revoke: the message it is about
    pub key: Key,
    /// When that which arrived was sent, in seconds since the Unix epoch, as the server says
    pub timestamp: i64,
    /// How it arrived
    pub source: SyncSource,
    /// What arrived
    pub event: MessageEvent,
}

/// WhatsApp's name for a message. The id alone is unique only among one sender's in one chat.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The stanza id
    pub id: SmolStr,
    /// The chat's address, as it arrived
    pub remote_jid: SmolStr,
    /// Whether this account sent it
    pub from_me: bool,
    /// In a group, who sent it
    pub participant: Option<SmolStr>,
}

/// What arrived.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum MessageEvent {
    /// The message, readable
    Content(Content),
    /// A new text for the message; only its sender may
    Edit {
        /// Who edited it
        by: Author,
        /// The new text or caption
        body: SmolStr,
        /// When, in milliseconds since the Unix epoch, by the editor's clock
        at_ms: i64,
    },
    /// Somebody's reaction; the latest of each person counts
    Reaction {
        /// Who reacted
        by: Author,
        /// The reaction; empty takes it back
        emoji: SmolStr,
        /// When, in milliseconds since the Unix epoch, by the reacting person's clock
        at_ms: i64,
    },
    /// How far an own message got
    Receipt(Status),
    /// The message was deleted for everybody; by its sender, in a group also by an admin, which
    /// the gateway has to check
    Revoke {
        /// Who deleted it
        by: Author,
    },
    /// The message, not readable; a resend may bring it
    Undecryptable {
        /// The sender's name, where given
        sender_name: Option<SmolStr>,
    },
}

/// Who did something.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Author {
    /// This account
    Me,
    /// The person with this address
    Person(SmolStr),
}

/// A readable message.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Content {
    /// What kind it is
    pub kind: MessageKind,
    /// Text or caption; empty if there is none
    pub body: SmolStr,
    /// Where the picture, sound or file is
    pub media: Option<Box<Media>>,
    /// The sender's name, where given
    pub sender_name: Option<SmolStr>,
    /// How far it got, where history says so
    pub status: Option<Status>,
}

/// What kind of message it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MessageKind {
    // In the order in which one beats another when two reports of one message differ.
    /// Anything else
    #[default]
    Unknown,
    /// Text
    Text,
    /// Sound or a voice note
    Audio,
    /// A file
    Document,
    /// A picture
    Image,
    /// A sticker
    Sticker,
    /// A film
    Video,
}

impl MessageKind {
    /// The word in documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Audio => "audio",
            Self::Document => "document",
            Self::Image => "image",
            Self::Sticker => "sticker",
            Self::Text => "text",
            Self::Unknown => "unknown",
            Self::Video => "video",
        }
    }

    /// Reads the word in documents; unknown words are [`MessageKind::Unknown`].
    pub fn parse(word: &str) -> Self {
        match word {
            "audio" => Self::Audio,
            "document" => Self::Document,
            "image" => Self::Image,
            "sticker" => Self::Sticker,
            "text" => Self::Text,
            "video" => Self::Video,
            _ => Self::Unknown,
        }
    }
}

/// Where a picture, sound or file is, and what it takes to read it.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Media {
    /// Its MIME type
    pub mimetype: Option<SmolStr>,
    /// Its caption
    pub caption: Option<SmolStr>,
    /// Its file name
    pub filename: Option<SmolStr>,
    /// Where it can be fetched
    pub url: Option<SmolStr>,
    /// The same without host, for another host
    pub direct_path: Option<SmolStr>,
    /// The key it is encrypted with
    pub media_key: Option<Arc<[u8]>>,
    /// SHA-256 of the plain file
    pub file_sha256: Option<Arc<[u8]>>,
    /// SHA-256 of the encrypted file
    pub file_enc_sha256: Option<Arc<[u8]>>,
    /// Size of the plain file, in bytes
    pub file_length: Option<u64>,
    /// Length of a sound or film, in seconds
    pub seconds: Option<u32>,
    /// Width, in pixels
    pub width: Option<u32>,
    /// Height, in pixels
    pub height: Option<u32>,
}

impl Media {
    /// The names under which documents hold what is ours in the `media` map.
    pub(crate) const KEYS: [&'static str; 13] = [
        "type",
        "mimetype",
        "caption",
        "filename",
        "url",
        "directPath",
        "mediaKey",
        "fileSha256",
        "fileEncSha256",
        "fileLength",
        "seconds",
        "width",
        "height",
    ];

    /// The `media` map of a message of this kind.
    pub(crate) fn fields(self, kind: MessageKind) -> Fields {
        let text = |t: Option<SmolStr>| t.map(|t| Value::String(clip(t, MAX_LABEL_BYTES)));
        let caption = |t: Option<SmolStr>| t.map(|t| Value::String(clip(t, MAX_BODY_BYTES)));
        let blob = |b: Option<Arc<[u8]>>| b.filter(|b| b.len() <= 1_024).map(Value::Bytes);
        let values = [
            Some(Value::from(kind.as_str())),
            text(self.mimetype),
            caption(self.caption),
            text(self.filename),
            text(self.url),
            text(self.direct_path),
            blob(self.media_key),
            blob(self.file_sha256),
            blob(self.file_enc_sha256),
            self.file_length.map(Value::from),
            self.seconds.map(Value::from),
            self.width.map(Value::from),
            self.height.map(Value::from),
        ];
        let named = Self::KEYS.into_iter().zip(values);
        named.filter_map(|(k, v)| Some((SmolStr::new_static(k), v?))).collect()
    }
}

/// How far a message got. Later ones beat earlier ones, so that a status never goes down; a
/// message that failed can still turn out to have been sent, never the other way round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// Waits to be sent
    Queued,
    /// Is being sent
    Processing,
    /// Could not be sent
    Failed,
    /// The server has it
    Sent,
    /// A receiver's device has it
    Delivered,
    /// A receiver has seen it
    Read,
}

impl Status {
    /// The word in documents.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Processing => "processing",
            Self::Queued => "queued",
            Self::Read => "read",
            Self::Sent => "sent",
        }
    }

    /// Reads the word in documents.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "delivered" => Self::Delivered,
            "failed" => Self::Failed,
            "processing" => Self::Processing,
            "queued" => Self::Queued,
            "read" => Self::Read,
            "sent" => Self::Sent,
            _ => return None,
        })
    }
}

/// How a message arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SyncSource {
    // In the order in which one beats another when a message arrives several ways: those that
    // usually come first beat those that repeat them, so that repetition changes nothing.
    /// A page asked for by a backfill
    Backfill,
    /// A page asked for by the gap filler
    RecentSync,
    /// History that the phone sent by itself
    HistorySync,
    /// Live, but on a way that WhatsApp is told of before the message is stored: a crash in between
    /// loses it, until history brings it
    AtMostOnce,
    /// Live or from the offline queue
    Realtime,
}

impl SyncSource {
    /// The word in documents, where a field of its own tells [`AtMostOnce`](Self::AtMostOnce).
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Backfill => "backfill",
            Self::HistorySync => "history_sync",
            Self::AtMostOnce | Self::Realtime => "realtime",
            Self::RecentSync => "recent_sync",
        }
    }

    /// Reads the word in documents.
    pub fn parse(word: &str) -> Option<Self> {
        Some(match word {
            "backfill" => Self::Backfill,
            "history_sync" => Self::HistorySync,
            "realtime" => Self::Realtime,
            "recent_sync" => Self::RecentSync,
            _ => return None,
        })
    }
}

/// A conversation of the chat list.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Chat {
    /// Its address, as it arrived
    pub jid: SmolStr,
    /// What the phone calls it
    pub name: Option<SmolStr>,
    /// When its last message was sent, in seconds since the Unix epoch
    pub last_message_at: Option<i64>,
    /// Whether it was put away
    pub archived: Option<bool>,
    /// As of when name and archive mark are true, in seconds since the Unix epoch; the latest word
    /// counts
    pub as_of: i64,
}

/// A person's names. What is `None` says nothing.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Contact {
    /// The person's address, as it arrived
    pub jid: SmolStr,
    /// The name in the phone's address book
    pub name: Option<SmolStr>,
    /// The name the person chose
    pub notify: Option<SmolStr>,
    /// The name WhatsApp verified
    pub verified_name: Option<SmolStr>,
    /// Where the picture is
    pub img_url: Option<SmolStr>,
    /// As of when this is true, in seconds since the Unix epoch; the latest word counts
    pub as_of: i64,
}

macro_rules! debug_without_content {
    ($($name:ident: |$it:ident| $shown:expr;)*) => {$(
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let $it = self;
                f.debug_tuple(stringify!($name)).field(&$shown).finish()
            }
        }
    )*};
}

debug_without_content! {
    Author: |it| matches!(it, Self::Me).then_some("me");
    Chat: |it| it.as_of;
    Contact: |it| it.as_of;
    Content: |it| it.kind;
    Key: |it| it.from_me;
    Media: |it| it.file_length;
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chat(chat) => chat.fmt(f),
            Self::Contact(contact) => contact.fmt(f),
            Self::Message(message) => message.fmt(f),
        }
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("from_me", &self.key.from_me)
            .field("timestamp", &self.timestamp)
            .field("source", &self.source)
            .field("event", &self.event)
            .finish()
    }
}

impl fmt::Debug for MessageEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Content(content) => content.fmt(f),
            Self::Edit { .. } => f.write_str("Edit"),
            Self::Reaction { .. } => f.write_str("Reaction"),
            Self::Receipt(status) => write!(f, "Receipt({status:?})"),
            Self::Revoke { .. } => f.write_str("Revoke"),
            Self::Undecryptable { .. } => f.write_str("Undecryptable"),
        }
    }
}

impl From<Chat> for Record {
    fn from(chat: Chat) -> Self {
        Self::Chat(chat)
    }
}

impl From<Contact> for Record {
    fn from(contact: Contact) -> Self {
        Self::Contact(contact)
    }
}

impl From<Incoming> for Record {
    fn from(message: Incoming) -> Self {
        Self::Message(message)
    }
}

/// WhatsApp allows 65,536 characters; more cannot be stored beside what else a document holds.
pub(crate) const MAX_BODY_BYTES: usize = 300_000;
/// Names, addresses and the like are far shorter.
pub(crate) const MAX_LABEL_BYTES: usize = 4_000;

/// The beginning of a text, at most `bytes` long.
pub(crate) fn clip(text: SmolStr, bytes: usize) -> SmolStr {
    if text.len() <= bytes {
        return text;
    }
    let end = (0..=bytes).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    SmolStr::new(&text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_neither_content_nor_addresses() {
        let secret = SmolStr::new("secret");
        let key = Key {
            id: "1".into(),
            remote_jid: secret.clone(),
            from_me: false,
            participant: Some(secret.clone()),
        };
        let by = Author::Person(secret.clone());
        let media = Media { caption: Some(secret.clone()), ..Media::default() };
        let media = Some(Box::new(media));
        let events = [
            MessageEvent::Content(Content {
                body: secret.clone(),
                media,
                sender_name: Some(secret.clone()),
                ..Content::default()
            }),
            MessageEvent::Edit { by: by.clone(), body: secret.clone(), at_ms: 1 },
            MessageEvent::Reaction { by: by.clone(), emoji: secret.clone(), at_ms: 1 },
            MessageEvent::Receipt(Status::Read),
            MessageEvent::Revoke { by },
            MessageEvent::Undecryptable { sender_name: Some(secret.clone()) },
        ];
        for event in events {
            let source = SyncSource::Realtime;
            let record =
                Record::Message(Incoming { key: key.clone(), timestamp: 1, source, event });
            assert!(!format!("{record:?}").contains("secret"), "{record:?}");
        }
        let chat = Chat { jid: secret.clone(), name: Some(secret.clone()), ..Chat::default() };
        let contact = Contact { jid: secret.clone(), name: Some(secret), ..Contact::default() };
        assert!(!format!("{chat:?} {contact:?} {key:?}").contains("secret"));
    }

    #[test]
    fn clipping_respects_characters() {
        assert_eq!(clip("añb".into(), 2), "a");
        assert_eq!(clip("añb".into(), 3), "añ");
        assert_eq!(clip("añb".into(), 4), "añb");
    }

    #[test]
    fn words_in_documents_round_trip() {
        for status in [
            Status::Delivered,
            Status::Failed,
            Status::Processing,
            Status::Queued,
            Status::Read,
            Status::Sent,
        ] {
            assert_eq!(Status::parse(status.as_str()), Some(status));
        }
        for kind in [
            MessageKind::Audio,
            MessageKind::Document,
            MessageKind::Image,
            MessageKind::Sticker,
            MessageKind::Text,
            MessageKind::Unknown,
            MessageKind::Video,
        ] {
            assert_eq!(MessageKind::parse(kind.as_str()), kind);
        }
        for source in [
            SyncSource::Backfill,
            SyncSource::HistorySync,
            SyncSource::Realtime,
            SyncSource::RecentSync,
        ] {
            assert_eq!(SyncSource::parse(source.as_str()), Some(source));
        }
    }
}
