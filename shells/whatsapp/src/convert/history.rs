//! Conversations as the phone sends them when a device is linked, or asks.

use backfill_core::coverage::PageEnd;
use backfill_core::incoming::{
    Chat, Contact, Content, Incoming, Key, MessageEvent, Record, Status, SyncSource,
};
use backfill_core::jid::Jid;
use smol_str::{SmolStr, ToSmolStr};
use waproto::whatsapp as wa;
use waproto::whatsapp::conversation::EndOfHistoryTransferType as End;
use waproto::whatsapp::message::protocol_message::Type;
use waproto::whatsapp::web_message_info::{Status as RowStatus, StubType};

use super::content::{content, edited_text, innermost};
use super::{Me, name, seconds};

/// One conversation of a history sync.
pub(crate) struct Page {
    /// What the chat is called, as it arrived
    pub(crate) jid: SmolStr,
    /// Its messages, in the order in which they came
    pub(crate) messages: Vec<Record>,
    /// Its entry in the chat list
    pub(crate) chat: Record,
    /// Whether the phone has older messages
    pub(crate) end: PageEnd,
    /// The two names of the person it is with
    pub(crate) twins: Option<(Jid, Jid)>,
}

/// What a history sync says besides conversations.
#[derive(Default)]
pub(crate) struct Leftovers {
    /// LIDs and phone numbers
    pub(crate) twins: Vec<(Jid, Jid)>,
    pub(crate) contacts: Vec<Record>,
}

/// What a conversation tells; nothing if it is not one.
pub(crate) fn conversation(
    conversation: &wa::Conversation,
    source: SyncSource,
    me: &Me,
    as_of: i64,
) -> Option<Page> {
    let jid = Jid::parse(conversation.id.as_str()).ok()?;
    if jid.kind() == backfill_core::jid::JidKind::Status {
        return None;
    }
    let rows = conversation.messages.iter().filter_map(|row| row.message.as_option());
    let mut messages = Vec::with_capacity(conversation.messages.len());
    for row in rows {
        row_records(row, &jid, source, me, &mut messages);
    }
    let named = name(conversation.name.as_deref());
    let last = conversation.conversation_timestamp.or(conversation.last_msg_timestamp);
    let chat = Chat {
        jid: jid.text(),
        name: named.or_else(|| name(conversation.display_name.as_deref())),
        last_message_at: last.filter(|at| *at > 0).map(seconds),
        archived: conversation.archived,
        as_of,
    };
    let end = match conversation.end_of_history_transfer_type {
        Some(End::COMPLETE_BUT_MORE_MESSAGES_REMAIN_ON_PRIMARY) => PageEnd::MoreRemains,
        Some(_) => PageEnd::EndOfHistory,
        None => PageEnd::Unstated,
    };
    let twins = pair(conversation.lid_jid.as_deref(), Some(jid.as_str()))
        .or_else(|| pair(Some(jid.as_str()), conversation.pn_jid.as_deref()));
    Some(Page { jid: jid.text(), messages, chat: chat.into(), end, twins })
}

/// What a history sync without its conversations tells.
pub(crate) fn leftovers(sync: &wa::HistorySync, as_of: i64) -> Leftovers {
    let mappings = sync.phone_number_to_lid_mappings.iter();
    let mut twins: Vec<(Jid, Jid)> =
        mappings.filter_map(|m| pair(m.lid_jid.as_deref(), m.pn_jid.as_deref())).collect();
    let pushed = sync.pushnames.iter().filter_map(|pushed| {
        let notify = name(pushed.pushname.as_deref())?;
        let jid = pushed.id.as_deref()?.to_smolstr();
        Some(Record::from(Contact { jid, notify: Some(notify), as_of, ..Contact::default() }))
    });
    let mut contacts: Vec<Record> = pushed.collect();
    for inline in &sync.inline_contacts {
        twins.extend(pair(inline.lid_jid.as_deref(), inline.pn_jid.as_deref()));
        let jid = inline.pn_jid.as_deref().or(inline.lid_jid.as_deref());
        let full = name(inline.full_name.as_deref());
        if let (Some(jid), Some(name)) = (jid, full) {
            let jid = jid.to_smolstr();
            contacts.push(Contact { jid, name: Some(name), as_of, ..Contact::default() }.into());
        }
    }
    Leftovers { twins, contacts }
}

fn pair(lid: Option<&str>, pn: Option<&str>) -> Option<(Jid, Jid)> {
    use backfill_core::jid::JidKind;
    let (lid, pn) = (Jid::parse(lid?).ok()?, Jid::parse(pn?).ok()?);
    (lid.kind() == JidKind::Lid && pn.kind() == JidKind::User).then_some((lid, pn))
}

fn row_records(
    row: &wa::WebMessageInfo,
    chat: &Jid,
    source: SyncSource,
    me: &Me,
    records: &mut Vec<Record>,
) {
    let Some(id) = row.key.id.as_deref().filter(|id| !id.is_empty()) else { return };
    let from_me = row.key.from_me.unwrap_or(false);
    let participant = [row.participant.as_deref(), row.key.participant.as_deref()];
    let participant = participant.into_iter().flatten().find(|p| !p.is_empty());
    let participant = participant.filter(|_| !chat.is_person() && !from_me).map(SmolStr::new);
    let key = Key { id: id.into(), remote_jid: chat.text(), from_me, participant };
    let timestamp = row.message_timestamp.map_or(0, seconds);
    let mut tell = |key: &Key, event| {
        records.push(Incoming { key: key.clone(), timestamp, source, event }.into());
    };
    let author = || match &key.participant {
        _ if key.from_me => backfill_core::incoming::Author::Me,
        Some(participant) => backfill_core::incoming::Author::Person(participant.clone()),
        None => backfill_core::incoming::Author::Person(chat.text()),
    };
    let sender_name = name(row.push_name.as_deref())
        .or_else(|| name(row.verified_biz_name.as_deref()))
        .filter(|_| !from_me);

    match row.message_stub_type {
        Some(StubType::REVOKE) => return tell(&key, MessageEvent::Revoke { by: author() }),
        Some(StubType::CIPHERTEXT) => {
            return tell(&key, MessageEvent::Undecryptable { sender_name });
        }
        _ => {}
    }
    let Some(message) = row.message.as_option() else { return };
    let message = innermost(message);
    let mut status = row.status.filter(|_| from_me).map(own_status);
    if let Some(protocol) = message.protocol_message.as_option() {
        // A row that was edited holds the edit in the place of the message.
        if protocol.r#type == Some(Type::MESSAGE_EDIT)
            && let Some(edited) = protocol.edited_message.as_option()
        {
            if let Some(content) = content(edited) {
                let content = Content { sender_name, status: status.take(), ..content };
                tell(&key, MessageEvent::Content(content));
            }
            let at_ms = protocol.timestamp_ms.unwrap_or_else(|| super::millis(timestamp));
            let body = edited_text(edited);
            tell(&key, MessageEvent::Edit { by: author(), body, at_ms });
        }
        return;
    }
    let Some(content) = content(message) else { return };
    tell(&key, MessageEvent::Content(Content { sender_name, status, ..content }));
    for reaction in &row.reactions {
        let by = match &reaction.key {
            key if key.from_me.unwrap_or(false) => backfill_core::incoming::Author::Me,
            key => {
                let person = key.participant.as_deref().filter(|p| !p.is_empty());
                let person = person.unwrap_or(chat.as_str());
                if person == chat.as_str() && !chat.is_person() {
                    continue;
                }
                me.author(person)
            }
        };
        let emoji = reaction.text.as_deref().unwrap_or_default().into();
        let at_ms = reaction.sender_timestamp_ms.unwrap_or_else(|| super::millis(timestamp));
        tell(&key, MessageEvent::Reaction { by, emoji, at_ms });
    }
}

fn own_status(status: RowStatus) -> Status {
    match status {
        RowStatus::ERROR => Status::Failed,
        RowStatus::PENDING => Status::Queued,
        RowStatus::SERVER_ACK => Status::Sent,
        RowStatus::DELIVERY_ACK => Status::Delivered,
        RowStatus::READ | RowStatus::PLAYED => Status::Read,
    }
}
