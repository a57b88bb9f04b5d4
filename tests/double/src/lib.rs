//! A WhatsApp server and the phones behind it, for tests of real clients.
//!
//! A [`Double`] is one small world: accounts with a phone each, contacts, groups, and the server
//! between them. It speaks the real wire protocol (Noise, binary stanzas, Signal) to the unmodified
//! `whatsapp-rust` client, in memory or over a WebSocket. All of it runs in the test process, behind
//! one lock, and reads time only from `wacore::time` and tokio, so tests may pause both clocks.
//!
//! What the double knows is the ground truth that a test compares with: [`Phone::chat`] is what the
//! phone holds, [`Account::log`] what the server saw, [`Account::unconfirmed`] what it still owes.

mod account;
mod app_state;
mod chain;
mod clock;
mod contact;
mod delivery;
mod directory;
mod fault;
mod history;
mod iq;
mod keys;
mod log;
mod media;
mod media_port;
mod memory;
mod noise;
mod pair_code;
mod pairing;
mod phone;
mod queue;
mod sent;
mod server;
mod signal;
mod stanza;
mod websocket;
mod wire;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::runtime::Handle;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use wacore_binary::{Jid, Node};
use wacore_libsignal::protocol::KeyPair;

pub use crate::account::{Account, SEEDED_KEYS};
pub use crate::clock::{EPOCH_MS, follow_tokio};
pub use crate::contact::{Addressing, Contact, Group};
pub use crate::fault::Fault;
pub use crate::history::{Chat, PAGE_CAP, Stored, Via};
pub use crate::log::{HistoryRequest, Receipt, Seen, SentMessage};
pub use crate::media::MediaHost;
pub use crate::media_port::MediaServer;
pub use crate::memory::MemoryTransport;
pub use crate::noise::Handshake;
pub use crate::phone::{Answer, Phone};
pub use crate::server::text;
pub use crate::websocket::WebSocketServer;

use crate::noise::Session;
use crate::phone::PhoneState;
use crate::server::{AccountState, ConnectionId, State};
use crate::wire::Command;

/// Lets clients of this process register with a [`Double`] that lives in another one. Must come
/// before any cryptography; `false` if it came too late. [`Double::new`] does the same.
pub fn trust_doubles() -> bool {
    chain::install()
}

/// A world of its own: a server, its accounts and their contacts
#[derive(Clone)]
pub struct Double {
    world: Arc<World>,
}

pub(crate) struct World {
    state: Mutex<State>,
    /// Where the server runs, which may outlive its clients
    runtime: Handle,
    /// Counts the changes, so that waiters know when to look again
    changes: watch::Sender<u64>,
}

impl World {
    /// The only way to the state. Never call it from within.
    pub(crate) fn with<T>(&self, action: impl FnOnce(&mut State) -> T) -> T {
        let result = action(&mut self.state.lock().expect("no panic while held"));
        self.changes.send_modify(|changes| *changes += 1);
        result
    }
}

#[expect(clippy::new_without_default, reason = "it depends on the current runtime")]
impl Double {
    /// An empty world, whose server lives on the current tokio runtime: a client on a runtime of its
    /// own can be killed with it. Panics outside a runtime.
    ///
    /// Create it before the process does any cryptography of its own, or clients without a seeded
    /// device cannot connect; see [`Account::scan`].
    pub fn new() -> Self {
        chain::install();
        let world = Arc::new_cyclic(|world| World {
            state: Mutex::new(State::new(world.clone(), Handle::current())),
            runtime: Handle::current(),
            changes: watch::Sender::new(0),
        });
        Self { world }
    }

    /// Registers an account with this phone number and LID. Panics if the number is taken.
    pub fn account(&self, pn: &str, lid: &str) -> Account {
        let (pn, lid) = (Jid::pn(pn), Jid::lid(lid));
        let state = AccountState {
            pn: pn.clone(),
            lid: lid.clone(),
            phone: PhoneState::new(),
            companions: Default::default(),
            last_device: 0,
            log: Vec::new(),
            lid_migrated: false,
            refusal: None,
        };
        let taken = self.with(|world| {
            world.directory.learn(&pn, &lid);
            world.accounts.insert(pn.user.to_string(), state).is_some()
        });
        assert!(!taken, "the phone number is taken");
        Account::new(self.clone(), pn, lid)
    }

    /// Connects clients to this world without sockets.
    pub fn transport(&self) -> MemoryTransport {
        MemoryTransport::new(self.clone())
    }

    /// Serves this world on a port of localhost. Fails if no port can be had.
    pub async fn listen(&self) -> Result<WebSocketServer> {
        WebSocketServer::listen(self.clone()).await
    }

    /// Serves the files of this world, and the version page that clients look at before they
    /// connect, on a port of localhost. Fails if no port can be had.
    pub async fn listen_for_media(&self) -> Result<MediaServer> {
        MediaServer::listen(self.clone()).await
    }

    /// The HTTP client through which clients fetch their files.
    pub fn media(&self) -> MediaHost {
        MediaHost::new(self.clone())
    }

    /// Adds a fault to the wire.
    pub fn inject(&self, fault: Fault) {
        self.with(|state| state.faults.add(fault));
    }

    /// Removes all faults from the wire.
    pub fn heal(&self) {
        self.with(|state| state.faults.clear());
    }

    /// Presents a certificate chain with worthless signatures to clients that ask for one, which
    /// they must not accept.
    pub fn forge_certificates(&self) {
        self.with(|state| state.forged_chain = true);
    }

    /// How long the waiting methods of this world wait before they panic. 20 seconds at first; a
    /// test under a paused clock, where waiting costs nothing, may want more.
    pub fn set_patience(&self, patience: Duration) {
        self.with(|state| state.patience = patience);
    }

    /// See [`set_patience`](Self::set_patience).
    pub fn patience(&self) -> Duration {
        self.with(|state| state.patience)
    }

    /// Makes the server unreachable for new connections, or reachable again.
    pub fn set_reachable(&self, reachable: bool) {
        self.with(|state| state.unreachable = !reachable);
    }

    pub(crate) fn with<T>(&self, action: impl FnOnce(&mut State) -> T) -> T {
        self.world.with(action)
    }

    /// Waits until `pick` finds something in the state.
    pub(crate) async fn until<T>(&self, pick: impl Fn(&mut State) -> Option<T>) -> T {
        let mut changes = self.world.changes.subscribe();
        loop {
            changes.mark_unchanged();
            // Looking is not a change, or waiters would wake each other for ever.
            let found = pick(&mut self.world.state.lock().expect("no panic while held"));
            if let Some(found) = found {
                return found;
            }
            changes.changed().await.expect("the world outlives its waiters");
        }
    }

    /// Waits until clients have given up this many handshakes. Panics when the world's patience is
    /// over.
    pub async fn wait_abandoned(&self, count: usize) {
        let enough = self.until(|state| (state.abandoned >= count).then_some(()));
        if tokio::time::timeout(self.patience(), enough).await.is_err() {
            panic!("waited in vain for {count} abandoned handshakes");
        }
    }

    /// What the server gave to clients that are being linked, for their QR codes: the first is on
    /// show first.
    pub fn pairing_refs(&self) -> Vec<String> {
        self.with(|state| state.pairing_refs())
    }

    pub(crate) fn admit(&self) -> Result<()> {
        ensure!(!self.with(|state| state.unreachable), "the server is unreachable");
        Ok(())
    }

    /// The static key of seeded devices, and whether others are shown a forged chain for it.
    pub(crate) fn identity(&self) -> (KeyPair, bool) {
        self.with(|state| (state.static_key.clone(), state.forged_chain))
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.world.runtime.spawn(task);
    }

    pub(crate) fn connected(
        &self,
        session: &Session,
        commands: UnboundedSender<Command>,
    ) -> ConnectionId {
        self.with(|state| state.connected(session, commands))
    }

    pub(crate) fn received(&self, id: ConnectionId, node: &Node) {
        self.with(|state| state.received(id, node));
    }

    pub(crate) fn disconnected(&self, id: ConnectionId) {
        self.with(|state| state.disconnected(id));
    }
}
