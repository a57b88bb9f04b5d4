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
