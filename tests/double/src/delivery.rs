//! Messages on their way to companions, and what comes back for them.

use anyhow::{Context, Result};
use buffa::MessageField;
use wacore::messages::MessageUtils;
use wacore_binary::builder::NodeBuilder;
use wacore_binary::{Jid, Node, SERVER_JID};
use waproto::whatsapp::{self as wa, message::SenderKeyDistributionMessage};

use crate::contact::{Addressing, Person, now};
use crate::log::{Receipt, Seen};
use crate::server::{ConnectionId, Login, Stage, State};
use crate::signal::Encrypted;
use crate::stanza::{attribute, jid};

/// Who wrote a message
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Sender {
    /// A contact, by phone number
    Contact(String),
    /// The owner, on the phone
    Phone,
}

/// A message before it is encrypted for one companion
#[derive(Clone)]
pub(crate) struct Letter {
    pub(crate) id: String,
    /// Unix time in seconds
    pub(crate) timestamp: u64,
    pub(crate) message: wa::Message,
    pub(crate) to: Destination,
}

#[derive(Clone)]
pub(crate) enum Destination {
    /// To the owner
    Direct,
    Group(Jid),
    /// A copy of what the owner sent to this chat from the phone
    OwnCopy(Jid),
    /// From the phone to its companions
    Peer,
}

impl State {
    /// Sends a letter to every companion of an account that has keys.
    pub(crate) fn post(&mut self, account: &str, sender: &Sender, letter: &Letter) {
        let devices: Vec<u16> = self.account(account).companions.keys().copied().collect();
        for device in devices {
            self.post_to(account, device, sender, letter);
        }
    }

    /// Sends a letter to one companion. Without keys it gets nothing, as in reality, except that the
    /// phone waits for the keys of its own companions.
    pub(crate) fn post_to(&mut self, account: &str, device: u16, sender: &Sender, letter: &Letter) {
        let Some(companion) = self.account(account).companions.get_mut(&device) else { return };
        if companion.keys.is_none() {
            if matches!(letter.to, Destination::Peer) {
                companion.waiting.push(letter.clone());
            }
            return;
        }
        let stanza = self
            .seal(account, device, sender, letter)
            .expect("a companion with keys can be written to");
        let Some(companion) = self.account(account).companions.get_mut(&device) else { return };
        companion.queue.push(stanza);
        let letters = companion.letters.entry(letter.id.clone()).or_default();
        letters.retain(|(known, _)| known != sender);
        letters.push((sender.clone(), letter.clone()));
        self.flush(account, device);
        self.warn_of_few_keys(account, device);
    }

    /// Queues a stanza that needs no encryption, such as a receipt.
    pub(crate) fn post_plain(&mut self, account: &str, stanza: &Node) {
        let devices: Vec<u16> = self.account(account).companions.keys().copied().collect();
        for device in devices {
            if let Some(companion) = self.account(account).companions.get_mut(&device) {
                companion.queue.push(stanza.clone());
            }
            self.flush(account, device);
        }
    }

    /// Writes what is queued to a companion that is connected and past its backlog.
    pub(crate) fn flush(&mut self, account: &str, device: u16) {
        let Some(companion) = self.account(account).companions.get(&device) else { return };
        let Some(id) = companion.connection else { return };
        if !self.login(id).is_some_and(|login| login.stage == Stage::Live) {
            return;
        }
        let Some(companion) = self.account(account).companions.get_mut(&device) else { return };
        for stanza in companion.queue.take_unwritten(usize::MAX) {
            self.send(id, stanza);
        }
    }

    /// Writes everything unconfirmed again on the open connection.
    pub(crate) fn resend(&mut self, account: &str) {
        let devices: Vec<u16> = self.account(account).companions.keys().copied().collect();
        for device in devices {
            if let Some(companion) = self.account(account).companions.get_mut(&device) {
                companion.queue.rewind();
            }
            self.flush(account, device);
        }
    }

    pub(crate) fn receipt(&mut self, id: ConnectionId, node: &Node) {
        let Some(Login { account, device, .. }) = self.login(id) else { return };
        let Some(message) = attribute(node, "id") else { return };
        let mut ids = vec![message.clone()];
        for item in node.get_optional_child("list").into_iter().flat_map(|list| {
            list.get_children_by_tag("item").filter_map(|item| attribute(item, "id"))
        }) {
            if !ids.contains(&item) {
                ids.push(item);
            }
        }
        let receipt = Receipt {
            ids,
            kind: attribute(node, "type").unwrap_or_default(),
            participant: jid(node, "participant"),
            to: jid(node, "to"),
        };
        let mut ack = NodeBuilder::new("ack").attr("class", "receipt").attr("id", message.as_str());
        if let Some(to) = &receipt.to {
            ack = ack.attr("from", to);
        }
        self.send(id, ack.build());
        self.confirm(&account, device, &receipt);
        if receipt.kind == "retry" {
            self.retry(&account, device, &message, node);
        }
        self.saw(&account, Seen::Receipt(receipt));
    }

    /// An `<ack>` confirms notifications, receipts and those messages that get no receipt.
    pub(crate) fn acked(&mut self, id: ConnectionId, node: &Node) {
        let Some(Login { account, device, .. }) = self.login(id) else { return };
        let class = attribute(node, "class").unwrap_or_default();
        let acked = attribute(node, "id").unwrap_or_default();
        if let Some(companion) = self.account(&account).companions.get_mut(&device) {
            companion.queue.confirm(&acked, |stanza| {
                // The queue holds own copies until their receipt.
                stanza.tag == class.as_str() && !stanza.attrs.contains_key("recipient")
            });
        }
        self.saw(&account, Seen::Acked { class, id: acked });
    }

    fn confirm(&mut self, account: &str, device: u16, receipt: &Receipt) {
        // This one comes on top of the receipt for the message that announced the history.
        if receipt.kind == "hist_sync" {
            return;
        }
        let Self { accounts, directory, .. } = self;
        let address = receipt.to.as_ref().map(|to| directory.key(to));
        let author = receipt.participant.as_ref().map(|author| directory.key(author));
        let companion = accounts.get_mut(account).and_then(|a| a.companions.get_mut(&device));
        let Some(companion) = companion else { return };
        for id in &receipt.ids {
            companion.queue.confirm(id, |stanza| {
                let key = |name| jid(stanza, name).map(|jid| directory.key(&jid));
                let written_by = key("participant");
                stanza.tag == "message"
                    && key("from") == address
                    && (written_by.is_none() || written_by == author)
            });
            if receipt.kind != "retry" {
                companion.letters.remove(id);
            }
        }
    }

    /// Encrypts a message anew, for a session that the companion could not use.
    fn retry(&mut self, account: &str, device: u16, message: &str, node: &Node) {
        let author = jid(node, "participant").or_else(|| jid(node, "to"));
        let Some(author) = author.map(|author| self.directory.key(&author)) else { return };
        let sender = match self.people.get(author.user.as_str()) {
            Some(person) if person.answers_retries => Sender::Contact(author.user.to_string()),
            Some(_) => return,
            None => Sender::Phone,
        };
        let address = self.account(account).pn.with_device(device);
        let Some(companion) = self.account(account).companions.get_mut(&device) else { return };
        let letters = companion.letters.get(message).into_iter().flatten();
        let mut letters = letters.filter(|(author, _)| *author == sender);
        let Some((_, letter)) = letters.next().cloned() else { return };
        let Some(keys) = &mut companion.keys else { return };
        let bundle = match node.get_optional_child("keys") {
            Some(fresh) => keys.renewed_by(fresh),
            None => keys.take(),
        };
        let Ok(bundle) = bundle else { return };
        let signal = match &sender {
            Sender::Phone => &mut self.account(account).phone.signal,
            Sender::Contact(pn) => &mut self.people.get_mut(pn).expect("people stay").signal,
        };
        signal.drop_session(&address);
        if signal.open_session(&address, &bundle).is_ok() {
            self.post_to(account, device, &sender, &letter);
        }
    }

    /// Asks a companion for more one-time keys when few are left.
    fn warn_of_few_keys(&mut self, account: &str, device: u16) {
        let companion = self.account(account).companions.get_mut(&device);
        let keys = companion.and_then(|companion| companion.keys.as_mut());
        let Some(left) = keys.and_then(|keys| keys.running_low()) else { return };
        let id = self.new_id();
        let notification = NodeBuilder::new("notification")
            .attr("from", SERVER_JID)
            .attr("id", id)
            .attr("t", now())
            .attr("type", "encrypt")
            .children([NodeBuilder::new("count").attr("value", left).build()])
            .build();
        let Some(companion) = self.account(account).companions.get_mut(&device) else { return };
        companion.queue.push(notification);
        self.flush(account, device);
    }

    fn seal(
        &mut self,
        account: &str,
        device: u16,
        sender: &Sender,
        letter: &Letter,
    ) -> Result<Node> {
        let Self { accounts, people, .. } = self;
        let account = accounts.get_mut(account).context("no such account")?;
        let companion = account.companions.get_mut(&device).context("no such companion")?;
        let address = account.pn.with_device(device);
        let (signal, pn, lid, name, addressing) = match sender {
            Sender::Phone => {
                (&mut account.phone.signal, &account.pn, &account.lid, "", Addressing::Pn)
            }
            Sender::Contact(pn) => {
                let person = people.get_mut(pn).context("no such contact")?;
                let Person { signal, pn, lid, name, addressing, .. } = person;
                (signal, &*pn, &*lid, name.as_str(), *addressing)
            }
        };
        if !signal.has_session(&address) {
            let keys = companion.keys.as_mut().context("a companion without keys")?;
            signal.open_session(&address, &keys.take()?)?;
        }

        let mut stanza = NodeBuilder::new("message")
            .attr("id", letter.id.as_str())
            .attr("t", letter.timestamp)
            .attr("type", kind(&letter.message));
        if !name.is_empty() {
            stanza = stanza.attr("notify", name);
        }
        if let Some(edit) = edit(&letter.message) {
            stanza = stanza.attr("edit", edit);
        }
        let mut parts = Vec::new();
        match &letter.to {
            Destination::Direct => {
                stanza = match addressing {
                    Addressing::Lid => stanza
                        .attr("from", lid)
                        .attr("sender_pn", pn)
                        .attr("addressing_mode", "lid"),
                    Addressing::Pn => stanza.attr("from", pn).attr("sender_lid", lid),
                };
                parts.push(signal.encrypt(&address, &padded(&letter.message))?);
            }
            Destination::Group(group) => {
                stanza = stanza
                    .attr("from", group)
                    .attr("participant", lid)
                    .attr("participant_pn", pn)
                    .attr("addressing_mode", "lid");
                if let Some(distribution) = signal.distribution(group, lid, &address)? {
                    let message = distribution_message(group, distribution);
                    parts.push(signal.encrypt(&address, &padded(&message))?);
                }
                parts.push(signal.encrypt_for_group(group, lid, &padded(&letter.message))?);
            }
            Destination::OwnCopy(chat) => {
                stanza = stanza.attr("from", pn).attr("recipient", chat);
                parts.push(signal.encrypt(&address, &padded(&letter.message))?);
            }
            Destination::Peer => {
                stanza = stanza.attr("from", pn).attr("category", "peer");
                parts.push(signal.encrypt(&address, &padded(&letter.message))?);
            }
        }
        Ok(stanza.children(parts.into_iter().map(enc)).build())
    }
}

fn padded(message: &wa::Message) -> Vec<u8> {
    MessageUtils::encode_and_pad(message)
}

fn enc(part: Encrypted) -> Node {
    NodeBuilder::new("enc").attr("v", "2").attr("type", part.kind).bytes(part.ciphertext).build()
}

fn distribution_message(group: &Jid, distribution: Vec<u8>) -> wa::Message {
    wa::Message {
        sender_key_distribution_message: MessageField::some(SenderKeyDistributionMessage {
            group_id: Some(group.to_string()),
            axolotl_sender_key_distribution_message: Some(distribution),
        }),
        ..Default::default()
    }
}

/// The stanza's `type` for a content.
fn kind(message: &wa::Message) -> &'static str {
    let inner = message.device_sent_message.as_option().and_then(|own| own.message.as_option());
    let message = inner.unwrap_or(message);
    if message.reaction_message.is_set() {
        "reaction"
    } else if message.image_message.is_set()
        || message.document_message.is_set()
        || message.audio_message.is_set()
        || message.video_message.is_set()
        || message.sticker_message.is_set()
    {
        "media"
    } else {
        "text"
    }
}

/// The stanza's `edit` attribute for a content.
fn edit(message: &wa::Message) -> Option<&'static str> {
    use wa::message::protocol_message::Type;
    match message.protocol_message.as_option()?.r#type? {
        Type::MESSAGE_EDIT => Some("1"),
        Type::REVOKE => Some("7"),
        _ => None,
    }
}
