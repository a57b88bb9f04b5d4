//! Pages of history that the phone is asked for.

use std::sync::Arc;

use backfill_core::coverage::{Anchor, PageEnd};
use backfill_core::id::{RequestId, ThreadId};
use backfill_core::incoming::SyncSource;
use backfill_core::io::{Answer, Rejection, RunKind};
use backfill_core::jid::Jid;
use backfill_driver::{Handle, Parcel};
use tokio::time::timeout;
use wacore::history_sync::HistorySyncStream;

use crate::account::{Account, Asked};
use crate::chunk::Chunk;
use crate::convert::{self, Page};
use crate::gateway::wire;

/// Asks the phone for the messages before `anchor`. The answer arrives later, if at all.
pub(crate) async fn ask(
    account: &Account,
    request: RequestId,
    thread: ThreadId,
    anchor: &Anchor,
    count: u32,
    run: RunKind,
) -> Answer {
    let link = account.open_link();
    let Some((link, client)) = link.and_then(|link| Some((Arc::clone(&link), link.client()?)))
    else {
        return Answer::Rejected(Rejection::Unavailable);
    };
    let Some(jid) = thread.jid(&account.id).and_then(|jid| Jid::parse(jid).ok()) else {
        return Answer::Rejected(Rejection::Invalid);
    };
    // Once an account has moved to LIDs, its phone files chats under those.
    let twins = account.twins();
    let lid = if client.is_lid_migrated().await { twins.lid_of(&jid) } else { None };
    let Some(chat) = wire(lid.unwrap_or(&jid)) else {
        return Answer::Rejected(Rejection::Invalid);
    };
    let source = match run {
        RunKind::AutoBackfill => SyncSource::Backfill,
        RunKind::RecentSync => SyncSource::RecentSync,
    };
    let count = i32::try_from(count).unwrap_or(i32::MAX);

    let _asking = account.asking.lock().await;
    if !link.is_open() {
        return Answer::Rejected(Rejection::Unavailable);
    }
    // The field says milliseconds, but phones answer only to seconds.
    let sent =
        client.fetch_message_history(&chat, &anchor.id, anchor.from_me, anchor.second, count);
    match timeout(ASK_LIMIT, sent).await {
        Ok(Ok(id)) => {
            account.note_asked(id.into(), Asked { request, thread, source });
            Answer::Done
        }
        // It may have left before something went wrong.
        Ok(Err(_)) | Err(_) => Answer::Unknown,
    }
}

/// Stores the answer to a request, or what looks like one.
pub(crate) async fn arrived(
    account: &Arc<Account>,
    handle: &Handle,
    session: Option<String>,
    chunk: Chunk,
) {
    let asked = {
        // The request whose answer this is may not know its id yet.
        let _asking = account.asking.lock().await;
        session.and_then(|session| account.take_asked(&session))
    };
    let mut stream = HistorySyncStream::new(&chunk.payload, chunk.size.min(MAX_PAGE_BYTES));
    let source = asked.as_ref().map_or(SyncSource::Backfill, |asked| asked.source);
    let me = account.open_link().map(|link| link.me()).unwrap_or_default();
    let mut pages = Vec::new();
    while let Ok(Some(conversation)) = stream.next_conversation() {
        pages.extend(convert::conversation(&conversation, source, &me, chunk.at));
    }
    account.learn(pages.iter().filter_map(|page| page.twins.clone()));
    if let Ok(rest) = stream.remainder() {
        account.learn(convert::leftovers(&rest, chunk.at).twins);
    }
    drop(chunk);

    let twins = account.twins();
    let mut answered = false;
    for Page { jid, messages, end, .. } in pages {
        let Ok(jid) = Jid::parse(jid) else { continue };
        let thread = ThreadId::of_chat(&account.id, twins.canonical(&jid).as_str());
        let Ok(thread) = thread else { continue };
        let mine = asked.as_ref().filter(|asked| !answered && asked.thread == thread);
        answered |= mine.is_some();
        let request = mine.map(|asked| asked.request);
        let parcel =
            Parcel { account: account.id.clone(), records: messages, twins: Arc::clone(&twins) };
        if let Err(error) = handle.page(request, thread, end, parcel).await {
            tracing::warn!(account = %account.id, %error, "[recent-sync] a page could not be stored");
        }
    }
    if let Some(asked) = asked.filter(|_| !answered) {
        // An answer without the chat: there is nothing more of it.
        let parcel = Parcel { account: account.id.clone(), records: Vec::new(), twins };
        let end = PageEnd::EndOfHistory;
        handle.page(Some(asked.request), asked.thread, end, parcel).await.ok();
    }
}

/// How long it may take until a request has left; keys may have to be fetched first.
const ASK_LIMIT: std::time::Duration = std::time::Duration::from_secs(20);
/// A page has 50 messages.
const MAX_PAGE_BYTES: u64 = 64 << 20;
