//! A real client whose events a test can wait for.

use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use wacore::store::InMemoryBackend;
use wacore::store::traits::Backend;
use wacore::types::events::{Event, EventHandler, InboundMessage};
use whatsapp_double::{Account, Double, MemoryTransport};
use whatsapp_rust::bot::{Bot, BotHandle};
use whatsapp_rust::transport::TransportFactory;
use whatsapp_rust::{Client as WhatsApp, InboundDurabilityHook, TokioRuntime};

/// An account of a fresh world
pub(crate) fn world() -> (Double, Account) {
    assert!(whatsapp_double::follow_tokio());
    let double = Double::new();
    let account = double.account("15550000001", "100000000000001");
    (double, account)
}

pub(crate) fn empty_backend() -> Arc<dyn Backend> {
    Arc::new(InMemoryBackend::new())
}

pub(crate) struct Client {
    double: Double,
    handle: BotHandle,
    events: Arc<Events>,
}

pub(crate) struct Options<T = MemoryTransport> {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) transport: T,
    pub(crate) hook: Option<Arc<dyn InboundDurabilityHook>>,
}

impl Client {
    /// Links a device to the account by seeding, and starts a client for it.
    pub(crate) async fn seeded(double: &Double, account: &Account) -> Self {
        let backend = empty_backend();
        account.seed(&backend).await.unwrap();
        Self::start(double, backend).await
    }

    /// Starts a client on this backend over the in-memory transport.
    pub(crate) async fn start(double: &Double, backend: Arc<dyn Backend>) -> Self {
        Self::start_with(double, Options { backend, transport: double.transport(), hook: None })
            .await
    }

    pub(crate) async fn start_with<T: TransportFactory + 'static>(
        double: &Double,
        options: Options<T>,
    ) -> Self {
        let events = Arc::new(Events { list: Mutex::default(), count: watch::Sender::new(0) });
        let mut builder = Bot::builder()
            .with_backend_arc(options.backend)
            .with_transport_factory(options.transport)
            .with_http_client(double.media())
            .with_runtime(TokioRuntime)
            .with_version((2, 3000, 1))
            .with_push_name("Double")
            .with_wanted_pre_key_count(20)
            .with_event_handler(Recorder(events.clone()));
        if let Some(hook) = options.hook {
            builder = builder.with_inbound_durability_hook(Hook(hook));
        }
        let handle = builder.build().await.unwrap().spawn();
        Self { double: double.clone(), handle, events }
    }

    pub(crate) fn api(&self) -> Arc<WhatsApp> {
        self.handle.client()
    }

    /// Waits for an event, past or to come, that satisfies `pick`.
    pub(crate) async fn wait<T>(&self, what: &str, pick: impl Fn(&Event) -> Option<T>) -> T {
        self.wait_for_all(what, |events| events.iter().find_map(|event| pick(event))).await
    }

    /// Waits until the list of all events satisfies `pick`.
    pub(crate) async fn wait_for_all<T>(
        &self,
        what: &str,
        pick: impl Fn(&[Arc<Event>]) -> Option<T>,
    ) -> T {
        let mut count = self.events.count.subscribe();
        let found = async {
            loop {
                count.mark_unchanged();
                if let Some(found) = pick(&self.events.list.lock().unwrap()) {
                    return found;
                }
                count.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(self.double.patience(), found).await {
            Ok(found) => found,
            Err(_) => panic!("waited in vain for {what}; events: {:?}", self.events()),
        }
    }

    pub(crate) async fn connected(&self) {
        self.connected_times(1).await;
    }

    pub(crate) async fn connected_times(&self, times: usize) {
        self.wait_for_all("a connection", |events| {
            let connected = events.iter().filter(|event| matches!(***event, Event::Connected(_)));
            (connected.count() >= times).then_some(())
        })
        .await;
    }

    /// Waits for a message with this id.
    pub(crate) async fn message(&self, id: &str) -> InboundMessage {
        self.wait(&format!("message {id}"), |event| {
            event.messages().find(|message| message.info.id == *id).cloned()
        })
        .await
    }

    /// Waits until this many messages with content have arrived; returns their texts in order.
    pub(crate) async fn texts(&self, count: usize) -> Vec<String> {
        self.wait_for_all(&format!("{count} texts"), |events| {
            let texts = texts(events);
            (texts.len() >= count).then_some(texts)
        })
        .await
    }

    pub(crate) fn texts_so_far(&self) -> Vec<String> {
        texts(&self.events())
    }

    pub(crate) fn events(&self) -> Vec<Arc<Event>> {
        self.events.list.lock().unwrap().clone()
    }

    /// Waits until the client gives up for good.
    pub(crate) async fn ended(self) {
        tokio::time::timeout(self.double.patience(), self.handle)
            .await
            .expect("the client goes on");
    }

    pub(crate) async fn stop(self) {
        self.handle.shutdown().await;
    }
}

pub(crate) fn text_of(message: &InboundMessage) -> Option<String> {
    let own = message.message.device_sent_message.as_option();
    let inner = own.and_then(|own| own.message.as_option()).unwrap_or(&message.message);
    inner.conversation.clone()
}

fn texts(events: &[Arc<Event>]) -> Vec<String> {
    events.iter().flat_map(|event| event.messages()).filter_map(text_of).collect()
}

struct Events {
    list: Mutex<Vec<Arc<Event>>>,
    count: watch::Sender<usize>,
}

struct Recorder(Arc<Events>);

impl EventHandler for Recorder {
    fn handle_event(&self, event: Arc<Event>) {
        self.0.list.lock().unwrap().push(event);
        self.0.count.send_modify(|count| *count += 1);
    }
}

struct Hook(Arc<dyn InboundDurabilityHook>);

#[async_trait::async_trait]
impl InboundDurabilityHook for Hook {
    async fn on_messages(
        &self,
        client: Arc<WhatsApp>,
        batch: &[InboundMessage],
    ) -> anyhow::Result<()> {
        self.0.on_messages(client, batch).await
    }
}
