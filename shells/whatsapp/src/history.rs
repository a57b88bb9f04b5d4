//! History that the phone sends by itself: spooled, read piece by piece, stored, forgotten.

use std::sync::Arc;

use backfill_core::coverage::PageEnd;
use backfill_core::incoming::{Record, SyncSource};
use backfill_core::io::{Answer, ChunkCounts, ChunkId, GatewayEvent, Rejection};
use backfill_driver::{Handle, Parcel};
use tokio::sync::Semaphore;
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
            tracing::warn!(%account, %error, "[history-sync] a history chunk could not be spooled");
            return Answer::Rejected(Rejection::Unavailable);
        }
        if self.account.remove_chunk(chunk).is_some() {
            self.arrivals.settled().await.ok();
        }
        Answer::Done
    }

    /// Reports what lies in the spool, and what was lost on the way there.
    pub(crate) async fn recover(&self) -> Answer {
        let missing = self.arrivals.report_missing().await;
        let (Ok(()), Ok(spooled)) = (missing, self.keep.list(&self.account.id).await) else {
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

    /// Forgets a chunk whose messages are all stored, or whose loss is noted.
    pub(crate) async fn unspool(&self, chunk: ChunkId) -> Answer {
        let missing = self.account.is_missing(chunk);
        let done = match missing {
            true => self.arrivals.settled().await,
            false => self.keep.remove(&self.account.id, chunk).await,
        };
        if done.is_err() {
            return Answer::Rejected(Rejection::Unavailable);
        }
        self.account.remove_missing(chunk);
        Answer::Done
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
                tracing::warn!(%account, "[history-sync] a spooled history chunk is damaged");
                self.arrivals.damaged();
                return Answer::Done;
            }
            Err(error) => {
                tracing::warn!(%account, %error, "[history-sync] a spooled history chunk cannot be read");
                return Answer::Rejected(Rejection::Unavailable);
            }
        };
        let counts = ChunkCounts { dry_run: self.dry_run, ..ChunkCounts::default() };
        let mut stored = Stored { counts, ..Stored::default() };
        match self.store(chunk, from, &content, &mut stored).await {
            Ok(()) => {}
            Err(Stopped::NotStored) => return Answer::Rejected(Rejection::Unavailable),
            Err(Stopped::Damaged) => {
                // Whoever reads it again gets no further.
                tracing::warn!(%account, "[history-sync] a history chunk is damaged; what follows is lost");
                self.arrivals.damaged();
            }
        }
        let Stored { conversations, records, counts } = stored;
        tracing::info!(%account, conversations, records, dry_run = self.dry_run, "[history-sync] history stored");
        self.report(GatewayEvent::ChunkStored { chunk, counts });
        Answer::Done
    }

    /// Reads and stores conversation by conversation, which takes memory for the largest of them
    /// and never for the whole.
    async fn store(
        &self,
        chunk: ChunkId,
        from: u32,
        content: &Chunk,
        stored: &mut Stored,
    ) -> Result<(), Stopped> {
        let me = self.account.open_link().map(|link| link.me()).unwrap_or_default();
        // Both names of a person must be known before messages use either, and they come last.
        let mut stream = HistorySyncStream::new(&content.payload, content.size);
        while let Ok(Some(_)) = stream.next_conversation_bytes() {
            tokio::task::yield_now().await;
        }
        if let Ok(rest) = stream.remainder() {
            let Leftovers { twins, contacts } = convert::leftovers(&rest, content.at);
            self.account.learn(twins);
            let mut contacts = contacts.into_iter().peekable();
            while contacts.peek().is_some() {
                let some = contacts.by_ref().take(CONTACTS_AT_ONCE).collect();
                self.hand_in(chunk, from, PageEnd::Unstated, some, stored).await?;
            }
        }

        let mut stream = HistorySyncStream::new(&content.payload, content.size);
        for number in 0.. {
            let page = match stream.next_conversation_bytes() {
                Ok(None) => return Ok(()),
                Err(_) => return Err(Stopped::Damaged),
                Ok(Some(bytes)) => read(bytes, &me, content.at),
            };
            if number < from {
                let known = page.map_or(0, |page| page.messages.len());
                stored.counts.skipped += u32::try_from(known).unwrap_or(u32::MAX);
                continue;
            }
            let Some(Page { messages, chat, end, twins, .. }) = page else {
                // Nothing for us is in it.
                self.hand_in(chunk, number + 1, PageEnd::Unstated, Vec::new(), stored).await?;
                continue;
            };
            self.account.learn(twins);
            for (index, (cursor, end, records)) in (0..).zip(parts(number, messages, chat, end)) {
                self.hand_in(chunk, cursor, end, records, stored).await?;
                // The message that it shares with the part before.
                stored.counts.skipped -= u32::from(index > 0 && stored.counts.skipped > 0);
            }
            stored.conversations += 1;
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
    ) -> Result<(), Stopped> {
        if !self.handle.believes(&self.account.id) {
            return Err(Stopped::NotStored);
        }
        stored.records += records.len();
        let counts = &mut stored.counts;
        if self.dry_run {
            let messages = records.iter().filter(|record| matches!(record, Record::Message(_)));
            counts.skipped += u32::try_from(messages.count()).unwrap_or(u32::MAX);
            return Ok(());
        }
        let account = self.account.id.clone();
        let parcel = Parcel { account, records, twins: self.account.twins() };
        let handed_in = self.handle.conversation(chunk, cursor, end, parcel).await;
        let facts = handed_in.map_err(|error| {
            let account = &self.account.id;
            tracing::warn!(%account, %error, "[history-sync] a history chunk waits to be stored");
            Stopped::NotStored
        })?;
        for thread in &facts.threads {
            counts.saved += thread.new;
            counts.skipped += thread.total.saturating_sub(thread.new);
        }
        counts.errors += u32::try_from(facts.rejected.len()).unwrap_or(u32::MAX);
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
    counts: ChunkCounts,
}

/// Why a chunk was not stored to its end.
enum Stopped {
    Damaged,
    NotStored,
}

fn read(bytes: &[u8], me: &Me, at: i64) -> Option<Page> {
    let conversation = waproto::codec::conversation_decode(bytes).ok()?;
    convert::conversation(&conversation, SyncSource::HistorySync, me, at)
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
        let mut ids = Vec::new();
        for record in records {
            if let Record::Message(message) = record {
                ids.push(message.key.id.as_str());
            }
        }
        ids
    }

    #[test]
    fn neighbouring_parts_share_a_message_and_only_the_last_ends_the_conversation() {
        let split =
            |count| parts(7, messages(count), Chat::default().into(), PageEnd::EndOfHistory);
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
