//! A Node instance beside ours, as rule 15 of the coordination rules sees it: it knows the compat
//! lock and account leases by its own wall clock, no epochs, and deletes on release.

use backfill_core::doc::{DocPath, Document, FieldOp, Precondition, Value, Write};

use super::{Ev, World};
use crate::clock::Real;
use crate::scenario::NodePlan;

/// What the Node instance knows.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Node {
    active: bool,
    over: bool,
}

/// What it does next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    End,
    Look,
}

const LABEL: &str = "node-1";
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
        let (write, wait) = self.node.step(&plan, self.now, step, doc.as_deref());
        if let Some(write) = write {
            // Read and written in one transaction: nothing comes between.
            self.commit(None, None, false, &[write]).expect("nothing is required");
        }
        if let Some(wait) = wait {
            self.queue.push(self.now.after(wait), Ev::Node(Step::Look));
        }
    }
}

impl Node {
    /// What it writes, having read the compat lock, and after how long it looks again.
    pub(crate) fn step(
        &mut self,
        plan: &NodePlan,
        now: Real,
        step: Step,
        doc: Option<&Document>,
    ) -> (Option<Write>, Option<u64>) {
        if self.over {
            return (None, None);
        }
        match step {
            Step::Look => {
                let wall = now.second() * 1_000 + (now.0 % 1_000) as i64 + plan.wall_offset;
                let holder = doc.and_then(|doc| doc.str("holderInstanceId"));
                let until = doc.and_then(|doc| doc.int("leaseUntil")).unwrap_or(0);
                self.active = holder.is_none() || holder == Some(LABEL) || until <= wall;
                if !self.active {
                    return (None, Some(PASSIVE_LOOK_MS));
                }
                let previous = holder.map(smol_str::SmolStr::new);
                let fields = vec![
                    ("holderInstanceId".into(), Value::from(LABEL).into()),
                    ("leaseUntil".into(), Value::Int(wall + LEASE_MS).into()),
                    ("acquiredAt".into(), FieldOp::ServerTime),
                    ("updatedAt".into(), FieldOp::ServerTime),
                    ("previousHolder".into(), Value::from(previous).into()),
                ];
                let write = Write::merge(lock_path(), Precondition::Any, fields);
                (Some(write), Some(ACTIVE_LOOK_MS))
            }
            Step::End => {
                self.over = true;
                let held = std::mem::take(&mut self.active);
                let leaves = held && !plan.crash;
                (leaves.then(|| Write::delete(lock_path(), Precondition::Any)), None)
            }
        }
    }
}

pub(crate) fn lock_path() -> DocPath {
    DocPath::parse("wa_metrics/longrun/locks/wa_connection").expect("four good segments")
}
