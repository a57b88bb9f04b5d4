//! History that the phone sends by itself: spooled, read piece by piece, stored, forgotten.

use std::sync::Arc;

use backfill_core::coverage::PageEnd;
use backfill_core::incoming::{Record, SyncSource};
use backfill_core::io::{Answer, ChunkId, GatewayEvent, Rejection};
use backfill_driver::{Handle, Parcel};
use tokio::sync::{Semaphore, mpsc};
use wacore::history_sync::HistorySyncStream;

use crate::account::Account;
use crate::chunk::{Arrivals, Chunk};
use crate::convert::{self, Leftovers, Me, Page};
use crate::spool::Keep;

/// Deals with the chunks of one account.
pub(crate) struct History {
    pub(crate) account: Arc<Account>,
    pub(crate) handle: Handle,
    pub(crate) keep: Arc<dyn Keep>,
    pub(crate) arrivals: Arrivals,
    /// So many chunks are read at once
    pub(crate) readers: Arc<Semaphore>,
    pub(crate) dry_run: bool,
}

impl History {
    /// Makes a chunk durable as it arrived.
    pub(crate) async fn spool(&self, chunk: ChunkId) -> Answer {
        let account = &self.account.id;
        let Some(arrived) = self.account.chunk(chunk) else {
            return match self.keep.list(account).await {
                Ok(spooled) if spooled.contains(&chunk) => Answer::Done,
                Ok(_) => Answer::Rejected(Rejection::Invalid),
                Err(_) => Answer::Rejected(Rejection::Unavailable),
            };
        };
        if let Err(error) = self.keep.put(account, chunk, &arrived).await {
            tracing::warn!(%account, %error, "a history chunk could not be spooled");
            return Answer::Rejected(Rejection::Unavailable);
        }
        if self.account.remove_chunk(chunk).is_some() {
            self.arrivals.settled().await;
        }
        Answer::Done
    }

    /// Reports what lies in the spool, and what was lost on the way there.
    pub(crate) async fn recover(&self) -> Answer {
        self.arrivals.report_missing().await;
        let Ok(spooled) = self.keep.list(&self.account.id).await else {
            return Answer::Rejected(Rejection::Unavailable);
        };
        for chunk in spooled {
            self.report(GatewayEvent::Chunk { chunk, spooled: true });
        }
        for chunk in self.account.chunks() {
            self.report(GatewayEvent::Chunk { chunk, spooled: false });
        }
        Answer::Done
    }

    /// Forgets a chunk whose messages are all stored.
    pub(crate) async fn unspool(&self, chunk: ChunkId) -> Answer {
        match self.keep.remove(&self.account.id, chunk).await {
            Ok(()) => Answer::Done,
            Err(_) => Answer::Rejected(Rejection::Unavailable),
        }
    }

    /// Stores what a chunk holds, from a conversation on.
    pub(crate) async fn parse(&self, chunk: ChunkId, from: u32) -> Answer {
        let account = &self.account.id;
        let Ok(_reader) = self.readers.acquire().await else {
            return Answer::Rejected(Rejection::Unavailable);
        };
        let content = match self.keep.get(account, chunk).await {
            Ok(Some(content)) => content,
            // It was forgotten because all of it is stored, and the answer was lost.
            Ok(None) => return Answer::Done,
            Err(crate::spool::Lost::Damaged) => {
                tracing::warn!(%account, "a spooled history chunk is damaged");
                self.report(GatewayEvent::ChunkMissing);
                return Answer::Done;
            }
            Err(error) => {
                tracing::warn!(%account, %error, "a spooled history chunk cannot be read");
                return Answer::Rejected(Rejection::Unavailable);
            }
        };
        let me = self.account.open_link().map(|link| link.me()).unwrap_or_default();
        let (pieces, mut read) = mpsc::channel(PIECES);
        let reading = tokio::task::spawn_blocking(move || read_pieces(&content, from, &me, &pieces));
        let mut stored = Stored::default();
        while let Some(piece) = read.recv().await {
            if !self.handle.believes(account) {
                return Answer::Rejected(Rejection::Unavailable);
            }
            if self.store(chunk, from, piece, &mut stored).await.is_err() {
                return Answer::Rejected(Rejection::Unavailable);
            }
        }
        let intact = matches!(reading.await, Ok(true));
        if !intact {
            // Whoever reads it again gets no further.
            tracing::warn!(%account, "a history chunk is damaged; what follows is lost");
            self.report(GatewayEvent::ChunkMissing);
        }
        let Stored { conversations, records } = stored;
        tracing::info!(%account, conversations, records, dry_run = self.dry_run, "history stored");
        Answer::Done
    }

    async fn store(
        &self,
        chunk: ChunkId,
        from: u32,
        piece: Piece,
        stored: &mut Stored,
    ) -> Result<(), backfill_driver::NotStored> {
        match piece {
            Piece::Leftovers(Leftovers { twins, contacts }) => {
                self.account.learn(twins);
                let mut contacts = contacts.into_iter().peekable();
                while contacts.peek().is_some() {
                    let some = contacts.by_ref().take(CONTACTS_AT_ONCE).collect();
                    self.hand_in(chunk, from, PageEnd::Unstated, some, stored).await?;
                }
            }
            Piece::Conversation { number, page } => {
                let Page { messages, chat, end, .. } = *page;
                stored.conversations += 1;
                for (cursor, end, records) in parts(number, messages, chat, end) {
                    self.hand_in(chunk, cursor, end, records, stored).await?;
                }
            }
            Piece::Nothing { number } => {
                self.hand_in(chunk, number + 1, PageEnd::Unstated, Vec::new(), stored).await?;
            }
        }
        Ok(())
    }

    async fn hand_in(
        &self,
        chunk: ChunkId,
        cursor: u32,
        end: PageEnd,
        records: Vec<Record>,
        stored: &mut Stored,
    ) -> Result<(), backfill_driver::NotStored> {
        stored.records += records.len();
        if self.dry_run {
            return Ok(());
        }
        let account = self.account.id.clone();
        let parcel = Parcel { account, records, twins: self.account.twins() };
        let rejected = self.handle.conversation(chunk, cursor, end, parcel).await?;
        if !rejected.is_empty() {
            let (account, rejected) = (&self.account.id, rejected.len());
            tracing::debug!(%account, rejected, "some of a history chunk cannot be stored");
        }
        Ok(())
    }

    fn report(&self, event: GatewayEvent) {
        self.handle.report(self.account.id.clone(), event);
    }
}

#[derive(Default)]
struct Stored {
    conversations: u32,
    records: usize,
}

/// Part of a chunk.
enum Piece {
    /// Everything but conversations; comes first, because the two names of a person must be known
    /// before messages that use either
    Leftovers(Leftovers),
    Conversation {
        number: u32,
        page: Box<Page>,
    },
    /// A conversation that holds nothing for us
    Nothing {
        number: u32,
    },
}

/// Reads a chunk piece by piece, which takes memory for the largest conversation and those that
/// wait, never for the whole. Says whether it came to the end.
fn read_pieces(chunk: &Chunk, from: u32, me: &Me, pieces: &mpsc::Sender<Piece>) -> bool {
    let mut twins = Vec::new();
    let mut stream = HistorySyncStream::new(&chunk.payload, chunk.size);
    let mut intact = true;
    loop {
        match stream.next_conversation_bytes() {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(_) => {
                intact = false;
                break;
            }
        }
    }
    if intact {
        let Ok(rest) = stream.remainder() else { return false };
        let mut leftovers = convert::leftovers(&rest, chunk.at);
        leftovers.twins.append(&mut twins);
        if pieces.blocking_send(Piece::Leftovers(leftovers)).is_err() {
            return true;
        }
    }

    let mut stream = HistorySyncStream::new(&chunk.payload, chunk.size);
    let mut number = 0;
    loop {
        let bytes = match stream.next_conversation_bytes() {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return intact,
            Err(_) => return false,
        };
        if number >= from {
            let conversation = waproto::codec::conversation_decode(bytes).ok();
            let page = conversation.and_then(|conversation| {
                convert::conversation(&conversation, SyncSource::HistorySync, me, chunk.at)
            });
            let send = |piece| pieces.blocking_send(piece).is_ok();
            let twins = page.as_ref().and_then(|page| page.twins.clone());
            if let Some(pair) = twins {
                let leftovers = Leftovers { twins: vec![pair], ..Leftovers::default() };
                if !send(Piece::Leftovers(leftovers)) {
                    return true;
                }
            }
            let piece = match page {
                Some(page) => Piece::Conversation { number, page: Box::new(page) },
                None => Piece::Nothing { number },
            };
            if !send(piece) {
                return true;
            }
        }
        number += 1;
    }
}

/// Splits a long conversation. Parts share a message, by which they are known to be neighbours; the
/// conversation counts as done with the last one.
fn parts(
    number: u32,
    messages: Vec<Record>,
    chat: Record,
    end: PageEnd,
) -> Vec<(u32, PageEnd, Vec<Record>)> {
    let mut parts = Vec::with_capacity(messages.len() / PART + 1);
    let mut messages = messages.into_iter();
    let mut part: Vec<Record> = messages.by_ref().take(PART).collect();
    part.push(chat);
    loop {
        let rest: Vec<Record> = messages.by_ref().take(PART).collect();
        if rest.is_empty() {
            parts.push((number + 1, end, part));
            return parts;
        }
        let mut next = Vec::with_capacity(rest.len() + 1);
        next.extend(part.iter().rev().find(|r| is_content(r)).cloned());
        next.extend(rest);
        parts.push((number, PageEnd::MoreRemains, std::mem::replace(&mut part, next)));
    }
}

fn is_content(record: &Record) -> bool {
    use backfill_core::incoming::MessageEvent;
    matches!(record, Record::Message(m) if matches!(m.event, MessageEvent::Content(_)))
}

/// Contacts that are stored together.
const CONTACTS_AT_ONCE: usize = 300;
/// Messages of one conversation that are stored together.
const PART: usize = 2_000;
/// Pieces of a chunk that are read ahead.
const PIECES: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;
    use backfill_core::incoming::{Chat, Content, Incoming, Key, MessageEvent};

    fn messages(count: usize) -> Vec<Record> {
        let message = |number: usize| {
            let key = Key {
                id: smol_str::format_smolstr!("m{number}"),
                remote_jid: "1@g.us".into(),
                from_me: true,
                participant: None,
            };
            Record::from(Incoming {
                key,
                timestamp: 9_000_000 - number as i64,
                source: SyncSource::HistorySync,
                event: MessageEvent::Content(Content::default()),
            })
        };
        (0..count).map(message).collect()
    }

    fn ids(records: &[Record]) -> Vec<&str> {
        let id = |record| match record {
            &Record::Message(ref message) => Some(message.key.id.as_str()),
            _ => None,
        };
        records.iter().filter_map(id).collect()
    }

    #[test]
    fn neighbouring_parts_share_a_message_and_only_the_last_ends_the_conversation() {
        let split = |count| parts(7, messages(count), Chat::default().into(), PageEnd::EndOfHistory);
        let one = split(PART);
        assert_eq!(one.len(), 1);
        assert_eq!((one[0].0, one[0].1), (8, PageEnd::EndOfHistory));
        let three = split(2 * PART + 1);
        let heads: Vec<_> = three.iter().map(|(cursor, end, _)| (*cursor, *end)).collect();
        let more = (7, PageEnd::MoreRemains);
        assert_eq!(heads, [more, more, (8, PageEnd::EndOfHistory)]);
        let last_of_first = ids(&three[0].2).last().copied();
        assert_eq!(last_of_first, Some("m1999"));
        assert_eq!(ids(&three[1].2).first().copied(), last_of_first);
        assert_eq!(ids(&three[2].2), ["m3999", "m4000"]);
        assert_eq!(split(0).len(), 1);
    }
}
