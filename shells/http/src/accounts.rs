//! Accounts: list, add, pair, delete, backfill.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Redirect, Response};
use backfill_core::doc::{
    CollectionPath, Document, FieldOp, FieldPath, Fields, Precondition, Query, Value as Field,
    Write,
};
use backfill_core::id::AccountId;
use backfill_core::io::{Command, Reply};
use backfill_core::time::Mono;
use backfill_driver::port::StoreError;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::access::{Admin, Caller, Operator};
use crate::answer::{Mode, Success};
use crate::app::{App, Body, Live, random_hex};
use crate::error::{Details, Failure};
use crate::health::status;
use crate::json::{Object, iso, map, text};
use crate::qr;

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(list_at_root))
        .routes(routes!(add))
        .routes(routes!(qr_page))
        .routes(routes!(regenerate))
        .routes(routes!(remove))
        .routes(routes!(backfill))
}

/// The accounts as they were last listed: a burst of callers costs one look.
#[derive(Default)]
pub(crate) struct Listed(Mutex<Option<(Mono, Arc<Accounts>)>>);

/// Accounts with their documents.
pub(crate) type Accounts = Vec<(AccountId, Fields)>;

/// What an account is to be called, and its phone number.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct NewAccount {
    /// What people call it, 1 to 100 characters
    name: String,
    /// 7 to 15 digits; a leading `0` stands for `+40`
    phone: Option<String>,
}

/// An account, as every answer about it shows it.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Account {
    id: String,
    #[schema(required)]
    name: Option<String>,
    /// With its leading `+`
    #[schema(required)]
    phone: Option<String>,
    /// `connecting`, `qr_ready`, `awaiting_scan`, `connected`, `disconnected`, `needs_qr` or `logged_out`
    #[schema(required)]
    status: Option<String>,
    /// The picture to scan, as a `data:` URL
    #[schema(required)]
    qr_code: Option<String>,
    /// What to type on the phone instead
    #[schema(required)]
    pairing_code: Option<String>,
    #[schema(required)]
    created_at: Option<String>,
}

/// All accounts that are not deleted.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Listing {
    accounts: Vec<ListedAccount>,
    /// From memory, because somebody asked a moment ago or the store does not answer
    cached: bool,
    instance_id: String,
    wa_mode: Mode,
    /// Why this instance is passive
    #[schema(required)]
    lock_reason: Option<&'static str>,
}

/// An account in the list.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ListedAccount {
    #[serde(flatten)]
    account: Account,
    #[schema(required)]
    last_update: Option<String>,
    #[schema(required)]
    last_error: Option<String>,
    /// Why this instance is passive
    #[schema(required)]
    passive_mode_reason: Option<&'static str>,
}

/// The account that was added, or was there already.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Added {
    account: Account,
    instance_id: String,
    wa_mode: Mode,
}

/// How pairing anew goes on.
#[derive(Serialize, ToSchema)]
pub(crate) struct Pairing {
    message: &'static str,
    status: PairingStatus,
}

/// Whether pairing has just begun.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum PairingStatus {
    InProgress,
    AlreadyInProgress,
}

/// The account that was deleted.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Removed {
    message: &'static str,
    account_id: String,
    /// Always `deleted`
    status: &'static str,
}

/// A backfill that runs.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Started {
    message: &'static str,
    account_id: String,
    /// It ran before somebody asked
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    already_running: bool,
    /// The run that was running, as `lastAutoBackfillStatus` has it
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<Object>,
}

/// All accounts that are not deleted.
#[utoipa::path(
    get,
    path = "/api/whatsapp/accounts",
    tag = "accounts",
    security(("firebase" = []), ("admin" = [])),
    responses((status = 200, description = "`accounts`; works while passive", body = Success<Listing>))
)]
async fn list(_: Caller, State(app): State<App>) -> Result<Success<Listing>, Failure> {
    listing(&app).await
}

/// The same as `/api/whatsapp/accounts`, where some callers look for it.
#[utoipa::path(
    get,
    path = "/accounts",
    tag = "accounts",
    security(("firebase" = []), ("admin" = [])),
    responses((status = 200, description = "`accounts`; works while passive", body = Success<Listing>))
)]
async fn list_at_root(_: Caller, State(app): State<App>) -> Result<Success<Listing>, Failure> {
    listing(&app).await
}

async fn listing(app: &App) -> Result<Success<Listing>, Failure> {
    let (accounts, cached) = accounts(app, LISTED_FOR).await?;
    let standing = app.standing();
    let shown = accounts.iter().filter(|(_, fields)| status(fields) != "deleted");
    let accounts = shown.map(|(id, fields)| ListedAccount {
        account: summary(id, fields),
        last_update: text(fields, "updatedAt"),
        last_error: text(fields, "lastError"),
        passive_mode_reason: standing.reason,
    });
    Ok(Success::new(Listing {
        accounts: accounts.collect(),
        cached,
        instance_id: app.instance_id(),
        wa_mode: standing.mode(),
        lock_reason: standing.reason,
    }))
}

/// Adds an account and begins to pair it. The same phone again gives the same account.
#[utoipa::path(
    post,
    path = "/api/whatsapp/add-account",
    tag = "accounts",
    security(("firebase" = []), ("admin" = [])),
    request_body = NewAccount,
    responses(
        (status = 200, description = "`account`", body = Success<Added>),
        (status = 400, description = "`bad_request`: `name` or `phone` cannot be used"),
        (status = 413, description = "`payload_too_large`"),
        (status = 415, description = "`unsupported_media_type`: not JSON"),
        (status = 422, description = "`bad_request`: another shape"),
        (status = 429, description = "`rate_limited`: there are MAX_ACCOUNTS already"),
        (status = 503, description = "`instance_passive`")
    )
)]
async fn add(
    _: Operator,
    State(app): State<App>,
    body: Result<Body<NewAccount>, Failure>,
) -> Result<Success<Added>, Failure> {
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
    Ok(Success::new(Added {
        account: summary(&id, &fields),
        instance_id: app.instance_id(),
        wa_mode: app.standing().mode(),
    }))
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
#[utoipa::path(
    post,
    path = "/api/whatsapp/regenerate-qr/{id}",
    tag = "accounts",
    security(("firebase" = []), ("admin" = [])),
    params(("id" = String, Path, description = "The account")),
    responses(
        (status = 200, description = "`in_progress`", body = Success<Pairing>),
        (status = 202, description = "`already_in_progress`", body = Success<Pairing>),
        (status = 404, description = "`account_not_found`"),
        (status = 503, description = "`instance_passive`, `not_owner`")
    )
)]
async fn regenerate(
    _: Operator,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<(StatusCode, Success<Pairing>), Failure> {
    let live = app.active()?;
    let id = parse(&id)?;
    let reply = command(&app, &live, &id, Command::RegenerateQr(id.clone())).await?;
    let (code, message, status) = if reply == Reply::AlreadyInProgress {
        let message = "The account is connecting or connected already.";
        (StatusCode::ACCEPTED, message, PairingStatus::AlreadyInProgress)
    } else {
        (StatusCode::OK, "A new QR code is on its way.", PairingStatus::InProgress)
    };
    Ok((code, Success::new(Pairing { message, status })))
}

/// Logs an account out and marks it deleted. Its messages stay.
#[utoipa::path(
    delete,
    path = "/api/whatsapp/accounts/{id}",
    tag = "accounts",
    security(("firebase" = []), ("admin" = [])),
    params(("id" = String, Path, description = "The account")),
    responses(
        (status = 200, description = "`status: deleted`", body = Success<Removed>),
        (status = 404, description = "`account_not_found`"),
        (status = 503, description = "`instance_passive`, `not_owner`")
    )
)]
async fn remove(
    _: Operator,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Success<Removed>, Failure> {
    let live = app.active()?;
    let id = parse(&id)?;
    command(&app, &live, &id, Command::DeleteAccount(id.clone())).await?;
    app.listed().forget();
    Ok(Success::new(Removed {
        message: "The account is logged out and marked as deleted.",
        account_id: id.as_str().to_owned(),
        status: "deleted",
    }))
}

/// Runs a backfill now, whatever cooldown and backoff say. Clients never need it.
#[utoipa::path(
    post,
    path = "/api/whatsapp/backfill/{id}",
    tag = "accounts",
    security(("firebase" = []), ("admin" = [])),
    params(("id" = String, Path, description = "The account")),
    responses(
        (status = 200, description = "It runs; one that was running already is shown as `run`", body = Success<Started>),
        (status = 404, description = "`account_not_found`"),
        (status = 409, description = "`invalid_state` with `currentStatus`"),
        (status = 503, description = "`instance_passive`, `not_owner`")
    )
)]
async fn backfill(
    Operator(caller): Operator,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Success<Started>, Failure> {
    let labels = [("caller", caller.kind.as_str())];
    app.metrics().add("wa_manual_backfills_total", &labels, 1);
    let live = app.active()?;
    let id = parse(&id)?;
    let reply = command(&app, &live, &id, Command::Backfill(id.clone())).await?;
    // Only now is it known to be an account's id, and not a phone number that somebody took for one.
    tracing::info!(account = %id, caller = caller.kind.as_str(), "[wa-auto-backfill] manual backfill requested");
    let mut started = Started {
        message: "Backfill started (runs asynchronously)",
        account_id: id.as_str().to_owned(),
        already_running: false,
        run: None,
    };
    if reply == Reply::AlreadyInProgress {
        started.message = "A backfill is running already";
        started.already_running = true;
        let fields = app.view().account(&id).unwrap_or_default();
        started.run = map(&fields, "lastAutoBackfillStatus");
    }
    Ok(Success::new(started))
}

/// The picture to scan, for a browser.
#[utoipa::path(
    get,
    path = "/api/whatsapp/qr/{id}",
    tag = "accounts",
    security(("admin" = [])),
    params(("id" = String, Path, description = "The account")),
    responses(
        (status = 200, description = "A page", body = String, content_type = "text/html"),
        (status = 303, description = "To the login"),
        (status = 404, description = "A page", body = String, content_type = "text/html")
    )
)]
async fn qr_page(
    admin: Result<Admin, Failure>,
    State(app): State<App>,
    Path(id): Path<String>,
) -> Result<Response, Failure> {
    if let Err(failure) = admin {
        let unknown = failure.status() == StatusCode::UNAUTHORIZED;
        let page = || Redirect::to("/console/login").into_response();
        return if unknown { Ok(page()) } else { Err(failure) };
    }
    let found = async {
        let doc = app.documents()?.get(&[parse(&id)?.path()]).await?;
        let doc = doc.docs.into_iter().next().flatten();
        Ok::<_, Failure>(doc.filter(|doc| status(&doc.fields) != "deleted"))
    };
    match found.await {
        Ok(Some(doc)) => Ok(Html(qr::page(&doc.fields)).into_response()),
        Err(failure) if failure.status() != StatusCode::NOT_FOUND => Err(failure),
        Ok(None) | Err(_) => Ok((StatusCode::NOT_FOUND, Html(qr::missing())).into_response()),
    }
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
                .with(Details { current_status: Some(status.to_string()), ..Details::default() }))
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
        .with(Details { owner_instance_id: Some(owner.map(str::to_owned)), ..Details::default() })
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

pub(crate) fn summary(id: &AccountId, fields: &Fields) -> Account {
    Account {
        id: id.as_str().to_owned(),
        name: text(fields, "name"),
        phone: text(fields, "phoneE164").or_else(|| text(fields, "phone")),
        status: text(fields, "status"),
        qr_code: text(fields, "qrCode"),
        pairing_code: text(fields, "pairingCode"),
        created_at: text(fields, "createdAt"),
    }
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
