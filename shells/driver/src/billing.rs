//! What a store's use costs: the operations that Firestore bills, counted around any store, and
//! what follows from the settings alone when nothing happens.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use backfill_core::doc::{DocPath, Precondition, Query, Write, WriteOp};
use backfill_core::policy::{InstanceMode, Policy};
use futures_util::Stream;

use crate::port::{Committed, Found, Snapshot, Store, StoreError};

/// A store that counts. Clones count together.
///
/// The same calls count the same whichever store is behind it. What a listener of
/// [`Store::watch`] is sent is billed as reads too, but does not pass here.
#[derive(Clone)]
pub struct Counted<S> {
    store: S,
    counters: Arc<Counters>,
}

/// How many operations were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operations {
    /// Documents read, found or not, each once per call; a call that reads none counts as one
    pub reads: u64,
    /// Documents written, those included that a write did not change, and fences
    pub writes: u64,
    /// Documents deleted
    pub deletes: u64,
}

#[derive(Default)]
struct Counters {
    reads: AtomicU64,
    writes: AtomicU64,
    deletes: AtomicU64,
}

impl<S> Counted<S> {
    /// Counts what is done with `store` from now on.
    pub fn new(store: S) -> Self {
        Self { store, counters: Arc::default() }
    }

    /// What was done so far. A commit whose outcome is unknown counts as made.
    pub fn operations(&self) -> Operations {
        Operations {
            reads: self.counters.reads.load(Ordering::Relaxed),
            writes: self.counters.writes.load(Ordering::Relaxed),
            deletes: self.counters.deletes.load(Ordering::Relaxed),
        }
    }
}

impl<S: Store> Store for Counted<S> {
    async fn get(&self, paths: &[DocPath]) -> Result<Snapshot, StoreError> {
        let snapshot = self.store.get(paths).await?;
        let different: BTreeSet<&DocPath> = paths.iter().collect();
        self.counters.reads.fetch_add(count(different.len().max(1)), Ordering::Relaxed);
        Ok(snapshot)
    }

    async fn commit(&self, writes: Vec<Write>) -> Result<Committed, StoreError> {
        let sent = writes.iter().filter(|write| !says_nothing(write)).count();
        let deletes = writes.iter().filter(|write| deletes(write)).count();
        let answer = self.store.commit(writes).await;
        if matches!(answer, Ok(_) | Err(StoreError::Unknown(_))) {
            // A commit of nothing is made of a read, for the time.
            self.counters.reads.fetch_add(u64::from(sent == 0), Ordering::Relaxed);
            self.counters.writes.fetch_add(count(sent - deletes), Ordering::Relaxed);
            self.counters.deletes.fetch_add(count(deletes), Ordering::Relaxed);
        }
        answer
    }

    async fn query(&self, query: &Query) -> Result<Found, StoreError> {
        let found = self.store.query(query).await?;
        self.counters.reads.fetch_add(count(found.docs.len().max(1)), Ordering::Relaxed);
        Ok(found)
    }

    fn watch(&self, query: Query) -> impl Stream<Item = ()> + Send + 'static {
        self.store.watch(query)
    }
}

/// Operations a day, as an upper bound that is hardly missed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PerDay {
    /// Documents read
    pub reads: f64,
    /// Documents written
    pub writes: f64,
}

impl PerDay {
    /// Of one instance that serves idle accounts, whatever their number.
    pub fn of_instance(policy: &Policy) -> Self {
        let shared = matches!(policy.mode, InstanceMode::Shared { .. });
        // Lock and compat lock, and at least the own session.
        let looks = daily(if shared { policy.session_term / 3 } else { policy.session_term * 4 });
        // Accounts, and sessions that have been dead for long; none of either is one read each.
        let scans = daily(policy.account_scan);
        // In exclusive mode the compat lock is renewed along with the session.
        let renewals = daily(policy.session_renewal) * if shared { 1.0 } else { 2.0 };
        Self { reads: looks * 3.0 + scans * 2.0 + daily(policy.outbox.poll), writes: renewals }
    }

    /// Of one account that is connected and in which nothing happens, in addition.
    pub fn of_account(policy: &Policy) -> Self {
        // The gap filler leaves its stamp: the account, its order of writes and the fence.
        let stamps = if policy.recent_sync.enabled { daily(policy.idle_stamp) } else { 0.0 };
        // A backfill that finds nothing to do takes its lease and gives it back: each time the lease,
        // the account, its order of writes and the fence.
        let auto = &policy.auto_backfill;
        let runs = if auto.enabled { daily(auto.cooldown.max(auto.interval)) } else { 0.0 };
        Self { reads: daily(policy.account_scan) + runs * 4.0, writes: stamps * 3.0 + runs * 8.0 }
    }
}

fn daily(every: Duration) -> f64 {
    86_400.0 / every.as_secs_f64().max(0.001)
}

/// Whether Firestore sees a delete: it checks that a document is absent by deleting it.
fn deletes(write: &Write) -> bool {
    write.op == WriteOp::Delete
        || write.op == WriteOp::Verify && write.precondition == Precondition::Absent
}

/// Whether Firestore is not even told of a write.
fn says_nothing(write: &Write) -> bool {
    write.op == WriteOp::Verify && write.precondition == Precondition::Any
}

fn count(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use backfill_core::doc::{CollectionPath, FieldOp, Value};
    use backfill_core::id::{AccountId, InstanceId};
    use backfill_core::io::{Answer, GatewayCall, GatewayEvent, GatewayRequest};
    use backfill_core::policy::{Credentials, Settings};
    use futures_util::FutureExt;

    use super::*;
    use crate::port::{Gateway, Runtime};
    use crate::testing::{Hand, Mood, Shelf};
    use crate::{Driver, Handle};

    /// Connects whatever it is asked to; nothing ever arrives.
    #[derive(Clone)]
    struct Quiet(Handle);

    impl Gateway for Quiet {
        async fn execute(&self, request: GatewayRequest) -> Answer {
            let GatewayRequest { id: connection, account, call, .. } = request;
            if matches!(call, GatewayCall::Connect) {
                self.0.report(account.clone(), GatewayEvent::Opened { connection });
                let drained = GatewayEvent::Drained { connection, announced: 0, stored: 0 };
                self.0.report(account, drained);
            }
            Answer::Done
        }
    }

    fn policy() -> Policy {
        let mut settings = Settings::exclusive(InstanceId::parse("i").unwrap());
        settings.credentials = Credentials::Shared;
        Policy::new(settings).unwrap()
    }

    /// What a day costs in which nothing happens to so many accounts.
    fn day(policy: &Policy, accounts: usize) -> Operations {
        let hand = Hand::default();
        let shelf = Shelf::new(&hand);
        for n in 0..accounts {
            let id = AccountId::parse(format!("account_prod_{n}")).unwrap();
            let fields = vec![("status".into(), Value::from("connected").into())];
            shelf.put(&[Write::merge(id.path(), Precondition::Absent, fields)]).unwrap();
        }
        let store = Counted::new(shelf);
        let driver = Driver::new(policy.clone(), [7; 32], store.clone(), hand.clone(), ());
        let handle = driver.handle();
        hand.spawn(driver.run(Quiet(handle.clone())));
        let a_day = Duration::from_secs(24 * 3_600);
        hand.pass(a_day);
        let held = handle.look(|instance| {
            (0..accounts)
                .filter_map(|n| AccountId::parse(format!("account_prod_{n}")).ok())
                .filter(|id| instance.account_insight(id).is_some_and(|seen| seen.connected))
                .count()
        });
        assert_eq!(held, accounts, "not all of them are connected");
        let before = store.operations();
        hand.pass(a_day);
        let after = store.operations();
        Operations {
            reads: after.reads - before.reads,
            writes: after.writes - before.writes,
            deletes: after.deletes - before.deletes,
        }
    }

    #[track_caller]
    fn assert_close(what: &str, measured: f64, bound: f64) {
        assert!(measured <= bound, "{what}: {measured} a day, and at most {bound} are stated");
        assert!(measured >= bound * 0.85, "{what}: {measured} a day, far below {bound}");
    }

    #[test]
    #[expect(clippy::cast_precision_loss, reason = "a day has far less than 2^52 operations")]
    fn a_day_in_which_nothing_happens_costs_what_is_stated() {
        let policy = policy();
        let (one, more) = (day(&policy, 1), day(&policy, 11));
        let (instance, account) = (PerDay::of_instance(&policy), PerDay::of_account(&policy));
        let each = |one: u64, more: u64| (more - one) as f64 / 10.0;
        assert_close("reads of an account", each(one.reads, more.reads), account.reads);
        assert_close("writes of an account", each(one.writes, more.writes), account.writes);
        let reads = one.reads as f64 - account.reads;
        assert_close("reads of an instance", reads, instance.reads);
        let writes = one.writes as f64 - account.writes;
        assert_close("writes of an instance", writes, instance.writes);
        assert_eq!(more.deletes, 0);
    }

    #[test]
    fn the_defaults_cost_what_the_documentation_says() {
        let policy = policy();
        let instance = PerDay { reads: 3_888.0, writes: 5_760.0 };
        assert_eq!(PerDay::of_instance(&policy), instance);
        assert_eq!(PerDay::of_account(&policy), PerDay { reads: 160.0, writes: 320.0 });
    }

    #[test]
    fn operations_are_counted_as_they_are_billed() {
        let shelf = Shelf::new(&Hand::default());
        let store = Counted::new(shelf.clone());
        let path = |p: &str| DocPath::parse(p).unwrap();
        let put = |p, n: i64| {
            let fields = vec![("n".into(), FieldOp::from(n))];
            Write::merge(path(p), Precondition::Any, fields)
        };
        let spent = |before: Operations| {
            let now = store.operations();
            (now.reads - before.reads, now.writes - before.writes, now.deletes - before.deletes)
        };
        let commit = |writes: Vec<Write>| {
            let before = store.operations();
            // Whether it was applied is seen in what it cost.
            let _ = store.commit(writes).now_or_never();
            spent(before)
        };
        let delete = Write::delete(path("c/b"), Precondition::Any);
        let fence = |precondition| Write::verify(path("c/fence"), precondition);
        assert_eq!(commit(vec![put("c/a", 1), put("c/b", 1), put("c/c", 1)]), (0, 3, 0));
        assert_eq!(commit(vec![put("c/a", 1)]), (0, 1, 0), "nothing changed, and it costs");
        assert_eq!(commit(vec![put("c/a", 2), delete, fence(Precondition::Absent)]), (0, 1, 2));
        assert_eq!(commit(vec![put("c/a", 3), fence(Precondition::Any)]), (0, 1, 0));
        assert_eq!(commit(vec![put("c/a", 4), fence(Precondition::Exists)]), (0, 0, 0), "refused");
        assert_eq!(commit(vec![put("c/fence", 1), put("c/d", 1)]), (0, 2, 0));
        assert_eq!(commit(vec![put("c/a", 4), fence(Precondition::Exists)]), (0, 2, 0));
        assert_eq!(commit(vec![]), (1, 0, 0));

        let get = |paths: &[&str]| {
            let before = store.operations();
            let paths: Vec<DocPath> = paths.iter().map(|p| path(p)).collect();
            store.get(&paths).now_or_never().unwrap().unwrap();
            spent(before)
        };
        assert_eq!(get(&["c/a", "c/none", "c/a"]), (2, 0, 0));
        assert_eq!(get(&[]), (1, 0, 0));
        let query = |collection, limit| {
            let before = store.operations();
            let query = Query::all(CollectionPath::root(collection), limit);
            store.query(&query).now_or_never().unwrap().unwrap();
            spent(before)
        };
        assert_eq!(query("c", 10), (4, 0, 0));
        assert_eq!(query("c", 3), (3, 0, 0));
        assert_eq!(query("none", 10), (1, 0, 0));

        shelf.set(Mood::Down);
        assert_eq!(commit(vec![put("c/a", 9)]), (0, 0, 0));
    }
}
