//! Sending what our users wrote.

use std::sync::Arc;

use backfill_core::id::OutboxId;
use backfill_core::incoming::{
    Content, Incoming, Key, MessageEvent, MessageKind, Status, SyncSource,
};
use backfill_core::io::{Answer, Rejection};
use backfill_core::jid::Jid;
use backfill_core::time::Mono;
use backfill_driver::port::Store;
use backfill_driver::{Handle, Parcel};
use smol_str::SmolStr;
use tokio::time::timeout;
use wacore::proto_helpers::MessageBuilderExt;
use waproto::whatsapp as wa;
use whatsapp_rust::{ClientError, SendError, SendOptions};

use crate::account::Account;
use crate::gateway::wire;

/// Sends the message of an outbox document under the id it was given, and waits until the server
/// has it. The id makes a repetition the same message.
pub(crate) async fn send<S: Store>(
    store: &S,
    handle: &Handle,
    account: &Account,
    outbox: &OutboxId,
    wa_id: SmolStr,
    not_after: Mono,
    patience: std::time::Duration,
) -> Answer {
    let Ok(snapshot) = store.get(&[outbox.path()]).await else {
        return Answer::Rejected(Rejection::Unavailable);
    };
    let Some(doc) = snapshot.docs.into_iter().next().flatten() else {
        return Answer::Rejected(Rejection::Invalid);
    };
    let text = doc.str("payload.text").or_else(|| doc.str("body")).filter(|text| !text.is_empty());
    let to = doc.str("toJid").and_then(|to| Jid::parse(to).ok());
    let (Some(text), Some(to)) = (text, to) else {
        return Answer::Rejected(Rejection::Invalid);
    };
    let Some(wire_to) = wire(&to) else { return Answer::Rejected(Rejection::Invalid) };
    let link = account.open_link();
    let Some((link, client)) = link.and_then(|link| Some((Arc::clone(&link), link.client()?)))
    else {
        return Answer::Rejected(Rejection::Unavailable);
    };
    if handle.now() > not_after {
        return Answer::Rejected(Rejection::Expired);
    }

    let acknowledged = link.await_ack(&wa_id);
    let options = SendOptions::default().with_message_id(wa_id.as_str());
    let sent = client.send_message_with_options(wire_to, wa::Message::text(text), options);
    let ack = async {
        sent.await?;
        Ok::<_, SendError>(acknowledged.await.ok())
    };
    let ack = match timeout(patience, ack).await {
        Ok(Ok(Some(ack))) => ack,
        // The connection ended, or the server takes too long.
        Ok(Ok(None)) | Err(_) => return Answer::Unknown,
        Ok(Err(error)) => return refusal(&error),
    };
    if ack.refused {
        tracing::warn!(account = %account.id, "[realtime] the server refused a message");
        return Answer::Rejected(Rejection::Unavailable);
    }
    // What the server has is part of the chat, like what the owner types on the phone.
    let key = Key { id: wa_id, remote_jid: to.text(), from_me: true, participant: None };
    let content = Content {
        kind: MessageKind::Text,
        body: text.into(),
        status: Some(Status::Sent),
        ..Content::default()
    };
    let sent = Incoming {
        key,
        timestamp: ack.at,
        source: SyncSource::Realtime,
        event: MessageEvent::Content(content),
    };
    let twins = account.twins();
    let parcel = Parcel { account: account.id.clone(), records: vec![sent.into()], twins };
    // If that fails it is reported; the message has left all the same.
    handle.realtime(link.id, parcel).await.ok();
    Answer::Done
}

fn refusal(error: &SendError) -> Answer {
    match error {
        SendError::InvalidRequest(_) => Answer::Rejected(Rejection::Invalid),
        SendError::NotLoggedIn
        | SendError::Client(ClientError::NotConnected | ClientError::NotLoggedIn)
        | SendError::Iq(_) => Answer::Rejected(Rejection::Unavailable),
        // Whether it had left by then is not known.
        _ => Answer::Unknown,
    }
}
