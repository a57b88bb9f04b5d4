//! Sending: the same outbox, written in the same way, as the app's proxy uses.

use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use backfill_core::doc::{FieldOp, FieldPath, Precondition, Value as Field, Write};
use backfill_core::id::{AccountId, MessageId, OutboxId, ThreadId};
use backfill_core::jid::Jid;
use backfill_core::time::StoreTime;
use backfill_driver::port::StoreError;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use smol_str::SmolStr;
use tokio::sync::broadcast;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::access::Caller;
use crate::accounts::{parse, read};
use crate::answer::Success;
use crate::app::{App, Body, Live, random_hex};
use crate::error::{Details, Failure};
use crate::health::status;
use crate::json::iso;

pub(crate) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(send))
}

/// A message to send.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NewMessage {
    /// Who sends it
    account_id: String,
    /// A phone number or a WhatsApp address
    to: String,
    /// The text
    message: String,
    /// By default the thread of the recipient
    thread_id: Option<String>,
    /// The same id again sends nothing again
    client_message_id: Option<String>,
}

/// A message in the outbox.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Sent {
    /// Its id in the outbox and among the thread's messages
    message_id: String,
    client_message_id: String,
    status: SentStatus,
    /// It waits to be sent
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    queued: bool,
    /// It was there already, and nothing is sent again
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    duplicate: bool,
    /// What WhatsApp calls it
    #[serde(skip_serializing_if = "Option::is_none")]
    wa_message_id: Option<String>,
}

/// How far a message has come.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum SentStatus {
    Queued,
    Sent,
}

/// Puts a message into the outbox, and waits a moment for it to be sent.
#[utoipa::path(
    post,
    path = "/api/whatsapp/send-message",
    tag = "inbox",
    security(("firebase" = []), ("admin" = [])),
    request_body = NewMessage,
    responses(
        (
            status = 200,
            description = "`status: sent`, or `queued: true`; `duplicate: true` if it was there already",
            body = Success<Sent>
        ),
        (status = 400, description = "`bad_request`: a field cannot be used"),
        (status = 404, description = "`account_not_found`"),
        (status = 413, description = "`payload_too_large`"),
        (status = 415, description = "`unsupported_media_type`: not JSON"),
        (status = 422, description = "`bad_request`: another shape"),
        (status = 503, description = "`instance_passive`, `send_failed`")
    )
)]
async fn send(
    caller: Caller,
    State(app): State<App>,
    body: Result<Body<NewMessage>, Failure>,
) -> Result<Success<Sent>, Failure> {
    let live = app.active()?;
    let Body(new) = body?;
    let account = parse(&new.account_id)?;
    if new.message.is_empty() || new.message.len() > MOST_TEXT_BYTES {
        return Err(Failure::bad_request("`message` has to have 1 to 65536 bytes."));
    }
    let to = address(&new.to)?;
    let client_id = new.client_message_id.filter(|id| !id.is_empty()).unwrap_or_else(random_hex);
    if client_id.len() > 256 {
        return Err(Failure::bad_request("`clientMessageId` has to have at most 256 bytes."));
    }
    let doc = read(&live, &account).await?.filter(|doc| status(&doc.fields) != "deleted");
    doc.ok_or_else(Failure::account_not_found)?;
    let thread = match &new.thread_id {
        Some(thread) => ThreadId::parse(thread.as_str()).ok().filter(|t| t.jid(&account).is_some()),
        None => ThreadId::of_chat(&account, to.as_str()).ok(),
    };
    let thread = thread
        .ok_or_else(|| Failure::bad_request("`threadId` is not a thread of this account."))?;
    let thread = canonical(&live, &account, thread).await?;

    let id = request_id_of(&thread, &caller.uid, &client_id)?;
    let changes = app.view().outbox();
    let message =
        Message { account, to, thread, id, uid: caller.uid, client_id, text: new.message };
    let (duplicate, state) = match message.queue(&app, &live).await? {
        Some(state) => (true, state),
        None => (false, settled(&live, &message.id, changes).await?),
    };
    let (message_id, client_message_id) = (message.id.as_str().to_owned(), message.client_id);
    if state.status == "failed" {
        let message = "The message could not be sent.";
        return Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "send_failed", message).with(
            Details {
                message_id: Some(message_id),
                client_message_id: Some(client_message_id),
                ..Details::default()
            },
        ));
    }
    let sent = state.status == "sent";
    Ok(Success::new(Sent {
        message_id,
        client_message_id,
        status: if sent { SentStatus::Sent } else { SentStatus::Queued },
        queued: !sent,
        duplicate,
        wa_message_id: state.wa_id.filter(|_| sent).map(String::from),
    }))
}

struct Message {
    account: AccountId,
    to: Jid,
    thread: ThreadId,
    id: OutboxId,
    uid: String,
    client_id: String,
    text: String,
}

/// What became of a message in the outbox.
#[derive(Clone)]
struct Progress {
    status: SmolStr,
    wa_id: Option<SmolStr>,
}

impl Message {
    /// Writes outbox document, message document and thread summary, all or none; if the outbox
    /// has the message already, what became of it.
    async fn queue(&self, app: &App, live: &Live) -> Result<Option<Progress>, Failure> {
        for _ in 0..COMMIT_TRIES {
            let snapshot = live.documents.get(&[self.id.path()]).await?;
            if let Some(doc) = snapshot.docs.first().and_then(Option::as_ref) {
                return Ok(Some(state_of(doc)));
            }
            match live.documents.commit(self.writes(app, snapshot.read_time)?).await {
                Ok(_) => return Ok(None),
                Err(StoreError::Conflict(_) | StoreError::Unknown(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Unavailable(None).into())
    }

    fn writes(&self, app: &App, now: StoreTime) -> Result<Vec<Write>, Failure> {
        let text = || Field::from(self.text.as_str());
        let preview: String = self.text.chars().take(PREVIEW_CHARS).collect();
        let outbox: Vec<(FieldPath, FieldOp)> = vec![
            ("accountId".into(), self.account.text().into()),
            ("toJid".into(), self.to.text().into()),
            ("threadId".into(), self.thread.text().into()),
            ("body".into(), text().into()),
            ("payload".into(), Field::map([("type", "text".into()), ("text", text())]).into()),
            ("status".into(), Field::from("queued").into()),
            ("attemptCount".into(), Field::Int(0).into()),
            ("nextAttemptAt".into(), now.into()),
            ("createdByUid".into(), Field::from(self.uid.as_str()).into()),
            ("clientMessageId".into(), Field::from(self.client_id.as_str()).into()),
            ("requestId".into(), self.id.text().into()),
            ("createdAt".into(), FieldOp::ServerTime),
            ("updatedAt".into(), FieldOp::ServerTime),
        ];
        let wall = app.wall();
        let message: Vec<(FieldPath, FieldOp)> = vec![
            ("accountId".into(), self.account.text().into()),
            ("clientJid".into(), self.to.text().into()),
            ("threadId".into(), self.thread.text().into()),
            ("direction".into(), Field::from("outbound").into()),
            ("body".into(), text().into()),
            ("messageType".into(), Field::from("text").into()),
            ("status".into(), Field::from("queued").into()),
            ("clientMessageId".into(), Field::from(self.client_id.as_str()).into()),
            ("tsClient".into(), Field::from(iso(wall)).into()),
            ("tsServer".into(), FieldOp::ServerTime),
            ("createdAtMs".into(), Field::Int(wall.as_millis()).into()),
            ("createdAt".into(), FieldOp::ServerTime),
            ("updatedAt".into(), FieldOp::ServerTime),
        ];
        let thread: Vec<(FieldPath, FieldOp)> = vec![
            ("accountId".into(), self.account.text().into()),
            ("clientJid".into(), self.thread.jid(&self.account).unwrap_or_default().into()),
            ("lastMessageAt".into(), now.into()),
            ("lastMessageAtMs".into(), Field::Int(now.as_millis()).into()),
            ("lastMessageText".into(), Field::from(preview.as_str()).into()),
            ("lastMessagePreview".into(), Field::from(preview.as_str()).into()),
            ("lastMessageDirection".into(), Field::from("outbound").into()),
            ("updatedAt".into(), FieldOp::ServerTime),
        ];
        let message_id = MessageId::parse(self.id.text())
            .map_err(|_| Failure::bad_request("The ids cannot be used."))?;
        let message_path =
            backfill_core::doc::DocPath::new(&self.thread.messages(), message_id.as_str())
                .map_err(|_| Failure::bad_request("The ids cannot be used."))?;
        Ok(vec![
            Write::merge(self.id.path(), Precondition::Absent, outbox),
            Write::merge(message_path, Precondition::Absent, message),
            Write::merge(self.thread.path(), Precondition::Any, thread),
        ])
    }
}

/// Waits a moment for the outbox document to come to its end.
async fn settled(
    live: &Live,
    id: &OutboxId,
    mut changes: broadcast::Receiver<(OutboxId, SmolStr)>,
) -> Result<Progress, Failure> {
    let ended = async {
        loop {
            match changes.recv().await {
                Ok((changed, status)) if changed == *id && status != "processing" => return,
                Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
            }
        }
    };
    // Whoever owns the account may be another instance: the store has the last word.
    let _ = tokio::time::timeout(SENT_WITHIN, ended).await;
    let snapshot = live.documents.get(&[id.path()]).await?;
    let doc = snapshot.docs.first().and_then(Option::as_ref);
    Ok(doc.map_or_else(|| Progress { status: "queued".into(), wa_id: None }, |doc| state_of(doc)))
}

fn state_of(doc: &backfill_core::doc::Document) -> Progress {
    Progress {
        status: doc.str("status").unwrap_or("queued").into(),
        wa_id: doc.str("providerMessageId").map(SmolStr::new),
    }
}

/// The thread that a twin points at.
async fn canonical(
    live: &Live,
    account: &AccountId,
    thread: ThreadId,
) -> Result<ThreadId, Failure> {
    let snapshot = live.documents.get(&[thread.path()]).await?;
    let target = snapshot.docs.first().and_then(Option::as_ref).and_then(|doc| {
        let to = doc.str("redirectTo").or_else(|| doc.str("canonicalThreadId"))?;
        ThreadId::parse(to).ok().filter(|thread| thread.jid(account).is_some())
    });
    Ok(target.unwrap_or(thread))
}

/// The id that the proxy gives the same message.
fn request_id_of(thread: &ThreadId, uid: &str, client_id: &str) -> Result<OutboxId, Failure> {
    let digest = Sha256::digest(format!("{}|{uid}|{client_id}", thread.as_str()).as_bytes());
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    OutboxId::parse(hex).map_err(|_| Failure::bad_request("The ids cannot be used."))
}

/// A phone number or an address as WhatsApp writes it.
fn address(to: &str) -> Result<Jid, Failure> {
    let bad = || Failure::bad_request("`to` has to be a phone number or a WhatsApp address.");
    if to.contains('@') {
        return Jid::parse(to.trim()).map_err(|_| bad());
    }
    let digits: String = to.chars().filter(char::is_ascii_digit).collect();
    let digits = digits.strip_prefix('0').map_or(digits.clone(), |rest| format!("40{rest}"));
    if !(7..=15).contains(&digits.len()) {
        return Err(bad());
    }
    Jid::parse(format!("{digits}@s.whatsapp.net")).map_err(|_| bad())
}

const COMMIT_TRIES: usize = 5;
const MOST_TEXT_BYTES: usize = 65_536;
const PREVIEW_CHARS: usize = 100;
/// Somebody looks at a spinner.
const SENT_WITHIN: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_the_proxys() {
        let thread = ThreadId::parse("account_prod_x__1@s.whatsapp.net").unwrap();
        let id = request_id_of(&thread, "uid", "c1").unwrap();
        let digest = Sha256::digest(b"account_prod_x__1@s.whatsapp.net|uid|c1");
        assert_eq!(
            id.as_str()[..8],
            format!("{:02x}{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2], digest[3])
        );
        assert_eq!(id.as_str().len(), 64);
    }

    #[test]
    fn recipients_are_numbers_or_addresses() {
        assert_eq!(address("0712 345 678").unwrap().as_str(), "40712345678@s.whatsapp.net");
        assert_eq!(address("123@g.us").unwrap().as_str(), "123@g.us");
        assert!(address("12").is_err());
        assert!(address("a@b@c").is_err());
    }
}
