//! When history that came late is followed by a backfill.

use std::time::Duration;

use backfill_core::doc::{DocPath, Value};
use backfill_core::id::AccountId;
use backfill_core::io::{ChunkId, Command, Event, GatewayEvent, Reply, RunKind, Skip};

use super::rig::Rig;

const MINUTE: u64 = 60_000;

#[test]
fn a_success_before_history_came_does_not_keep_it_waiting_for_the_cooldown() {
    let (mut rig, account) = backfilled();
    rig.tell(0, &account, GatewayEvent::ChunkMissing { chunk: ChunkId(1) });
    rig.pass(11 * MINUTE);
    assert_eq!(runs(&rig), 2, "within the backoff and the jitter of a connect");
    rig.pass(120 * MINUTE);
    assert_eq!(runs(&rig), 2, "and from then on the cooldown holds");
}

#[test]
fn a_refused_run_leaves_late_history_to_the_next() {
    let (mut rig, account) = backfilled();
    rig.tell(0, &account, GatewayEvent::ChunkMissing { chunk: ChunkId(1) });
    lease_of_a_node_instance(&mut rig, &account.path());
    rig.pass(11 * MINUTE);
    let refused = |(_, event): &(u64, Event)| {
        matches!(event, Event::Skipped { reason: Skip::HeldByOther, .. })
    };
    assert!(rig.nodes[0].events.iter().any(refused));
    assert_eq!(runs(&rig), 1);
    rig.pass(16 * MINUTE);
    assert_eq!(runs(&rig), 2, "once the lease is over");
}

#[test]
fn a_run_that_was_refused_and_has_no_late_history_to_fill_is_not_tried_again_by_itself() {
    let (mut rig, account) = backfilled();
    lease_of_a_node_instance(&mut rig, &account.path());
    assert_eq!(rig.command(0, Command::Backfill(account)), Reply::Accepted);
    rig.pass(14 * MINUTE);
    let refused = |(_, event): &&(u64, Event)| matches!(event, Event::Skipped { .. });
    assert_eq!(rig.nodes[0].events.iter().filter(refused).count(), 1);
}

/// A connected account that had its run a minute ago, with nothing to do.
fn backfilled() -> (Rig, AccountId) {
    let mut rig = Rig::exclusive();
    let account = rig.add_account(1, "connected");
    rig.pass(2 * MINUTE);
    assert_eq!(runs(&rig), 1);
    (rig, account)
}

fn runs(rig: &Rig) -> usize {
    let started = |(_, event): &&(u64, Event)| {
        matches!(event, Event::RunStarted { kind: RunKind::AutoBackfill, .. })
    };
    rig.nodes[0].events.iter().filter(started).count()
}

fn lease_of_a_node_instance(rig: &mut Rig, account: &DocPath) {
    let now = rig.time();
    rig.write(
        account,
        &[
            ("autoBackfillLeaseHolder", "node-1".into()),
            ("autoBackfillLeaseAcquiredAt", Value::from(now)),
            ("autoBackfillLeaseUntil", Value::from(now + Duration::from_secs(900))),
        ],
    );
}
