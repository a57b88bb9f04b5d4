//! The owner's writes about one account, one commit at a time.
//!
//! Every commit carries the fence (the version of `leases/connection`) and compare-and-set on
//! `sync/state`; changes of account fields ride on whatever goes next.

use std::collections::{BTreeMap, VecDeque};

use crate::chain::{Chain, Progress};
use crate::doc::{DocPath, Document, FieldOp, FieldPath, Precondition, Version, Write};
use crate::host::{AccountRoute, AccountTimer, Host, Route, Timer};
use crate::id::{AccountId, OutboxId, ThreadId};
use crate::io::{Answer, ChunkId, Key, RunKind};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ledger {
    chain: Chain,
    account_path: DocPath,
    queue: VecDeque<Purpose>,
    flying: Option<Flying>,
    account: Patch,
    sync: Patch,
}

/// Fields to change; of several changes of one field the last counts.
pub(crate) type Patch = BTreeMap<FieldPath, FieldOp>;

/// What a commit is for, beside the fields that ride on it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Purpose {
    /// What history chunks brought is noted in coverage
    Chunk(ChunkId),
    /// Before a connection is opened: the `connected` marker
    Connect,
    /// What a page brought is noted in coverage
    Cover(RunKind),
    OutboxClaim(OutboxId),
    OutboxEnd(OutboxId),
    /// Only fields
    Patch,
    Reserve(RunKind),
    RunBeat(RunKind),
    RunEnd(RunKind),
    RunStart(RunKind),
}

/// What a purpose needs of its commit. Its fields are gone if the commit is refused: only the
/// purpose knows whether they are still right then.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Draft {
    /// Fields of `accounts/{id}`
    pub(crate) account: Patch,
    /// Only if `accounts/{id}` still is what was read
    pub(crate) account_precondition: Option<Precondition>,
    /// Fields of `sync/state`
    pub(crate) sync: Patch,
    pub(crate) writes: Vec<(Companion, Write)>,
}

/// Which document a write of a commit is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Companion {
    Account,
    Alias,
    Coverage(ThreadId),
    Outbox(OutboxId),
    RunLease(RunKind),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Flying {
    purpose: Purpose,
    companions: Vec<Companion>,
    account: Patch,
    sync: Patch,
}

impl Ledger {
    pub(crate) fn new(account: &AccountId, sync: Option<&Document>, fence: Version) -> Self {
        let ends = (
            Route::Account(account.clone(), AccountRoute::Ledger),
            Timer::Account(account.clone(), AccountTimer::LedgerRetry),
            Some(Key::Account(account.clone())),
        );
        let fence = Some((account.connection_path(), fence));
        Self {
            account_path: account.path(),
            chain: Chain::new(account.sync_path(), sync, fence, ends),
            queue: VecDeque::new(),
            flying: None,
            account: Patch::new(),
            sync: Patch::new(),
        }
    }

    /// Changes a field of `accounts/{id}` with the next commit.
    pub(crate) fn set_account(&mut self, field: FieldPath, value: impl Into<FieldOp>) {
        self.account.insert(field, value.into());
    }

    /// Changes fields of `sync/state` with the next commit.
    pub(crate) fn set_sync(&mut self, fields: impl IntoIterator<Item = (FieldPath, FieldOp)>) {
        self.sync.extend(fields);
    }

    /// Asks for a commit.
    pub(crate) fn push(&mut self, purpose: Purpose) {
        // Whatever goes next carries the fields.
        let carried = purpose == Purpose::Patch && !self.queue.is_empty();
        if !carried && !self.queue.contains(&purpose) {
            self.queue.push_back(purpose);
        }
    }

    /// Forgets what was asked for and has not been sent. `true` if there was something.
    pub(crate) fn withdraw(&mut self, purpose: &Purpose) -> bool {
        let queued = self.queue.len();
        self.queue.retain(|queued| queued != purpose);
        self.queue.len() < queued
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.flying.is_none() && self.queue.is_empty()
    }

    /// The next thing to commit, if nothing is under way.
    pub(crate) fn next(&mut self) -> Option<Purpose> {
        if self.flying.is_some() {
            return None;
        }
        self.queue.pop_front()
    }

    pub(crate) fn has_fields(&self) -> bool {
        !self.account.is_empty() || !self.sync.is_empty()
    }

    /// Whether a change of this field of `sync/state` is not known to be durable.
    pub(crate) fn carries(&self, field: &FieldPath) -> bool {
        let flying = self.flying.as_ref().is_some_and(|flying| flying.sync.contains_key(field));
        flying || self.sync.contains_key(field)
    }

    /// Sends a commit with all fields that wait.
    pub(crate) fn commit(&mut self, host: &mut Host, purpose: Purpose, draft: Draft) {
        let account = std::mem::take(&mut self.account);
        let sync = std::mem::take(&mut self.sync);
        let merged = |riders: &Patch, own: Patch| {
            let mut fields = riders.clone();
            fields.extend(own);
            fields.into_iter().collect::<Vec<_>>()
        };
        let head = merged(&sync, draft.sync);
        let fields = merged(&account, draft.account);
        let (mut companions, mut writes): (Vec<_>, Vec<_>) = draft.writes.into_iter().unzip();
        if !fields.is_empty() {
            let precondition = draft.account_precondition.unwrap_or(Precondition::Any);
            companions.push(Companion::Account);
            writes.push(Write::merge(self.account_path.clone(), precondition, fields));
        }
        self.flying = Some(Flying { purpose, companions, account, sync });
        let not_after = host.commit_until();
        self.chain.commit(host, head, writes, not_after);
    }

    /// Takes an answer; together with the progress, what it was for and about.
    pub(crate) fn on_answer(
        &mut self,
        host: &mut Host,
        answer: Answer,
    ) -> Option<(Purpose, Vec<Companion>, Progress)> {
        let progress = self.chain.on_answer(host, answer);
        if progress == Progress::Pending {
            return None;
        }
        let flying = self.flying.take()?;
        if let Progress::Refused(_) = progress {
            // What has been set meanwhile is newer.
            for (field, value) in flying.account {
                self.account.entry(field).or_insert(value);
            }
            for (field, value) in flying.sync {
                self.sync.entry(field).or_insert(value);
            }
        }
        Some((flying.purpose, flying.companions, progress))
    }

    pub(crate) fn on_retry(&mut self, host: &mut Host) {
        self.chain.on_retry(host);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::doc::Value;
    use crate::id::InstanceId;
    use crate::io::{Output, StoreCall};
    use crate::policy::{Policy, Settings};
    use crate::time::{Mono, StoreTime};

    const A: FieldPath = FieldPath::new("a");
    const B: FieldPath = FieldPath::new("b");

    /// A ledger over documents that were read, and the clock of its process.
    fn rig() -> (Host, Ledger) {
        let policy = Policy::new(Settings::exclusive(InstanceId::parse("i").unwrap())).unwrap();
        let mut host = Host::new(policy, [7; 32], Mono::from_millis(1_000));
        host.deadline = host.now + Duration::from_secs(60);
        (host, Ledger::new(&AccountId::parse("acc").unwrap(), None, Version(1)))
    }

    /// Sends the next commit, and says what it was for and which fields of its writes it changes.
    fn send(host: &mut Host, ledger: &mut Ledger) -> Option<(Purpose, Vec<String>)> {
        let purpose = ledger.next()?;
        ledger.commit(host, purpose.clone(), Draft::default());
        let Some(Output::Store(request)) = host.out.pop_back() else { panic!("nothing was sent") };
        let StoreCall::Commit(writes) = request.call else { panic!("no commit") };
        let own = |field: &FieldPath| [A, B].contains(field);
        let mut fields = Vec::new();
        for write in writes {
            if let crate::doc::WriteOp::Merge(merged) = write.op {
                let named = merged.into_iter().filter(|(field, _)| own(field));
                fields.extend(
                    named.map(|(field, _)| format!("{}/{}", write.path.id(), field.as_str())),
                );
            }
        }
        Some((purpose, fields))
    }

    fn answered(host: &mut Host, ledger: &mut Ledger) -> Option<Purpose> {
        let versions = vec![Some(Version(2)); 3];
        let answer = Answer::Committed { commit_time: StoreTime::from_secs(3), versions };
        ledger.on_answer(host, answer).map(|(purpose, ..)| purpose)
    }

    #[test]
    fn what_is_asked_for_twice_is_done_once_and_fields_ride_on_what_goes_anyway() {
        let (mut host, mut ledger) = rig();
        let (beat, end) =
            (Purpose::RunBeat(RunKind::RecentSync), Purpose::RunEnd(RunKind::RecentSync));
        ledger.set_sync([(A, Value::from(1_i64).into())]);
        ledger.set_account(B, 2_i64);
        for purpose in [&beat, &end, &beat, &Purpose::Patch, &end] {
            ledger.push(purpose.clone());
        }
        let first = send(&mut host, &mut ledger);
        assert_eq!(first, Some((beat.clone(), vec!["state/a".into(), "acc/b".into()])));
        assert_eq!(send(&mut host, &mut ledger), None, "one at a time");
        assert_eq!(answered(&mut host, &mut ledger), Some(beat));
        assert_eq!(send(&mut host, &mut ledger), Some((end, Vec::new())));
        // It is under way: new fields need a commit of their own, and one is enough.
        ledger.push(Purpose::Patch);
        ledger.push(Purpose::Patch);
        answered(&mut host, &mut ledger);
        assert_eq!(send(&mut host, &mut ledger), Some((Purpose::Patch, Vec::new())));
        answered(&mut host, &mut ledger);
        assert!(ledger.is_idle());
    }

    #[test]
    fn what_waits_can_be_withdrawn_and_what_is_under_way_cannot() {
        let (mut host, mut ledger) = rig();
        let (page, beat) =
            (Purpose::Cover(RunKind::RecentSync), Purpose::RunBeat(RunKind::RecentSync));
        ledger.push(page.clone());
        ledger.push(beat.clone());
        assert!(!ledger.withdraw(&Purpose::Connect));
        assert!(ledger.withdraw(&page));
        assert!(!ledger.withdraw(&page));
        assert_eq!(send(&mut host, &mut ledger), Some((beat.clone(), Vec::new())));
        assert!(!ledger.withdraw(&beat) && !ledger.is_idle());
    }

    #[test]
    fn a_field_is_carried_until_its_commit_is_known_to_have_happened() {
        let (mut host, mut ledger) = rig();
        assert!(!ledger.carries(&A) && !ledger.has_fields());
        ledger.set_sync([(A, Value::from(1_i64).into())]);
        assert!(ledger.carries(&A) && !ledger.carries(&B) && ledger.has_fields());
        ledger.push(Purpose::Patch);
        send(&mut host, &mut ledger);
        assert!(ledger.carries(&A) && !ledger.carries(&B) && !ledger.has_fields());
        answered(&mut host, &mut ledger);
        assert!(!ledger.carries(&A));
    }
}
