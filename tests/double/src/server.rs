//! The state of the server: who is registered, who is connected, who said what.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Weak;
use std::time::Duration;

use rand::RngExt;
use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedSender;
use wacore_binary::builder::NodeBuilder;
use wacore_binary::{Jid, Node};
use wacore_libsignal::protocol::KeyPair;
use waproto::whatsapp as wa;
use whatsapp_rust::transport::DisconnectReason;

use crate::World;
use crate::contact::Person;
use crate::delivery::{Letter, Sender};
use crate::directory::Directory;
use crate::fault::{Effect, Faults, Side, corrupted};
use crate::history::Blobs;
use crate::keys::KeyBundle;
use crate::log::Seen;
use crate::noise::Session;
use crate::pairing::Candidate;
use crate::phone::PhoneState;
use crate::queue::Queue;
use crate::stanza::{attribute, information, stream_error};
use crate::wire::Command;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ConnectionId(pub(crate) u64);

pub(crate) struct State {
    /// By phone number
    pub(crate) accounts: BTreeMap<String, AccountState>,
    pub(crate) blobs: Blobs,
    pub(crate) connections: BTreeMap<ConnectionId, Connection>,
    pub(crate) faults: Faults,
    /// By id
    pub(crate) groups: BTreeMap<String, GroupState>,
    pub(crate) directory: Directory,
    /// How long tests wait
    pub(crate) patience: Duration,
    /// Contacts by phone number
    pub(crate) people: BTreeMap<String, Person>,
    /// While true, nobody can connect
    pub(crate) unreachable: bool,
    pub(crate) static_key: KeyPair,
    pub(crate) forged_chain: bool,
    /// How many handshakes failed or were given up by the client
    pub(crate) abandoned: usize,
    last_id: u64,
    run: u32,
    this: Weak<World>,
    runtime: Handle,
}

pub(crate) struct AccountState {
    pub(crate) pn: Jid,
    pub(crate) lid: Jid,
    pub(crate) phone: PhoneState,
    pub(crate) companions: BTreeMap<u16, CompanionState>,
    pub(crate) last_device: u16,
    pub(crate) log: Vec<Seen>,
    /// Whether its companions address chats by LID
    pub(crate) lid_migrated: bool,
    /// What logins are answered with instead of success
    pub(crate) refusal: Option<Node>,
}

pub(crate) struct CompanionState {
    pub(crate) noise_static: [u8; 32],
    /// `ADVSignedDeviceIdentity`, which the companion's prekey bundles carry
    pub(crate) device_identity: Vec<u8>,
    pub(crate) keys: Option<KeyBundle>,
    pub(crate) queue: Queue,
    pub(crate) connection: Option<ConnectionId>,
    /// What was sent and may be asked for again, by message id
    pub(crate) letters: BTreeMap<String, Vec<(Sender, Letter)>>,
    /// What the phone will send once there are keys
    pub(crate) waiting: Vec<Letter>,
    /// True until the phone has greeted it after pairing
    pub(crate) fresh: bool,
}

pub(crate) struct GroupState {
    pub(crate) subject: String,
    /// Phone numbers
    pub(crate) members: Vec<String>,
    /// Those of the members who are admins
    pub(crate) admins: BTreeSet<String>,
}

pub(crate) struct Connection {
    pub(crate) commands: UnboundedSender<Command>,
    pub(crate) phase: Phase,
    /// While true, nothing is read and nothing written, and the transport stays open
    pub(crate) silent: bool,
}

pub(crate) enum Phase {
    LoggedIn(Login),
    Pairing(Box<Candidate>),
    Refused,
}

#[derive(Clone)]
pub(crate) struct Login {
    pub(crate) account: String,
    pub(crate) device: u16,
    pub(crate) stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Logged in; nothing is delivered yet
    Quiet,
    /// The backlog of this size is being fetched in batches
    Draining(usize),
    Live,
}

impl State {
    pub(crate) fn new(this: Weak<World>, runtime: Handle) -> Self {
        let mut rng = rand::rng();
        Self {
            accounts: BTreeMap::new(),
            blobs: Blobs::default(),
            connections: BTreeMap::new(),
            faults: Faults::default(),
            groups: BTreeMap::new(),
            directory: Directory::default(),
            patience: Duration::from_secs(20),
            people: BTreeMap::new(),
            unreachable: false,
            static_key: KeyPair::generate(&mut rng),
            forged_chain: false,
            abandoned: 0,
            last_id: 0,
            run: rng.random(),
            this,
            runtime,
        }
    }

    pub(crate) fn account(&mut self, pn: &str) -> &mut AccountState {
        self.accounts.get_mut(pn).expect("a handle outlives no account")
    }

    pub(crate) fn saw(&mut self, account: &str, seen: Seen) {
        self.account(account).log.push(seen);
    }

    /// An id that no other stanza of this world has.
    pub(crate) fn new_id(&mut self) -> String {
        self.last_id += 1;
        format!("3EB0{:08X}{:08X}", self.run, self.last_id)
    }

    /// Does something later, on the clock of the tokio runtime.
    pub(crate) fn after(&self, delay: Duration, action: impl FnOnce(&mut Self) + Send + 'static) {
        let world = self.this.clone();
        self.runtime.spawn(async move {
            tokio::time::sleep(delay).await;
            if let Some(world) = world.upgrade() {
                world.with(action);
            }
        });
    }

    pub(crate) fn connected(
        &mut self,
        session: &Session,
        commands: UnboundedSender<Command>,
    ) -> ConnectionId {
        self.last_id += 1;
        let id = ConnectionId(self.last_id);
        let connection = Connection { commands, phase: Phase::Refused, silent: false };
        self.connections.insert(id, connection);
        match session.payload.username {
            None => self.offer_pairing(id, session),
            Some(user) => self.log_in(id, session, &user.to_string()),
        }
        id
    }

    pub(crate) fn disconnected(&mut self, id: ConnectionId) {
        let Some(Connection { phase: Phase::LoggedIn(login), .. }) = self.connections.remove(&id)
        else {
            return;
        };
        if let Some(companion) = self.account(&login.account).companions.get_mut(&login.device)
            && companion.connection == Some(id)
        {
            companion.connection = None;
        }
        self.saw(&login.account, Seen::Disconnected { device: login.device });
    }

    pub(crate) fn received(&mut self, id: ConnectionId, node: &Node) {
        if self.connections.get(&id).is_none_or(|connection| connection.silent) {
            return;
        }
        match self.faults.strike(Side::FromClient, node) {
            None | Some(Effect::Corrupt) => self.process(id, node),
            Some(Effect::Cut) => self.close(id, DisconnectReason::StreamEnded),
            Some(Effect::Delay(delay)) => {
                let node = node.clone();
                self.after(delay, move |state| state.process(id, &node));
            }
            Some(Effect::Drop) => {}
            Some(Effect::Duplicate) => {
                self.process(id, node);
                self.process(id, node);
            }
        }
    }

    /// Writes a stanza to a connection, unless a fault says otherwise.
    pub(crate) fn send(&mut self, id: ConnectionId, node: Node) {
        match self.faults.strike(Side::ToClient, &node) {
            None => self.write(id, node),
            Some(Effect::Corrupt) => self.write(id, corrupted(&node)),
            Some(Effect::Cut) => self.close(id, DisconnectReason::StreamEnded),
            Some(Effect::Delay(delay)) => {
                self.after(delay, move |state| state.write(id, node));
            }
            Some(Effect::Drop) => {}
            Some(Effect::Duplicate) => {
                self.write(id, node.clone());
                self.write(id, node);
            }
        }
    }

    pub(crate) fn close(&mut self, id: ConnectionId, reason: DisconnectReason) {
        if let Some(connection) = self.connections.get(&id) {
            let _ = connection.commands.send(Command::Close(reason));
        }
    }

    pub(crate) fn login(&self, id: ConnectionId) -> Option<Login> {
        match &self.connections.get(&id)?.phase {
            Phase::LoggedIn(login) => Some(login.clone()),
            Phase::Pairing(_) | Phase::Refused => None,
        }
    }

    pub(crate) fn set_stage(&mut self, id: ConnectionId, next: Stage) {
        if let Some(Connection { phase: Phase::LoggedIn(login), .. }) =
            self.connections.get_mut(&id)
        {
            login.stage = next;
        }
    }

    /// Ends the session of a companion with a stream error.
    pub(crate) fn end_stream(&mut self, id: ConnectionId, error: Node) {
        self.send(id, error);
        self.close(id, DisconnectReason::StreamEnded);
    }

    fn write(&mut self, id: ConnectionId, node: Node) {
        if let Some(connection) = self.connections.get(&id)
            && !connection.silent
        {
            let _ = connection.commands.send(Command::Send(node));
        }
    }

    fn log_in(&mut self, id: ConnectionId, session: &Session, user: &str) {
        let device = session.payload.device.unwrap_or_default() as u16;
        let Some(account) = self.accounts.get_mut(user) else {
            return self.refuse(id, logged_out());
        };
        let known = account
            .companions
            .get_mut(&device)
            .filter(|companion| companion.noise_static == session.client_static);
        let (refusal, companion) = match (account.refusal.clone(), known) {
            (Some(refusal), _) => (refusal, None),
            (None, Some(companion)) => (logged_out(), Some(companion)),
            (None, None) => (logged_out(), None),
        };
        let Some(companion) = companion else {
            account.log.push(Seen::Refused { device });
            return self.refuse(id, refusal);
        };
        let replaced = companion.connection.replace(id);
        companion.queue.rewind();
        account.log.push(Seen::Connected { device, handshake: session.handshake });
        let success = NodeBuilder::new("success")
            .attr("t", wacore::time::now_secs())
            .attr("lid", account.lid.with_device(device))
            .attr("props", "27")
            .build();
        if let Some(replaced) = replaced {
            self.saw(user, Seen::Replaced { device });
            self.end_stream(replaced, stream_error(None, Some("replaced")));
        }
        if let Some(connection) = self.connections.get_mut(&id) {
            let account = user.to_owned();
            connection.phase = Phase::LoggedIn(Login { account, device, stage: Stage::Quiet });
        }
        self.send(id, success);
    }

    fn refuse(&mut self, id: ConnectionId, failure: Node) {
        self.end_stream(id, failure);
    }

    fn process(&mut self, id: ConnectionId, node: &Node) {
        match node.tag.as_ref() {
            "iq" => self.iq(id, node),
            "ib" => self.batch_asked(id, node),
            "message" => self.message_sent(id, node),
            "receipt" => self.receipt(id, node),
            "ack" => self.acked(id, node),
            _ => {}
        }
    }

    /// `<ib><offline_batch count/></ib>`: sends the next part of the backlog, and the end marker
    /// after the last.
    fn batch_asked(&mut self, id: ConnectionId, node: &Node) {
        let Some(batch) = node.get_optional_child("offline_batch") else { return };
        let Some(Login { account, device, stage: Stage::Draining(total) }) = self.login(id) else {
            return;
        };
        let count = attribute(batch, "count").and_then(|count| count.parse().ok()).unwrap_or(200);
        let Some(companion) = self.account(&account).companions.get_mut(&device) else { return };
        let mut stanzas: VecDeque<Node> = companion.queue.take_unwritten(count).into();
        let more = companion.queue.has_unwritten();
        while let Some(mut stanza) = stanzas.pop_front() {
            stanza.attrs.insert("offline", "1");
            self.send(id, stanza);
        }
        if !more {
            self.set_stage(id, Stage::Live);
            self.send(id, information(offline_end(total)));
        }
    }

    /// Starts delivery on a connection that has just become active.
    pub(crate) fn activate(&mut self, id: ConnectionId) {
        let Some(login) = self.login(id) else { return };
        let Login { account, device, .. } = login;
        let Some(companion) = self.account(&account).companions.get_mut(&device) else { return };
        let total = companion.queue.len();
        if total == 0 {
            self.set_stage(id, Stage::Live);
            self.send(id, information(offline_end(0)));
        } else {
            self.set_stage(id, Stage::Draining(total));
            let preview = NodeBuilder::new("offline_preview")
                .attr("count", total)
                .attr("message", total)
                .attr("receipt", 0)
                .attr("notification", 0)
                .attr("appdata", 0)
                .build();
            self.send(id, information(preview));
        }
        self.saw(&account, Seen::Active { device });
    }
}

impl CompanionState {
    pub(crate) fn new(noise_static: [u8; 32], device_identity: Vec<u8>) -> Self {
        Self {
            noise_static,
            device_identity,
            keys: None,
            queue: Queue::default(),
            connection: None,
            letters: BTreeMap::new(),
            waiting: Vec::new(),
            fresh: false,
        }
    }
}

/// `<failure>` for a device that is not, or no longer, linked.
pub(crate) fn logged_out() -> Node {
    NodeBuilder::new("failure").attr("reason", "401").attr("location", "rva").build()
}

fn offline_end(count: usize) -> Node {
    NodeBuilder::new("offline").attr("count", count).build()
}

/// The content of a text message.
pub fn text(body: &str) -> wa::Message {
    wa::Message { conversation: Some(body.to_owned()), ..Default::default() }
}
