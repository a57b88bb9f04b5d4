//! What every request shares: the instance behind it, who may call, what is counted.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, FromRequest, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json, Router};
use backfill_core::id::InstanceId;
use backfill_core::instance::LockInsight;
use backfill_core::io::{self, PassiveReason};
use backfill_core::time::{Mono, StoreTime};
use backfill_driver::Handle;
use backfill_driver::billing::Operations;
use serde::de::DeserializeOwned;
use tower_http::catch_panic::CatchPanicLayer;

use crate::access::{Access, AccessOptions, Peer};
use crate::answer::Mode;
use crate::documents::Documents;
use crate::error::{Details, Failure};
use crate::metered::Reached;
use crate::metrics::Metrics;
use crate::view::{View, reason_name};
use crate::{accounts, openapi};

/// What the HTTP side has to know.
pub struct Options {
    /// What operators call this process
    pub instance: InstanceId,
    /// Part of every account's id
    pub namespace: String,
    /// No more accounts than this are added
    pub max_accounts: u32,
    /// The console offers "Sync / Backfill"
    pub debug: bool,
    /// From which commit this was built
    pub commit: String,
    /// Who may do what
    pub access: AccessOptions,
}

/// The clocks that answers show.
#[derive(Clone)]
pub struct Clocks {
    /// This process's own clock
    pub mono: Arc<dyn Fn() -> Mono + Send + Sync>,
    /// What people call the time
    pub wall: Arc<dyn Fn() -> StoreTime + Send + Sync>,
}

/// The HTTP side of one process. Clones are the same.
#[derive(Clone)]
pub struct App(Arc<Inner>);

struct Inner {
    options: Options,
    clocks: Clocks,
    started: Mono,
    access: Access,
    view: View,
    metrics: Arc<Metrics>,
    live: RwLock<Result<Live, &'static str>>,
    listed: accounts::Listed,
}

/// A running instance and its store.
#[derive(Clone)]
pub struct Live {
    /// Reaches the instance
    pub handle: Handle,
    /// Its store's documents
    pub documents: Documents,
    /// Whether the store is reached
    pub reached: Reached,
    /// What using the store has cost
    pub operations: Arc<dyn Fn() -> Operations + Send + Sync>,
}

/// What an instance does, as readers are told.
pub(crate) struct Standing {
    /// `None` while active
    pub(crate) reason: Option<&'static str>,
    pub(crate) lock: Option<LockInsight>,
}

impl App {
    /// An HTTP side without an instance: it is passive, for the reason given.
    ///
    /// # Errors
    /// The client that fetches Firebase's keys cannot be made.
    pub fn new(
        options: Options,
        clocks: Clocks,
        view: View,
        metrics: Arc<Metrics>,
        reason: &'static str,
    ) -> Result<Self, reqwest::Error> {
        let started = (clocks.mono)();
        let access = Access::new(options.access.clone())?;
        let live = RwLock::new(Err(reason));
        let listed = accounts::Listed::default();
        let labels = [("version", env!("CARGO_PKG_VERSION")), ("commit", options.commit.as_str())];
        metrics.set("wa_build_info", &labels, 1.0);
        Ok(Self(Arc::new(Inner { options, clocks, started, access, view, metrics, live, listed })))
    }

    /// Serves this instance from now on.
    pub fn attach(&self, live: Live) {
        *self.0.live.write().unwrap_or_else(PoisonError::into_inner) = Ok(live);
    }

    /// Serves no instance any more, or not yet: it is passive, for the reason given.
    pub fn detach(&self, reason: &'static str) {
        *self.0.live.write().unwrap_or_else(PoisonError::into_inner) = Err(reason);
    }

    /// All routes.
    pub fn router(&self) -> Router {
        let (router, api) = openapi::routes();
        router
            .layer(Extension(Arc::new(api)))
            .fallback(async || Failure::new(StatusCode::NOT_FOUND, "not_found", "No such path."))
            .method_not_allowed_fallback(async || {
                let status = StatusCode::METHOD_NOT_ALLOWED;
                Failure::new(status, "method_not_allowed", "This path has other methods.")
            })
            .layer(DefaultBodyLimit::max(MOST_BODY_BYTES))
            .layer(CatchPanicLayer::custom(|_: Box<dyn std::any::Any + Send>| {
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                Failure::new(status, "internal", "Something went wrong here.").into_response()
            }))
            .layer(middleware::from_fn_with_state(self.clone(), bounded))
            .layer(middleware::from_fn_with_state(self.clone(), observed))
            .with_state(self.clone())
    }

    pub(crate) fn options(&self) -> &Options {
        &self.0.options
    }

    pub(crate) fn instance_id(&self) -> String {
        self.options().instance.to_string()
    }

    pub(crate) fn access(&self) -> &Access {
        &self.0.access
    }

    pub(crate) fn view(&self) -> &View {
        &self.0.view
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.0.metrics
    }

    pub(crate) fn listed(&self) -> &accounts::Listed {
        &self.0.listed
    }

    pub(crate) fn now(&self) -> Mono {
        (self.0.clocks.mono)()
    }

    pub(crate) fn wall(&self) -> StoreTime {
        (self.0.clocks.wall)()
    }

    pub(crate) fn uptime(&self) -> Duration {
        self.now().since(self.0.started)
    }

    /// The instance, if there is one.
    pub(crate) fn live(&self) -> Option<Live> {
        self.0.live.read().unwrap_or_else(PoisonError::into_inner).as_ref().ok().cloned()
    }

    /// The store's documents.
    pub(crate) fn documents(&self) -> Result<Documents, Failure> {
        let unavailable = || {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            Failure::new(status, "store_unavailable", "The store cannot be reached now.")
                .retry_after(5)
        };
        self.live().map(|live| live.documents).ok_or_else(unavailable)
    }

    /// The instance, for something that changes state.
    pub(crate) fn active(&self) -> Result<Live, Failure> {
        let standing = self.standing();
        let live = self.live().filter(|_| standing.reason.is_none());
        live.ok_or_else(|| self.passive(&standing))
    }

    pub(crate) fn passive(&self, standing: &Standing) -> Failure {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Failure::new(status, "instance_passive", "This instance is passive; another one serves.")
            .with(Details {
                mode: Some(Mode::Passive),
                wa_mode: Some(Mode::Passive),
                instance_id: Some(self.instance_id()),
                holder_instance_id: Some(standing.holder()),
                ..Details::default()
            })
            .retry_after(PASSIVE_RETRY_SECONDS)
    }

    pub(crate) fn standing(&self) -> Standing {
        let live = self.0.live.read().unwrap_or_else(PoisonError::into_inner);
        match &*live {
            Err(reason) => Standing { reason: Some(reason), lock: None },
            Ok(live) => live.handle.look(|instance| {
                let starting = instance.mode() == io::Mode::Passive(PassiveReason::Starting);
                let store = live.reached.failure().filter(|_| starting);
                let reason = store.or_else(|| reason_name(instance.mode()));
                Standing { reason, lock: instance.lock_insight() }
            }),
        }
    }
}

impl Standing {
    pub(crate) const fn mode(&self) -> Mode {
        if self.reason.is_none() { Mode::Active } else { Mode::Passive }
    }

    /// Who holds the lock, if anybody is known to.
    pub(crate) fn holder(&self) -> Option<String> {
        self.lock.as_ref().map(|lock| lock.holder.to_string())
    }
}

/// The id of the request that is being answered.
pub(crate) fn request_id() -> String {
    REQUEST_ID.try_with(Clone::clone).unwrap_or_default()
}

/// 32 hexadecimal digits drawn at random.
pub(crate) fn random_hex() -> String {
    let mut bytes = [0; 16];
    // The kernel's generator fails only before it is seeded, long before this starts.
    getrandom::fill(&mut bytes).expect("the system has randomness");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A JSON body whose errors are JSON too.
pub(crate) struct Body<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<App> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, app: &App) -> Result<Self, Failure> {
        Json::from_request(request, app).await.map(|Json(body)| Self(body)).map_err(|rejection| {
            let code = match rejection.status() {
                StatusCode::PAYLOAD_TOO_LARGE => "payload_too_large",
                StatusCode::UNSUPPORTED_MEDIA_TYPE => "unsupported_media_type",
                _ => "bad_request",
            };
            Failure::new(
                rejection.status(),
                code,
                "The body has to be a JSON object as documented.",
            )
        })
    }
}

tokio::task_local! {
    static REQUEST_ID: String;
}

/// Gives every request an id, counts it, and says what browsers may do with the answer.
async fn observed(State(app): State<App>, request: Request, next: Next) -> Response {
    let given = request.headers().get(X_REQUEST_ID).and_then(|id| id.to_str().ok());
    let plain =
        |id: &&str| (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
    let id = given.filter(plain).map_or_else(random_hex, str::to_owned);
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let route = route.unwrap_or_else(|| "none".to_owned());
    // Callers choose methods and paths; what is counted by them must have an end.
    let method = match *request.method() {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => "other",
    };
    let begun = app.now();
    let mut response = REQUEST_ID.scope(id.clone(), next.run(request)).await;
    let took = app.now().since(begun);
    let status = response.status();
    app.metrics().add(
        "wa_http_requests_total",
        &[("route", &route), ("method", method), ("status", status.as_str())],
        1,
    );
    app.metrics().time("wa_http_request_seconds", &[("route", &route)], took);
    tracing::debug!(method, route, status = status.as_u16(), request_id = id, "[http] answered");
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(X_REQUEST_ID, id);
    }
    for (name, value) in SECURITY_HEADERS {
        headers.insert(name.clone(), HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Bounds how often somebody may ask and how long an answer may take.
async fn bounded(State(app): State<App>, request: Request, next: Next) -> Response {
    let open = matches!(request.uri().path(), "/" | "/health" | "/ready" | "/diag");
    if !open {
        let peer = request.extensions().get::<Peer>().copied();
        if let Err(failure) = app.access().check_ip((request.headers(), peer)) {
            return failure.into_response();
        }
    }
    match tokio::time::timeout(LONGEST_ANSWER, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let status = StatusCode::GATEWAY_TIMEOUT;
            Failure::new(status, "timeout", "The answer took too long.").into_response()
        }
    }
}

/// Notes the address a request came from.
pub(crate) fn note_peer<B>(request: &mut axum::http::Request<B>, ip: IpAddr) {
    request.extensions_mut().insert(Peer(ip));
}

const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const SECURITY_HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
         connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];
const MOST_BODY_BYTES: usize = 128 * 1_024;
const LONGEST_ANSWER: Duration = Duration::from_secs(30);
/// As long as a passive instance waits before it looks for the lock again.
pub(crate) const PASSIVE_RETRY_SECONDS: u64 = 15;
