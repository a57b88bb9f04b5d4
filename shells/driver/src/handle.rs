//! How everything outside the loop reaches the core.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use backfill_core::id::{AccountId, RequestId};
use backfill_core::instance::Instance;
use backfill_core::io::{Answer, Command, GatewayEvent, Input, Reply};
use backfill_core::time::Mono;
use futures_channel::{mpsc, oneshot};

use crate::intake::Intake;
use crate::port::StoreError;

/// Reaches one running instance. Clones reach the same.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

/// The instance has ended, and takes no commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the instance has ended")]
pub struct Ended;

impl Handle {
    /// Asks for something, and waits for the reply.
    ///
    /// # Errors
    /// [`Ended`] if there is nobody to ask.
    pub async fn command(&self, command: Command) -> Result<Reply, Ended> {
        let (reply, replied) = oneshot::channel();
        self.0.inbox.urgent(Arrival::Command(command, reply));
        replied.await.map_err(|_| Ended)
    }

    /// Tells whether the credentials of an account lie on this host.
    pub fn credentials(&self, account: AccountId, here: bool) {
        self.0.inbox.usual(Arrival::Input(Input::Credentials(account, here)));
    }

    /// Tells what WhatsApp or the gateway has to report. Reports arrive in the order in which they
    /// are made, among them what the methods of ingest report, and before the answer of a call
    /// that returns afterwards.
    pub fn report(&self, account: AccountId, event: GatewayEvent) {
        self.0.inbox.usual(Arrival::Input(Input::Gateway(account, event)));
    }

    /// Whether this process believes, at this moment, to own the account. To be asked right before
    /// an effect that needs it, such as acknowledging a message.
    pub fn believes(&self, account: &AccountId) -> bool {
        let belief = self.look(|instance| instance.belief(account));
        belief.is_some_and(|belief| self.now() < belief.until)
    }

    /// Looks at the instance, which stands still meanwhile: be quick, and do not come back here.
    pub fn look<T>(&self, look: impl FnOnce(&Instance) -> T) -> T {
        look(&self.0.instance.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells how long each call of [`realtime`](Self::realtime) takes, from now on. Only the first
    /// one who asks is told.
    pub fn time_realtime(&self, took: impl Fn(Duration) + Send + Sync + 'static) {
        // Whoever comes second is not told.
        let _ = self.0.took.set(Box::new(took));
    }

    /// What this process's own clock shows.
    pub fn now(&self) -> Mono {
        (self.0.clock)()
    }

    pub(crate) fn new(
        instance: Instance,
        inbox: Inbox,
        intake: Intake,
        clock: impl Fn() -> Mono + Send + Sync + 'static,
    ) -> Self {
        let instance = Mutex::new(instance);
        let took = OnceLock::new();
        Self(Arc::new(Shared { instance, inbox, intake, clock: Box::new(clock), took }))
    }

    pub(crate) fn note_realtime(&self, begun: Mono) {
        if let Some(took) = self.0.took.get() {
            took(self.now().since(begun));
        }
    }

    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Instance) -> T) -> T {
        change(&mut self.0.instance.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn inbox(&self) -> &Inbox {
        &self.0.inbox
    }

    pub(crate) fn intake(&self) -> &Intake {
        &self.0.intake
    }
}

struct Shared {
    instance: Mutex<Instance>,
    inbox: Inbox,
    intake: Intake,
    clock: Box<dyn Fn() -> Mono + Send + Sync>,
    took: OnceLock<Box<dyn Fn(Duration) + Send + Sync>>,
}

/// Something for the loop.
pub(crate) enum Arrival {
    Answer(RequestId, Answer, Option<StoreError>),
    Command(Command, oneshot::Sender<Reply>),
    Input(Input),
}

/// The way to the loop. What is urgent never waits behind what is not; otherwise the order stays.
#[derive(Clone)]
pub(crate) struct Inbox {
    urgent: mpsc::UnboundedSender<Arrival>,
    usual: mpsc::UnboundedSender<Arrival>,
}

pub(crate) struct Arrivals {
    pub(crate) urgent: mpsc::UnboundedReceiver<Arrival>,
    pub(crate) usual: mpsc::UnboundedReceiver<Arrival>,
}

impl Inbox {
    pub(crate) fn new() -> (Self, Arrivals) {
        let (urgent, urgent_arrivals) = mpsc::unbounded();
        let (usual, usual_arrivals) = mpsc::unbounded();
        (Self { urgent, usual }, Arrivals { urgent: urgent_arrivals, usual: usual_arrivals })
    }

    pub(crate) fn urgent(&self, arrival: Arrival) {
        // Once the loop has ended nothing matters any more.
        self.urgent.unbounded_send(arrival).ok();
    }

    pub(crate) fn usual(&self, arrival: Arrival) {
        self.usual.unbounded_send(arrival).ok();
    }
}
