//! Accounts: list, add, pair, delete, backfill.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use backfill_core::doc::{
    CollectionPath, Document, FieldOp, FieldPath, Fields, Precondition, Query, Value as Field,
    Write,
};
use backfill_core::id::AccountId;
use backfill_core::io::{Command, Reply};
use backfill_core::time::Mono;
use backfill_driver::port::StoreError;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::access::{Admin, Caller, Operator};
use crate::app::{App, Body, Live, instance_fields, random_hex, success};
use crate::error::Failure;
use crate::health::status;
use crate::json::{field, iso};
use crate::qr;

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/api/whatsapp/accounts", get(list))
        .route("/accounts", get(list))
        .route("/api/whatsapp/add-account", post(add))
        .route("/api/whatsapp/qr/{id}", get(qr_page))
        .route("/api/whatsapp/regenerate-qr/{id}", post(regenerate))
        .route("/api/whatsapp/accounts/{id}", delete(remove))
        .route("/api/whatsapp/backfill/{id}", post(backfill))
}

/// The accounts as they were last listed: a burst of callers costs one look.
#[derive(Default)]
pub(crate) struct Listed(Mutex<Option<(Mono, Arc<Accounts>)>>);

/// Accounts with their documents.
pub(crate) type Accounts = Vec<(AccountId, Fields)>;

/// What an account is to be called, and its phone number.
#[derive(Debug, Deserialize, utoipa::ToSchema)]
pub(crate) struct NewAccount {
    /// What people call it, 1 to 100 characters
    name: String,
    /// 7 to 15 digits; a leading `0` stands for `+40`
    phone: Option<String>,
}

/// All accounts that are not deleted.
#[utoipa::path(get, path = "/api/whatsapp/accounts", tag = "accounts", security(("firebase" = []), ("admin" = [])), responses((status = 200, description = "`accounts`; works while passive")))]
pub(crate) async fn list(_: Caller, State(app): State<App>) -> Result<Json<Value>, Failure> {
    let (accounts, cached) = accounts(&app, LISTED_FOR).await?;
    let reason = app.standing().reason;
    let shown = accounts.iter().filter(|(_, fields)| status(fields) != "deleted");
    let shown: Vec<Value> = shown
        .map(|(id, fields)| {
            let mut account = summary(id, fields);
            account["lastUpdate"] = field(fields, "updatedAt");
            account["lastError"] = field(fields, "lastError");
            account["passiveModeReason"] = reason.into();
            account
        })
        .collect();
    let mut body = instance_fields(&app);
    body["accounts"] = shown.into();
    body["cached"] = cached.into();
    body["lockReason"] = reason.into();
    Ok(success(body))
}

/// Adds an account and begins to pair it. The same phone again gives the same account.
#[utoipa::path(post, path = "/api/whatsapp/add-account", tag = "accounts", security(("firebase" = []), ("admin" = [])), request_body = NewAccount, responses((status = 200, description = "`account`"), (status = 429, description = "`rate_limited`: there are MAX_ACCOUNTS already"), (status = 503, description = "`instance_passive`")))]
pub(crate) async fn add(
    _: Operator,
    State(app): State<App>,
    body: Result<Body<NewAccount>, Failure>,
) -> Result<Json<Value>, Failure> {
    let live = app.active()?;
    let Body(new) = body?;
    let name = new.name.trim().to_owned();
    if name.is_empty() || name.chars().count() > 100 {
        return Err(Failure::bad_request("`name` has to have 1 to 100 characters."));
    }
    let phone = new.phone.as_deref().map(number).transpose()?;
    let namespace = &app.options().namespace;
    let id = match &phone {
        Some(phone) => AccountId::of_phone(namespace, phone),
        None => AccountId::parse(format!("account_{namespace}_{}", random_hex())).ok(),
    };
    let id = id.ok_or_else(|| Failure::bad_request("`phone` is not a phone number."))?;
    let fields = created(&app, &live, &id, &name, phone.as_deref()).await?;
    app.listed().forget();
    let mut body = instance_fields(&app);
    body["account"] = summary(&id, &fields);
    Ok(success(body))
}

/// The account's document: the one that is there, or a new one.
async fn created(
    app: &App,
    live: &Live,
    id: &AccountId,
    name: &str,
    phone: Option<&str>,
) -> Result<Fields, Failure> {
    for _ in 0..COMMIT_TRIES {
        let there = read(live, id).await?;
        if let Some(doc) = there.as_deref().filter(|doc| status(&doc.fields) != "deleted") {
            return Ok(doc.fields.clone());
        }
        let all = Query::all(CollectionPath::root("accounts"), MOST_ACCOUNTS)
            .select([FieldPath::new("status")]);
        let all = live.documents.query(&all).await?;
        let living = all.docs.iter().filter(|doc| status(&doc.fields) != "deleted").count();
        if living >= app.options().max_accounts as usize {
            let message = "There are as many accounts as MAX_ACCOUNTS allows.";
            return Err(Failure::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", message)
                .retry_after(60));
        }
        let fields = Fields::from([
            ("name".into(), name.into()),
            ("phoneE164".into(), phone.map(str::to_owned).into()),
            ("status".into(), "connecting".into()),
            ("qrCode".into(), Field::Null),
            ("pairingCode".into(), Field::Null),
            ("lastError".into(), Field::Null),
            ("createdAt".into(), iso(app.wall()).into()),
        ]);
        let mut changes: Vec<(FieldPath, FieldOp)> = fields
            .iter()
            .filter_map(|(name, value)| Some((FieldPath::parse(name)?, value.clone().into())))
            .collect();
        changes.push((FieldPath::new("updatedAt"), FieldOp::ServerTime));
        let unchanged = Precondition::unchanged(there.as_deref());
        match live.documents.commit(vec![Write::merge(id.path(), unchanged, changes)]).await {
            Ok(_) => return Ok(fields),
            // Somebody else was faster, or it may have been done: look again.
            Err(StoreError::Conflict(_) | StoreError::Unknown(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(StoreError::Unavailable(None).into())
}

/// Begins to pair again.
#[utoipa::path(post, path = "/api/whatsapp/regenerate-qr/{id}", tag = "accounts", security(("firebase" = []), ("admin" = [])), params(("id" = String, Path, description = "The account")), responses((status = 200, description = "`in_progress`"), (status = 202, description = "`already_in_progress`"), (status = 404, description = "`account_not_found`"), (status = 503, description = "`instance_passive`, `not_owner`")))]
pub(crate) async fn regenerate(
    _: Operator,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    let live = app.active()?;
    let id = parse(&id)?;
    match command(&app, &live, &id, Command::RegenerateQr(id.clone())).await? {
        Reply::AlreadyInProgress => {
            let message = "The account is connecting or connected already.";
            let body = json!({ "message": message, "status": "already_in_progress" });
            Ok((StatusCode::ACCEPTED, success(body)).into_response())
        }
        _ => {
            let message = "A new QR code is on its way.";
            Ok(success(json!({ "message": message, "status": "in_progress" })).into_response())
        }
    }
}

/// Logs an account out and marks it deleted. Its messages stay.
#[utoipa::path(delete, path = "/api/whatsapp/accounts/{id}", tag = "accounts", security(("firebase" = []), ("admin" = [])), params(("id" = String, Path, description = "The account")), responses((status = 200, description = "`status: deleted`"), (status = 404, description = "`account_not_found`"), (status = 503, description = "`instance_passive`, `not_owner`")))]
pub(crate) async fn remove(
    _: Operator,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Failure> {
    let live = app.active()?;
    let id = parse(&id)?;
    command(&app, &live, &id, Command::DeleteAccount(id.clone())).await?;
    app.listed().forget();
    let message = "The account is logged out and marked as deleted.";
    Ok(success(json!({ "message": message, "accountId": id.as_str(), "status": "deleted" })))
}

/// Runs a backfill now, whatever cooldown and backoff say. Clients never need it.
#[utoipa::path(post, path = "/api/whatsapp/backfill/{id}", tag = "accounts", security(("firebase" = []), ("admin" = [])), params(("id" = String, Path, description = "The account")), responses((status = 200, description = "It runs; one that was running already is shown as `run`"), (status = 404, description = "`account_not_found`"), (status = 409, description = "`invalid_state` with `currentStatus`"), (status = 503, description = "`instance_passive`, `not_owner`")))]
pub(crate) async fn backfill(
    Operator(caller): Operator,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Failure> {
    let labels = [("caller", caller.kind.as_str())];
    app.metrics().add("wa_manual_backfills_total", &labels, 1);
    let live = app.active()?;
    let id = parse(&id)?;
    tracing::info!(account = %id, caller = caller.kind.as_str(), "[wa-auto-backfill] manual backfill requested");
    match command(&app, &live, &id, Command::Backfill(id.clone())).await? {
        Reply::AlreadyInProgress => {
            let fields = app.view().account(&id).unwrap_or_default();
            Ok(success(json!({
                "message": "A backfill is running already",
                "accountId": id.as_str(),
                "alreadyRunning": true,
                "run": field(&fields, "lastAutoBackfillStatus"),
            })))
        }
        _ => Ok(success(json!({
            "message": "Backfill started (runs asynchronously)",
            "accountId": id.as_str(),
        }))),
    }
}

/// The picture to scan, for a browser.
#[utoipa::path(get, path = "/api/whatsapp/qr/{id}", tag = "accounts", security(("admin" = [])), params(("id" = String, Path, description = "The account")), responses((status = 200, description = "An HTML page", content_type = "text/html"), (status = 404, description = "An HTML page")))]
pub(crate) async fn qr_page(
    admin: Result<Admin, Failure>,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    if let Err(failure) = admin {
        let failure = failure.into_response();
        let unknown = failure.status() == StatusCode::UNAUTHORIZED;
        let page = Redirect::to("/console/login").into_response();
        return Ok(if unknown { page } else { failure });
    }
    let found = async {
        let doc = app.documents()?.get(&[parse(&id)?.path()]).await?;
        let doc = doc.docs.into_iter().next().flatten();
        Ok::<_, Failure>(doc.filter(|doc| status(&doc.fields) != "deleted"))
    };
    Ok(match found.await {
        Ok(Some(doc)) => Html(qr::page(&doc.fields)).into_response(),
        Ok(None) => (StatusCode::NOT_FOUND, Html(qr::missing())).into_response(),
        Err(failure) => {
            let failure = failure.into_response();
            let missing = failure.status() == StatusCode::NOT_FOUND;
            if missing {
                (StatusCode::NOT_FOUND, Html(qr::missing())).into_response()
            } else {
                failure
            }
        }
    })
}

/// Has the owner of an account do something; only what was done or is under way is no error.
pub(crate) async fn command(
    app: &App,
    live: &Live,
    id: &AccountId,
    command: Command,
) -> Result<Reply, Failure> {
    let reply = live.handle.command(command).await;
    match reply.map_err(|_| app.passive(&app.standing()))? {
        reply @ (Reply::Accepted | Reply::AlreadyInProgress) => Ok(reply),
        Reply::AccountNotFound => {
            // It may have been added a moment ago.
            match read(live, id).await?.filter(|doc| status(&doc.fields) != "deleted") {
                Some(_) => Err(not_owner(None)),
                None => Err(Failure::account_not_found()),
            }
        }
        Reply::InvalidState { status } => {
            let message = "The account is not connected.";
            Err(Failure::new(StatusCode::CONFLICT, "invalid_state", message)
                .with("currentStatus", status.as_str()))
        }
        Reply::NotOwner { owner } => Err(not_owner(owner.as_deref())),
        Reply::Passive => Err(app.passive(&app.standing())),
    }
}

fn not_owner(owner: Option<&str>) -> Failure {
    let message = match owner {
        Some(_) => "Another instance serves this account.",
        None => "No instance serves this account yet.",
    };
    Failure::new(StatusCode::SERVICE_UNAVAILABLE, "not_owner", message)
        .with("ownerInstanceId", owner)
        .retry_after(NOT_OWNER_RETRY_SECONDS)
}

pub(crate) async fn read(live: &Live, id: &AccountId) -> Result<Option<Arc<Document>>, Failure> {
    let snapshot = live.documents.get(&[id.path()]).await?;
    Ok(snapshot.docs.into_iter().next().flatten())
}

pub(crate) fn parse(id: &str) -> Result<AccountId, Failure> {
    AccountId::parse(id).map_err(|_| Failure::account_not_found())
}

impl Listed {
    fn forget(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// All accounts as they were at most so long ago, and whether that comes from memory.
pub(crate) async fn accounts(
    app: &App,
    at_most: Duration,
) -> Result<(Arc<Accounts>, bool), Failure> {
    let listed = app.listed();
    {
        let listed = listed.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, accounts)) = &*listed
            && app.now().since(*at) < at_most
        {
            return Ok((Arc::clone(accounts), true));
        }
    }
    let from_memory = || Arc::new(app.view().accounts());
    let Some(live) = app.live() else { return Ok((from_memory(), true)) };
    let query = Query::all(CollectionPath::root("accounts"), MOST_ACCOUNTS);
    let Ok(found) = live.documents.query(&query).await else {
        return Ok((from_memory(), true));
    };
    app.view().learn(found.docs.iter().map(|doc| &**doc), found.read_time);
    let accounts = found
        .docs
        .iter()
        .filter_map(|doc| Some((AccountId::parse(doc.path.id()).ok()?, doc.fields.clone())));
    let accounts: Arc<Accounts> = Arc::new(accounts.collect());
    *listed.0.lock().unwrap_or_else(PoisonError::into_inner) =
        Some((app.now(), Arc::clone(&accounts)));
    Ok((accounts, false))
}

/// What every answer about an account shows.
pub(crate) fn summary(id: &AccountId, fields: &Fields) -> Value {
    let phone = fields.get("phoneE164").or_else(|| fields.get("phone"));
    json!({
        "id": id.as_str(),
        "name": field(fields, "name"),
        "phone": phone.map_or(Value::Null, crate::json::json),
        "status": field(fields, "status"),
        "qrCode": field(fields, "qrCode"),
        "pairingCode": field(fields, "pairingCode"),
        "createdAt": field(fields, "createdAt"),
    })
}

/// A phone number with its leading `+`.
fn number(phone: &str) -> Result<String, Failure> {
    let digits: String = phone.chars().filter(char::is_ascii_digit).collect();
    let digits = digits.strip_prefix('0').map_or(digits.clone(), |rest| format!("40{rest}"));
    if (7..=15).contains(&digits.len()) {
        Ok(format!("+{digits}"))
    } else {
        Err(Failure::bad_request("`phone` has to have 7 to 15 digits."))
    }
}

const COMMIT_TRIES: usize = 5;
const LISTED_FOR: Duration = Duration::from_secs(2);
const MOST_ACCOUNTS: u32 = 1_000;
const NOT_OWNER_RETRY_SECONDS: u64 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_one_way() {
        assert_eq!(number("0712 345 678").unwrap(), "+40712345678");
        assert_eq!(number("+40 (712) 345-678").unwrap(), "+40712345678");
        assert!(number("123").is_err());
        assert!(number("none").is_err());
    }
}
