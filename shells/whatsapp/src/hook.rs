//! Messages on their way in: confirmed to WhatsApp only once they are in the store.

use std::sync::{Arc, Weak};

use async_trait::async_trait;
use backfill_core::incoming::{Author, MessageEvent, Record, SyncSource};
use backfill_core::jid::{Jid, JidKind};
use backfill_driver::{Handle, Parcel};
use smol_str::ToSmolStr;
use tokio::time::timeout;
use wacore::types::events::InboundMessage;
use wacore::types::message::MessageInfo;
use wacore_binary::JidExt;
use waproto::whatsapp::message::protocol_message::Type;
use whatsapp_rust::anyhow::{Result, anyhow};
use whatsapp_rust::{Client, InboundDurabilityHook};

use crate::account::Account;
use crate::chunk::Arrivals;
use crate::convert;
use crate::link::Link;

/// The client confirms a batch only after this has said that it is stored. Called for many chats
/// at once.
pub(crate) struct Hook {
    pub(crate) account: Arc<Account>,
    pub(crate) handle: Handle,
    /// The client holds this as long as it lives, and the link the client
    pub(crate) link: Weak<Link>,
    pub(crate) history: Arrivals,
}

#[async_trait]
impl InboundDurabilityHook for Hook {
    async fn on_messages(&self, client: Arc<Client>, batch: &[InboundMessage]) -> Result<()> {
        let link = self.link.upgrade().ok_or_else(|| anyhow!("the connection is closed"))?;
        let result = self.store(&link, &client, batch).await;
        if result.is_err() {
            let offline = batch.iter().filter(|message| message.info.is_offline).count();
            link.drain().withheld(u32::try_from(offline).unwrap_or(u32::MAX));
        }
        result
    }
}

impl Hook {
    async fn store(&self, link: &Link, client: &Client, batch: &[InboundMessage]) -> Result<()> {
        if link.gate.is_shut() {
            return Err(anyhow!("the connection is closed"));
        }
        learn(&self.account, batch);
        let announced = batch.iter().filter(|message| announces_history(message)).count();
        if announced > 0 {
            self.history.announced(announced).await;
        }
        let me = link.me();
        let mut records = Vec::with_capacity(batch.len());
        for message in batch {
            if let Some(record) = convert::message(message, &me, SyncSource::Realtime)
                && may_revoke(client, &record).await
            {
                records.push(record);
            }
            if let Some(contact) = convert::push_name(&message.info)
                && self.account.note_names(&contact)
            {
                records.push(contact.into());
            }
        }
        if records.is_empty() {
            return Ok(());
        }
        let account = self.account.id.clone();
        let parcel = Parcel { account, records, twins: self.account.twins() };
        match self.handle.realtime(link.id, parcel).await {
            Ok(rejected) => {
                for rejected in rejected {
                    let (account, reason) = (&self.account.id, rejected.reason);
                    tracing::warn!(%account, %reason, "[realtime] a message cannot be stored");
                }
                Ok(())
            }
            Err(withhold) => {
                self.account.forget_names();
                Err(anyhow!("{withhold}"))
            }
        }
    }
}

/// Learns the two names of people from what messages came in.
pub(crate) fn learn(account: &Account, batch: &[InboundMessage]) {
    account.learn(batch.iter().flat_map(|message| twins(&message.info)));
}

fn twins(info: &MessageInfo) -> impl Iterator<Item = (Jid, Jid)> {
    let source = &info.source;
    // In a chat of two the other side is the chat itself.
    let chat = (!source.is_group).then_some(&source.chat);
    let pairs = [
        (Some(&source.sender), source.sender_alt.as_ref()),
        (chat, source.recipient_alt.as_ref()),
        (chat, info.peer_recipient_pn.as_ref()),
    ];
    pairs.into_iter().filter_map(|(one, other)| {
        let parse = |jid: &wacore_binary::Jid| Jid::parse(jid.to_smolstr()).ok();
        let (one, other) = (parse(one?)?, parse(other?)?);
        match (one.kind(), other.kind()) {
            (JidKind::Lid, JidKind::User) => Some((one, other)),
            (JidKind::User, JidKind::Lid) => Some((other, one)),
            _ => None,
        }
    })
}

/// Whether the phone says that it sends history. What it says about it has been taken out before.
fn announces_history(message: &InboundMessage) -> bool {
    let protocol = message.message.protocol_message.as_option();
    message.info.source.is_from_me
        && protocol.is_some_and(|p| p.r#type == Some(Type::HISTORY_SYNC_NOTIFICATION))
}

/// Whether a message may be deleted by who wants that: in a group everybody their own, and admins
/// all.
async fn may_revoke(client: &Client, record: &Record) -> bool {
    let Record::Message(message) = record else { return true };
    let MessageEvent::Revoke { by: Author::Person(person) } = &message.event else { return true };
    let key = &message.key;
    let own = !key.from_me && key.participant.as_ref().is_none_or(|author| author == person);
    let group: Option<wacore_binary::Jid> = key.remote_jid.parse().ok();
    let Some(group) = group.filter(|jid| jid.is_group() && !own) else { return true };
    let groups = client.groups();
    let asked = groups.get_metadata(&group);
    // Who cannot be shown to be an admin is none: what stays is seen by all, what goes by nobody.
    let Ok(Ok(metadata)) = timeout(ASK_GROUP, asked).await else { return false };
    let person = Jid::parse(person.clone()).ok();
    metadata.participants.iter().filter(|participant| participant.is_admin()).any(|admin| {
        let names = [Some(&admin.jid), admin.phone_number.as_ref()];
        names.into_iter().flatten().any(|name| Jid::parse(name.to_smolstr()).ok() == person)
    })
}

/// How long the server may take to say who is an admin.
const ASK_GROUP: std::time::Duration = std::time::Duration::from_secs(5);
