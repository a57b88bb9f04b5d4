//! Messages as they arrive, live or from the offline queue.

use backfill_core::incoming::{Author, Content, Incoming, Key, MessageEvent, Record, SyncSource};
use smol_str::{SmolStr, ToSmolStr};
use wacore::types::events::InboundMessage;
use wacore::types::message::MessageInfo;
use wacore_binary::JidExt;
use waproto::whatsapp as wa;
use waproto::whatsapp::message::protocol_message::Type;

use super::content::{content, edited_text, innermost};
use super::{Me, millis, name};

/// What a message tells; nothing if it is machinery.
pub(crate) fn message(inbound: &InboundMessage, me: &Me, source: SyncSource) -> Option<Record> {
    let info = &inbound.info;
    if info.source.chat.is_status_broadcast() || info.id.is_empty() {
        return None;
    }
    let envelope = Envelope::of(info);
    let message = innermost(&inbound.message);
    let timestamp = info.timestamp.timestamp();
    let (key, event) = if let Some(protocol) = message.protocol_message.as_option() {
        envelope.protocol(protocol, timestamp, me)?
    } else if let Some(reaction) = message.reaction_message.as_option() {
        let target = envelope.target(&reaction.key, me)?;
        let by = envelope.author();
        let emoji = reaction.text.as_deref().unwrap_or_default().into();
        let at_ms = reaction.sender_timestamp_ms.unwrap_or_else(|| millis(timestamp));
        (target, MessageEvent::Reaction { by, emoji, at_ms })
    } else {
        let sender_name = sender_name(info);
        let content = Content { sender_name, ..content(message)? };
        (envelope.key(&info.id), MessageEvent::Content(content))
    };
    Some(Incoming { key, timestamp, source, event }.into())
}

/// A message that could not be decrypted.
pub(crate) fn undecryptable(info: &MessageInfo) -> Incoming {
    Incoming {
        key: Envelope::of(info).key(&info.id),
        timestamp: info.timestamp.timestamp(),
        source: SyncSource::AtMostOnce,
        event: MessageEvent::Undecryptable { sender_name: sender_name(info) },
    }
}

fn sender_name(info: &MessageInfo) -> Option<SmolStr> {
    let verified = info.verified_name.as_ref().and_then(|v| v.name.as_deref());
    let by_owner = info.source.is_from_me;
    name(Some(&info.push_name)).or_else(|| name(verified)).filter(|_| !by_owner)
}

/// From whom and in which chat something came.
struct Envelope {
    chat: SmolStr,
    sender: SmolStr,
    from_me: bool,
    is_group: bool,
}

impl Envelope {
    fn of(info: &MessageInfo) -> Self {
        let source = &info.source;
        let sender = source.sender.to_smolstr();
        let is_group = source.is_group || source.chat.is_group();
        // What comes to us over somebody's broadcast list belongs into the chat with them.
        let listed = source.chat.is_broadcast_list() && !source.is_from_me;
        let chat = if listed { sender.clone() } else { source.chat.to_smolstr() };
        Self { chat, sender, from_me: source.is_from_me, is_group }
    }

    fn author(&self) -> Author {
        if self.from_me { Author::Me } else { Author::Person(self.sender.clone()) }
    }

    /// The name of the message that is in the envelope itself.
    fn key(&self, id: &str) -> Key {
        let participant = (self.is_group && !self.from_me).then(|| self.sender.clone());
        Key { id: id.into(), remote_jid: self.chat.clone(), from_me: self.from_me, participant }
    }

    /// The name of the message that the sender means, who sees it from the other side.
    fn target(&self, key: &wa::MessageKey, me: &Me) -> Option<Key> {
        let id = key.id.as_deref().filter(|id| !id.is_empty())?;
        let by_sender = key.from_me.unwrap_or(false);
        if by_sender {
            return Some(self.key(id));
        }
        let participant = key.participant.as_deref().filter(|p| !p.is_empty() && self.is_group);
        let from_me = match participant {
            Some(author) => me.is(author),
            // In a chat of two what is not the sender's is the other's.
            None => !self.from_me && !self.is_group,
        };
        let participant = participant.filter(|_| !from_me).map(SmolStr::new);
        Some(Key { id: id.into(), remote_jid: self.chat.clone(), from_me, participant })
    }

    fn protocol(
        &self,
        protocol: &wa::message::ProtocolMessage,
        timestamp: i64,
        me: &Me,
    ) -> Option<(Key, MessageEvent)> {
        let by = self.author();
        match protocol.r#type? {
            Type::REVOKE => Some((self.target(&protocol.key, me)?, MessageEvent::Revoke { by })),
            Type::MESSAGE_EDIT => {
                let id = protocol.key.id.as_deref().filter(|id| !id.is_empty())?;
                let body = edited_text(protocol.edited_message.as_option()?);
                let at_ms = protocol.timestamp_ms.unwrap_or_else(|| millis(timestamp));
                // Nobody can edit what somebody else wrote.
                Some((self.key(id), MessageEvent::Edit { by, body, at_ms }))
            }
            _ => None,
        }
    }
}
