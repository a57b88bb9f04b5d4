//! One connection to WhatsApp, from the core's word to the last thing it does.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use backfill_core::id::RequestId;
use backfill_core::io::{CloseReason, GatewayEvent};
use backfill_driver::Handle;
use smol_str::SmolStr;
use tokio::sync::{OwnedMutexGuard, mpsc, oneshot, watch};
use tokio::time::timeout;
use wacore::types::events::ServerAck;
use whatsapp_rust::bot::Bot;
use whatsapp_rust::{Client, RawNodeLease};

use crate::account::Account;
use crate::aside::{self, Aside};
use crate::convert::Me;
use crate::gate::Gate;
use crate::session::Session;

/// A connection that was asked for and is not closed.
pub(crate) struct Link {
    pub(crate) id: RequestId,
    pub(crate) account: Arc<Account>,
    pub(crate) handle: Handle,
    pub(crate) gate: Gate,
    /// What goes past the hook, in order
    aside: mpsc::Sender<Aside>,
    close: watch::Sender<bool>,
    open: AtomicBool,
    drain: Drain,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    client: Option<Arc<Client>>,
    /// Makes the client show every stanza, until the offline queue is empty
    lease: Option<RawNodeLease>,
    me: Arc<Me>,
    end: Option<CloseReason>,
    /// The server unlinked the device, so that its credentials are worthless
    unlinked: bool,
    /// The device was linked, and has to log in
    relogin: bool,
    qr: Option<SmolStr>,
    code: Option<SmolStr>,
    code_asked: bool,
    /// Who waits for the server to have a message
    acks: BTreeMap<SmolStr, oneshot::Sender<Ack>>,
}

/// The server's word on a message of ours.
pub(crate) struct Ack {
    /// When it took the message, in seconds since the Unix epoch
    pub(crate) at: i64,
    pub(crate) refused: bool,
}

/// What came of the offline queue.
#[derive(Default)]
pub(crate) struct Drain {
    announced: AtomicU32,
    delivered: AtomicU32,
    withheld: AtomicU32,
}

impl Drain {
    /// How many the server announced, and how many of them are safe.
    pub(crate) fn result(&self) -> (u32, u32) {
        let delivered = self.delivered.load(Ordering::Acquire);
        let withheld = self.withheld.load(Ordering::Acquire);
        (self.announced.load(Ordering::Acquire), delivered.saturating_sub(withheld))
    }

    pub(crate) fn announced(&self, messages: u32) {
        self.announced.store(messages, Ordering::Release);
    }

    pub(crate) fn delivered(&self) {
        self.delivered.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn withheld(&self, messages: u32) {
        self.withheld.fetch_add(messages, Ordering::AcqRel);
    }
}

impl Link {
    pub(crate) fn new(
        id: RequestId,
        account: &Arc<Account>,
        handle: &Handle,
    ) -> (Arc<Self>, mpsc::Receiver<Aside>) {
        let (aside, asides) = mpsc::channel(aside::WAITING);
        let link = Self {
            id,
            account: Arc::clone(account),
            handle: handle.clone(),
            gate: Gate::new(handle, &account.id),
            aside,
            close: watch::Sender::new(false),
            open: AtomicBool::new(false),
            drain: Drain::default(),
            state: Mutex::default(),
        };
        (Arc::new(link), asides)
    }

    /// Logged in, and not closing.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire) && !self.is_closing()
    }

    pub(crate) fn is_closing(&self) -> bool {
        *self.close.borrow()
    }

    /// Asks for the end, which is reported.
    pub(crate) fn close(&self) {
        self.close.send_replace(true);
    }

    pub(crate) fn client(&self) -> Option<Arc<Client>> {
        self.state().client.clone()
    }

    pub(crate) fn me(&self) -> Arc<Me> {
        Arc::clone(&self.state().me)
    }

    pub(crate) fn drain(&self) -> &Drain {
        &self.drain
    }

    pub(crate) fn report(&self, event: GatewayEvent) {
        self.handle.report(self.account.id.clone(), event);
    }

    /// The server let us in.
    pub(crate) fn logged_in(&self) {
        {
            let mut state = self.state();
            state.relogin = false;
            if let Some(client) = &state.client {
                state.me = Arc::new(Me::new(client.pn().as_ref(), client.lid().as_ref()));
            }
        }
        if !self.is_closing() && !self.open.swap(true, Ordering::AcqRel) {
            self.report(GatewayEvent::Opened { connection: self.id });
        }
    }

    /// The offline queue is empty: stanzas need not be looked at any more.
    pub(crate) fn drained(&self) {
        let lease = self.state().lease.take();
        drop(lease);
        let (announced, stored) = self.drain.result();
        self.aside(Aside::Drained { announced, stored });
    }

    /// Hands over what goes past the hook. Does not wait: where too much waits already, the
    /// connection is given up.
    pub(crate) fn aside(&self, aside: Aside) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.aside.try_send(aside) {
            self.report(GatewayEvent::IngestFailed { connection: self.id });
        }
    }

    /// Ends when the server has taken a message, or refused it; with an error when it will not say.
    pub(crate) fn await_ack(&self, id: &SmolStr) -> oneshot::Receiver<Ack> {
        let (told, ack) = oneshot::channel();
        self.state().acks.insert(id.clone(), told);
        ack
    }

    pub(crate) fn acknowledged(&self, ack: &ServerAck) {
        let waiting = self.state().acks.remove(ack.id.as_str());
        if let Some(waiting) = waiting {
            let at = ack.timestamp.map_or_else(wacore::time::now_secs, |at| at.timestamp());
            waiting.send(Ack { at, refused: ack.error.is_some() }).ok();
        }
    }

    /// The device was linked; the server will hang up, and we log in.
    pub(crate) fn paired(&self) {
        self.state().relogin = true;
        self.handle.credentials(self.account.id.clone(), true);
        self.report(GatewayEvent::Paired { connection: self.id });
    }

    /// How the connection will have ended; the first word counts.
    pub(crate) fn ends(&self, reason: CloseReason) {
        self.state().end.get_or_insert(reason);
    }

    /// The credentials have become worthless.
    pub(crate) fn unlinked(&self) {
        let mut state = self.state();
        state.end.get_or_insert(CloseReason::LoggedOut);
        state.unlinked = true;
    }

    /// A new code to scan. With the first one, a code to type in is asked for as well.
    pub(crate) fn show_qr(&self, qr: Option<SmolStr>) {
        let first = {
            let mut state = self.state();
            state.qr = qr;
            !std::mem::replace(&mut state.code_asked, true)
        };
        self.report_pairing();
        if first {
            self.aside(Aside::AskForCode);
        }
    }

    /// A code to type in.
    pub(crate) fn show_code(&self, code: Option<SmolStr>) {
        self.state().code = code;
        self.report_pairing();
    }

    fn report_pairing(&self) {
        let (qr, code) = {
            let state = self.state();
            (state.qr.clone(), state.code.clone())
        };
        self.report(GatewayEvent::Pairing { connection: self.id, qr, code });
    }

    /// Runs the client until it or the core has had enough. Afterwards nothing of it acts on
    /// WhatsApp any more, which is reported. The session is given back when nothing of it is left
    /// at all; `wipe` makes worthless credentials go away before that.
    pub(crate) async fn run<W: Future<Output = ()>>(
        self: Arc<Self>,
        bot: Bot,
        used: Used,
        patience: std::time::Duration,
        wipe: impl FnOnce() -> W,
    ) {
        let client = bot.client();
        // The core decides when to connect.
        client.enable_auto_reconnect.store(false, Ordering::Relaxed);
        {
            let mut state = self.state();
            state.lease = Some(client.acquire_raw_node_forwarding());
            state.me = Arc::new(Me::new(client.pn().as_ref(), client.lid().as_ref()));
            state.client = Some(Arc::clone(&client));
        }
        let mut closing = self.close.subscribe();
        let mut running: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(bot.spawn());
        let mut logins = 0;
        loop {
            tokio::select! {
                biased;
                _ = closing.wait_for(|close| *close) => break,
                () = &mut running => {}
            }
            // A device that was just linked is sent away once to log in with what it was given.
            if !self.state().relogin || self.state().end.is_some() || logins == MAX_RELOGINS {
                break;
            }
            logins += 1;
            let client = Arc::clone(&client);
            running = Box::pin(async move { client.run().await });
        }

        self.open.store(false, Ordering::Release);
        let asked = self.is_closing();
        if asked {
            // What is being fetched was confirmed, and nobody would fetch it again.
            timeout(patience / 2, self.account.expected().all_arrived()).await.ok();
        }
        let (reason, unlinked) = {
            let state = self.state();
            let reason = if asked { CloseReason::Asked } else { CloseReason::Lost };
            (state.end.unwrap_or(reason), state.unlinked)
        };
        let mut ending = Box::pin(async {
            client.disconnect().await;
            self.forget_client();
            drop(running);
            let Used { session, turn } = used;
            if let Err(error) = session.close().await {
                tracing::warn!(account = %self.account.id, %error, "[realtime] a session did not close well");
            }
            if unlinked {
                wipe().await;
            }
            drop(turn);
        });
        let in_time = timeout(patience, &mut ending).await.is_ok();
        self.gate.shut();
        self.account.remove_link(self.id);
        self.report(GatewayEvent::Closed { connection: self.id, reason });
        if !in_time {
            // The session belongs to it until it is done; the gate keeps it from the network.
            timeout(LAST_PATIENCE, ending).await.ok();
            self.forget_client();
        }
    }

    fn forget_client(&self) {
        let mut state = self.state();
        state.acks.clear();
        let held = (state.client.take(), state.lease.take());
        drop(state);
        drop(held);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a connection uses of its account, alone.
pub(crate) struct Used {
    pub(crate) session: Session,
    pub(crate) turn: OwnedMutexGuard<()>,
}

/// How long what is left of a client may take to put its session in order.
const LAST_PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);
/// A server that sends a linked device away again and again is left alone.
const MAX_RELOGINS: u32 = 5;
