//! Names of people and groups, and what becomes of chats.

use backfill_core::incoming::{Chat, Contact, Record};
use smol_str::ToSmolStr;
use wacore::types::events::{ArchiveUpdate, ContactUpdate};
use wacore::types::message::MessageInfo;
use wacore_binary::Jid;

use super::name;

/// The name that a message's sender chose, and the one that WhatsApp verified.
pub(crate) fn push_name(info: &MessageInfo) -> Option<Contact> {
    let source = &info.source;
    let notify = name(Some(&info.push_name));
    let verified_name = name(info.verified_name.as_ref().and_then(|v| v.name.as_deref()));
    let told = notify.is_some() || verified_name.is_some();
    let person = source.sender.is_pn() || source.sender.is_lid();
    (told && person && !source.is_from_me).then(|| Contact {
        jid: source.sender.to_smolstr(),
        notify,
        verified_name,
        as_of: info.timestamp.timestamp(),
        ..Contact::default()
    })
}

/// What the owner's address book says.
pub(crate) fn contact(update: &ContactUpdate) -> Record {
    let action = &update.action;
    Contact {
        jid: update.jid.to_smolstr(),
        name: name(action.full_name.as_deref()).or_else(|| name(action.first_name.as_deref())),
        as_of: update.timestamp.timestamp(),
        ..Contact::default()
    }
    .into()
}

/// The owner put a chat away, or got it back.
pub(crate) fn archived(update: &ArchiveUpdate) -> Record {
    Chat {
        jid: update.jid.to_smolstr(),
        archived: update.action.archived,
        as_of: update.timestamp.timestamp(),
        ..Chat::default()
    }
    .into()
}

/// A group is called otherwise now.
pub(crate) fn group_subject(group: &Jid, subject: &str, at: i64) -> Record {
    Chat { jid: group.to_smolstr(), name: name(Some(subject)), as_of: at, ..Chat::default() }.into()
}
