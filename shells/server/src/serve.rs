//! The server: store, instance, gateway and HTTP, wired together.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{Read, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backfill_core::io::Command;
use backfill_driver::billing::Counted;
use backfill_driver::port::{Gateway, Runtime, Store, StoreError};
use backfill_driver::{Driver, Handle, Observer};
use store_firestore::FirestoreStore;
use store_sqlite::SqliteStore;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};
use wa_http::app::{App, Clocks, Live, Options};
use wa_http::metered::Metered;
use wa_http::metrics::Metrics;
use wa_http::view::{View, Witness};
use wa_http::{AccessOptions, Documents};

use crate::clock::{TokioRuntime, wall};
use crate::config::{Config, SessionChoice, StoreChoice};
use crate::economy;
use crate::journal::Journal;

/// Makes the gateway of a server: the real one, or another in demos and tests.
pub trait Connector: Send + Sync + 'static {
    /// What it makes.
    type Gateway<S: Store>: Gateway;

    /// Makes it ready for the instance behind `handle`, whose documents are in `store`.
    ///
    /// # Errors
    /// Why it cannot work; the server ends.
    fn connect<S: Store>(
        &self,
        config: &Config,
        handle: Handle,
        store: S,
    ) -> impl Future<Output = Result<Self::Gateway<S>, StartError>> + Send;

    /// Sees what the instance is told and does, as the log does.
    fn observer(&self) -> impl Observer {}

    /// What has to be done besides, as long as the instance runs.
    fn attend<S: Store>(&self, _gateway: &Self::Gateway<S>) -> impl Future<Output = ()> + Send {
        std::future::pending()
    }
}

/// Why a server did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It cannot listen
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// Where
        address: SocketAddr,
        /// Why
        source: std::io::Error,
    },
    /// A file or directory cannot be used
    #[error("{path} cannot be used: {source}")]
    Path {
        /// Which
        path: PathBuf,
        /// Why
        source: std::io::Error,
    },
    /// The store cannot be used
    #[error("the store cannot be used: {}", because(.0))]
    Store(#[source] StoreError),
    /// WhatsApp cannot be used
    #[error("WhatsApp cannot be used: {0}")]
    Gateway(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The client that fetches Firebase's keys cannot be made
    #[error("no HTTP client: {0}")]
    Client(#[from] reqwest::Error),
    /// A part of the server ended by itself
    #[error("the instance ended by itself")]
    Ended,
}

/// A server that runs.
pub struct Running {
    address: SocketAddr,
    admin_token: String,
    handle: watch::Receiver<Option<Handle>>,
    instance: JoinHandle<Result<(), StartError>>,
    http: JoinHandle<()>,
    stop_http: watch::Sender<bool>,
    stop_timeout: Duration,
}

/// Starts a server.
///
/// # Errors
/// What makes it useless from the beginning. A store that cannot be reached at the moment does
/// not: then it is passive and tries again.
pub async fn start<C: Connector>(config: Config, connector: C) -> Result<Running, StartError> {
    // Two providers may be linked in; a program has to say which.
    let _ = rustls::crypto::ring::default_provider().install_default();
    private_dir(&config.data_dir)?;
    if let SessionChoice::Local(sessions) = &config.sessions {
        private_dir(sessions)?;
    }
    let admin_token = match &config.http.admin_token {
        Some(token) => token.clone(),
        None => kept_token(&admin_token_path(&config.data_dir))?,
    };
    let bind = config.http.bind;
    let listener = TcpListener::bind(bind)
        .await
        .map_err(|source| StartError::Bind { address: bind, source })?;
    let address =
        listener.local_addr().map_err(|source| StartError::Bind { address: bind, source })?;

    let view = View::default();
    let metrics = Arc::new(Metrics::default());
    economy::show(&metrics, &config.policy);
    let clocks = Clocks { mono: Arc::new(|| TokioRuntime.now()), wall: Arc::new(wall) };
    let options = options(&config, &admin_token);
    let app = App::new(options, clocks, view.clone(), Arc::clone(&metrics), "starting")?;

    let parts = Parts { app: app.clone(), view, metrics };
    let (told, handle) = watch::channel(None);
    let stop_timeout = config.policy.stop_timeout;
    let instance = match config.store.clone() {
        StoreChoice::Sqlite(path) => {
            let opened = tokio::task::spawn_blocking(move || SqliteStore::open(&path)).await;
            let store = opened.map_err(|_| StartError::Ended)?.map_err(StartError::Store)?;
            tokio::spawn(async move { run(config, connector, store, parts, told).await })
        }
        StoreChoice::Firestore(options) => tokio::spawn(async move {
            let store = reached(&options, &parts.app).await?;
            run(config, connector, store, parts, told).await
        }),
    };
    let (stop_http, mut stopped) = watch::channel(false);
    let router = app.router();
    let http = tokio::spawn(wa_http::serve(listener, router, async move {
        // An error means that the sender is gone, and so the server.
        let _ = stopped.wait_for(|stop| *stop).await;
    }));
    info!(%address, "[http] listening");
    Ok(Running { address, admin_token, handle, instance, http, stop_http, stop_timeout })
}

impl Running {
    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The token for administration.
    pub fn admin_token(&self) -> &str {
        &self.admin_token
    }

    /// Reaches the instance, once there is one.
    pub async fn handle(&mut self) -> Option<Handle> {
        self.handle.wait_for(Option::is_some).await.ok().and_then(|handle| handle.clone())
    }

    /// Ends when the server ends by itself, which it should not.
    pub async fn ended(&mut self) -> StartError {
        match (&mut self.instance).await {
            Ok(Err(error)) => error,
            Ok(Ok(())) | Err(_) => StartError::Ended,
        }
    }

    /// Hands everything over and ends, within a bounded time. Answers are given to the end.
    pub async fn stop(mut self) {
        let handle = self.handle.borrow().clone();
        match handle {
            Some(handle) => {
                // It may have ended already.
                let _ = handle.command(Command::Stop).await;
                let bound = self.stop_timeout * 2 + STOP_GRACE;
                if tokio::time::timeout(bound, &mut self.instance).await.is_err() {
                    warn!("[lock] the instance did not stop in time; its leases will expire");
                    self.instance.abort();
                }
            }
            None => self.instance.abort(),
        }
        self.stop_http.send_replace(true);
        let _ = self.http.await;
    }
}

/// What the instance's task needs besides its store.
struct Parts {
    app: App,
    view: View,
    metrics: Arc<Metrics>,
}

async fn run<S: Store, C: Connector>(
    config: Config,
    connector: C,
    store: S,
    parts: Parts,
    told: watch::Sender<Option<Handle>>,
) -> Result<(), StartError> {
    let metered = Metered::new(store, TokioRuntime, Arc::clone(&parts.metrics));
    let reached = metered.reached();
    let store = Counted::new(metered);
    let metrics = Arc::clone(&parts.metrics);
    let journal = Journal::new(Witness::new(parts.view, parts.metrics), reached.clone());
    let observers = (journal, connector.observer());
    let mut seed = [0; 32];
    // The kernel's generator fails only before it is seeded, long before this starts.
    getrandom::fill(&mut seed).expect("the system has randomness");
    let driver = Driver::new(config.policy.clone(), seed, store.clone(), TokioRuntime, observers);
    let handle = driver.handle();
    handle.time_realtime(move |took| metrics.time("wa_hook_seconds", &[], took));
    let gateway = connector.connect(&config, handle.clone(), store.clone()).await?;
    let documents = Documents::of(store.clone());
    let operations = Arc::new(move || store.operations());
    parts.app.attach(Live { handle: handle.clone(), documents, reached, operations });
    told.send_replace(Some(handle));
    tokio::select! {
        () = driver.run(gateway.clone()) => {}
        () = connector.attend(&gateway) => {}
    }
    parts.app.detach("stopped");
    Ok(())
}

/// Connects to Firestore, however long that takes; meanwhile the server is passive.
async fn reached(
    options: &store_firestore::Options,
    app: &App,
) -> Result<FirestoreStore, StartError> {
    let mut wait = Duration::from_secs(1);
    loop {
        match FirestoreStore::connect(options).await {
            Ok(store) => return Ok(store),
            Err(error @ (StoreError::Denied(_) | StoreError::Invalid { .. })) => {
                return Err(StartError::Store(error));
            }
            Err(error) => {
                app.detach("store_unreachable");
                warn!("[store] {}; trying again in {} s", because(&error), wait.as_secs());
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(Duration::from_secs(30));
            }
        }
    }
}

fn options(config: &Config, admin_token: &str) -> Options {
    let http = &config.http;
    Options {
        instance: config.policy.instance.clone(),
        namespace: http.namespace.clone(),
        max_accounts: http.max_accounts,
        debug: http.console_debug,
        commit: option_env!("WA_BACKFILL_COMMIT").unwrap_or("unknown").to_owned(),
        access: AccessOptions {
            admin_token: admin_token.to_owned(),
            firebase: http.firebase.clone(),
            operators: http.operators.clone(),
            operator_claim: http.operator_claim.clone(),
            per_token: http.per_token,
            per_ip: http.per_ip,
            behind_proxy: http.behind_proxy,
        },
    }
}

/// Where the generated admin token lies.
pub fn admin_token_path(data_dir: &Path) -> PathBuf {
    data_dir.join("admin-token")
}

/// The token in the file, or a new one that is put there, readable for its owner only.
fn kept_token(path: &Path) -> Result<String, StartError> {
    let failed = |source| StartError::Path { path: path.to_owned(), source };
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(mut file) => {
            let mut bytes = [0; 24];
            getrandom::fill(&mut bytes).expect("the system has randomness");
            let token: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            file.write_all(token.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
            info!(path = %path.display(), "[http] an admin token was generated");
            Ok(token)
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let mut token = String::new();
            let mut file = std::fs::File::open(path).map_err(failed)?;
            file.read_to_string(&mut token).map_err(failed)?;
            let token = token.trim().to_owned();
            if token.len() < 16 {
                let short = std::io::Error::other("has to have at least 16 characters");
                return Err(failed(short));
            }
            Ok(token)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Makes a directory for this user alone, if need be, in which files can be made.
fn private_dir(path: &Path) -> Result<(), StartError> {
    let failed = |source| StartError::Path { path: path.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    let probe = path.join(format!(".probe-{}", std::process::id()));
    std::fs::write(&probe, []).and_then(|()| std::fs::remove_file(&probe)).map_err(failed)
}

/// The cause behind a store's error. At the start it names files and hosts, no documents.
fn because(error: &StoreError) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

const STOP_GRACE: Duration = Duration::from_secs(5);
