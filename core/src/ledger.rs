//! The owner's writes about one account, one commit at a time.
//!
//! Every commit carries the fence (the version of `leases/connection`) and compare-and-set on
//! `sync/state`; changes of account fields ride on whatever goes next.

use std::collections::{BTreeMap, VecDeque};

use crate::chain::{Chain, Progress};
use crate::doc::{Document, FieldOp, FieldPath, Version, Write};
use crate::host::{AccountRoute, AccountTimer, Host, Route, Timer};
use crate::id::{AccountId, OutboxId, ThreadId};
use crate::io::{Answer, ChunkId, Key, RunKind};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ledger {
    chain: Chain,
    queue: VecDeque<Purpose>,
    flying: Option<Flying>,
    account: Patch,
    sync: Patch,
    /// Account fields that belong to the next commit alone
    account_once: Patch,
    /// Fields of `sync/state` that belong to the next commit alone
    sync_once: Patch,
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
            chain: Chain::new(account.sync_path(), sync, fence, ends),
            queue: VecDeque::new(),
            flying: None,
            account: Patch::new(),
            sync: Patch::new(),
            account_once: Patch::new(),
            sync_once: Patch::new(),
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

    /// Changes a field of `accounts/{id}` with the commit that is being made, or not at all.
    pub(crate) fn set_account_once(&mut self, field: FieldPath, value: impl Into<FieldOp>) {
        self.account_once.insert(field, value.into());
    }

    /// Changes fields of `sync/state` with the commit that is being made, or not at all.
    pub(crate) fn set_sync_once(&mut self, fields: impl IntoIterator<Item = (FieldPath, FieldOp)>) {
        self.sync_once.extend(fields);
    }

    /// Asks for a commit.
    pub(crate) fn push(&mut self, purpose: Purpose) {
        // Whatever goes next carries the fields.
        let carried = purpose == Purpose::Patch && !self.queue.is_empty();
        if !carried && !self.queue.contains(&purpose) {
            self.queue.push_back(purpose);
        }
    }

    /// Forgets what was asked for and has not been sent.
    pub(crate) fn withdraw(&mut self, purpose: &Purpose) {
        self.queue.retain(|queued| queued != purpose);
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.flying.is_none() && self.queue.is_empty()
    }

    /// The next thing to commit, if nothing is under way.
    pub(crate) fn next(&mut self) -> Option<Purpose> {
        if self.flying.is_some() {
            return None;
        }
        self.account_once.clear();
        self.sync_once.clear();
        self.queue.pop_front()
    }

    /// The account fields that the next commit will carry.
    pub(crate) fn account_patch(&self) -> Patch {
        let mut patch = self.account.clone();
        patch.extend(self.account_once.clone());
        patch
    }

    pub(crate) fn has_fields(&self) -> bool {
        !self.account.is_empty() || !self.sync.is_empty()
    }

    /// Sends a commit with all fields that wait.
    pub(crate) fn commit(
        &mut self,
        host: &mut Host,
        purpose: Purpose,
        writes: Vec<(Companion, Write)>,
    ) {
        let account = std::mem::take(&mut self.account);
        let sync = std::mem::take(&mut self.sync);
        self.account_once.clear();
        let mut head = sync.clone();
        head.append(&mut self.sync_once);
        let head = head.into_iter().collect();
        let (companions, writes) = writes.into_iter().unzip();
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
