//! The console: one page, one script, one style sheet, and the two answers only it needs.

use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use backfill_core::coverage::{Bottom, Coverage};
use backfill_core::doc::{DocPath, Fields, Query, Value as Field};
use backfill_core::id::AccountId;
use backfill_core::io::RunKind;
use backfill_core::time::{Mono, StoreTime};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::access::{Admin, LOGGED_OUT, Peer};
use crate::accounts::{accounts, parse, summary};
use crate::app::{App, Body, Live, success};
use crate::diagnosis::Diagnosis;
use crate::error::Failure;
use crate::health::status;
use crate::json::{field, iso};
use crate::threads::newest_threads;
use crate::view::{run_name, trigger_name};

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/console", get(page))
        .route("/console/login", get(async || Html(include_str!("../assets/login.html"))))
        .route("/console/login", post(log_in))
        .route("/console/logout", post(log_out))
        .route("/console/session", get(session))
        .route("/console/console.css", get(async || style(include_str!("../assets/console.css"))))
        .route("/console/console.js", get(async || script(include_str!("../assets/console.js"))))
        .route("/console/login.js", get(async || script(include_str!("../assets/login.js"))))
        .route("/api/admin/overview", get(overview))
        .route("/api/admin/sync/{id}", get(sync))
}

/// The admin token.
#[derive(Deserialize)]
struct Login {
    token: String,
}

async fn page(State(app): State<App>, headers: HeaderMap) -> Response {
    if app.access().session(&headers).is_none() {
        return Redirect::to("/console/login").into_response();
    }
    Html(include_str!("../assets/console.html")).into_response()
}

async fn log_in(
    State(app): State<App>,
    peer: Option<Extension<Peer>>,
    headers: HeaderMap,
    Body(login): Body<Login>,
) -> Result<Response, Failure> {
    let peer = peer.map(|Extension(peer)| peer);
    let (session, cookie) = app.access().log_in(&login.token, (&headers, peer))?;
    let answer = success(json!({ "csrf": session.csrf }));
    Ok(([(header::SET_COOKIE, cookie)], answer).into_response())
}

async fn log_out(_: Admin) -> Response {
    ([(header::SET_COOKIE, LOGGED_OUT)], success(json!({}))).into_response()
}

/// What the script has to know before it begins.
async fn session(_: Admin, State(app): State<App>, headers: HeaderMap) -> Json<Value> {
    let csrf = app.access().session(&headers).map(|session| session.csrf);
    success(json!({
        "csrf": csrf,
        "debug": app.options().debug,
        "instanceId": app.options().instance.as_str(),
        "version": env!("CARGO_PKG_VERSION"),
    }))
}

/// How this instance and all accounts stand: who serves them, and what comes next.
#[utoipa::path(get, path = "/api/admin/overview", tag = "admin", security(("admin" = [])), responses((status = 200, description = "`instance` and `accounts`, with diagnosis")))]
pub(crate) async fn overview(_: Admin, State(app): State<App>) -> Result<Json<Value>, Failure> {
    let standing = app.standing();
    let live = app.live();
    let (accounts, cached) = accounts(&app, LISTED_FOR).await?;
    let shown: Vec<Value> = accounts
        .iter()
        .map(|(id, listed)| (id, app.view().account(id).unwrap_or_else(|| listed.clone())))
        .filter(|(_, fields)| status(fields) != "deleted")
        .map(|(id, fields)| state(&app, live.as_ref(), id, &fields))
        .collect();
    Ok(success(json!({
        "instance": {
            "instanceId": app.options().instance.as_str(),
            "mode": if standing.reason.is_none() { "active" } else { "passive" },
            "reason": standing.reason,
            "heldBy": standing.lock.as_ref().map(|lock| lock.holder.as_str()),
            "storeConnected": live.as_ref().is_some_and(|live| live.reached.get()),
            "uptime": app.uptime().as_secs(),
            "debug": app.options().debug,
            "now": iso(app.wall()),
        },
        "accounts": shown,
        "cached": cached,
    })))
}

/// One account's state in words.
fn state(app: &App, live: Option<&Live>, id: &AccountId, fields: &Fields) -> Value {
    let seen = live.and_then(|live| {
        live.handle.look(|instance| {
            let insight = instance.account_insight(id)?;
            let until = |at: Mono| at.since(app.now()).as_secs();
            Some((
                insight,
                instance.store_now(),
                instance.policy().auto_backfill.clone(),
                instance.next_tick(RunKind::AutoBackfill).map(until),
                instance.next_tick(RunKind::RecentSync).map(until),
            ))
        })
    });
    let mut account = summary(id, fields);
    account["masked"] = id.masked().as_str().into();
    for name in SHOWN {
        account[*name] = field(fields, name);
    }
    let Some((insight, now, auto, next_auto, next_recent)) = seen else { return account };
    let time = |name: &str| fields.get(name).and_then(Field::as_time);
    let later = |at: Option<StoreTime>, span| at.map(|at| at + span).filter(|until| *until > now);
    let cooldown = later(time("lastAutoBackfillSuccessAt"), auto.cooldown);
    let backoff = later(time("lastAutoBackfillAttemptAt"), auto.backoff);
    account["owner"] = insight.owner.as_deref().into();
    account["ownedHere"] = insight.own.into();
    account["epoch"] = insight.epoch.0.into();
    account["connectedHere"] = insight.connected.into();
    account["cooldownUntil"] = cooldown.map(iso).into();
    account["backoffUntil"] = backoff.map(iso).into();
    account["nextBackfillTickInSeconds"] = next_auto.into();
    account["nextRecentSyncTickInSeconds"] = next_recent.into();
    let verdict =
        Diagnosis { fields, insight: &insight, now, enabled: auto.enabled, cooldown, backoff };
    account["verdict"] = verdict.verdict();
    let due = cooldown.max(backoff);
    let tick = next_auto.map(|s| now + Duration::from_secs(s));
    account["nextRunAt"] =
        due.max(tick).filter(|_| auto.enabled && insight.connected).map(iso).into();
    account
}

/// The picture of one account's history: runs, leases, and per thread what is known to be complete.
#[utoipa::path(get, path = "/api/admin/sync/{id}", tag = "admin", security(("admin" = [])), params(("id" = String, Path, description = "The account")), responses((status = 200, description = "`account`, `runs`, `leases` and `threads` with coverage"), (status = 404, description = "`account_not_found`")))]
pub(crate) async fn sync(
    _: Admin,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Failure> {
    let id = parse(&id)?;
    let documents = app.documents()?;
    let paths = [id.path(), id.connection_path(), id.auto_backfill_path(), id.recent_sync_path()];
    let mut docs = documents.get(&paths).await?.docs.into_iter();
    let mut next = || docs.next().flatten();
    let account = next().filter(|doc| status(&doc.fields) != "deleted");
    let account = account.ok_or_else(Failure::account_not_found)?;
    let lease = |doc: Option<std::sync::Arc<backfill_core::doc::Document>>| {
        doc.map_or(Value::Null, |doc| {
            json!({
                "instanceId": field(&doc.fields, "instanceId"),
                "held": doc.str("owner").is_some_and(|owner| !owner.is_empty()),
                "epoch": field(&doc.fields, "epoch"),
                "updatedAt": iso(doc.update_time),
            })
        })
    };
    let leases = json!({
        "connection": lease(next()), "autoBackfill": lease(next()), "recentSync": lease(next()),
    });
    let threads = newest_threads(&documents, &id, COVERED_THREADS).await?;
    let paths: Vec<DocPath> = threads
        .iter()
        .filter_map(|thread| DocPath::new(&id.coverage(), thread.path.id()).ok())
        .collect();
    let coverage = documents.get(&paths).await?;
    let threads: Vec<Value> = threads
        .iter()
        .zip(coverage.docs)
        .map(|(thread, doc)| {
            json!({
                "id": thread.path.id(),
                "name": field(&thread.fields, "displayName"),
                "lastMessageAt": field(&thread.fields, "lastMessageAt"),
                "coverage": doc.map_or(Value::Null, |doc| covered(&doc.fields)),
            })
        })
        .collect();
    let holes = Query::all(id.coverage(), 100).filter(
        backfill_core::doc::FieldPath::new("open"),
        backfill_core::doc::Comparison::Equal,
        true,
    );
    let open = documents.query(&holes.select([])).await?.docs.len();
    let runs: Vec<Value> = app
        .view()
        .runs(&id)
        .iter()
        .map(|run| {
            json!({
                "kind": run_name(run.kind),
                "trigger": run.trigger.map(trigger_name),
                "endedAt": iso(run.ended),
                "ok": run.result.ok,
                "error": run.result.error,
                "threads": run.result.threads,
                "messages": run.result.messages,
                "errors": run.result.errors,
                "remaining": run.result.remaining,
                "durationMs": u64::try_from(run.result.duration.as_millis()).unwrap_or(u64::MAX),
            })
        })
        .collect();
    let live = app.live();
    Ok(success(json!({
        "account": state(&app, live.as_ref(), &id, &account.fields),
        "leases": leases,
        "runs": runs,
        "openHoles": open,
        "threads": threads,
        "now": iso(coverage.read_time),
    })))
}

/// What of a thread's history is known to be complete, in seconds.
fn covered(fields: &Fields) -> Value {
    let (coverage, _) = Coverage::parse(fields);
    let stretches: Vec<Value> = coverage
        .stretches()
        .iter()
        .map(|s| json!({ "from": s.low.second, "to": s.high.second, "messages": s.messages }))
        .collect();
    let holes: Vec<Value> = coverage
        .holes()
        .iter()
        .map(|hole| {
            json!({
                "after": hole.after,
                "before": hole.anchor.as_ref().map(|anchor| anchor.second),
                "exhausted": hole.exhausted,
                "fillable": hole.is_fillable(),
            })
        })
        .collect();
    json!({
        "live": coverage.is_live(),
        "complete": matches!(coverage.bottom(), Bottom::Reached),
        "stretches": stretches,
        "holes": holes,
    })
}

pub(crate) fn script(text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, "text/javascript; charset=utf-8")], text).into_response()
}

fn style(text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], text).into_response()
}

const COVERED_THREADS: u32 = 60;
/// A page that is left open must not read all accounts every few seconds: what this instance owns
/// is known from memory anyway.
const LISTED_FOR: Duration = Duration::from_secs(30);
/// What the console shows of an account's document besides the summary.
const SHOWN: &[&str] = &[
    "autoBackfillLeaseHolder",
    "autoBackfillLeaseUntil",
    "lastAutoBackfillAttemptAt",
    "lastAutoBackfillStatus",
    "lastAutoBackfillSuccessAt",
    "lastBackfillAt",
    "lastDisconnectReason",
    "lastDisconnectedAt",
    "lastError",
    "lastRealtimeError",
    "lastRealtimeIngestAt",
    "lastRealtimeMessageAt",
    "lastRecentSyncAt",
    "lastRecentSyncResult",
    "updatedAt",
];
