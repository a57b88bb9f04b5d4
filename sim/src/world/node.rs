//! A Node instance beside ours, as rule 15 of the coordination rules sees it: it knows the compat
//! lock and account leases by its own wall clock, no epochs, and deletes on release.

use backfill_core::doc::{DocPath, FieldOp, Precondition, Value, Write};

use super::{Ev, World};

/// What the Node instance knows.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Node {
    active: bool,
    over: bool,
}

/// What it does next.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
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
        if self.node.over {
            return;
        }
        let path = lock_path();
        match step {
            Step::Look => {
                let wall =
                    self.now.second() * 1_000 + (self.now.0 % 1_000) as i64 + plan.wall_offset;
                let doc = self.store.document(&path);
                let holder = doc.and_then(|doc| doc.str("holderInstanceId"));
                let until = doc.and_then(|doc| doc.int("leaseUntil")).unwrap_or(0);
                let free = holder.is_none() || holder == Some(LABEL) || until <= wall;
                if free {
                    let previous = holder.map(smol_str::SmolStr::new);
                    self.node.active = true;
                    let write = Write::merge(
                        path,
                        Precondition::Any,
                        vec![
                            ("holderInstanceId".into(), Value::from(LABEL).into()),
                            ("leaseUntil".into(), Value::Int(wall + LEASE_MS).into()),
                            ("acquiredAt".into(), FieldOp::ServerTime),
                            ("updatedAt".into(), FieldOp::ServerTime),
                            ("previousHolder".into(), Value::from(previous).into()),
                        ],
                    );
                    // Read and written in one transaction: nothing comes between.
                    self.commit(None, None, false, &[write]).expect("nothing is required");
                } else {
                    self.node.active = false;
                }
                let wait = if self.node.active { ACTIVE_LOOK_MS } else { PASSIVE_LOOK_MS };
                self.queue.push(self.now.after(wait), Ev::Node(Step::Look));
            }
            Step::End => {
                self.node.over = true;
                if self.node.active && !plan.crash {
                    let write = Write::delete(path, Precondition::Any);
                    self.commit(None, None, false, &[write]).expect("nothing is required");
                }
                self.node.active = false;
            }
        }
    }
}

fn lock_path() -> DocPath {
    DocPath::parse("wa_metrics/longrun/locks/wa_connection").expect("four good segments")
}
