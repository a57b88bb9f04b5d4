//! What the store accepts: S1, S3, S8, S9, S11.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use backfill_core::doc::{Document, Precondition, WriteOp};
use backfill_core::id::{BootId, Epoch};
use backfill_core::io::RunKind;
use backfill_core::time::StoreTime;
use smol_str::SmolStr;

use super::{Applied, Checker, NOWHERE};
use crate::clock::Real;
use crate::scenario::Regime;
use crate::store::{Change, SimStore};
use crate::world::node::{self, LABEL};

/// What the documents showed so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Documents {
    sessions: BTreeMap<BootId, SessionSeen>,
}

#[derive(Clone, Debug)]
struct SessionSeen {
    renewed: StoreTime,
    term: Duration,
    dead: bool,
    beat: u64,
    /// Which process writes it
    process: Option<u32>,
    /// A renewal took effect of which its sender had no answer
    unconfirmed: bool,
}

/// When backfills of one account started, as the commits came.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Starts {
    /// The latest start
    started: Option<StoreTime>,
    /// When it ended, if it was complete
    completed: Option<StoreTime>,
    /// The lease's epoch of the latest run that gave its lease back
    ended: u64,
}

impl Checker {
    /// A commit was applied.
    ///
    /// - S1: documents of the lock, of ownership and of run leases are never deleted; epochs never
    ///   fall, and rise when somebody else becomes owner; nobody becomes owner while the session
    ///   of the owner before is alive by the store's clock. A run's lease does not pass to another
    ///   boot before its term is over by the store's clock, unless it was given back or its owner
    ///   has lost the account; nor while a Node instance shows that it has it. A dead session stays dead, and its beat rises.
    /// - S3: what a core writes below `accounts/{id}` or to the account, other than ownership
    ///   itself, is accepted only under the epoch that the ownership document shows. That is also
    ///   "beyond the bound, nothing a stale holder writes is accepted".
    /// - S8: a start of a backfill is a change of `lastAutoBackfillAttemptAt` with
    ///   `lastAutoBackfillStatus.running`; by the store's clock it comes no sooner after the start
    ///   before than the backoff, unless manual, and if periodic no sooner than the cooldown after
    ///   the end of the run before if that was complete (both less 2 % and a second, for clocks);
    ///   within the bound, because between two looks at the store a core goes by its own clock.
    ///   Judged by the commits as they came and by the stamps that the document shows; a stamp is
    ///   the time of the commit that sets it, and is never taken away.
    /// - S9, second half: what carries a compare-and-set changes its document, so that it takes
    ///   effect at most once.
    /// - S14: where credentials are kept on hosts, nobody becomes owner of a linked account who was
    ///   not told that its credentials lie here. Those of an earlier link may be left over: only
    ///   WhatsApp knows that they are worthless.
    /// - S11: `running` is set only beside a live lease of a backfill, and not for a run that has
    ///   given its lease back.
    pub fn applied(&mut self, commit: &Applied<'_>, store: &SimStore) {
        self.latest_commit = commit.commit_time;
        for (write, Change { before, after }) in commit.writes.iter().zip(commit.changes) {
            if write.op == WriteOp::Verify {
                continue;
            }
            let path = write.path.as_str();
            let before = before.as_deref();
            let (root, rest) = path.split_once('/').unwrap_or((path, ""));
            if root == "threads" {
                self.message_written(commit.at, &write.path, before, after.as_deref());
                continue;
            }
            let after = after.as_ref();
            if commit.process.is_some()
                && matches!(write.precondition, Precondition::Version(_))
                && matches!(write.op, WriteOp::Merge(_))
                && after.map(|doc| doc.version) == before.map(|doc| doc.version)
            {
                self.violate("S9", commit.at, || format!("{path} was guarded and not changed"));
            }
            if commit.process.is_some()
                && root == "accounts"
                && let (Some(old), Some(new)) = (before.and_then(beat), after.and_then(|d| beat(d)))
                && new <= old
            {
                self.violate("S9", commit.at, || format!("{path}: beat {new} after {old}"));
            }
            match root {
                "instances" => self.session_written(commit, rest, after),
                "coordination" => {
                    self.ownership_written(commit, NOWHERE, path, before, after, store);
                }
                "accounts" => {
                    let position = self.position_in(rest);
                    if position == NOWHERE {
                        continue;
                    }
                    if path.ends_with("/leases/connection") {
                        self.ownership_written(commit, position, path, before, after, store);
                        continue;
                    }
                    // Who gives it back may say so in the same commit, which is fenced by that.
                    let owner = self.ids[usize::from(position)].connection_path();
                    let gives_back =
                        |w: &backfill_core::doc::Write| w.path == owner && w.op != WriteOp::Verify;
                    if !commit.writes.iter().any(gives_back) {
                        self.check_epoch(commit, position, path);
                    }
                    if path.contains("/leases/") {
                        self.run_lease_written(commit, position, path, before, after);
                    } else if rest.ends_with("/sync/state") {
                        if let (Some(process), Some(after)) = (commit.process, after) {
                            self.gaps_written(process, position, after);
                        }
                    } else if !rest.contains('/') {
                        self.account_written(commit, position, before, after, store);
                    }
                }
                _ => {}
            }
        }
        self.messages_committed(commit.at);
    }

    /// A commit was refused by a precondition although nothing was wrong with the store.
    pub fn refused(&mut self, commit: &Applied<'_>) {
        if commit.late {
            self.sometimes.late_apply_refused += 1;
        }
        let fenced = commit.writes.iter().zip(commit.changes).any(|(write, change)| {
            write.op == WriteOp::Verify
                && write.path.as_str().ends_with("/leases/connection")
                && write.precondition != Precondition::unchanged(change.before.as_deref())
        });
        self.sometimes.stale_write_refused += u64::from(fenced);
    }

    /// The outcome of a commit was not told to its sender: it was applied, or not.
    pub fn unknown(&mut self, process: u32, applied: bool, touches_session: bool) {
        if applied {
            self.sometimes.unknown_had_applied += 1;
        } else {
            self.sometimes.unknown_had_not_applied += 1;
        }
        if applied && touches_session {
            let boot = &self.processes[process as usize].boot;
            if let Some(session) = self.documents.sessions.get_mut(boot) {
                session.unconfirmed = true;
            }
        }
    }

    /// When a session was last renewed, by the store's clock, and its term.
    pub(super) fn session_seen(&self, boot: &BootId) -> Option<(StoreTime, Duration)> {
        self.documents.sessions.get(boot).map(|seen| (seen.renewed, seen.term))
    }

    /// The process whose live session owns an account, as the documents show it.
    fn owned_by(&self, position: u16) -> Option<u32> {
        let owner = &self.accounts[usize::from(position)].owner;
        self.documents.sessions.get(owner.as_str()).filter(|seen| !seen.dead)?.process
    }

    /// Whether a session is alive by the store's clock.
    pub(super) fn session_lives(&self, boot: &str, now: StoreTime) -> bool {
        self.documents.sessions.get(boot).is_some_and(|s| !s.dead && now.since(s.renewed) <= s.term)
    }

    fn session_written(&mut self, commit: &Applied<'_>, boot: &str, after: Option<&Arc<Document>>) {
        let Ok(boot) = BootId::parse(boot) else { return };
        let Some(doc) = after else {
            if let Some(seen) = self.documents.sessions.remove(&boot)
                && !seen.dead
            {
                self.violate("S1", commit.at, || format!("live session {boot} was deleted"));
            }
            return;
        };
        let dead = doc.str("state") == Some("dead");
        let beat = doc.count("beat").unwrap_or(0);
        let by = commit.process.filter(|p| self.processes[*p as usize].boot == boot);
        let seen = SessionSeen {
            renewed: doc.update_time,
            term: Duration::from_millis(doc.count("ttlMs").unwrap_or(0)),
            dead,
            beat,
            process: by,
            unconfirmed: false,
        };
        let Some(before) = self.documents.sessions.insert(boot.clone(), seen) else { return };
        if let Some(session) = self.documents.sessions.get_mut(&boot) {
            session.process = by.or(before.process);
            session.unconfirmed = before.unconfirmed && by.is_none();
        }
        if let (true, None, false, Some(marker)) = (dead, by, before.dead, commit.process) {
            let gone = commit.commit_time.since(before.renewed);
            let own = before.process.is_some_and(|p| {
                self.processes[p as usize].instance == self.processes[marker as usize].instance
            });
            // A process knows of its own earlier boots that they are over. At others it looks
            // twice, a third of a term apart by its own clock.
            let looks = before.term + before.term / 3;
            if gone <= before.term && !own {
                self.violate("S1", commit.at, || format!("live session {boot} was marked dead"));
            } else if !own && gone + looks / 50 < looks && self.regime == Regime::Within {
                self.violate("S1", commit.at, || {
                    format!("session {boot} was marked dead {gone:?} after its renewal")
                });
            }
        }
        if let (true, Some(p)) = (dead, by) {
            self.check_closed(commit.at, p, &boot);
        }
        if before.unconfirmed && by.is_some() && !dead {
            self.sometimes.renewal_lost_then_confirmed += 1;
        }
        if before.dead && !dead {
            self.violate("S1", commit.at, || format!("dead session {boot} lives again"));
        }
        if !dead && beat <= before.beat {
            let last = before.beat;
            self.violate("S1", commit.at, || format!("session {boot}: beat {beat} after {last}"));
        }
    }

    /// S4: nobody gives an account back while its connection is open.
    fn check_closed(&mut self, at: Real, process: u32, boot: &BootId) {
        let open = self.accounts.iter().find(|seen| {
            seen.connection.is_some_and(|(p, _)| p == process) && seen.owner == boot.as_str()
        });
        if let Some(number) = open.map(|seen| seen.number) {
            self.violate("S4", at, || {
                format!("process {process} gives account {number} back while it is connected")
            });
        }
    }

    fn ownership_written(
        &mut self,
        commit: &Applied<'_>,
        position: u16,
        path: &str,
        before: Option<&Document>,
        after: Option<&Arc<Document>>,
        store: &SimStore,
    ) {
        let at = commit.at;
        let Some(after) = after else {
            return self.violate("S1", at, || format!("{path} was deleted"));
        };
        let (old_epoch, new_epoch) = (before.map_or(0, epoch), epoch(after));
        let old_owner = before.and_then(|doc| doc.str("owner"));
        let new_owner = after.str("owner");
        if let Some(seen) = self.accounts.get_mut(usize::from(position)) {
            seen.epoch = Epoch(new_epoch);
            let open = seen.connection.is_some_and(|(p, _)| Some(p) == commit.process);
            let gives_back = new_owner.is_none() && old_owner == Some(seen.owner.as_str());
            let own = commit
                .process
                .is_some_and(|p| self.processes[p as usize].boot.as_str() == seen.owner.as_str());
            let number = seen.number;
            seen.owner = new_owner.map(SmolStr::new).unwrap_or_default();
            if open && gives_back && own {
                self.violate("S4", at, || {
                    format!("account {number} is given back while it is connected")
                });
            }
        }
        if new_epoch < old_epoch {
            return self
                .violate("S1", at, || format!("{path}: epoch {new_epoch} after {old_epoch}"));
        }
        let Some(new_owner) = new_owner else { return };
        if Some(new_owner) == old_owner && new_epoch == old_epoch {
            return;
        }
        if let Some(taker) = commit.process
            && let Some(id) = self.ids.get(usize::from(position))
            && let Some(home) = self.credentials[usize::from(position)].filter(|_| self.local)
            && !self.processes[taker as usize].credentials.contains(&position)
        {
            let status = store.document(&id.path()).and_then(|doc| doc.str("status"));
            if matches!(status, Some("connected" | "disconnected")) {
                let account = self.number(position);
                self.violate("S14", at, || {
                    format!(
                        "process {taker} takes account {account}, whose credentials lie on the \
                         host of instance {home}"
                    )
                });
            }
        }
        if new_epoch != old_epoch + 1 {
            self.violate("S1", at, || {
                format!("{path}: taken at epoch {new_epoch} after {old_epoch}")
            });
        }
        let Some(old) = old_owner.filter(|old| *old != new_owner) else {
            if old_owner.is_none() && before.is_some() {
                self.note_rebalance(position, new_owner, before);
            }
            return;
        };
        if self.session_lives(old, commit.commit_time) {
            let old = SmolStr::new(old);
            return self.violate("S1", at, || {
                format!("{path} was taken from {old}, whose session is alive")
            });
        }
        self.note_takeover(old);
    }

    fn note_takeover(&mut self, old: &str) {
        let Some(q) = self.documents.sessions.get(old).and_then(|s| s.process) else { return };
        let old = &mut self.processes[q as usize];
        if old.crashed {
            self.sometimes.takeover_after_crash += 1;
        } else if old.paused {
            old.overtaken = true;
        }
    }

    fn note_rebalance(&mut self, position: u16, owner: &str, before: Option<&Document>) {
        let last = before.and_then(|doc| doc.str("instanceId"));
        let label = self.documents.sessions.get(owner).and_then(|s| s.process);
        if let (Some(_), Some(p)) = (last, label)
            && position != NOWHERE
            && self.processes.iter().filter(|p| p.alive && !p.paused).count() > 1
            && self.processes[p as usize].alive
        {
            self.sometimes.rebalanced += 1;
        }
    }

    /// What is written about an account is written by who owns it.
    fn check_epoch(&mut self, commit: &Applied<'_>, position: u16, path: &str) {
        let Some(process) = commit.process else { return };
        let current = self.accounts[usize::from(position)].epoch;
        match commit.epoch {
            Some(epoch) if epoch >= current => {}
            // It was sent while the account was being given up, and nobody else has taken it.
            None if self.owned_by(position) == Some(process) => {}
            Some(epoch) => self.violate("S3", commit.at, || {
                format!(
                    "process {process} wrote {path} under epoch {}, after {}",
                    epoch.0, current.0
                )
            }),
            None => self.violate("S3", commit.at, || {
                format!("process {process} wrote {path} without owning the account")
            }),
        }
    }

    fn run_lease_written(
        &mut self,
        commit: &Applied<'_>,
        position: u16,
        path: &str,
        before: Option<&Document>,
        after: Option<&Arc<Document>>,
    ) {
        let at = commit.at;
        let Some(after) = after else {
            return self.violate("S1", at, || format!("{path} was deleted"));
        };
        let Some(before) = before else { return };
        if epoch(after) < epoch(before) {
            let (old, new) = (epoch(before), epoch(after));
            self.violate("S1", at, || format!("{path}: epoch {new} after {old}"));
        }
        if holder(before).is_some() && holder(after).is_none() && path.ends_with("/autoBackfill") {
            self.accounts[usize::from(position)].starts.ended = epoch(after);
        }
        let (Some(old), Some(new)) = (holder(before), holder(after)) else { return };
        let superseded = before
            .count("connectionEpoch")
            .is_some_and(|e| Epoch(e) < self.accounts[usize::from(position)].epoch);
        let term = Duration::from_millis(before.count("ttlMs").unwrap_or(0));
        let live = commit.commit_time.since(before.update_time) <= term;
        if old != new && live && !superseded {
            self.violate("S1", at, || format!("{path} was taken while it was held"));
        }
    }

    /// S1: no run starts while a Node instance shows that it has the account's lease.
    fn check_foreign_leases(
        &mut self,
        commit: &Applied<'_>,
        number: u16,
        before: Option<&Document>,
        after: &Document,
    ) {
        let Some(before) = before else { return };
        for (kind, term) in [
            (RunKind::AutoBackfill, self.policy.auto_backfill.lease),
            (RunKind::RecentSync, self.policy.recent_sync.lease),
        ] {
            let lease = node::lease(kind);
            let holder = lease.holder.as_str();
            if before.str(holder) != Some(LABEL) || after.str(holder).is_none_or(|h| h == LABEL) {
                continue;
            }
            let acquired = before.time(lease.acquired.as_str());
            let until = before.time(lease.until.as_str()).zip(acquired);
            if until.is_some_and(|(until, at)| until.min(at + term) > commit.commit_time) {
                self.violate("S1", commit.at, || {
                    format!("account {number}: {kind:?} starts while a Node instance has its lease")
                });
            }
        }
    }

    fn account_written(
        &mut self,
        commit: &Applied<'_>,
        position: u16,
        before: Option<&Document>,
        after: Option<&Arc<Document>>,
        store: &SimStore,
    ) {
        let Some(after) = after else {
            return self.violate("S1", commit.at, || "an account was deleted".into());
        };
        let number = self.number(position);
        let seen = &mut self.accounts[usize::from(position)];
        seen.deleted = after.str("status") == Some("deleted");
        let stamp = |name: &str| after.time(name).unwrap_or_default();
        let (ran, tried) = (stamp("lastAutoBackfillAt"), stamp("lastAutoBackfillAttemptAt"));
        let auto = &self.policy.auto_backfill;
        let waits = ran.max(tried);
        if waits != seen.waits {
            seen.waited = std::mem::replace(&mut seen.waits, waits);
            seen.passed = 0;
        }
        seen.due = (tried + auto.backoff).max(stamp("lastAutoBackfillSuccessAt") + auto.cooldown);
        if commit.process.is_some() {
            self.check_foreign_leases(commit, number, before, after);
        }
        let attempt = after.time("lastAutoBackfillAttemptAt");
        let running = after.bool("lastAutoBackfillStatus.running") == Some(true);
        let was = before.and_then(|doc| doc.time("lastAutoBackfillAttemptAt"));
        let succeeded = before.and_then(|doc| doc.time("lastAutoBackfillSuccessAt"));
        for name in ["lastAutoBackfillAttemptAt", "lastAutoBackfillSuccessAt"] {
            let (old, new) = (before.and_then(|doc| doc.time(name)), after.time(name));
            if old != new && new != Some(commit.commit_time) {
                self.violate("S8", commit.at, || {
                    format!("account {number}: {name} was set to another time than its commit's")
                });
            }
        }
        let seen = &mut self.accounts[usize::from(position)];
        if let Some(ended) = run_end(after)
            && before.and_then(run_end) != Some(ended)
        {
            seen.starts.completed = ended.complete.then_some(commit.commit_time);
        }
        if !running || attempt == was || commit.process.is_none() {
            return;
        }
        let seen = &mut self.accounts[usize::from(position)];
        let starts = seen.starts;
        seen.starts = Starts { started: Some(commit.commit_time), completed: None, ..starts };
        let trigger = after.str("lastAutoBackfillStatus.trigger").unwrap_or_default();
        let (backoff, cooldown) =
            (self.policy.auto_backfill.backoff, self.policy.auto_backfill.cooldown);
        let soon = |since: Option<StoreTime>, wait: Duration| {
            since
                .map(|since| commit.commit_time.since(since))
                .filter(|gone| *gone + wait / 50 + Duration::from_secs(1) < wait)
        };
        let within = self.regime == Regime::Within;
        if within
            && trigger != "manual"
            && let Some(gone) = soon(starts.started.max(was), backoff)
        {
            self.violate("S8", commit.at, || {
                format!("account {number}: started ({trigger}) {gone:?} after the last start")
            });
        }
        if within
            && trigger == "periodic"
            && let Some(gone) = soon(starts.completed.max(succeeded), cooldown)
        {
            self.violate("S8", commit.at, || {
                format!("account {number}: started (periodic) {gone:?} after a complete run")
            });
        }
        let lease = self
            .ids
            .get(usize::from(position))
            .and_then(|id| store.document(&id.auto_backfill_path()));
        if !lease.is_some_and(|lease| is_live(lease, commit.commit_time)) {
            self.violate("S11", commit.at, || {
                format!("account {number}: `running` without a live lease")
            });
        }
        if lease.is_some_and(|lease| epoch(lease) <= starts.ended) {
            self.violate("S11", commit.at, || {
                format!("account {number}: `running` for a run that has ended")
            });
        }
    }
}

/// How the latest backfill ended.
#[derive(Clone, Copy, PartialEq)]
struct RunEnd {
    at: Option<StoreTime>,
    complete: bool,
}

/// How the latest backfill ended; `None` while one runs.
fn run_end(account: &Document) -> Option<RunEnd> {
    let status = |name: &str| account.value("lastAutoBackfillStatus")?.as_map()?.get(name);
    let ok = status("ok")?.as_bool()?;
    let left = status("remaining").and_then(|n| n.as_int()).unwrap_or(0);
    Some(RunEnd { at: account.time("lastAutoBackfillAt"), complete: ok && left <= 0 })
}

/// Whether a run's lease is held and its term not over.
pub(super) fn is_live(lease: &Document, now: StoreTime) -> bool {
    let term = Duration::from_millis(lease.count("ttlMs").unwrap_or(0));
    holder(lease).is_some() && now.since(lease.update_time) <= term
}

/// Who holds a run's lease.
pub(super) fn holder(lease: &Document) -> Option<&str> {
    lease.str("owner").filter(|owner| !owner.is_empty())
}

fn beat(doc: &Document) -> Option<u64> {
    doc.count("beat")
}

fn epoch(doc: &Document) -> u64 {
    doc.count("epoch").unwrap_or(0)
}
