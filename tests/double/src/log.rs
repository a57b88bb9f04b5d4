//! What the server and the phone saw an account's companions do.

use wacore_binary::Jid;
use waproto::whatsapp as wa;

use crate::noise::Handshake;

/// One thing that a companion did
#[derive(Clone, Debug)]
pub enum Seen {
    /// It acknowledged a stanza other than by a receipt
    Acked {
        /// What kind of stanza
        class: String,
        /// The stanza's id
        id: String,
    },
    /// It finished logging in and asked for what it had missed
    Active {
        /// Its number
        device: u16,
    },
    /// It logged in
    Connected {
        /// Its number
        device: u16,
        /// How it authenticated the server
        handshake: Handshake,
    },
    /// It was given a code on the phone that was not its own, so the phone could not open its keys
    CodeRefused,
    /// Its connection ended
    Disconnected {
        /// Its number
        device: u16,
    },
    /// It asked the phone for older messages
    HistoryAsked(HistoryRequest),
    /// It sent an IQ request
    Iq {
        /// The namespace
        xmlns: String,
        /// `get` or `set`
        kind: String,
        /// The tag of the first child
        child: String,
    },
    /// It uploaded one-time keys
    KeysUploaded {
        /// The keys' ids
        ids: Vec<u32>,
    },
    /// It unlinked itself
    LoggedOut {
        /// Its number
        device: u16,
    },
    /// It sent a message, here as one recipient decrypted it
    Message(SentMessage),
    /// It was linked
    Paired {
        /// Its number
        device: u16,
        /// What it announced about itself
        props: Box<wa::DeviceProps>,
    },
    /// It sent a receipt
    Receipt(Receipt),
    /// It logged in while an older connection of the same device was still open
    Replaced {
        /// Its number
        device: u16,
    },
    /// It asked the phone for a message that it could not read
    ResendAsked {
        /// The message's id
        id: String,
    },
    /// It tried to log in and was refused
    Refused {
        /// Its number
        device: u16,
    },
    /// It sent something that a recipient could not decrypt
    Unreadable {
        /// The stanza's id
        id: String,
        /// What went wrong
        error: String,
    },
}

/// An on-demand history request as the phone decrypted it
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryRequest {
    /// The stanza id, which the answer repeats as its session id
    pub id: String,
    /// The chat, as written in the request
    pub chat: String,
    /// The anchor: the answer holds what came before this message
    pub anchor: String,
    /// Whether the anchor is our own message
    pub anchor_from_me: bool,
    /// The raw value of the anchor's timestamp field
    pub anchor_timestamp: i64,
    /// How many messages were asked for
    pub count: i32,
}

/// A receipt of a companion, with aggregated ids spelled out
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// All ids it covers
    pub ids: Vec<String>,
    /// The `type` attribute; empty for a plain delivery receipt
    pub kind: String,
    /// The author, in a group
    pub participant: Option<Jid>,
    /// Where it was addressed to
    pub to: Option<Jid>,
}

/// A message of a companion
#[derive(Clone, Debug)]
pub struct SentMessage {
    /// The stanza id
    pub id: String,
    /// Who decrypted it, as phone number
    pub recipient: Jid,
    /// The chat it was addressed to, in the form that the companion chose
    pub to: Jid,
    /// The content
    pub message: Box<wa::Message>,
}
