//! The store on SQLite: one host, one file, no account.
//!
//! Several processes of one host may share the file. What a commit answered survives a power
//! loss: the write-ahead log is synced (`synchronous=FULL`) before the answer. One thread per
//! process writes and lets commits that wait share a sync, those about leases first; reading has
//! connections of its own and never waits for writing.

mod clock;
mod codec;
mod failure;
mod key;
mod read;
mod schema;
mod threads;
mod write;

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicI64;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use backfill_core::doc::{DocPath, Query, Write};
use backfill_core::time::StoreTime;
use backfill_driver::port::{Committed, Found, Snapshot, Store, StoreError};
use backfill_driver::semantics::{check_commit, check_query};
use futures_util::{Stream, stream};
use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{broadcast, oneshot};
use tokio::time::timeout;

pub use clock::{HostClock, LinuxClock};

use clock::Clock;
use failure::{not_done, unknown};
use threads::{Change, Commit, Lanes, Post, Read};
use write::Writer;

/// How long a call may take; a disk that does not answer is given up on after this.
const CALL_LIMIT: Duration = Duration::from_secs(15);
/// So many threads read.
const READERS: usize = 2;
/// So many changes are kept for a watcher that is slow; beyond that it gets one hint for all.
const KEPT_CHANGES: usize = 64;
/// A backup's versions go on from here, so that none of the time after it can come twice.
const VERSIONS_SKIPPED: i64 = 1 << 32;

/// A database file. Clones share its threads, which end with the last clone.
#[derive(Clone)]
pub struct SqliteStore {
    shared: Arc<Shared>,
}

impl SqliteStore {
    /// Opens the file, or creates it readable for its owner only.
    ///
    /// Blocks for a moment, longer while another process writes.
    ///
    /// # Errors
    /// [`StoreError::Denied`] without the rights, [`StoreError::Unavailable`] if the file cannot
    /// be used: locked for ten seconds, damaged, or written by a newer program.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with_clock(path, Arc::new(LinuxClock))
    }

    /// Opens a file that no other process uses, with fewer threads: one reads, and none looks out
    /// for commits of others, of which watchers are not told.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_alone(path: &Path) -> Result<Self, StoreError> {
        Self::open_as(path, Arc::new(LinuxClock), true)
    }

    /// Opens the file with another source of time; all processes of a host must use the same.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with_clock(path: &Path, host: Arc<dyn HostClock>) -> Result<Self, StoreError> {
        Self::open_as(path, host, false)
    }

    fn open_as(path: &Path, host: Arc<dyn HostClock>, alone: bool) -> Result<Self, StoreError> {
        create_private(path)?;
        let mut db = schema::open_writer(path).map_err(not_done)?;
        let clock = {
            let tx =
                db.transaction_with_behavior(TransactionBehavior::Immediate).map_err(not_done)?;
            let clock = Clock::open(host, &tx).map_err(not_done)?;
            tx.commit().map_err(not_done)?;
            Arc::new(clock)
        };
        let writer = Writer::new(db, Arc::clone(&clock)).map_err(not_done)?;
        let (changes, _) = broadcast::channel(KEPT_CHANGES);
        let shared = Shared {
            path: path.to_owned(),
            clock,
            commits: Arc::new(Post::new()),
            reads: Arc::new(Post::new()),
            closing: Arc::new(Post::new()),
            changes,
            own_commits: Arc::default(),
            threads: Mutex::default(),
        };
        let (lanes, changes) = (Arc::clone(&shared.commits), shared.changes.clone());
        let own_commits = Arc::clone(&shared.own_commits);
        shared.spawn("sqlite-write", move || {
            threads::write(writer, &lanes, &changes, &own_commits)
        })?;
        for _ in 0..if alone { 1 } else { READERS } {
            let db = schema::open_reader(path).map_err(not_done)?;
            let reads = Arc::clone(&shared.reads);
            shared.spawn("sqlite-read", move || threads::read(&db, &reads))?;
        }
        if !alone {
            let db = schema::open_reader(path).map_err(not_done)?;
            let (closing, changes) = (Arc::clone(&shared.closing), shared.changes.clone());
            let own_commits = Arc::clone(&shared.own_commits);
            shared.spawn("sqlite-watch", move || {
                threads::look_out(&db, &closing, &changes, &own_commits);
            })?;
        }
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Writes a consistent copy of the file to `target`, while everything goes on.
    ///
    /// The copy can be put in the place of the file when no process uses it. Its versions go on
    /// far beyond the original's, so that none from the time after the copy comes a second time.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] with the cause, for instance if `target` exists.
    pub async fn backup(&self, target: &Path) -> Result<(), StoreError> {
        let target = target.to_owned();
        let path = self.shared.path.clone();
        let copy = move |_: &Connection| {
            let db = Connection::open(&path)?;
            let name =
                target.to_str().ok_or_else(|| rusqlite::Error::InvalidPath(target.clone()))?;
            db.execute("VACUUM INTO ?", [name])?;
            drop(db);
            let copy = Connection::open(&target)?;
            copy.execute("UPDATE state SET last_version = last_version + ?", [VERSIONS_SKIPPED])?;
            drop(copy);
            let synced = std::fs::File::open(&target).and_then(|file| file.sync_all());
            synced.map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))
        };
        self.ask(copy).await.ok_or(StoreError::Unavailable(None))?.map_err(not_done)
    }

    /// Has a reading thread do something; `None` if it has died.
    async fn ask<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection) -> T + Send + 'static,
    ) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        let read: Read = Box::new(move |db| {
            // Whoever asked may have given up.
            let _ = answer.send(read(db));
        });
        self.shared.reads.put(|reads| reads.push_back(read));
        answered.await.ok()
    }

    /// A read with its limit, whose time is given away only once the file promises it.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Connection, &Clock) -> rusqlite::Result<T> + Send + 'static,
        time: impl FnOnce(&T) -> StoreTime,
    ) -> Result<T, StoreError> {
        let clock = Arc::clone(&self.shared.clock);
        let reading = async {
            let answer = self.ask(move |db| read(db, &clock)).await;
            let answer = answer.ok_or(StoreError::Unavailable(None))?.map_err(not_done)?;
            if !self.shared.clock.promised(time(&answer)) {
                self.write(Vec::new()).await?;
            }
            Ok(answer)
        };
        timeout(CALL_LIMIT, reading)
            .await
            .unwrap_or_else(|e| Err(StoreError::Unavailable(Some(Box::new(e)))))
    }

    async fn write(&self, writes: Vec<Write>) -> Result<Committed, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.shared.commits.put(|lanes| lanes.push(Commit { writes, answer }));
        match timeout(CALL_LIMIT, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(e)) => Err(unknown(e)),
            Err(e) => Err(unknown(e)),
        }
    }
}

impl Store for SqliteStore {
    async fn get(&self, paths: &[DocPath]) -> Result<Snapshot, StoreError> {
        let paths = paths.to_vec();
        self.read(move |db, clock| read::get(db, clock, &paths), |answer| answer.read_time).await
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<Committed, StoreError> {
        check_commit(&writes)?;
        self.write(writes).await
    }

    async fn query(&self, query: &Query) -> Result<Found, StoreError> {
        check_query(query)?;
        let query = query.clone();
        self.read(move |db, clock| read::query(db, clock, &query), |answer| answer.read_time).await
    }

    fn watch(&self, query: Query) -> impl Stream<Item = ()> + Send + 'static {
        let changes = self.shared.changes.subscribe();
        stream::unfold((changes, query.collection), async |(mut changes, collection)| {
            loop {
                match changes.recv().await {
                    Ok(Change::Here(changed)) if !changed.contains(&collection) => {}
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => {
                        return Some(((), (changes, collection)));
                    }
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        })
    }
}

struct Shared {
    path: PathBuf,
    clock: Arc<Clock>,
    commits: Arc<Post<Lanes>>,
    reads: Arc<Post<VecDeque<Read>>>,
    closing: Arc<Post<()>>,
    changes: broadcast::Sender<Change>,
    own_commits: Arc<AtomicI64>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Shared {
    fn spawn(&self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), StoreError> {
        let thread = thread::Builder::new().name(name.into()).spawn(body);
        let thread = thread.map_err(|e| StoreError::Unavailable(Some(Box::new(e))))?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.closing.close();
        self.reads.close();
        self.commits.close();
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            // A panic there has been reported, and has answered its callers by dropping them.
            let _ = thread.join();
        }
    }
}

/// Messages are private: the file is made before SQLite would make it readable for everybody,
/// and its companions inherit its rights.
fn create_private(path: &Path) -> Result<(), StoreError> {
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            Err(StoreError::Denied(Some(Box::new(e))))
        }
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(StoreError::Unavailable(Some(Box::new(e))))
        }
        _ => Ok(()),
    }
}
