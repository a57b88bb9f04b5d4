//! Reading threads and messages.

use std::collections::BTreeMap;

use axum::extract::{Path, Query as Params, State};
use axum::http::StatusCode;
use backfill_core::doc::{CollectionPath, Comparison, Direction, Document, FieldPath, Query};
use backfill_core::id::{AccountId, ThreadId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::access::Caller;
use crate::accounts::parse;
use crate::answer::Success;
use crate::app::App;
use crate::documents::Documents;
use crate::error::Failure;
use crate::json::{iso, object, text};

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(threads)).routes(routes!(messages)).routes(routes!(inbox))
}

/// A document with its id: all its fields as they are in the store.
#[derive(Serialize, ToSchema)]
struct Shown {
    id: String,
    #[serde(flatten)]
    fields: BTreeMap<String, serde_json::Value>,
}

/// Threads of an account.
#[derive(Serialize, ToSchema)]
pub(crate) struct Threads {
    /// The newest first
    threads: Vec<Shown>,
    count: usize,
}

/// Messages of a thread.
#[derive(Serialize, ToSchema)]
pub(crate) struct Messages {
    thread: Shown,
    /// The newest first
    messages: Vec<Shown>,
    count: usize,
}

/// Messages of an account.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Inbox {
    /// The newest first, each with its `threadName`
    messages: Vec<Shown>,
    count: usize,
    /// How many were looked at
    total_messages: usize,
}

/// How much, and in which order.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Page {
    limit: Option<u32>,
    order_by: Option<String>,
}

impl Page {
    fn limit(&self, usual: u32) -> Result<u32, Failure> {
        let limit = self.limit.unwrap_or(usual);
        if (1..=MOST).contains(&limit) {
            Ok(limit)
        } else {
            Err(Failure::bad_request("`limit` has to be from 1 to 500."))
        }
    }
}

type PageOf = Result<Params<Page>, axum::extract::rejection::QueryRejection>;

fn page(params: PageOf) -> Result<Page, Failure> {
    params
        .map(|Params(page)| page)
        .map_err(|_| Failure::bad_request("The query parameters cannot be read."))
}

/// The newest threads of an account.
#[utoipa::path(
    get,
    path = "/api/whatsapp/threads/{accountId}",
    tag = "inbox",
    security(("firebase" = []), ("admin" = [])),
    params(
        ("accountId" = String, Path, description = "The account"),
        ("limit" = Option<u32>, Query, description = "1 to 500, by default 50"),
        ("orderBy" = Option<String>, Query, description = "`lastMessageAt`")
    ),
    responses(
        (status = 200, description = "`threads` and `count`", body = Success<Threads>),
        (status = 400, description = "`bad_request`: `limit` or `orderBy` cannot be used"),
        (status = 404, description = "`account_not_found`: that is no account's id")
    )
)]
async fn threads(
    _: Caller,
    State(app): State<App>,
    Path(account): Path<String>,
    params: PageOf,
) -> Result<Success<Threads>, Failure> {
    let (account, page) = (parse(&account)?, page(params)?);
    if page.order_by.as_deref().is_some_and(|by| by != "lastMessageAt") {
        return Err(Failure::bad_request("`orderBy` has to be `lastMessageAt`."));
    }
    let docs = newest_threads(&app.documents()?, &account, page.limit(50)?).await?;
    let threads: Vec<Shown> = docs.iter().map(|doc| Shown::thread(doc)).collect();
    Ok(Success::new(Threads { count: threads.len(), threads }))
}

/// The newest messages of a thread, the newest first.
#[utoipa::path(
    get,
    path = "/api/whatsapp/messages/{accountId}/{threadId}",
    tag = "inbox",
    security(("firebase" = []), ("admin" = [])),
    params(
        ("accountId" = String, Path, description = "The account"),
        ("threadId" = String, Path, description = "The thread"),
        ("limit" = Option<u32>, Query, description = "1 to 500, by default 50")
    ),
    responses(
        (status = 200, description = "`thread`, `messages` and `count`", body = Success<Messages>),
        (status = 400, description = "`bad_request`: `limit` cannot be used"),
        (status = 403, description = "`forbidden`: the thread is another account's"),
        (status = 404, description = "`thread_not_found`, `account_not_found`")
    )
)]
async fn messages(
    _: Caller,
    State(app): State<App>,
    Path((account, thread)): Path<(String, String)>,
    params: PageOf,
) -> Result<Success<Messages>, Failure> {
    let (account, limit) = (parse(&account)?, page(params)?.limit(50)?);
    let missing =
        || Failure::new(StatusCode::NOT_FOUND, "thread_not_found", "There is no such thread.");
    let id = ThreadId::parse(thread).map_err(|_| missing())?;
    let documents = app.documents()?;
    let doc = documents.get(&[id.path()]).await?.docs.into_iter().next().flatten();
    let doc = doc.ok_or_else(missing)?;
    if doc.str("accountId") != Some(account.as_str()) {
        let message = "The thread is another account's.";
        return Err(Failure::new(StatusCode::FORBIDDEN, "forbidden", message));
    }
    let found = newest_messages(&documents, &id, limit).await?;
    let messages: Vec<Shown> = found.iter().map(|doc| Shown::message(doc)).collect();
    Ok(Success::new(Messages { thread: Shown::thread(&doc), count: messages.len(), messages }))
}

/// The newest messages of an account, of all its threads.
#[utoipa::path(
    get,
    path = "/api/whatsapp/inbox/{accountId}",
    tag = "inbox",
    security(("firebase" = []), ("admin" = [])),
    params(
        ("accountId" = String, Path, description = "The account"),
        ("limit" = Option<u32>, Query, description = "1 to 500, by default 100")
    ),
    responses(
        (status = 200, description = "`messages`, `count` and `totalMessages`", body = Success<Inbox>),
        (status = 400, description = "`bad_request`: `limit` cannot be used"),
        (status = 404, description = "`account_not_found`: that is no account's id")
    )
)]
async fn inbox(
    _: Caller,
    State(app): State<App>,
    Path(account): Path<String>,
    params: PageOf,
) -> Result<Success<Inbox>, Failure> {
    let (account, limit) = (parse(&account)?, page(params)?.limit(100)? as usize);
    let documents = app.documents()?;
    let mut newest: BTreeMap<(String, String), Shown> = BTreeMap::new();
    let mut total = 0;
    for thread in newest_threads(&documents, &account, INBOX_THREADS).await? {
        // Threads come newest first: one older than everything kept brings nothing.
        let last = thread.time("lastMessageAt").map(iso).unwrap_or_default();
        let full = newest.len() >= limit;
        if full && newest.first_key_value().is_some_and(|((oldest, _), _)| *oldest > last) {
            break;
        }
        let Ok(id) = ThreadId::parse(thread.path.id()) else { continue };
        for doc in newest_messages(&documents, &id, INBOX_PER_THREAD).await? {
            total += 1;
            let Some(at) = text(&doc.fields, "tsClient") else { continue };
            let mut message = Shown::message(&doc);
            let name = text(&thread.fields, "displayName");
            message.fields.insert("threadName".into(), name.into());
            newest.insert((at, doc.path.as_str().to_owned()), message);
            if newest.len() > limit {
                newest.pop_first();
            }
        }
    }
    let messages: Vec<Shown> = newest.into_values().rev().collect();
    Ok(Success::new(Inbox { count: messages.len(), messages, total_messages: total }))
}

pub(crate) async fn newest_threads(
    documents: &Documents,
    account: &AccountId,
    limit: u32,
) -> Result<Vec<std::sync::Arc<Document>>, Failure> {
    let query = Query::all(CollectionPath::root("threads"), limit)
        .filter(FieldPath::new("accountId"), Comparison::Equal, account.text())
        .order_by(FieldPath::new("lastMessageAt"), Direction::Descending);
    Ok(documents.query(&query).await?.docs)
}

async fn newest_messages(
    documents: &Documents,
    thread: &ThreadId,
    limit: u32,
) -> Result<Vec<std::sync::Arc<Document>>, Failure> {
    let query = Query::all(thread.messages(), limit)
        .order_by(FieldPath::new("tsClient"), Direction::Descending);
    Ok(documents.query(&query).await?.docs)
}

impl Shown {
    fn thread(doc: &Document) -> Self {
        let mut thread = Self::message(doc);
        // What ingest remembers of its own is nobody's business.
        thread.fields.remove("ingest");
        thread
    }

    fn message(doc: &Document) -> Self {
        let mut fields = object(&doc.fields);
        fields.remove("id");
        Self { id: doc.path.id().to_owned(), fields }
    }
}

const MOST: u32 = 500;
const INBOX_THREADS: u32 = 50;
const INBOX_PER_THREAD: u32 = 50;
