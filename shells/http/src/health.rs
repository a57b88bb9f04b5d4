//! What deploy checks, platforms and operators ask. Everything here comes from memory and never
//! fails.

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use backfill_core::doc::{Fields, Value as Field};
use backfill_core::id::AccountId;
use serde_json::{Value, json};

use crate::access::Admin;
use crate::app::{App, request_id};
use crate::json::{field, iso};
use crate::metrics::STATUSES;

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/", get(root))
        .route("/ready", get(ready))
        .route("/diag", get(diag))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
}

/// What this is.
#[utoipa::path(get, path = "/", tag = "open", responses((status = 200, description = "Name, version and where to look")))]
pub(crate) async fn root(State(app): State<App>) -> Json<Value> {
    Json(json!({
        "service": SERVICE,
        "version": env!("CARGO_PKG_VERSION"),
        "instanceId": app.options().instance.as_str(),
        "console": "/console",
        "documentation": "/docs",
        "timestamp": iso(app.wall()),
    }))
}

/// Whether this instance serves; always 200.
#[utoipa::path(get, path = "/ready", tag = "open", responses((status = 200, description = "`ready` and `mode`; while passive also `reason`")))]
pub(crate) async fn ready(State(app): State<App>) -> Json<Value> {
    let standing = app.standing();
    let (status, holder, expires) = match &standing.lock {
        Some(lock) if lock.own => ("held_by_this_instance", Some(&lock.holder), lock.expires_in),
        Some(lock) => ("held_by_other", Some(&lock.holder), lock.expires_in),
        None => ("not_held", None, None),
    };
    let mut body = json!({
        "ready": standing.reason.is_none(),
        "mode": if standing.reason.is_none() { "active" } else { "passive" },
        "instanceId": app.options().instance.as_str(),
        "lockStatus": status,
        "heldBy": holder.map(|holder| holder.as_str()),
        "lockExpiresInSeconds": expires.map(|left| left.as_secs()),
        "timestamp": iso(app.wall()),
    });
    if let Some(reason) = standing.reason {
        body["reason"] = reason.into();
    }
    Json(body)
}

/// How the latest messages and syncs went; always 200.
#[utoipa::path(get, path = "/diag", tag = "open", responses((status = 200, description = "`latestRealtime` of up to three connected accounts, ids masked")))]
pub(crate) async fn diag(State(app): State<App>) -> Json<Value> {
    let standing = app.standing();
    let connected = app.live().is_some_and(|live| live.reached.get());
    let mut latest: Vec<(AccountId, Fields)> =
        if connected { app.view().accounts() } else { Vec::new() };
    latest.retain(|(_, fields)| status(fields) == "connected");
    let at = |fields: &Fields| fields.get("lastRealtimeIngestAt").and_then(Field::as_time);
    latest.sort_by_key(|(_, fields)| std::cmp::Reverse(at(fields)));
    let latest: Vec<Value> =
        latest.iter().take(3).map(|(id, fields)| realtime(id, fields)).collect();
    Json(json!({
        "ready": standing.reason.is_none(),
        "mode": if standing.reason.is_none() { "active" } else { "passive" },
        "instanceId": app.options().instance.as_str(),
        "firestoreConnected": connected,
        "latestRealtime": latest,
        "timestamp": iso(app.wall()),
    }))
}

/// Whether the process lives; always 200.
#[utoipa::path(get, path = "/health", tag = "open", responses((status = 200, description = "The process lives")))]
pub(crate) async fn health(State(app): State<App>) -> Json<Value> {
    let reached = app.live().is_some_and(|live| live.reached.get());
    let accounts = app.view().accounts();
    let counted = accounts.iter().filter(|(_, fields)| status(fields) != "deleted").count();
    let connected = accounts.iter().filter(|(_, fields)| status(fields) == "connected").count();
    let uptime = app.uptime();
    Json(json!({
        "ok": true,
        "status": "healthy",
        "service": SERVICE,
        "version": env!("CARGO_PKG_VERSION"),
        "commit": app.options().commit,
        "instanceId": app.options().instance.as_str(),
        "bootTimestamp": iso(app.wall() - uptime),
        "uptime": uptime.as_secs(),
        "timestamp": iso(app.wall()),
        "requestId": request_id(),
        "accounts_total": counted,
        "connected": connected,
        "firestore": if reached { "connected" } else { "disconnected" },
    }))
}

/// For Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "admin", security(("admin" = [])), responses((status = 200, description = "Prometheus' text format", content_type = "text/plain")))]
pub(crate) async fn metrics(_: Admin, State(app): State<App>) -> impl IntoResponse {
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

fn realtime(id: &AccountId, fields: &Fields) -> Value {
    let result = fields.get("lastRecentSyncResult").and_then(Field::as_map);
    let ok = result.and_then(|result| result.get("ok")?.as_bool());
    json!({
        "accountId": id.masked().as_str(),
        "lastRealtimeIngestAt": field(fields, "lastRealtimeIngestAt"),
        "lastRealtimeMessageAt": field(fields, "lastRealtimeMessageAt"),
        "lastRealtimeError": field(fields, "lastRealtimeError"),
        "lastRecentSyncAt": field(fields, "lastRecentSyncAt"),
        "lastRecentSyncStatus": ok.map(|ok| if ok { "ok" } else { "error" }),
        "lastRecentSyncErrors": result.map_or(Value::Null, |result| field(result, "errors")),
    })
}

pub(crate) fn status(fields: &Fields) -> &str {
    fields.get("status").and_then(Field::as_str).unwrap_or_default()
}

/// What today's readers know this service as.
const SERVICE: &str = "whatsapp-backend";
