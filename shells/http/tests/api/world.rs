//! An instance with its API, and what stands for WhatsApp.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backfill_core::doc::{DocPath, FieldOp, FieldPath, Precondition, Query, Value as Field, Write};
use backfill_core::id::{AccountId, InstanceId, RequestId};
use backfill_core::io::{
    Answer, CloseReason, Command, GatewayCall, GatewayEvent, GatewayRequest, Rejection,
};
use backfill_core::policy::{Policy, Settings};
use backfill_core::time::{Mono, StoreTime};
use backfill_driver::billing::Counted;
use backfill_driver::port::{Committed, Found, Gateway, Runtime, Snapshot, Store, StoreError};
use backfill_driver::{Driver, Handle};
use futures_util::Stream;
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;
use store_sqlite::SqliteStore;
use tokio::sync::watch;
use wa_http::app::{App, Clocks, Live, Options};
use wa_http::metered::Metered;
use wa_http::metrics::Metrics;
use wa_http::view::{View, Witness};
use wa_http::{AccessOptions, Documents};

use crate::contract::{CONTRACT, Exchange};

pub(crate) const ADMIN: &str = "an-admin-token-for-tests";

/// One instance with its API.
pub(crate) struct World {
    pub(crate) address: SocketAddr,
    pub(crate) whatsapp: WhatsApp,
    pub(crate) store: TestStore,
    metrics: Arc<Metrics>,
    handle: Handle,
    client: reqwest::Client,
    stop: watch::Sender<bool>,
}

/// What a world is made of.
pub(crate) struct Setup {
    pub(crate) settings: Settings,
    pub(crate) access: AccessOptions,
    pub(crate) max_accounts: u32,
    pub(crate) debug: bool,
    pub(crate) file: PathBuf,
}

impl Setup {
    pub(crate) fn new() -> Self {
        let mut settings = Settings::exclusive(InstanceId::parse("here").unwrap());
        settings.credentials = backfill_core::policy::Credentials::Shared;
        settings.auto_backfill.enabled = false;
        settings.connect_stagger = Duration::ZERO;
        Self {
            settings,
            access: AccessOptions {
                admin_token: ADMIN.into(),
                firebase: None,
                operators: BTreeSet::new(),
                operator_claim: None,
                per_token: 0,
                per_ip: 0,
                behind_proxy: false,
            },
            max_accounts: 30,
            debug: false,
            file: temporary(),
        }
    }

    pub(crate) async fn start(self) -> World {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let store =
            TestStore { inner: SqliteStore::open(&self.file).unwrap(), stalled: Arc::default() };
        let view = View::default();
        let metrics = Arc::new(Metrics::default());
        let clock = Clock::new();
        let clocks = Clocks {
            mono: Arc::new(move || clock.now()),
            wall: Arc::new(|| StoreTime::from_secs(1_700_000_000)),
        };
        let options = Options {
            instance: self.settings.instance.clone(),
            namespace: "prod".into(),
            max_accounts: self.max_accounts,
            debug: self.debug,
            commit: "abc".into(),
            access: self.access,
        };
        let app =
            App::new(options, clocks, view.clone(), Arc::clone(&metrics), "starting").unwrap();
        let metered = Metered::new(store.clone(), clock, Arc::clone(&metrics));
        let reached = metered.reached();
        let counted = Counted::new(metered);
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).unwrap();
        let witness = Witness::new(view, Arc::clone(&metrics));
        let policy = Policy::new(self.settings).unwrap();
        let driver = Driver::new(policy, seed, counted.clone(), clock, witness);
        let handle = driver.handle();
        let whatsapp = WhatsApp { handle: handle.clone(), state: Arc::default() };
        let documents = Documents::of(counted.clone());
        let operations = Arc::new(move || counted.operations());
        app.attach(Live { handle: handle.clone(), documents, reached, operations });
        tokio::spawn(driver.run(whatsapp.clone()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, mut stopped) = watch::channel(false);
        tokio::spawn(wa_http::serve(listener, app.router(), async move {
            let _ = stopped.wait_for(|stop| *stop).await;
        }));
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(20))
            .build()
            .unwrap();
        World { address, whatsapp, store, metrics, handle, client, stop }
    }
}

impl World {
    /// An instance that serves.
    pub(crate) async fn active() -> Self {
        Setup::new().active().await
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.url(path))
    }

    /// What an administrator gets.
    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.admin(Method::GET, path, |request| request).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> (StatusCode, Value) {
        self.admin(Method::POST, path, |request| request.json(&body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> (StatusCode, Value) {
        self.admin(Method::DELETE, path, |request| request).await
    }

    async fn admin(
        &self,
        method: Method,
        path: &str,
        with: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> (StatusCode, Value) {
        let request = self.request(method.clone(), path).bearer_auth(ADMIN);
        self.answered(method, path, with(request)).await
    }

    /// What somebody gets, which has to be as described.
    pub(crate) async fn answered(
        &self,
        method: Method,
        path: &str,
        request: RequestBuilder,
    ) -> (StatusCode, Value) {
        let response = request.send().await.unwrap();
        let content_type = response.headers().get(CONTENT_TYPE).cloned();
        let content_type = content_type.as_ref().map_or("", |kind| kind.to_str().unwrap());
        let (status, body) = answer(response).await;
        let exchange = Exchange { method: &method, path, status, content_type, body: &body };
        let violations = CONTRACT.violations(&exchange);
        assert!(violations.is_empty(), "{method} {path} {status}: {violations:#?} in {body}");
        (status, body)
    }

    /// An account that somebody has paired.
    pub(crate) async fn connected(&self, phone: &str) -> AccountId {
        let id = self.added(phone).await;
        self.until_status(&id, "qr_ready").await;
        self.whatsapp.scan(&id);
        self.until_status(&id, "connected").await;
        id
    }

    pub(crate) async fn added(&self, phone: &str) -> AccountId {
        let body = serde_json::json!({ "name": "Shop", "phone": phone });
        let (status, body) = self.post("/api/whatsapp/add-account", body).await;
        assert_eq!(status, 200, "{body}");
        AccountId::parse(body["account"]["id"].as_str().unwrap()).unwrap()
    }

    pub(crate) async fn until_status(&self, id: &AccountId, status: &str) {
        self.until(&format!("{id} is {status}"), async || {
            self.document(id.path().as_str()).await.is_some_and(|doc| doc["status"] == status)
        })
        .await;
    }

    /// Whether this line is among the metrics.
    pub(crate) fn measures(&self, line: &str) -> bool {
        self.metrics.render().lines().any(|measured| measured == line)
    }

    /// Waits for something that follows by itself.
    pub(crate) async fn until(&self, what: &str, condition: impl AsyncFn() -> bool) {
        let waiting = async {
            while !condition().await {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        assert!(
            tokio::time::timeout(Duration::from_secs(20), waiting).await.is_ok(),
            "never: {what}"
        );
    }

    pub(crate) async fn document(&self, path: &str) -> Option<BTreeMap<String, Field2>> {
        let snapshot = self.store.inner.get(&[DocPath::parse(path).unwrap()]).await.unwrap();
        let doc = snapshot.docs.into_iter().next().flatten()?;
        Some(doc.fields.iter().map(|(k, v)| (k.to_string(), Field2(v.clone()))).collect())
    }

    pub(crate) async fn put(&self, path: &str, fields: Vec<(&'static str, Field)>) {
        let fields: Vec<(FieldPath, FieldOp)> =
            fields.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let write = Write::merge(DocPath::parse(path).unwrap(), Precondition::Any, fields);
        self.store.inner.commit(vec![write]).await.unwrap();
    }

    pub(crate) async fn stop(self) {
        self.handle.command(Command::Stop).await.unwrap();
        self.stop.send_replace(true);
    }
}

impl Setup {
    pub(crate) async fn active(self) -> World {
        let world = self.start().await;
        world
            .until("the instance is active", async || world.get("/ready").await.1["ready"] == true)
            .await;
        world
    }
}

/// A field that can be compared with text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Field2(pub(crate) Field);

impl PartialEq<str> for Field2 {
    fn eq(&self, other: &str) -> bool {
        self.0.as_str() == Some(other)
    }
}

impl PartialEq<&str> for Field2 {
    fn eq(&self, other: &&str) -> bool {
        self.0.as_str() == Some(*other)
    }
}

pub(crate) async fn answer(response: Response) -> (StatusCode, Value) {
    let status = response.status();
    let id = response.headers().get("x-request-id").cloned();
    let text = response.text().await.unwrap();
    let body: Value = serde_json::from_str(&text).unwrap_or(Value::String(text));
    if let Some(named) = body.get("requestId") {
        assert_eq!(named.as_str(), id.as_ref().and_then(|id| id.to_str().ok()));
    }
    (status, body)
}

/// A file of this test alone.
pub(crate) fn temporary() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("wa-http-{}-{n}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir.join("db.sqlite")
}

/// A SQLite file that can stop answering.
#[derive(Clone)]
pub(crate) struct TestStore {
    pub(crate) inner: SqliteStore,
    pub(crate) stalled: Arc<AtomicBool>,
}

impl TestStore {
    async fn gate(&self) {
        if self.stalled.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }
}

impl Store for TestStore {
    async fn get(&self, paths: &[DocPath]) -> Result<Snapshot, StoreError> {
        self.gate().await;
        self.inner.get(paths).await
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<Committed, StoreError> {
        self.gate().await;
        self.inner.commit(writes).await
    }

    async fn query(&self, query: &Query) -> Result<Found, StoreError> {
        self.gate().await;
        self.inner.query(query).await
    }

    fn watch(&self, query: Query) -> impl Stream<Item = ()> + Send + 'static {
        self.inner.watch(query)
    }
}

/// Stands for WhatsApp: links devices when a code is scanned, takes messages, answers no history.
#[derive(Clone)]
pub(crate) struct WhatsApp {
    handle: Handle,
    state: Arc<Mutex<Linked>>,
}

#[derive(Default)]
struct Linked {
    linked: BTreeSet<AccountId>,
    connections: BTreeMap<AccountId, RequestId>,
    sent: Vec<String>,
    deaf: bool,
}

impl WhatsApp {
    /// Somebody scans the code.
    pub(crate) fn scan(&self, account: &AccountId) {
        let connection = {
            let mut state = self.state.lock().unwrap();
            state.linked.insert(account.clone());
            state.connections[account]
        };
        self.handle.report(account.clone(), GatewayEvent::Paired { connection });
        self.open(account, connection);
    }

    /// The code was not scanned in time.
    pub(crate) fn expire(&self, account: &AccountId) {
        let connection = self.state.lock().unwrap().connections.remove(account).unwrap();
        let reason = CloseReason::PairingExpired;
        self.handle.report(account.clone(), GatewayEvent::Closed { connection, reason });
    }

    /// From now on messages are not confirmed.
    pub(crate) fn go_deaf(&self) {
        self.state.lock().unwrap().deaf = true;
    }

    /// The ids under which messages were sent.
    pub(crate) fn sent(&self) -> Vec<String> {
        self.state.lock().unwrap().sent.clone()
    }

    fn open(&self, account: &AccountId, connection: RequestId) {
        self.handle.report(account.clone(), GatewayEvent::Opened { connection });
        let drained = GatewayEvent::Drained { connection, announced: 0, stored: 0 };
        self.handle.report(account.clone(), drained);
    }
}

impl Gateway for WhatsApp {
    async fn execute(&self, request: GatewayRequest) -> Answer {
        let GatewayRequest { id, account, call, .. } = request;
        match call {
            GatewayCall::Close { connection } => {
                self.state.lock().unwrap().connections.remove(&account);
                let reason = CloseReason::Asked;
                self.handle.report(account, GatewayEvent::Closed { connection, reason });
            }
            GatewayCall::Connect => {
                let linked = {
                    let mut state = self.state.lock().unwrap();
                    state.connections.insert(account.clone(), id);
                    state.linked.contains(&account)
                };
                if linked {
                    self.open(&account, id);
                } else {
                    let qr = Some("data:image/png;base64,AAAA".into());
                    let pairing = GatewayEvent::Pairing { connection: id, qr, code: None };
                    self.handle.report(account, pairing);
                }
            }
            // The phone stays silent.
            GatewayCall::History { .. } => std::future::pending().await,
            GatewayCall::Logout => {
                self.state.lock().unwrap().linked.remove(&account);
            }
            GatewayCall::Send { wa_id, .. } => {
                let mut state = self.state.lock().unwrap();
                if state.deaf {
                    return Answer::Rejected(Rejection::Unavailable);
                }
                state.sent.push(wa_id.to_string());
            }
            GatewayCall::Parse { .. }
            | GatewayCall::Recover
            | GatewayCall::Spool { .. }
            | GatewayCall::Unspool { .. } => {}
        }
        Answer::Done
    }
}

#[derive(Clone, Copy)]
struct Clock(tokio::time::Instant);

impl Clock {
    fn new() -> Self {
        // Some time before now, as if the machine had run for a while.
        Self(tokio::time::Instant::now() - Duration::from_secs(1_000))
    }
}

impl Runtime for Clock {
    fn now(&self) -> Mono {
        Mono::from_millis(u64::try_from(self.0.elapsed().as_millis()).unwrap())
    }

    fn sleep_until(&self, at: Mono) -> impl Future<Output = ()> + Send + 'static {
        tokio::time::sleep_until(self.0 + Duration::from_millis(at.as_millis().min(1 << 40)))
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        tokio::spawn(task);
    }
}
