//! A Node instance beside ours, as rule 15 of the coordination rules sees it: it knows the compat
//! lock and account leases by its own wall clock, no epochs, and deletes on release. One that serves
//! also connects the accounts and runs backfills, one at a time, under the accounts' lease fields.

use std::time::Duration;

use backfill_core::doc::{DocPath, Document, FieldOp, FieldPath, Precondition, Value, Write};
use backfill_core::io::RunKind;
use backfill_core::time::StoreTime;

use super::{Ev, World};
use crate::checker::Checker;
use crate::clock::Real;
use crate::faults::FaultPlan;
use crate::scenario::{AccountPlan, NodePlan};
use crate::whatsapp::{ConnKey, Delivery, WhatsApp};

/// What the Node instance knows.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Node {
    active: bool,
    over: bool,
    /// The run under way, and of which account
    runs: Option<(u16, RunKind)>,
    turns: u16,
}

/// What it does next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    End,
    Look,
}

/// What it wants done.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wants {
    pub(crate) writes: Vec<Write>,
    /// After how many milliseconds it looks again
    pub(crate) again: Option<u64>,
    /// It is to have every account's connection, or none
    pub(crate) connected: bool,
}

/// Names its connections, which are those of no process of ours.
pub(crate) const NODE: u32 = u32::MAX - 1;
/// What it calls itself.
pub(crate) const LABEL: &str = "node-1";
const LEASE_MS: i64 = 90_000;
const ACTIVE_LOOK_MS: u64 = 30_000;
const PASSIVE_LOOK_MS: u64 = 15_000;

impl World {
    pub(super) fn plan_node(&mut self) {
        if let Some(plan) = &self.scenario.node {
            self.queue.push(plan.start, Ev::Node(Step::Look));
            self.queue.push(plan.end, Ev::Node(Step::End));
        }
    }

    pub(super) fn node_step(&mut self, step: Step) {
        let Some(plan) = self.scenario.node.clone() else { return };
        let doc = self.store.document(&lock_path()).cloned();
        let accounts: Vec<u16> = self.scenario.accounts.iter().map(|a| a.id).collect();
        let shown = |account: u16| self.store.document(&AccountPlan::account(account).path());
        let wants = self.node.step(&plan, self.now, step, doc.as_deref(), &accounts, shown);
        if !wants.writes.is_empty() {
            // Read and written in one transaction: nothing comes between.
            self.commit(None, None, false, &wants.writes).expect("nothing is required");
        }
        if plan.serves {
            for account in accounts {
                let net = (&mut self.net, &mut self.faults, &mut self.checker);
                connect(net, self.now, account, wants.connected);
            }
        }
        if let Some(wait) = wants.again {
            self.queue.push(self.now.after(wait), Ev::Node(Step::Look));
        }
    }
}

/// Sees to it that the Node instance has an account's connection, or has it not.
pub(crate) fn connect(
    (net, faults, checker): (&mut WhatsApp, &mut FaultPlan, &mut Checker),
    now: Real,
    account: u16,
    wanted: bool,
) {
    let key = ConnKey { process: NODE, request: 0 };
    let has = net.is_current(account, key);
    if has && !wanted {
        net.close(account, key);
    } else if wanted && !has && net.is_linked(account) {
        let before = net.connection(account).map(|old| old.process);
        if !net.open(now, account, key, u8::MAX, faults).unreachable {
            checker.foreign_connected(now, account, before);
        }
    }
}

/// Something comes over the connection of the Node instance. What it stores concerns nobody, and it
/// acknowledges nothing; but what it cannot read it has sent once more, or loses.
pub(crate) fn receive(net: &mut WhatsApp, now: Real, account: u16, key: ConnKey, what: &Delivery) {
    if let (NODE, Delivery::Undecryptable(message)) = (key.process, what) {
        net.unreadable(now, account, key, *message);
    }
}

impl Node {
    /// What it does, having read the compat lock. `shown` is the document of an account.
    pub(crate) fn step<'a>(
        &mut self,
        plan: &NodePlan,
        now: Real,
        step: Step,
        doc: Option<&Document>,
        accounts: &[u16],
        shown: impl Fn(u16) -> Option<&'a std::sync::Arc<Document>>,
    ) -> Wants {
        if self.over {
            return Wants::default();
        }
        let wall = now.second() * 1_000 + (now.0 % 1_000) as i64 + plan.wall_offset;
        match step {
            Step::Look => {
                let holder = doc.and_then(|doc| doc.str("holderInstanceId"));
                let until = doc.and_then(|doc| doc.int("leaseUntil")).unwrap_or(0);
                self.active = holder.is_none() || holder == Some(LABEL) || until <= wall;
                if !self.active {
                    // Whoever has the lock now has the accounts too.
                    self.runs = None;
                    return Wants { again: Some(PASSIVE_LOOK_MS), ..Wants::default() };
                }
                let previous = holder.map(smol_str::SmolStr::new);
                let fields = vec![
                    ("holderInstanceId".into(), Value::from(LABEL).into()),
                    ("leaseUntil".into(), Value::Int(wall + LEASE_MS).into()),
                    ("acquiredAt".into(), FieldOp::ServerTime),
                    ("updatedAt".into(), FieldOp::ServerTime),
                    ("previousHolder".into(), Value::from(previous).into()),
                ];
                let mut writes = vec![Write::merge(lock_path(), Precondition::Any, fields)];
                if plan.serves {
                    writes.extend(self.turn(wall, accounts, shown));
                }
                Wants { writes, again: Some(ACTIVE_LOOK_MS), connected: true }
            }
            Step::End => {
                self.over = true;
                let held = std::mem::take(&mut self.active);
                let mut writes = Vec::new();
                if held && !plan.crash {
                    writes.push(Write::delete(lock_path(), Precondition::Any));
                    writes.extend(self.runs.take().map(run_ended));
                }
                Wants { writes, ..Wants::default() }
            }
        }
    }

    /// Ends the run under way, or begins one, of an account whose lease is free as it sees it.
    fn turn<'a>(
        &mut self,
        wall: i64,
        accounts: &[u16],
        shown: impl Fn(u16) -> Option<&'a std::sync::Arc<Document>>,
    ) -> Option<Write> {
        if let Some(run) = self.runs.take() {
            return Some(run_ended(run));
        }
        self.turns = self.turns.wrapping_add(1);
        let kind = match self.turns % 2 {
            0 => RunKind::RecentSync,
            _ => RunKind::AutoBackfill,
        };
        let account = *accounts.get(usize::from(self.turns / 2) % accounts.len().max(1))?;
        let now = StoreTime::from_millis(wall);
        let lease = lease(kind);
        if shown(account)?.time(lease.until.as_str()).is_some_and(|until| until > now) {
            return None;
        }
        self.runs = Some((account, kind));
        let mut fields = vec![
            (lease.until, (now + lease.term).into()),
            (lease.holder, Value::from(LABEL).into()),
            (lease.acquired, FieldOp::ServerTime),
        ];
        if kind == RunKind::AutoBackfill {
            let status = Value::map([
                ("running", Value::from(true)),
                ("startedAt", now.into()),
                ("trigger", "periodic".into()),
                ("holder", LABEL.into()),
            ]);
            fields.push(("lastAutoBackfillAttemptAt".into(), FieldOp::ServerTime));
            fields.push(("lastAutoBackfillStatus".into(), status.into()));
        }
        Some(Write::merge(AccountPlan::account(account).path(), Precondition::Any, fields))
    }
}

fn run_ended((account, kind): (u16, RunKind)) -> Write {
    let lease = lease(kind);
    let mut fields = vec![
        (lease.until, Value::Null.into()),
        (lease.holder, Value::Null.into()),
        (lease.acquired, Value::Null.into()),
    ];
    match kind {
        RunKind::AutoBackfill => {
            let status = Value::map([("ok", Value::from(true)), ("running", Value::from(false))]);
            fields.push(("lastAutoBackfillAt".into(), FieldOp::ServerTime));
            fields.push(("lastAutoBackfillSuccessAt".into(), FieldOp::ServerTime));
            fields.push(("lastAutoBackfillStatus".into(), status.into()));
        }
        RunKind::RecentSync => fields.push(("lastRecentSyncAt".into(), FieldOp::ServerTime)),
    }
    Write::merge(AccountPlan::account(account).path(), Precondition::Any, fields)
}

/// How an account shows who runs something.
pub(crate) struct Lease {
    pub(crate) until: FieldPath,
    pub(crate) holder: FieldPath,
    pub(crate) acquired: FieldPath,
    /// By default
    term: Duration,
}

pub(crate) const fn lease(kind: RunKind) -> Lease {
    match kind {
        RunKind::AutoBackfill => Lease {
            until: FieldPath::new("autoBackfillLeaseUntil"),
            holder: FieldPath::new("autoBackfillLeaseHolder"),
            acquired: FieldPath::new("autoBackfillLeaseAcquiredAt"),
            term: Duration::from_secs(900),
        },
        RunKind::RecentSync => Lease {
            until: FieldPath::new("recentSyncLeaseUntil"),
            holder: FieldPath::new("recentSyncLeaseHolder"),
            acquired: FieldPath::new("recentSyncLeaseAcquiredAt"),
            term: Duration::from_secs(300),
        },
    }
}

pub(crate) fn lock_path() -> DocPath {
    DocPath::parse("wa_metrics/longrun/locks/wa_connection").expect("four good segments")
}
