//! Messages that a companion sends.

use anyhow::{Context, Result};
use wacore::messages::decode_plaintext;
use wacore_binary::builder::NodeBuilder;
use wacore_binary::{Jid, JidExt, Node, SERVER_JID};
use waproto::whatsapp as wa;

use crate::contact::now;
use crate::history::Stored;
use crate::log::{Seen, SentMessage};
use crate::server::{ConnectionId, Login, State};
use crate::signal::SignalDevice;
use crate::stanza::{attribute, bytes, jid};

impl State {
    /// Acknowledges a message and lets each of its recipients read it.
    pub(crate) fn message_sent(&mut self, id: ConnectionId, node: &Node) {
        let Some(Login { account, device, .. }) = self.login(id) else { return };
        let (Some(stanza), Some(to)) = (attribute(node, "id"), jid(node, "to")) else { return };
        let ack = NodeBuilder::new("ack")
            .attr("class", "message")
            .attr("id", stanza.as_str())
            .attr(
                "from",
                if to.is_pn() || to.is_lid() { to.to_string() } else { SERVER_JID.into() },
            )
            .attr("t", wacore::time::now_secs())
            .build();
        self.send(id, ack);

        let group = to.is_group().then(|| to.clone());
        for (recipient, enc) in addressed(node, &to) {
            if recipient.device != 0 {
                self.forward(&account, device, &recipient, node, enc);
                continue;
            }
            match self.read(&account, device, &recipient, group.as_ref(), enc) {
                Ok(message) if attribute(node, "category").as_deref() == Some("peer") => {
                    self.peer_message(&account, device, &stanza, &message);
                }
                Ok(message) => {
                    let recipient = self.directory.key(&recipient);
                    self.deliver_sent(&account, &stanza, recipient, &to, message);
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    self.saw(&account, Seen::Unreadable { id: stanza.clone(), error });
                }
            }
        }
        if let Some(group) = group {
            for enc in node.get_children_by_tag("enc") {
                self.deliver_to_group(&account, device, &stanza, &group, enc);
            }
        }
    }

    /// Passes a part on to another companion of the same account, which decrypts it itself.
    fn forward(&mut self, account: &str, device: u16, to: &Jid, message: &Node, enc: &Node) {
        let from = self.account(account).pn.with_device(device);
        let mut stanza = NodeBuilder::new("message")
            .attr("from", from)
            .attr("id", attribute(message, "id").unwrap_or_default())
            .attr("type", attribute(message, "type").unwrap_or_default())
            .attr("t", wacore::time::now_secs());
        if let Some(chat) = jid(message, "to") {
            stanza = stanza.attr("recipient", chat);
        }
        let stanza = stanza.children([enc.clone()]).build();
        if let Some(companion) = self.account(account).companions.get_mut(&to.device) {
            companion.queue.push(stanza);
        }
        self.flush(account, to.device);
    }

    fn deliver_sent(
        &mut self,
        account: &str,
        id: &str,
        recipient: Jid,
        to: &Jid,
        message: wa::Message,
    ) {
        if let Some(copy) = message.device_sent_message.as_option() {
            // The phone learns what its companion wrote.
            let destination = copy.destination_jid.as_deref().and_then(|jid| jid.parse().ok());
            if let (Some(chat), Some(inner)) = (destination, copy.message.as_option()) {
                let inner = inner.clone();
                self.keep_own(account, id, &chat, inner);
            }
        }
        let message = Box::new(message);
        let sent = SentMessage { id: id.to_owned(), recipient, to: to.clone(), message };
        self.saw(account, Seen::Message(sent));
    }

    /// Reads a group message once for every member that has the sender key.
    fn deliver_to_group(&mut self, account: &str, device: u16, id: &str, group: &Jid, enc: &Node) {
        let sender = self.account(account).pn.with_device(device);
        let members = self
            .groups
            .get(&group.to_string())
            .map(|group| group.members.clone())
            .unwrap_or_default();
        for member in members {
            let Some((signal, recipient)) = self.reader(account, &Jid::pn(member.as_str())) else {
                continue;
            };
            let plaintext = signal.decrypt_from_group(group, &sender, bytes(enc));
            match plaintext.and_then(|plaintext| decode_plaintext(&plaintext, 2)) {
                Ok(message) => {
                    if member == account {
                        self.keep_own(account, id, group, message.clone());
                    }
                    let to = group.clone();
                    let message = Box::new(message);
                    let sent = SentMessage { id: id.to_owned(), recipient, to, message };
                    self.saw(account, Seen::Message(sent));
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    self.saw(account, Seen::Unreadable { id: id.to_owned(), error });
                }
            }
        }
    }

    /// Decrypts one part with the device it is addressed to. A sender key in it is taken over.
    fn read(
        &mut self,
        account: &str,
        device: u16,
        recipient: &Jid,
        group: Option<&Jid>,
        enc: &Node,
    ) -> Result<wa::Message> {
        let sender = self.account(account).pn.with_device(device);
        let kind = attribute(enc, "type").context("an enc without type")?;
        let (signal, _) = self.reader(account, recipient).context("no such recipient")?;
        let message = decode_plaintext(&signal.decrypt(&sender, &kind, bytes(enc))?, 2)?;
        if let (Some(group), Some(distribution)) =
            (group, message.sender_key_distribution_message.as_option())
            && let Some(key) = &distribution.axolotl_sender_key_distribution_message
        {
            signal.accept_distribution(group, &sender, key)?;
        }
        Ok(message)
    }

    /// The device behind an address, and its phone number.
    fn reader(&mut self, account: &str, address: &Jid) -> Option<(&mut SignalDevice, Jid)> {
        let key = self.directory.key(address);
        let owner = self.accounts.get_mut(account)?;
        if owner.pn == key {
            return Some((&mut owner.phone.signal, key));
        }
        let person = self.people.get_mut(key.user.as_str())?;
        Some((&mut person.signal, key))
    }

    fn keep_own(&mut self, account: &str, id: &str, chat: &Jid, message: wa::Message) {
        let stored = Stored {
            id: id.to_owned(),
            participant: None,
            from_me: true,
            timestamp: now(),
            push_name: None,
            message,
        };
        self.keep(account, chat, stored);
    }
}

/// The encrypted parts that are meant for one device each.
fn addressed<'a>(message: &'a Node, to: &Jid) -> Vec<(Jid, &'a Node)> {
    let fanned_out = message
        .get_optional_child("participants")
        .into_iter()
        .flat_map(|participants| participants.get_children_by_tag("to"))
        .filter_map(|to| Some((jid(to, "jid")?, to.get_optional_child("enc")?)));
    let direct =
        message.get_children_by_tag("enc").filter(|_| !to.is_group()).map(|enc| (to.clone(), enc));
    fanned_out.chain(direct).collect()
}
