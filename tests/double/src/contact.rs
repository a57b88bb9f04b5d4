//! The people and groups on the other side of an account's chats.

use wacore_binary::builder::NodeBuilder;
use wacore_binary::{Jid, Node};
use waproto::whatsapp as wa;

use crate::delivery::{Destination, Letter, Sender};
use crate::history::Stored;
use crate::server::State;
use crate::signal::SignalDevice;
use crate::{Double, text};

/// Which id a contact's direct messages come from
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addressing {
    /// `…@lid`, with the phone number as an attribute
    Lid,
    /// `…@s.whatsapp.net`, with the LID as an attribute
    Pn,
}

/// Somebody an account talks to, with a phone of their own
#[derive(Clone)]
pub struct Contact {
    double: Double,
    /// The account this handle writes to, by phone number
    account: String,
    pn: Jid,
    lid: Jid,
}

/// A group that an account is in
#[derive(Clone)]
pub struct Group {
    double: Double,
    account: String,
    jid: Jid,
}

pub(crate) struct Person {
    pub(crate) pn: Jid,
    pub(crate) lid: Jid,
    pub(crate) name: String,
    pub(crate) addressing: Addressing,
    /// Whether it sends again what a companion could not read
    pub(crate) answers_retries: bool,
    pub(crate) signal: SignalDevice,
}

impl Contact {
    pub(crate) fn new(double: Double, account: String, pn: Jid, lid: Jid) -> Self {
        Self { double, account, pn, lid }
    }

    /// The phone number form of their id.
    pub fn pn(&self) -> &Jid {
        &self.pn
    }

    /// The LID form of their id.
    pub fn lid(&self) -> &Jid {
        &self.lid
    }

    /// Chooses which id the following direct messages and receipts come from. The default is the phone number.
    pub fn set_addressing(&self, addressing: Addressing) {
        self.double.with(|state| self.person(state).addressing = addressing);
    }

    /// Chooses whether they send again what a companion could not read. The default is yes.
    pub fn answer_retries(&self, answer: bool) {
        self.double.with(|state| self.person(state).answers_retries = answer);
    }

    /// Sends a text to the account now; returns its id.
    pub fn text(&self, body: &str) -> String {
        self.send(text(body))
    }

    /// Sends any content to the account now; returns its id.
    pub fn send(&self, message: wa::Message) -> String {
        let id = self.double.with(State::new_id);
        self.send_as(&id, now(), message);
        id
    }

    /// Sends with a chosen id and timestamp in Unix seconds.
    pub fn send_as(&self, id: &str, timestamp: u64, message: wa::Message) {
        self.post(id, timestamp, message, Destination::Direct, &self.pn);
    }

    /// Sends a text to a group now; returns its id.
    pub fn text_to(&self, group: &Group, body: &str) -> String {
        self.send_to(group, text(body))
    }

    /// Sends any content to a group now; returns its id.
    pub fn send_to(&self, group: &Group, message: wa::Message) -> String {
        let id = self.double.with(State::new_id);
        let to = Destination::Group(group.jid.clone());
        self.post(&id, now(), message, to, &group.jid);
        id
    }

    /// Confirms that a message of the account has arrived.
    pub fn deliver(&self, id: &str) {
        self.send_receipt(id, None);
    }

    /// Confirms that a message of the account has been read.
    pub fn read(&self, id: &str) {
        self.send_receipt(id, Some("read"));
    }

    /// Starts a new session with the account's companions, as after a reinstallation.
    pub fn forget_sessions(&self) {
        let account = self.account.clone();
        self.double.with(|state| {
            let owner = state.account(&account);
            let devices = owner.companions.keys().map(|device| owner.pn.with_device(*device));
            for device in devices.collect::<Vec<_>>() {
                self.person(state).signal.drop_session(&device);
            }
        });
    }

    fn send_receipt(&self, id: &str, kind: Option<&str>) {
        let addressing = self.double.with(|state| self.person(state).addressing);
        let from = match addressing {
            Addressing::Lid => &self.lid,
            Addressing::Pn => &self.pn,
        };
        let mut receipt = NodeBuilder::new("receipt")
            .attr("from", from)
            .attr("id", id)
            .attr("t", wacore::time::now_secs());
        if let Some(kind) = kind {
            receipt = receipt.attr("type", kind);
        }
        let receipt: Node = receipt.build();
        self.double.with(|state| state.post_plain(&self.account, &receipt));
    }

    fn post(&self, id: &str, timestamp: u64, message: wa::Message, to: Destination, chat: &Jid) {
        let sender = Sender::Contact(self.pn.user.to_string());
        let participant = matches!(to, Destination::Group(_)).then(|| self.lid.clone());
        self.double.with(|state| {
            let stored = Stored {
                id: id.to_owned(),
                participant,
                from_me: false,
                timestamp,
                push_name: Some(self.person(state).name.clone()),
                message: message.clone(),
            };
            state.keep(&self.account, chat, stored);
            let letter = Letter { id: id.to_owned(), timestamp, message, to };
            state.post(&self.account, &sender, &letter);
        });
    }

    fn person<'a>(&self, state: &'a mut State) -> &'a mut Person {
        state.people.get_mut(self.pn.user.as_str()).expect("a handle outlives no contact")
    }
}

impl Group {
    pub(crate) fn new(double: Double, account: String, jid: Jid) -> Self {
        Self { double, account, jid }
    }

    /// The group's id.
    pub fn jid(&self) -> &Jid {
        &self.jid
    }

    /// Makes a member an admin, without a word to anybody.
    pub fn promote(&self, member: &Contact) {
        self.double.with(|state| {
            if let Some(group) = state.groups.get_mut(&self.jid.to_string()) {
                group.admins.insert(member.pn.user.to_string());
            }
        });
    }

    /// The owner of the account writes to the group from the phone; returns the message id.
    pub fn own_text(&self, body: &str) -> String {
        let message = text(body);
        self.double.with(|state| {
            let id = state.new_id();
            let stored = Stored {
                id: id.clone(),
                participant: None,
                from_me: true,
                timestamp: now(),
                push_name: None,
                message: message.clone(),
            };
            state.keep(&self.account, &self.jid, stored);
            let to = Destination::Group(self.jid.clone());
            let letter = Letter { id: id.clone(), timestamp: now(), message, to };
            state.post(&self.account, &Sender::Phone, &letter);
            id
        })
    }
}

/// Unix time in seconds, as the client under test sees it.
pub(crate) fn now() -> u64 {
    u64::try_from(wacore::time::now_secs()).unwrap_or_default()
}
