//! A world with a server, a phone, a store, and processes that come and go.

pub(crate) mod process;
pub(crate) mod store;
pub(crate) mod transport;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use backfill_core::doc::{
    DocPath, Document, FieldOp, FieldPath, Precondition, Value, Version, Write,
};
use backfill_core::id::{AccountId, InstanceId, ThreadId};
use backfill_core::io::{CloseReason, Command, GatewayEvent, Input, Output, Reply};
use backfill_core::policy::{Credentials, Policy, Settings};
use backfill_core::time::Mono;
use backfill_driver::port::{Runtime, Store};
use backfill_driver::{Driver, Handle, Observer};
use base64::Engine;
use gateway_whatsapp::{Options, Session, SessionKeys, Sessions, Spool, WhatsApp};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::Instant;
use wacore::companion_reg::companion_web_client_type_for_props;
use wacore::pair::{DeviceState, PairUtils};
use waproto::whatsapp as wa;
use whatsapp_double::{Account, Double};

use store::TestStore;

pub(crate) const PN: &str = "15550000001";
pub(crate) const LID: &str = "100000000000001";

/// One account, its phone, and a store.
pub(crate) struct World {
    pub(crate) double: Double,
    pub(crate) account: Account,
    pub(crate) store: TestStore,
    pub(crate) id: AccountId,
    pub(crate) directory: Arc<TempDir>,
    /// Whether sessions lie in files of this host
    pub(crate) local: bool,
}

impl World {
    /// An account that was never linked.
    pub(crate) async fn new() -> Self {
        Self::over(TestStore::memory()).await
    }

    pub(crate) async fn over(store: TestStore) -> Self {
        assert!(whatsapp_double::follow_tokio());
        let double = Double::new();
        double.set_patience(PATIENCE);
        let account = double.account(PN, LID);
        let id = AccountId::of_phone("test", PN).unwrap();
        let directory = Arc::new(tempfile::tempdir().unwrap());
        let world = Self { double, account, store, id, directory, local: false };
        world.put_account("connecting", &[]).await;
        world
    }

    /// An account whose device is linked.
    pub(crate) async fn linked() -> Self {
        let world = Self::new().await;
        world.link().await;
        world
    }

    pub(crate) async fn link(&self) {
        // The fence of nobody, before anybody owns the account.
        let owner = (FieldPath::new("epoch"), Value::from(0_i64).into());
        let lease = Write::merge(self.id.connection_path(), Precondition::Absent, vec![owner]);
        self.store.commit(vec![lease]).await.unwrap();
        let session = self.session().await;
        self.account.seed(&session.backend).await.unwrap();
        session.close().await.unwrap();
        self.put_account("disconnected", &[]).await;
    }

    /// Waits until a message of ours has left; fails if it ends otherwise.
    pub(crate) async fn until_sent(&self, outbox: &str) {
        let path = format!("outbox/{outbox}");
        self.until("a sent message", async || {
            let doc = self.document(&path).await?;
            assert_ne!(doc.str("status"), Some("failed"));
            (doc.str("status") == Some("sent")).then_some(())
        })
        .await;
    }

    /// Another account of the same server and store, whose device is linked.
    pub(crate) async fn another(&self, number: u64) -> Self {
        let pn = format!("1556{number:07}");
        let world = Self {
            double: self.double.clone(),
            account: self.double.account(&pn, &format!("1001{number:011}")),
            store: self.store.clone(),
            id: AccountId::of_phone("test", &pn).unwrap(),
            directory: Arc::clone(&self.directory),
            local: self.local,
        };
        world.link().await;
        world
    }

    /// The account's session as it lies in the store, whoever uses it.
    pub(crate) async fn session(&self) -> Session {
        let lease = self.document(self.id.connection_path().as_str()).await.unwrap();
        let fence = move |_: &AccountId| Some(lease.version);
        self.sessions(self.store.clone(), fence).open(&self.id).await.unwrap()
    }

    pub(crate) async fn is_paired(&self) -> bool {
        self.sessions(self.store.clone(), |_| None).is_paired(&self.id).await.unwrap()
    }

    fn sessions(
        &self,
        store: TestStore,
        fence: impl Fn(&AccountId) -> Option<Version> + Send + Sync + 'static,
    ) -> Sessions<TestStore> {
        match self.local {
            true => Sessions::local(self.directory.path().join("sessions")),
            false => Sessions::shared(store, keys(), fence),
        }
    }

    /// The code that is to be scanned now.
    pub(crate) async fn code_on_show(&self) -> String {
        self.code_of(wa::device_props::PlatformType::DESKTOP).await
    }

    /// The same, of a device that calls itself this.
    pub(crate) async fn code_of(&self, platform: wa::device_props::PlatformType) -> String {
        let device = self.session().await.backend.load().await.unwrap().unwrap();
        let state = DeviceState {
            identity_key: device.identity_key.clone(),
            noise_key: device.noise_key.clone(),
            adv_secret_key: device.adv_secret_key,
        };
        let props = wa::DeviceProps { platform_type: Some(platform), ..Default::default() };
        let client = companion_web_client_type_for_props(&props);
        PairUtils::make_qr_data(&state, &self.double.pairing_refs()[0], client)
    }

    pub(crate) async fn put_account(&self, status: &str, more: &[(&'static str, &str)]) {
        let mut fields: Vec<(FieldPath, FieldOp)> = vec![
            (FieldPath::new("status"), Value::from(status).into()),
            (FieldPath::new("createdAt"), FieldOp::ServerTime),
        ];
        fields.extend(more.iter().map(|(k, v)| (FieldPath::new(k), Value::from(*v).into())));
        let write = Write::merge(self.id.path(), Precondition::Any, fields);
        self.store.commit(vec![write]).await.unwrap();
    }

    pub(crate) fn options(&self) -> Options {
        let transport = Arc::new(self.double.transport());
        let spool = Spool::disk(self.directory.path().join("spool"));
        let mut options = Options::new(transport, Arc::new(self.double.media()), spool);
        options.version = Some((2, 3000, 1));
        options.pre_keys = 20;
        options.close_timeout = Duration::from_secs(2);
        options
    }

    /// A process like any other.
    pub(crate) async fn start(&self) -> Process {
        self.start_with(self.store.clone(), self.options(), self.settings()).await
    }

    /// The usual settings, without what happens by itself.
    pub(crate) fn settings(&self) -> Settings {
        let mut settings = Settings::exclusive(InstanceId::parse("test").unwrap());
        settings.auto_backfill.enabled = false;
        settings.recent_sync.enabled = false;
        settings.credentials = if self.local { Credentials::Local } else { Credentials::Shared };
        settings
    }

    pub(crate) async fn start_with(
        &self,
        store: TestStore,
        options: Options,
        settings: Settings,
    ) -> Process {
        let prepared = self.prepare(store.clone(), options, settings);
        let (handle, seen) = (prepared.driver.handle(), prepared.seen.clone());
        let running = tokio::spawn(prepared.run());
        Process { handle, seen, running, id: self.id.clone(), store }
    }

    /// A process that does not run yet.
    pub(crate) fn prepare(
        &self,
        store: TestStore,
        options: Options,
        settings: Settings,
    ) -> Prepared {
        let policy = Policy::new(settings).unwrap();
        static SEED: AtomicU32 = AtomicU32::new(1);
        let mut seed = [7; 32];
        seed[..4].copy_from_slice(&SEED.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        let seen = Seen::default();
        let driver = Driver::new(policy, seed, store.clone(), Clock, seen.clone());
        let handle = driver.handle();
        let owner = handle.clone();
        let fence = move |account: &AccountId| owner.look(|instance| instance.fence(account));
        let sessions = self.sessions(store.clone(), fence);
        let gateway = WhatsApp::new(handle, store, sessions, options);
        Prepared { driver, gateway, seen }
    }

    /// The document of a message in the chat with this address, if it is there.
    pub(crate) async fn message(&self, chat: &str, id: &str) -> Option<Arc<Document>> {
        let thread = ThreadId::of_chat(&self.id, chat).unwrap();
        self.document(&format!("threads/{}/messages/{id}", thread.as_str())).await
    }

    pub(crate) async fn thread(&self, chat: &str) -> Option<Arc<Document>> {
        let thread = ThreadId::of_chat(&self.id, chat).unwrap();
        self.document(&format!("threads/{}", thread.as_str())).await
    }

    pub(crate) async fn document(&self, path: &str) -> Option<Arc<Document>> {
        let path = DocPath::parse(path).unwrap();
        self.store.get(&[path]).await.unwrap().docs.remove(0)
    }

    pub(crate) async fn status(&self) -> Option<String> {
        let doc = self.document(self.id.path().as_str()).await?;
        doc.str("status").map(str::to_owned)
    }

    /// All messages of a memory store, as chat and id.
    pub(crate) fn messages(&self) -> BTreeMap<(String, String), Arc<Document>> {
        self.message_documents().iter().map(named).collect()
    }

    /// The documents of all messages of a memory store.
    pub(crate) fn message_documents(&self) -> Vec<Arc<Document>> {
        let mut docs = self.store.documents("threads/");
        docs.retain(|doc| doc.path.as_str().contains("/messages/"));
        docs
    }

    /// Waits until something is true of the store.
    pub(crate) async fn until<T, F: Future<Output = Option<T>>>(
        &self,
        what: &str,
        look: impl Fn() -> F,
    ) -> T {
        let mut changes = self.store.changes();
        let found = async {
            loop {
                changes.mark_unchanged();
                if let Some(found) = look().await {
                    return found;
                }
                changes.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(PATIENCE, found).await {
            Ok(found) => found,
            Err(_) => panic!("waited in vain for {what}"),
        }
    }

    pub(crate) async fn until_status(&self, status: &str) {
        self.until(status, async || (self.status().await? == status).then_some(())).await;
    }

    pub(crate) async fn until_message(&self, chat: &str, id: &str) -> Arc<Document> {
        self.until(id, || self.message(chat, id)).await
    }
}

/// An instance with its gateway.
pub(crate) struct Prepared {
    pub(crate) driver: Driver<TestStore, Clock, Seen>,
    gateway: WhatsApp<TestStore>,
    pub(crate) seen: Seen,
}

impl Prepared {
    pub(crate) async fn run(self) {
        self.gateway.start().await.unwrap();
        self.driver.run(self.gateway).await;
    }
}

/// A running instance with its gateway.
pub(crate) struct Process {
    pub(crate) handle: Handle,
    pub(crate) seen: Seen,
    running: tokio::task::JoinHandle<()>,
    id: AccountId,
    store: TestStore,
}

impl Process {
    /// Waits until the account is connected, for the nth time.
    pub(crate) async fn opened(&self, times: usize) {
        self.seen
            .until("an open connection", |seen| {
                let opened =
                    seen.iter().filter(|event| matches!(event, GatewayEvent::Opened { .. }));
                (opened.count() >= times).then_some(())
            })
            .await;
    }

    pub(crate) async fn closed(&self) -> CloseReason {
        self.seen
            .until("a closed connection", |seen| {
                seen.iter().find_map(|event| match event {
                    GatewayEvent::Closed { reason, .. } => Some(*reason),
                    _ => None,
                })
            })
            .await
    }

    pub(crate) async fn command(&self, command: impl FnOnce(AccountId) -> Command) -> Reply {
        self.handle.command(command(self.id.clone())).await.unwrap()
    }

    /// Stops in good order.
    pub(crate) async fn stop(self) {
        assert_eq!(self.handle.command(Command::Stop).await, Ok(Reply::Accepted));
        tokio::time::timeout(PATIENCE, self.running).await.expect("it goes on").unwrap();
    }

    pub(crate) fn store(&self) -> &TestStore {
        &self.store
    }
}

/// What the gateway told the core.
#[derive(Clone)]
pub(crate) struct Seen {
    events: Arc<Mutex<Vec<GatewayEvent>>>,
    ingested: Arc<Mutex<Vec<backfill_core::io::Ingested>>>,
    outputs: Arc<Mutex<Vec<(Mono, Output)>>>,
    count: watch::Sender<usize>,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            events: Arc::default(),
            ingested: Arc::default(),
            outputs: Arc::default(),
            count: watch::Sender::new(0),
        }
    }
}

impl Observer for Seen {
    fn input(&mut self, _: Mono, input: &Input) {
        match input {
            Input::Gateway(_, event) => self.events.lock().unwrap().push(event.clone()),
            Input::Ingested(_, ingested) => self.ingested.lock().unwrap().push(ingested.clone()),
            _ => return,
        }
        self.count.send_modify(|count| *count += 1);
    }

    fn settled(&mut self, now: Mono, _: &backfill_core::instance::Instance, outputs: &[Output]) {
        let calls = outputs.iter().filter(|output| matches!(output, Output::Gateway(_)));
        self.outputs.lock().unwrap().extend(calls.map(|call| (now, call.clone())));
    }
}

impl Seen {
    pub(crate) fn events(&self) -> Vec<GatewayEvent> {
        self.events.lock().unwrap().clone()
    }

    pub(crate) fn ingested(&self) -> Vec<backfill_core::io::Ingested> {
        self.ingested.lock().unwrap().clone()
    }

    /// What the core asked the gateway for.
    pub(crate) fn calls(&self) -> Vec<backfill_core::io::GatewayRequest> {
        self.timed_calls().into_iter().map(|(_, call)| call).collect()
    }

    /// The same, with when.
    pub(crate) fn timed_calls(&self) -> Vec<(Mono, backfill_core::io::GatewayRequest)> {
        let outputs = self.outputs.lock().unwrap();
        let calls = outputs.iter().filter_map(|(at, output)| match output {
            Output::Gateway(request) => Some((*at, request.clone())),
            _ => None,
        });
        calls.collect()
    }

    pub(crate) async fn until<T>(
        &self,
        what: &str,
        pick: impl Fn(&[GatewayEvent]) -> Option<T>,
    ) -> T {
        let mut count = self.count.subscribe();
        let found = async {
            loop {
                count.mark_unchanged();
                if let Some(found) = pick(&self.events.lock().unwrap()) {
                    return found;
                }
                count.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(PATIENCE, found).await {
            Ok(found) => found,
            Err(_) => panic!("waited in vain for {what}: {:?}", self.events()),
        }
    }
}

/// Tokio's time and tasks.
#[derive(Clone)]
pub(crate) struct Clock;

impl Runtime for Clock {
    fn now(&self) -> Mono {
        static ORIGIN: OnceLock<Instant> = OnceLock::new();
        let now = Instant::now();
        let passed = now.saturating_duration_since(*ORIGIN.get_or_init(|| now));
        Mono::from_millis(1_000 + passed.as_millis() as u64)
    }

    fn sleep_until(&self, at: Mono) -> impl Future<Output = ()> + Send + 'static {
        let wait = at.since(self.now());
        tokio::time::sleep(wait)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(task);
    }
}

/// A message by its chat and id.
pub(crate) fn named(doc: &Arc<Document>) -> ((String, String), Arc<Document>) {
    let chat = doc.str("clientJid").unwrap().to_owned();
    ((chat, doc.str("waMessageId").unwrap().to_owned()), Arc::clone(doc))
}

/// A text of the app on its way out; returns the outbox document's id.
pub(crate) async fn write_outbox(world: &World, chat: &str, unique: &str, body: &str) -> String {
    let id = format!("{unique:0>64}");
    let thread = ThreadId::of_chat(&world.id, chat).unwrap();
    let text = |key: &'static str, value: &str| -> (FieldPath, FieldOp) {
        (FieldPath::new(key), Value::from(value).into())
    };
    let now = wacore::time::now_millis();
    let outbox = vec![
        text("status", "queued"),
        text("accountId", world.id.as_str()),
        text("toJid", chat),
        text("threadId", thread.as_str()),
        text("body", body),
        text("payload.text", body),
        text("clientMessageId", unique),
        (FieldPath::new("attemptCount"), Value::from(0_i64).into()),
        (FieldPath::new("nextAttemptAt"), FieldOp::ServerTime),
        (FieldPath::new("createdAt"), FieldOp::ServerTime),
    ];
    let message = vec![
        text("accountId", world.id.as_str()),
        text("clientJid", chat),
        text("threadId", thread.as_str()),
        text("direction", "outbound"),
        text("status", "queued"),
        text("body", body),
        text("messageType", "text"),
        text("clientMessageId", unique),
        text("tsClient", "2025-06-15T15:06:40.000Z"),
        (FieldPath::new("createdAtMs"), Value::from(now).into()),
    ];
    let path = |path: String| DocPath::parse(path).unwrap();
    let message_path = path(format!("threads/{}/messages/{id}", thread.as_str()));
    let writes = vec![
        Write::merge(path(format!("outbox/{id}")), Precondition::Absent, outbox),
        Write::merge(message_path, Precondition::Absent, message),
    ];
    world.store.commit(writes).await.unwrap();
    id
}

pub(crate) fn keys() -> SessionKeys {
    let key = base64::engine::general_purpose::STANDARD.encode([7; 32]);
    SessionKeys::parse(&format!("test:{key}")).unwrap()
}

/// Longest wait of a test; costs nothing while the clock is paused.
pub(crate) const PATIENCE: Duration = Duration::from_secs(600);
