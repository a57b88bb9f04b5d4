//! What deploy checks, platforms and operators ask. Everything here comes from memory and never
//! fails.

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use backfill_core::doc::{Fields, Value as Field};
use backfill_core::id::AccountId;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::access::Admin;
use crate::answer::Mode;
use crate::app::{App, request_id};
use crate::json::{iso, text};
use crate::metrics::STATUSES;

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(root))
        .routes(routes!(ready))
        .routes(routes!(diag))
        .routes(routes!(health))
        .routes(routes!(metrics))
}

/// What runs here, and where to look.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct About {
    service: &'static str,
    version: &'static str,
    instance_id: String,
    /// The console's path
    console: &'static str,
    /// The documentation's path
    documentation: &'static str,
    timestamp: String,
}

/// Whether this instance serves.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Ready {
    /// It serves
    ready: bool,
    mode: Mode,
    instance_id: String,
    lock_status: LockStatus,
    /// Who holds the lock
    #[schema(required)]
    held_by: Option<String>,
    /// After so long without a sign of life the lock counts as free
    #[schema(required)]
    lock_expires_in_seconds: Option<u64>,
    timestamp: String,
    /// Why it is passive, in one word
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

/// Who holds the lock.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum LockStatus {
    HeldByThisInstance,
    HeldByOther,
    NotHeld,
}

/// How the latest messages and syncs went.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Diag {
    ready: bool,
    mode: Mode,
    instance_id: String,
    /// The store answered the latest call
    firestore_connected: bool,
    /// Up to three connected accounts, the latest message first
    latest_realtime: Vec<Realtime>,
    timestamp: String,
}

/// One account's latest messages and recent sync.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Realtime {
    /// Masked
    account_id: String,
    #[schema(required)]
    last_realtime_ingest_at: Option<String>,
    #[schema(required)]
    last_realtime_message_at: Option<String>,
    #[schema(required)]
    last_realtime_error: Option<String>,
    #[schema(required)]
    last_recent_sync_at: Option<String>,
    #[schema(required)]
    last_recent_sync_status: Option<Outcome>,
    #[schema(required)]
    last_recent_sync_errors: Option<i64>,
}

/// How a run ended.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Ok,
    Error,
}

/// The process lives.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Health {
    /// Always true
    ok: bool,
    /// Always `healthy`
    status: &'static str,
    service: &'static str,
    version: &'static str,
    commit: String,
    instance_id: String,
    boot_timestamp: String,
    /// In seconds
    uptime: u64,
    timestamp: String,
    request_id: String,
    /// Accounts that are not deleted
    #[serde(rename = "accounts_total")]
    accounts_total: usize,
    /// Accounts that are connected
    connected: usize,
    firestore: Link,
}

/// Whether the store is reached.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Link {
    Connected,
    Disconnected,
}

/// What this is.
#[utoipa::path(
    get,
    path = "/",
    tag = "open",
    responses((status = 200, description = "Name, version and where to look", body = About))
)]
async fn root(State(app): State<App>) -> Json<About> {
    Json(About {
        service: SERVICE,
        version: env!("CARGO_PKG_VERSION"),
        instance_id: app.instance_id(),
        console: "/console",
        documentation: "/docs",
        timestamp: iso(app.wall()),
    })
}

/// Whether this instance serves; always 200.
#[utoipa::path(
    get,
    path = "/ready",
    tag = "open",
    responses((status = 200, description = "`ready` and `mode`; while passive also `reason`", body = Ready))
)]
async fn ready(State(app): State<App>) -> Json<Ready> {
    let standing = app.standing();
    let lock_status = match &standing.lock {
        Some(lock) if lock.own => LockStatus::HeldByThisInstance,
        Some(_) => LockStatus::HeldByOther,
        None => LockStatus::NotHeld,
    };
    let left = standing.lock.as_ref().and_then(|lock| lock.expires_in);
    Json(Ready {
        ready: standing.reason.is_none(),
        mode: standing.mode(),
        instance_id: app.instance_id(),
        lock_status,
        held_by: standing.holder(),
        lock_expires_in_seconds: left.map(|left| left.as_secs()),
        timestamp: iso(app.wall()),
        reason: standing.reason,
    })
}

/// How the latest messages and syncs went; always 200.
#[utoipa::path(
    get,
    path = "/diag",
    tag = "open",
    responses((status = 200, description = "`latestRealtime` of up to three connected accounts, ids masked", body = Diag))
)]
async fn diag(State(app): State<App>) -> Json<Diag> {
    let standing = app.standing();
    let connected = app.live().is_some_and(|live| live.reached.get());
    let mut latest: Vec<(AccountId, Fields)> =
        if connected { app.view().accounts() } else { Vec::new() };
    latest.retain(|(_, fields)| status(fields) == "connected");
    let at = |fields: &Fields| fields.get("lastRealtimeIngestAt").and_then(Field::as_time);
    latest.sort_by_key(|(_, fields)| std::cmp::Reverse(at(fields)));
    Json(Diag {
        ready: standing.reason.is_none(),
        mode: standing.mode(),
        instance_id: app.instance_id(),
        firestore_connected: connected,
        latest_realtime: latest.iter().take(3).map(|(id, fields)| realtime(id, fields)).collect(),
        timestamp: iso(app.wall()),
    })
}

/// Whether the process lives; always 200.
#[utoipa::path(
    get,
    path = "/health",
    tag = "open",
    responses((status = 200, description = "The process lives", body = Health))
)]
async fn health(State(app): State<App>) -> Json<Health> {
    let reached = app.live().is_some_and(|live| live.reached.get());
    let accounts = app.view().accounts();
    let uptime = app.uptime();
    Json(Health {
        ok: true,
        status: "healthy",
        service: SERVICE,
        version: env!("CARGO_PKG_VERSION"),
        commit: app.options().commit.clone(),
        instance_id: app.instance_id(),
        boot_timestamp: iso(app.wall() - uptime),
        uptime: uptime.as_secs(),
        timestamp: iso(app.wall()),
        request_id: request_id(),
        accounts_total: accounts.iter().filter(|(_, f)| status(f) != "deleted").count(),
        connected: accounts.iter().filter(|(_, f)| status(f) == "connected").count(),
        firestore: if reached { Link::Connected } else { Link::Disconnected },
    })
}

/// For Prometheus.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "admin",
    security(("admin" = [])),
    responses((status = 200, description = "Prometheus' text format", body = String, content_type = "text/plain"))
)]
async fn metrics(_: Admin, State(app): State<App>) -> impl IntoResponse {
    let metrics = app.metrics();
    if let Some(live) = app.live() {
        let operations = (live.operations)();
        for (op, n) in [
            ("read", operations.reads),
            ("write", operations.writes),
            ("delete", operations.deletes),
        ] {
            metrics.total("wa_store_operations_total", &[("op", op)], n);
        }
        metrics.set("wa_store_connected", &[], f64::from(u8::from(live.reached.get())));
    }
    let accounts = app.view().accounts();
    for name in STATUSES {
        let n = accounts.iter().filter(|(_, fields)| status(fields) == *name).count();
        let n = u32::try_from(n).unwrap_or(u32::MAX);
        metrics.set("wa_accounts", &[("status", name)], n.into());
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render())
}

fn realtime(id: &AccountId, fields: &Fields) -> Realtime {
    let result = fields.get("lastRecentSyncResult").and_then(Field::as_map);
    let ok = result.and_then(|result| result.get("ok")?.as_bool());
    Realtime {
        account_id: id.masked().to_string(),
        last_realtime_ingest_at: text(fields, "lastRealtimeIngestAt"),
        last_realtime_message_at: text(fields, "lastRealtimeMessageAt"),
        last_realtime_error: text(fields, "lastRealtimeError"),
        last_recent_sync_at: text(fields, "lastRecentSyncAt"),
        last_recent_sync_status: ok.map(|ok| if ok { Outcome::Ok } else { Outcome::Error }),
        last_recent_sync_errors: result.and_then(|result| result.get("errors")?.as_int()),
    }
}

pub(crate) fn status(fields: &Fields) -> &str {
    fields.get("status").and_then(Field::as_str).unwrap_or_default()
}

/// What today's readers know this service as.
const SERVICE: &str = "whatsapp-backend";
