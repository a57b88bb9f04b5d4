//! The threads that wait for the disk, so that no task does: one writes, some read, one looks
//! out for other processes.

use std::collections::{BTreeSet, VecDeque};
use std::mem;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backfill_core::doc::{CollectionPath, Write, WriteOp};
use backfill_driver::port::{Committed, StoreError};
use rusqlite::Connection;
use tokio::sync::{broadcast, oneshot};

use crate::write::Writer;

/// At most this many writes share one transaction: what a lease waits for at most.
const GROUP: usize = 1_000;
/// How often the file is looked at for commits of other processes.
const LOOKOUT: Duration = Duration::from_millis(100);
/// The pause after a bulk group while other processes write too, so that they get the lock.
const COURTESY: Duration = Duration::from_millis(1);
/// For so many groups after another process's commit there is that pause.
const COURTEOUS_GROUPS: u32 = 2_000;

/// A commit and where its answer goes.
pub(crate) struct Commit {
    pub(crate) writes: Vec<Write>,
    pub(crate) answer: oneshot::Sender<Result<Committed, StoreError>>,
}

/// Something to do with a reading connection.
pub(crate) type Read = Box<dyn FnOnce(&Connection) + Send>;

/// What has changed.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// Something, by another process
    Elsewhere,
    /// Documents of these collections, by this process
    Here(Arc<BTreeSet<CollectionPath>>),
}

/// Commits that wait: those about leases go before all others.
#[derive(Default)]
pub(crate) struct Lanes {
    urgent: VecDeque<Commit>,
    bulk: VecDeque<Commit>,
}

impl Lanes {
    pub(crate) fn push(&mut self, commit: Commit) {
        let lane = if is_urgent(&commit.writes) { &mut self.urgent } else { &mut self.bulk };
        lane.push_back(commit);
    }

    /// The commits of the next transaction, and whether they are urgent.
    fn next_group(&mut self) -> Option<(Vec<Commit>, bool)> {
        if !self.urgent.is_empty() {
            return Some((mem::take(&mut self.urgent).into(), true));
        }
        let (mut group, mut writes) = (Vec::new(), 0);
        while let Some(commit) = self.bulk.front() {
            writes += commit.writes.len();
            if !group.is_empty() && writes > GROUP {
                break;
            }
            group.extend(self.bulk.pop_front());
        }
        (!group.is_empty()).then_some((group, false))
    }
}

/// Whether a commit renews or moves a lease; a mere fence does not.
fn is_urgent(writes: &[Write]) -> bool {
    writes.iter().any(|write| {
        write.op != WriteOp::Verify
            && matches!(write.path.collection().name(), "coordination" | "instances" | "leases")
    })
}

/// What a thread waits for; once closed it ends when it has done what there is.
pub(crate) struct Post<T> {
    state: Mutex<(T, bool)>,
    changed: Condvar,
}

impl<T: Default> Post<T> {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::new((T::default(), false)), changed: Condvar::new() }
    }

    pub(crate) fn put(&self, put: impl FnOnce(&mut T)) {
        put(&mut self.lock().0);
        self.changed.notify_one();
    }

    pub(crate) fn close(&self) {
        self.lock().1 = true;
        self.changed.notify_all();
    }

    /// Waits until there is something to take; `None` once closed and empty.
    fn take<U>(&self, mut take: impl FnMut(&mut T) -> Option<U>) -> Option<U> {
        let mut state = self.lock();
        loop {
            if let Some(taken) = take(&mut state.0) {
                return Some(taken);
            }
            if state.1 {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits so long, or until closed; whether it is closed.
    fn pause(&self, duration: Duration) -> bool {
        let state = self.lock();
        let waited = self.changed.wait_timeout_while(state, duration, |(_, closed)| !*closed);
        waited.unwrap_or_else(PoisonError::into_inner).0.1
    }

    fn lock(&self) -> MutexGuard<'_, (T, bool)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Commits what comes, in groups, until the lanes are closed.
pub(crate) fn write(
    mut writer: Writer,
    lanes: &Post<Lanes>,
    changes: &broadcast::Sender<Change>,
    own_commits: &AtomicI64,
) {
    let mut courteous = 0_u32;
    while let Some((group, urgent)) = lanes.take(Lanes::next_group) {
        let (writes, answers): (Vec<_>, Vec<_>) =
            group.into_iter().map(|commit| (commit.writes, commit.answer)).unzip();
        let outcome = writer.commit(&writes);
        own_commits.store(writer.own_commits(), Ordering::Release);
        for (answer, result) in answers.into_iter().zip(outcome.answers) {
            // Whoever asked may have given up.
            let _ = answer.send(result);
        }
        if !outcome.changed.is_empty() {
            let _ = changes.send(Change::Here(Arc::new(outcome.changed)));
        }
        courteous = if outcome.contended { COURTEOUS_GROUPS } else { courteous.saturating_sub(1) };
        if courteous > 0 && !urgent {
            lanes.pause(COURTESY);
        }
    }
}

/// Reads what is asked, until the post is closed.
pub(crate) fn read(db: &Connection, reads: &Post<VecDeque<Read>>) {
    while let Some(read) = reads.take(VecDeque::pop_front) {
        read(db);
    }
}

/// Tells of commits by other processes, until closed.
pub(crate) fn look_out(
    db: &Connection,
    closing: &Post<()>,
    changes: &broadcast::Sender<Change>,
    own_commits: &AtomicI64,
) {
    let mut seen = None;
    while !closing.pause(LOOKOUT) {
        let version = db
            .prepare_cached("PRAGMA data_version")
            .and_then(|mut s| s.query_row([], |row| row.get::<_, i64>(0)));
        let Ok(version) = version else { continue };
        let total = db
            .prepare_cached("SELECT commits FROM state")
            .and_then(|mut s| s.query_row([], |row| row.get::<_, i64>(0)));
        let Ok(total) = total else { continue };
        // A commit of our own that is not counted yet makes a hint for nothing, no more.
        let now = (version, total - own_commits.load(Ordering::Acquire));
        if seen.is_some_and(|(v, others)| v != version && others != now.1) {
            let _ = changes.send(Change::Elsewhere);
        }
        seen = Some(now);
    }
}
