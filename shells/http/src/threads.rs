//! Reading threads and messages.

use std::collections::BTreeMap;

use axum::extract::{Path, Query as Params, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use backfill_core::doc::{
    CollectionPath, Comparison, Direction, Document, FieldPath, Query, Value as Field,
};
use backfill_core::id::{AccountId, ThreadId};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::access::Caller;
use crate::accounts::parse;
use crate::app::{App, success};
use crate::documents::Documents;
use crate::error::Failure;
use crate::json::object;

pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/api/whatsapp/threads/{accountId}", get(threads))
        .route("/api/whatsapp/messages/{accountId}/{threadId}", get(messages))
        .route("/api/whatsapp/inbox/{accountId}", get(inbox))
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
#[utoipa::path(get, path = "/api/whatsapp/threads/{accountId}", tag = "inbox", security(("firebase" = []), ("admin" = [])), params(("accountId" = String, Path, description = "The account"), ("limit" = Option<u32>, Query, description = "1 to 500, by default 50"), ("orderBy" = Option<String>, Query, description = "`lastMessageAt`")), responses((status = 200, description = "`threads` and `count`")))]
pub(crate) async fn threads(
    _: Caller,
    State(app): State<App>,
    Path(account): Path<String>,
    params: PageOf,
) -> Result<Json<Value>, Failure> {
    let (account, page) = (parse(&account)?, page(params)?);
    if page.order_by.as_deref().is_some_and(|by| by != "lastMessageAt") {
        return Err(Failure::bad_request("`orderBy` has to be `lastMessageAt`."));
    }
    let docs = newest_threads(&app.documents()?, &account, page.limit(50)?).await?;
    let threads: Vec<Value> = docs.iter().map(|doc| thread_json(doc)).collect();
    Ok(success(json!({ "count": threads.len(), "threads": threads })))
}

/// The newest messages of a thread, the newest first.
#[utoipa::path(get, path = "/api/whatsapp/messages/{accountId}/{threadId}", tag = "inbox", security(("firebase" = []), ("admin" = [])), params(("accountId" = String, Path, description = "The account"), ("threadId" = String, Path, description = "The thread"), ("limit" = Option<u32>, Query, description = "1 to 500, by default 50")), responses((status = 200, description = "`thread`, `messages` and `count`"), (status = 403, description = "The thread is another account's"), (status = 404, description = "`thread_not_found`")))]
pub(crate) async fn messages(
    _: Caller,
    State(app): State<App>,
    Path((account, thread)): Path<(String, String)>,
    params: PageOf,
) -> Result<Json<Value>, Failure> {
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
    let messages: Vec<Value> = found.iter().map(|doc| message_json(doc)).collect();
    Ok(success(json!({
        "thread": thread_json(&doc),
        "count": messages.len(),
        "messages": messages,
    })))
}

/// The newest messages of an account, of all its threads.
#[utoipa::path(get, path = "/api/whatsapp/inbox/{accountId}", tag = "inbox", security(("firebase" = []), ("admin" = [])), params(("accountId" = String, Path, description = "The account"), ("limit" = Option<u32>, Query, description = "1 to 500, by default 100")), responses((status = 200, description = "`messages`, `count` and `totalMessages`")))]
pub(crate) async fn inbox(
    _: Caller,
    State(app): State<App>,
    Path(account): Path<String>,
    params: PageOf,
) -> Result<Json<Value>, Failure> {
    let (account, limit) = (parse(&account)?, page(params)?.limit(100)? as usize);
    let documents = app.documents()?;
    let mut newest: BTreeMap<(String, String), Value> = BTreeMap::new();
    let mut total = 0;
    for thread in newest_threads(&documents, &account, INBOX_THREADS).await? {
        // Threads come newest first: one older than everything kept brings nothing.
        let last = thread.time("lastMessageAt").map(crate::json::iso).unwrap_or_default();
        let full = newest.len() >= limit;
        if full && newest.first_key_value().is_some_and(|((oldest, _), _)| *oldest > last) {
            break;
        }
        let Ok(id) = ThreadId::parse(thread.path.id()) else { continue };
        for doc in newest_messages(&documents, &id, INBOX_PER_THREAD).await? {
            total += 1;
            let at = match doc.value("tsClient") {
                Some(Field::Timestamp(at)) => crate::json::iso(*at),
                Some(Field::String(at)) => at.to_string(),
                _ => continue,
            };
            let mut message = message_json(&doc);
            message["threadName"] = crate::json::field(&thread.fields, "displayName");
            newest.insert((at, doc.path.as_str().to_owned()), message);
            if newest.len() > limit {
                newest.pop_first();
            }
        }
    }
    let messages: Vec<Value> = newest.into_values().rev().collect();
    Ok(success(json!({
        "count": messages.len(),
        "messages": messages,
        "totalMessages": total,
    })))
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

pub(crate) fn thread_json(doc: &Document) -> Value {
    let mut thread = object(&doc.fields);
    // What ingest remembers of its own is nobody's business.
    thread.remove("ingest");
    thread.insert("id".into(), doc.path.id().into());
    Value::Object(thread)
}

fn message_json(doc: &Document) -> Value {
    let mut message = object(&doc.fields);
    message.insert("id".into(), doc.path.id().into());
    Value::Object(message)
}

const MOST: u32 = 500;
const INBOX_THREADS: u32 = 50;
const INBOX_PER_THREAD: u32 = 50;
