//! What came of a run, as the account shows it.

use crate::account;
use crate::doc::{FieldOp, FieldPath, Value};
use crate::host::Host;
use crate::io::{RunKind, RunResult};
use crate::tenure::Tenure;

use super::{goal, millis};

impl Tenure {
    pub(super) fn result(&self, host: &Host, kind: RunKind) -> RunResult {
        let goal = goal(host, kind);
        let Some(run) = self.runs.get(&kind) else { return RunResult::default() };
        let remaining = run
            .threads
            .iter()
            .filter(|work| {
                let covered = self.coverage.get(&work.thread).filter(|_| work.looked);
                covered.is_none_or(|covered| covered.coverage.next_anchor(goal).is_some())
            })
            .count();
        RunResult {
            ok: run.error.is_none(),
            error: run.error,
            threads: u32::try_from(run.threads.len()).unwrap_or(u32::MAX),
            messages: run.messages,
            errors: run.errors,
            remaining: u32::try_from(remaining).unwrap_or(u32::MAX),
            duration: host.now.since(run.begun),
        }
    }

    pub(super) fn result_fields(&self, host: &Host, kind: RunKind) -> Vec<(FieldPath, FieldOp)> {
        let result = self.result(host, kind);
        let counts = [
            ("threads", Value::from(result.threads)),
            ("messages", Value::from(result.messages)),
            ("errors", Value::from(result.errors)),
        ];
        let duration = ("durationMs", Value::from(millis(result.duration)));
        let mut fields = Vec::new();
        match kind {
            RunKind::AutoBackfill => {
                let mut status =
                    vec![("ok", Value::from(result.ok)), ("running", Value::from(false)), duration];
                if let Some(error) = result.error {
                    status.push(("errorCode", error.into()));
                    status.push(("errorMessage", describe(error).into()));
                } else {
                    status.extend(counts.clone());
                    status.push(("remaining", result.remaining.into()));
                    fields.push((account::LAST_AUTO_BACKFILL_AT, FieldOp::ServerTime));
                    if result.is_complete() {
                        let success = account::LAST_AUTO_BACKFILL_SUCCESS_AT;
                        fields.push((success, FieldOp::ServerTime));
                    }
                }
                fields.push((account::LAST_AUTO_BACKFILL_STATUS, Value::map(status).into()));
                let per_thread = self.runs.get(&kind).map_or_else(Vec::new, |run| {
                    run.threads
                        .iter()
                        .take(10)
                        .map(|work| {
                            Value::map([
                                ("threadId", Value::from(work.thread.text())),
                                ("messages", work.messages.into()),
                            ])
                        })
                        .collect()
                });
                let mut whole = counts.to_vec();
                whole.push(("threadResults", Value::Array(per_thread)));
                fields.push((account::LAST_BACKFILL_AT, FieldOp::ServerTime));
                fields.push((account::LAST_BACKFILL_RESULT, Value::map(whole).into()));
            }
            RunKind::RecentSync => {
                let mut whole = vec![("ok", Value::from(result.ok)), duration];
                whole.extend(counts);
                whole.extend(result.error.map(|e| ("errorMessage", Value::from(describe(e)))));
                fields.push((account::LAST_RECENT_SYNC_AT, FieldOp::ServerTime));
                fields.push((account::LAST_RECENT_SYNC_RESULT, Value::map(whole).into()));
            }
        }
        fields
    }
}

fn describe(error: &str) -> &'static str {
    match error {
        "deleted" => "the account was deleted during the run",
        "disconnected" => "the account disconnected during the run",
        "lease_expired" => "the run's lease could not be renewed in time",
        "stopped" => "the instance was stopped or handed the account over",
        "store_conflict" => "a document of the run was changed by somebody else",
        "store_unavailable" => "the store did not answer",
        _ => "the run failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_fail_has_words_of_its_own() {
        let errors = [
            "deleted",
            "disconnected",
            "lease_expired",
            "stopped",
            "store_conflict",
            "store_unavailable",
            "anything else",
        ];
        let words: std::collections::BTreeSet<_> = errors.map(describe).into();
        assert_eq!(words.len(), errors.len());
        assert!(words.iter().all(|words| words.contains(' ')), "{words:?}");
    }

    #[test]
    fn only_a_run_that_leaves_nothing_is_complete() {
        let ended = |ok, remaining| RunResult { ok, remaining, ..RunResult::default() };
        assert!(ended(true, 0).is_complete());
        assert!(!ended(true, 1).is_complete() && !ended(false, 0).is_complete());
    }
}
