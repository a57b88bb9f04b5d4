//! The console: one page, one script, one style sheet, and the two answers only it needs.

use std::time::Duration;

use axum::Extension;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use backfill_core::coverage::{Bottom, Coverage};
use backfill_core::doc::{Comparison, DocPath, Document, FieldPath, Fields, Query, Value as Field};
use backfill_core::id::AccountId;
use backfill_core::io::RunKind;
use backfill_core::time::{Mono, StoreTime};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::access::{Admin, LOGGED_OUT, Peer};
use crate::accounts::{Account, accounts, parse, summary};
use crate::answer::{Mode, Success};
use crate::app::{App, Body, Live};
use crate::diagnosis::{Diagnosis, Verdict};
use crate::error::Failure;
use crate::health::status;
use crate::json::{Object, iso, map, text};
use crate::threads::newest_threads;
use crate::view::{PastRun, run_name, trigger_name};

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(page))
        .routes(routes!(login, log_in))
        .routes(routes!(log_out))
        .routes(routes!(session))
        .routes(routes!(styles))
        .routes(routes!(page_script))
        .routes(routes!(login_script))
        .routes(routes!(overview))
        .routes(routes!(sync))
}

/// The admin token.
#[derive(Deserialize, ToSchema)]
pub(crate) struct Login {
    token: String,
}

/// A login: its cookie comes with the answer.
#[derive(Serialize, ToSchema)]
pub(crate) struct LoggedIn {
    /// To be sent as `X-CSRF-Token` with every change
    csrf: String,
}

/// Nobody is logged in any more.
#[derive(Serialize, ToSchema)]
pub(crate) struct LoggedOut {}

/// What the console's script has to know before it begins.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConsoleSession {
    /// To be sent as `X-CSRF-Token` with every change; null with a bearer token
    csrf: Option<String>,
    /// "Sync / Backfill" is offered
    debug: bool,
    instance_id: String,
    version: &'static str,
}

/// How this instance and all accounts stand.
#[derive(Serialize, ToSchema)]
pub(crate) struct Overview {
    instance: InstanceState,
    accounts: Vec<AccountState>,
    /// From memory, because somebody asked a moment ago or the store does not answer
    cached: bool,
}

/// How this instance stands.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct InstanceState {
    instance_id: String,
    mode: Mode,
    /// Why it is passive
    reason: Option<&'static str>,
    /// Who holds the lock
    held_by: Option<String>,
    /// The store answered the latest call
    store_connected: bool,
    /// In seconds
    uptime: u64,
    /// "Sync / Backfill" is offered
    debug: bool,
    now: String,
}

/// How an account stands. What this instance cannot know is null.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct AccountState {
    #[serde(flatten)]
    account: Account,
    /// The part of the id that logs show
    masked: String,
    auto_backfill_lease_holder: Option<String>,
    auto_backfill_lease_until: Option<String>,
    last_auto_backfill_attempt_at: Option<String>,
    last_auto_backfill_status: Option<Object>,
    last_auto_backfill_success_at: Option<String>,
    last_backfill_at: Option<String>,
    last_disconnect_reason: Option<String>,
    last_disconnected_at: Option<String>,
    last_error: Option<String>,
    last_realtime_error: Option<String>,
    last_realtime_ingest_at: Option<String>,
    last_realtime_message_at: Option<String>,
    last_recent_sync_at: Option<String>,
    last_recent_sync_result: Option<Object>,
    updated_at: Option<String>,
    #[serde(flatten)]
    seen: Seen,
}

/// What this instance knows of an account besides its document.
#[derive(Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Seen {
    /// The instance that serves it
    owner: Option<String>,
    /// This instance serves it
    owned_here: Option<bool>,
    /// The fencing token of its latest owner
    epoch: Option<u64>,
    /// It is connected to WhatsApp here
    connected_here: Option<bool>,
    /// A success keeps the next periodic backfill off until then
    cooldown_until: Option<String>,
    /// An attempt keeps the next automatic backfill off until then
    backoff_until: Option<String>,
    next_backfill_tick_in_seconds: Option<u64>,
    next_recent_sync_tick_in_seconds: Option<u64>,
    /// When a backfill is due
    next_run_at: Option<String>,
    verdict: Option<Verdict>,
}

/// The picture of one account's history.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SyncPicture {
    account: AccountState,
    leases: Leases,
    /// The latest runs of this instance, the newest first
    runs: Vec<Run>,
    /// Threads that have an open hole
    open_holes: usize,
    /// The newest threads
    threads: Vec<ThreadState>,
    now: String,
}

/// The leases on one account; null if there was none yet.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Leases {
    connection: Option<Lease>,
    auto_backfill: Option<Lease>,
    recent_sync: Option<Lease>,
}

/// Who has, or had last, the right to do something.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Lease {
    instance_id: Option<String>,
    /// Nobody gave it back
    held: bool,
    /// Its fencing token
    epoch: Option<i64>,
    updated_at: String,
}

/// A run that ended.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Run {
    /// `auto_backfill` or `recent_sync`
    kind: &'static str,
    /// `connect`, `periodic` or `manual`
    trigger: Option<&'static str>,
    ended_at: String,
    ok: bool,
    error: Option<&'static str>,
    threads: u32,
    messages: u32,
    errors: u32,
    /// Threads that are not complete yet
    remaining: u32,
    duration_ms: u64,
}

/// A thread, and what of its history is known.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ThreadState {
    id: String,
    name: Option<String>,
    last_message_at: Option<String>,
    /// Null if nobody has looked yet
    coverage: Option<Covered>,
}

/// What of a thread's history is known to be complete. Moments are seconds since 1970.
#[derive(Serialize, ToSchema)]
struct Covered {
    /// The newest stretch reaches to now
    live: bool,
    /// The oldest stretch reaches to the beginning
    complete: bool,
    stretches: Vec<Stretch>,
    holes: Vec<Hole>,
}

/// A part without holes.
#[derive(Serialize, ToSchema)]
struct Stretch {
    from: i64,
    to: i64,
    /// It has at least this many
    messages: u32,
}

/// A part that may lack messages.
#[derive(Serialize, ToSchema)]
struct Hole {
    /// Null: nothing older is known
    after: Option<i64>,
    /// Null: it ends with the next message
    before: Option<i64>,
    /// The phone cannot fill it
    exhausted: bool,
    /// The phone will be asked
    fillable: bool,
}

/// The console, for those who are logged in.
#[utoipa::path(
    get,
    path = "/console",
    tag = "console",
    responses(
        (status = 200, description = "A page", body = String, content_type = "text/html"),
        (status = 303, description = "To the login")
    )
)]
async fn page(State(app): State<App>, headers: HeaderMap) -> Response {
    if app.access().session(&headers).is_none() {
        return Redirect::to("/console/login").into_response();
    }
    Html(include_str!("../assets/console.html")).into_response()
}

/// The login.
#[utoipa::path(
    get,
    path = "/console/login",
    tag = "console",
    responses((status = 200, description = "A page", body = String, content_type = "text/html"))
)]
async fn login() -> Html<&'static str> {
    Html(include_str!("../assets/login.html"))
}

/// Logs a browser in, with a cookie.
#[utoipa::path(
    post,
    path = "/console/login",
    tag = "console",
    request_body = Login,
    responses(
        (status = 200, description = "The cookie, and what belongs to it", body = Success<LoggedIn>),
        (status = 401, description = "`unauthorized`: the token is wrong"),
        (status = 413, description = "`payload_too_large`"),
        (status = 415, description = "`unsupported_media_type`: not JSON"),
        (status = 422, description = "`bad_request`: another shape")
    )
)]
async fn log_in(
    State(app): State<App>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
    Body(login): Body<Login>,
) -> Result<Response, Failure> {
    let peer = peer.map(|Extension(peer)| peer);
    let (session, cookie) = app.access().log_in(&login.token, (&headers, peer))?;
    let answer = Success::new(LoggedIn { csrf: session.csrf });
    Ok(([(header::SET_COOKIE, cookie)], answer).into_response())
}

/// Takes a browser's login away.
#[utoipa::path(
    post,
    path = "/console/logout",
    tag = "console",
    security(("admin" = [])),
    responses((status = 200, description = "The cookie is gone", body = Success<LoggedOut>))
)]
async fn log_out(_: Admin) -> Response {
    ([(header::SET_COOKIE, LOGGED_OUT)], Success::new(LoggedOut {})).into_response()
}

/// What the console's script has to know before it begins.
#[utoipa::path(
    get,
    path = "/console/session",
    tag = "console",
    security(("admin" = [])),
    responses((status = 200, description = "The login", body = Success<ConsoleSession>))
)]
async fn session(_: Admin, State(app): State<App>, headers: HeaderMap) -> Success<ConsoleSession> {
    Success::new(ConsoleSession {
        csrf: app.access().session(&headers).map(|session| session.csrf),
        debug: app.options().debug,
        instance_id: app.instance_id(),
        version: env!("CARGO_PKG_VERSION"),
    })
}

/// How the pages look.
#[utoipa::path(
    get,
    path = "/console/console.css",
    tag = "console",
    responses((status = 200, description = "A style sheet", body = String, content_type = "text/css"))
)]
async fn styles() -> Response {
    let css = include_str!("../assets/console.css");
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], css).into_response()
}

/// The console's script.
#[utoipa::path(
    get,
    path = "/console/console.js",
    tag = "console",
    responses((status = 200, description = "A script", body = String, content_type = "text/javascript"))
)]
async fn page_script() -> Response {
    script(include_str!("../assets/console.js"))
}

/// The login's script.
#[utoipa::path(
    get,
    path = "/console/login.js",
    tag = "console",
    responses((status = 200, description = "A script", body = String, content_type = "text/javascript"))
)]
async fn login_script() -> Response {
    script(include_str!("../assets/login.js"))
}

/// How this instance and all accounts stand: who serves them, and what comes next.
#[utoipa::path(
    get,
    path = "/api/admin/overview",
    tag = "admin",
    security(("admin" = [])),
    responses((status = 200, description = "`instance` and `accounts`, with diagnosis", body = Success<Overview>))
)]
async fn overview(_: Admin, State(app): State<App>) -> Result<Success<Overview>, Failure> {
    let standing = app.standing();
    let live = app.live();
    let (accounts, cached) = accounts(&app, LISTED_FOR).await?;
    let accounts = accounts
        .iter()
        .map(|(id, listed)| (id, app.view().account(id).unwrap_or_else(|| listed.clone())))
        .filter(|(_, fields)| status(fields) != "deleted")
        .map(|(id, fields)| state(&app, live.as_ref(), id, &fields))
        .collect();
    let instance = InstanceState {
        instance_id: app.instance_id(),
        mode: standing.mode(),
        reason: standing.reason,
        held_by: standing.holder(),
        store_connected: live.as_ref().is_some_and(|live| live.reached.get()),
        uptime: app.uptime().as_secs(),
        debug: app.options().debug,
        now: iso(app.wall()),
    };
    Ok(Success::new(Overview { instance, accounts, cached }))
}

/// An account's document, and what this instance makes of it.
fn state(app: &App, live: Option<&Live>, id: &AccountId, fields: &Fields) -> AccountState {
    AccountState {
        account: summary(id, fields),
        masked: id.masked().to_string(),
        auto_backfill_lease_holder: text(fields, "autoBackfillLeaseHolder"),
        auto_backfill_lease_until: text(fields, "autoBackfillLeaseUntil"),
        last_auto_backfill_attempt_at: text(fields, "lastAutoBackfillAttemptAt"),
        last_auto_backfill_status: map(fields, "lastAutoBackfillStatus"),
        last_auto_backfill_success_at: text(fields, "lastAutoBackfillSuccessAt"),
        last_backfill_at: text(fields, "lastBackfillAt"),
        last_disconnect_reason: text(fields, "lastDisconnectReason"),
        last_disconnected_at: text(fields, "lastDisconnectedAt"),
        last_error: text(fields, "lastError"),
        last_realtime_error: text(fields, "lastRealtimeError"),
        last_realtime_ingest_at: text(fields, "lastRealtimeIngestAt"),
        last_realtime_message_at: text(fields, "lastRealtimeMessageAt"),
        last_recent_sync_at: text(fields, "lastRecentSyncAt"),
        last_recent_sync_result: map(fields, "lastRecentSyncResult"),
        updated_at: text(fields, "updatedAt"),
        seen: live.and_then(|live| seen(app, live, id, fields)).unwrap_or_default(),
    }
}

/// What this instance knows of an account, if it has seen it.
fn seen(app: &App, live: &Live, id: &AccountId, fields: &Fields) -> Option<Seen> {
    let (insight, now, auto, next_auto, next_recent) = live.handle.look(|instance| {
        let insight = instance.account_insight(id)?;
        let until = |at: Mono| at.since(app.now()).as_secs();
        Some((
            insight,
            instance.store_now(),
            instance.policy().auto_backfill.clone(),
            instance.next_tick(RunKind::AutoBackfill).map(until),
            instance.next_tick(RunKind::RecentSync).map(until),
        ))
    })?;
    let time = |name: &str| fields.get(name).and_then(Field::as_time);
    let later = |at: Option<StoreTime>, span| at.map(|at| at + span).filter(|until| *until > now);
    let cooldown = later(time("lastAutoBackfillSuccessAt"), auto.cooldown);
    let backoff = later(time("lastAutoBackfillAttemptAt"), auto.backoff);
    let tick = next_auto.map(|s| now + Duration::from_secs(s));
    let due = cooldown.max(backoff).max(tick).filter(|_| auto.enabled && insight.connected);
    let diagnosis =
        Diagnosis { fields, insight: &insight, now, enabled: auto.enabled, cooldown, backoff };
    Some(Seen {
        verdict: Some(diagnosis.verdict()),
        owner: insight.owner.as_ref().map(ToString::to_string),
        owned_here: Some(insight.own),
        epoch: Some(insight.epoch.0),
        connected_here: Some(insight.connected),
        cooldown_until: cooldown.map(iso),
        backoff_until: backoff.map(iso),
        next_backfill_tick_in_seconds: next_auto,
        next_recent_sync_tick_in_seconds: next_recent,
        next_run_at: due.map(iso),
    })
}

/// The picture of one account's history: runs, leases, and per thread what is known to be complete.
#[utoipa::path(
    get,
    path = "/api/admin/sync/{id}",
    tag = "admin",
    security(("admin" = [])),
    params(("id" = String, Path, description = "The account")),
    responses(
        (status = 200, description = "`account`, `runs`, `leases` and `threads` with coverage", body = Success<SyncPicture>),
        (status = 404, description = "`account_not_found`")
    )
)]
async fn sync(
    _: Admin,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Success<SyncPicture>, Failure> {
    let id = parse(&id)?;
    let documents = app.documents()?;
    let paths = [id.path(), id.connection_path(), id.auto_backfill_path(), id.recent_sync_path()];
    let mut docs = documents.get(&paths).await?.docs.into_iter();
    let mut next = || docs.next().flatten();
    let account = next().filter(|doc| status(&doc.fields) != "deleted");
    let account = account.ok_or_else(Failure::account_not_found)?;
    let mut lease = || next().map(|doc| Lease::of(&doc));
    let leases = Leases { connection: lease(), auto_backfill: lease(), recent_sync: lease() };
    let threads = newest_threads(&documents, &id, COVERED_THREADS).await?;
    let paths: Vec<DocPath> = threads
        .iter()
        .filter_map(|thread| DocPath::new(&id.coverage(), thread.path.id()).ok())
        .collect();
    let coverage = documents.get(&paths).await?;
    let threads = threads.iter().zip(coverage.docs).map(|(thread, doc)| ThreadState {
        id: thread.path.id().to_owned(),
        name: text(&thread.fields, "displayName"),
        last_message_at: text(&thread.fields, "lastMessageAt"),
        coverage: doc.map(|doc| Covered::of(&doc.fields)),
    });
    let holes =
        Query::all(id.coverage(), 100).filter(FieldPath::new("open"), Comparison::Equal, true);
    Ok(Success::new(SyncPicture {
        account: state(&app, app.live().as_ref(), &id, &account.fields),
        leases,
        runs: app.view().runs(&id).iter().map(Run::of).collect(),
        open_holes: documents.query(&holes.select([])).await?.docs.len(),
        threads: threads.collect(),
        now: iso(coverage.read_time),
    }))
}

impl Lease {
    fn of(doc: &Document) -> Self {
        Self {
            instance_id: text(&doc.fields, "instanceId"),
            held: doc.str("owner").is_some_and(|owner| !owner.is_empty()),
            epoch: doc.value("epoch").and_then(Field::as_int),
            updated_at: iso(doc.update_time),
        }
    }
}

impl Run {
    fn of(run: &PastRun) -> Self {
        Self {
            kind: run_name(run.kind),
            trigger: run.trigger.map(trigger_name),
            ended_at: iso(run.ended),
            ok: run.result.ok,
            error: run.result.error,
            threads: run.result.threads,
            messages: run.result.messages,
            errors: run.result.errors,
            remaining: run.result.remaining,
            duration_ms: u64::try_from(run.result.duration.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

impl Covered {
    fn of(fields: &Fields) -> Self {
        let (coverage, _) = Coverage::parse(fields);
        let stretches = coverage.stretches().iter();
        Self {
            live: coverage.is_live(),
            complete: matches!(coverage.bottom(), Bottom::Reached),
            stretches: stretches
                .map(|s| Stretch { from: s.low.second, to: s.high.second, messages: s.messages })
                .collect(),
            holes: (coverage.holes().iter())
                .map(|hole| Hole {
                    after: hole.after,
                    before: hole.anchor.as_ref().map(|anchor| anchor.second),
                    exhausted: hole.exhausted,
                    fillable: hole.is_fillable(),
                })
                .collect(),
        }
    }
}

pub(crate) fn script(text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], text).into_response()
}

const COVERED_THREADS: u32 = 60;
/// A page that is left open must not read all accounts every few seconds: what this instance owns
/// is known from memory anyway.
const LISTED_FOR: Duration = Duration::from_secs(30);
