//! History on its way in: what arrived, and what was only announced.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backfill_core::io::{ChunkId, GatewayEvent};
use backfill_driver::Handle;
use bytes::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use wacore::types::events::LazyHistorySync;
use waproto::whatsapp::history_sync::HistorySyncType;

use crate::account::Account;
use crate::page;
use crate::spool::{Keep, Lost};

/// History as the phone sent it.
#[derive(Clone)]
pub(crate) struct Chunk {
    /// A compressed `HistorySync`
    pub(crate) payload: Bytes,
    /// How many bytes it has when decompressed
    pub(crate) size: u64,
    /// When it arrived, in seconds since the Unix epoch
    pub(crate) at: i64,
    /// Its share of the memory that history may take
    pub(crate) _room: Option<Arc<OwnedSemaphorePermit>>,
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chunk").field("bytes", &self.payload.len()).finish_non_exhaustive()
    }
}

/// How much compressed history of all accounts may lie in memory, because nobody has spooled it yet.
#[derive(Clone)]
pub(crate) struct Room(Arc<Semaphore>);

impl Room {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(ROOM_KIB)))
    }

    fn take(&self, bytes: usize) -> Option<Arc<OwnedSemaphorePermit>> {
        let kib = u32::try_from(bytes / 1_024 + 1).ok()?;
        Arc::clone(&self.0).try_acquire_many_owned(kib).ok().map(Arc::new)
    }
}

/// Where the history of one account arrives.
#[derive(Clone)]
pub(crate) struct Arrivals {
    pub(crate) account: Arc<Account>,
    pub(crate) handle: Handle,
    pub(crate) keep: Arc<dyn Keep>,
    pub(crate) room: Room,
    /// How long history may take between its announcement and its arrival
    pub(crate) patience: Duration,
}

impl Arrivals {
    /// Takes what arrived: the answer to a request, or a chunk of its own. Does not wait.
    pub(crate) fn take(&self, sync: &LazyHistorySync) {
        self.account.expected().arrived();
        let payload = sync.compressed_bytes().clone();
        let Some(room) = self.room.take(payload.len()) else {
            tracing::warn!(account = %self.account.id, "[history-sync] history was dropped: too much waits");
            return self.lost();
        };
        let size = sync.decompressed_size() as u64;
        let at = wacore::time::now_secs();
        let chunk = Chunk { payload, size, at, _room: Some(room) };
        let session = sync.peer_data_request_session_id().map(str::to_owned);
        if sync.sync_type() == HistorySyncType::ON_DEMAND as i32 || session.is_some() {
            let arrivals = self.clone();
            tokio::spawn(async move {
                page::arrived(&arrivals.account, &arrivals.handle, session, chunk).await;
                arrivals.settled().await.ok();
            });
            return;
        }
        let id = next_id();
        self.account.add_chunk(id, chunk);
        self.report(GatewayEvent::Chunk { chunk: id, spooled: false });
    }

    /// The phone says that it sends so much history. That is noted for good: the client confirms it
    /// before it has fetched anything, and says nothing if it cannot.
    pub(crate) async fn announced(&self, count: usize) {
        let expected = self.account.expected();
        let last = expected.announced(count as u64);
        let mut noted = expected.noted.lock().await;
        *noted += count as i64;
        // Without the note a loss may go unnoticed; that is no reason to lose anything else.
        self.note(*noted).await.ok();
        drop(noted);
        for number in (last + 1 - count as u64)..=last {
            let arrivals = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep(arrivals.patience).await;
                if arrivals.account.expected().give_up(number) {
                    arrivals.lost();
                }
            });
        }
    }

    /// Something that was announced is safe, or its loss is.
    pub(crate) async fn settled(&self) -> Result<(), Lost> {
        let expected = self.account.expected();
        let mut noted = expected.noted.lock().await;
        self.note(*noted - 1).await?;
        *noted -= 1;
        Ok(())
    }

    /// Something that was announced will not come. It stays noted until the core has made sure that
    /// it is not forgotten.
    fn lost(&self) {
        let chunk = next_id();
        self.account.add_missing(chunk);
        self.report(GatewayEvent::ChunkMissing { chunk });
    }

    /// What somebody has to be told of a chunk that is spooled and cannot be read.
    pub(crate) fn damaged(&self) {
        self.report(GatewayEvent::ChunkMissing { chunk: next_id() });
    }

    /// Reports what was lost, here or by an earlier process, and is not settled yet.
    pub(crate) async fn report_missing(&self) -> Result<(), Lost> {
        let expected = self.account.expected();
        let mut noted = expected.noted.lock().await;
        if *noted <= 0 && self.keep.noted(&self.account.id).await? > 0 {
            // One loss says as much as a hundred.
            *noted = 1;
            self.account.add_missing(next_id());
        }
        drop(noted);
        for chunk in self.account.missing() {
            self.report(GatewayEvent::ChunkMissing { chunk });
        }
        Ok(())
    }

    async fn note(&self, count: i64) -> Result<(), Lost> {
        let count = u64::try_from(count).unwrap_or(0);
        let noted = self.keep.note(&self.account.id, count).await;
        if noted.is_err() {
            tracing::warn!(account = %self.account.id, "[history-sync] announced history could not be noted");
        }
        noted
    }

    fn report(&self, event: GatewayEvent) {
        self.handle.report(self.account.id.clone(), event);
    }
}

/// History that was announced and is not there yet.
#[derive(Default)]
pub(crate) struct Expected {
    announced: AtomicU64,
    arrived: AtomicU64,
    /// Something has arrived, or will not
    progress: Notify,
    /// How much is announced and not safe yet, as it is noted for good; negative while something is
    /// safe whose announcement is still on its way
    noted: tokio::sync::Mutex<i64>,
}

impl Expected {
    /// Numbers announcements from 1; gives the number of the last.
    fn announced(&self, count: u64) -> u64 {
        self.announced.fetch_add(count, Ordering::AcqRel) + count
    }

    fn arrived(&self) {
        self.arrived.fetch_add(1, Ordering::AcqRel);
        self.progress.notify_waiters();
    }

    /// Ends when nothing is on its way.
    pub(crate) async fn all_arrived(&self) {
        loop {
            let progress = self.progress.notified();
            let announced = self.announced.load(Ordering::Acquire);
            if self.arrived.load(Ordering::Acquire) >= announced {
                return;
            }
            progress.await;
        }
    }

    /// If fewer have arrived than were announced up to a number, one will not come any more.
    fn give_up(&self, number: u64) -> bool {
        let given_up = self
            .arrived
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |arrived| {
                (arrived < number).then_some(arrived + 1)
            })
            .is_ok();
        self.progress.notify_waiters();
        given_up
    }
}

/// A number that no chunk had before, here or in another process.
fn next_id() -> ChunkId {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let now = u64::try_from(wacore::time::now_millis()).unwrap_or(0) << 12;
    let next = |last: u64| Some(now.max(last + 1));
    let last = LAST.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).unwrap_or(0);
    ChunkId(now.max(last + 1))
}

/// Compressed history that may wait in memory, in KiB.
const ROOM_KIB: usize = 192 * 1_024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_only_grow() {
        let ids: Vec<_> = (0..1_000).map(|_| next_id()).collect();
        assert!(ids.is_sorted_by(|a, b| a < b));
        assert!(i64::try_from(ids[999].0).is_ok());
    }

    #[test]
    fn what_does_not_arrive_is_given_up_once() {
        let expected = Expected::default();
        assert_eq!(expected.announced(3), 3);
        expected.arrived();
        expected.arrived();
        assert!(!expected.give_up(1));
        assert!(!expected.give_up(2));
        assert!(expected.give_up(3));
        assert!(!expected.give_up(3));
        assert_eq!(expected.announced(1), 4);
        assert!(expected.give_up(4));
    }
}
