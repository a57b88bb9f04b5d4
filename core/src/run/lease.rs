//! The lease of a run: what it holds, shows and renews.

use std::time::Duration;

use crate::account;
use crate::bug::Bug;
use crate::doc::{DocPath, Document, FieldOp, FieldPath, Precondition, Value, Version, Write};
use crate::host::{AccountTimer, Host};
use crate::id::AccountId;
use crate::io::RunKind;
use crate::ledger::{Companion, Draft, Purpose};
use crate::tenure::Tenure;

use super::{Step, millis};

/// A run lease's document.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct RunLease {
    pub(crate) version: Option<Version>,
    pub(super) beat: u64,
    pub(super) epoch: u64,
}

impl RunLease {
    pub(crate) fn parse(doc: Option<&Document>) -> Self {
        let count = |name| doc.and_then(|d| d.count(name)).unwrap_or(0);
        Self { version: doc.map(|d| d.version), beat: count("beat"), epoch: count("epoch") }
    }
}

impl Tenure {
    /// The lease document, with the account fields of the same commit.
    pub(crate) fn draft_run(
        &mut self,
        host: &Host,
        kind: RunKind,
        purpose: &Purpose,
        draft: &mut Draft,
    ) -> Option<()> {
        let run = self.runs.get(&kind)?;
        let lease = self.leases.entry(kind).or_default();
        let mirror = account::lease_fields(kind);
        let term = lease_term(host, kind);
        let until = host.store_now() + term;
        let unnamed = matches!(purpose, Purpose::RunStart(_)) && host.bug(Bug::RunningBeforeLease);
        let held = *purpose != Purpose::RunEnd(kind) && !unnamed;
        let mut fields: Vec<(FieldPath, FieldOp)> = vec![
            (FieldPath::new("owner"), Value::from(held.then(|| host.boot.text())).into()),
            (FieldPath::new("connectionEpoch"), Value::from(self.epoch.0).into()),
            (FieldPath::new("ttlMs"), Value::from(millis(term)).into()),
        ];
        if !host.bug(Bug::GuardDoesNotMoveVersion) {
            fields.push((FieldPath::new("beat"), Value::from(lease.beat + 1).into()));
        }
        let holder = smol_str::format_smolstr!("{}#{}", host.policy.instance, host.boot);
        match purpose {
            Purpose::RunStart(_) => {
                draft.account_precondition =
                    Some(self.account_version.map_or(Precondition::Absent, Precondition::Version));
                fields.push((FieldPath::new("epoch"), Value::from(lease.epoch + 1).into()));
                fields.push((FieldPath::new("attempt"), Value::from(lease.epoch + 1).into()));
                draft.account.insert(mirror.until.clone(), until.into());
                draft.account.insert(mirror.holder.clone(), Value::from(holder.clone()).into());
                draft.account.insert(mirror.acquired.clone(), FieldOp::ServerTime);
                if kind == RunKind::AutoBackfill {
                    let status = Value::map([
                        ("running", Value::from(true)),
                        ("startedAt", host.store_now().into()),
                        ("trigger", run.trigger.as_str().into()),
                        ("holder", holder.into()),
                    ]);
                    draft.account.insert(account::LAST_AUTO_BACKFILL_STATUS, status.into());
                    let at = account::LAST_AUTO_BACKFILL_ATTEMPT_AT;
                    draft.account.insert(at, FieldOp::ServerTime);
                }
            }
            Purpose::RunBeat(_) => {
                if run.step == Step::Ending {
                    return None;
                }
                draft.account.insert(mirror.until.clone(), until.into());
            }
            _ => {
                if run.step != Step::Ending {
                    return None;
                }
                draft.account.insert(mirror.until.clone(), Value::Null.into());
                draft.account.insert(mirror.holder.clone(), Value::Null.into());
                draft.account.insert(mirror.acquired.clone(), Value::Null.into());
                draft.account.extend(self.result_fields(host, kind));
            }
        }
        let lease = self.leases.entry(kind).or_default();
        let path = lease_path(&self.id, kind);
        let precondition = match lease.version {
            Some(version) => Precondition::Version(version),
            None => Precondition::Absent,
        };
        draft.writes.push((Companion::RunLease(kind), Write::merge(path, precondition, fields)));
        Some(())
    }

    pub(super) fn bump_lease(&mut self, kind: RunKind) {
        self.leases.entry(kind).or_default().beat += 1;
    }

    /// Looks at the run again when its lease wants renewal, and before it ends.
    pub(super) fn watch_lease(&self, host: &mut Host, kind: RunKind) {
        let Some(deadline) = self.runs.get(&kind).and_then(|run| run.deadline) else { return };
        let next = host.now + lease_term(host, kind) / 3;
        host.timers.set(self.timer(AccountTimer::Run(kind)), next.min(deadline));
    }
}

pub(super) fn lease_term(host: &Host, kind: RunKind) -> Duration {
    match kind {
        RunKind::AutoBackfill => host.policy.auto_backfill.lease,
        RunKind::RecentSync => host.policy.recent_sync.lease,
    }
}

pub(super) fn lease_path(account: &AccountId, kind: RunKind) -> DocPath {
    match kind {
        RunKind::AutoBackfill => account.auto_backfill_path(),
        RunKind::RecentSync => account.recent_sync_path(),
    }
}
