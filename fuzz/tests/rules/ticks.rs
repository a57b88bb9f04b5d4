//! Whom a tick starts, and what an instance tells of itself.

use std::collections::BTreeMap;
use std::time::Duration;

use backfill_core::doc::{DocPath, Value};
use backfill_core::id::{AccountId, Epoch};
use backfill_core::instance::{AccountInsight, Belief, LockInsight};
use backfill_core::io::{Answer, ChunkId, Command, Event, GatewayEvent, Reply, RunKind, Skip};
use backfill_core::policy::{Credentials, Settings};
use backfill_core::time::Mono;

use super::holes::{put_thread, thread};
use super::rig::{Rig, label};

/// How many each tick started, and how many it passed over and why, once five are connected.
fn ticks(rig: &Rig, of: RunKind) -> Vec<(u32, BTreeMap<Skip, u32>)> {
    let events = rig.nodes[0].events.iter();
    events
        .filter_map(|(_, event)| match event {
            Event::Tick { kind, connected: 5, started, skipped } if *kind == of => {
                Some((*started, skipped.clone()))
            }
            _ => None,
        })
        .collect()
}

fn with_five_accounts() -> (Rig, Vec<AccountId>) {
    with_up_to(2)
}

/// Five accounts, of which a tick starts so many.
fn with_up_to(max_accounts_per_tick: u32) -> (Rig, Vec<AccountId>) {
    let mut settings =
        Settings { credentials: Credentials::Shared, ..Settings::exclusive(label(0)) };
    settings.auto_backfill.interval = Duration::from_secs(20);
    settings.auto_backfill.max_accounts_per_tick = max_accounts_per_tick;
    // Only ticks start them.
    settings.auto_backfill.connect_jitter_min = Duration::from_secs(1_000);
    settings.auto_backfill.connect_jitter_max = Duration::from_secs(1_001);
    let mut rig = Rig::new([settings]);
    let accounts: Vec<_> = (0..5).map(|n| rig.add_account(n, "disconnected")).collect();
    for account in &accounts {
        rig.write(&account.sync_path(), &[("surveyed", Value::Int(0))]);
    }
    (rig, accounts)
}

#[test]
fn a_tick_starts_as_many_as_it_may_and_counts_the_others() {
    let (mut rig, _) = with_five_accounts();
    rig.pass(260_000);
    let all = ticks(&rig, RunKind::AutoBackfill);
    let skipped = |reasons: &[(Skip, u32)]| reasons.iter().copied().collect::<BTreeMap<_, _>>();
    let expected = [
        (2, skipped(&[(Skip::TickCap, 3)])),
        (2, skipped(&[(Skip::Backoff, 2), (Skip::TickCap, 1)])),
        (1, skipped(&[(Skip::Backoff, 4)])),
        (0, skipped(&[(Skip::Backoff, 5)])),
    ];
    assert_eq!(all[..4], expected);
    // A new owner looks at the newest threads once.
    let idle = skipped(&[(Skip::Idle, 5)]);
    assert_eq!(ticks(&rig, RunKind::RecentSync), [(5, skipped(&[])), (0, idle)]);
}

#[test]
fn an_instance_tells_what_it_holds_and_when_it_ticks() {
    let (mut rig, accounts) = with_five_accounts();
    rig.pass(10_000);
    let instance = &rig.nodes[0].instance;
    let now = Mono::from_millis(10_000);
    let LockInsight { holder, own, expires_in } = instance.lock_insight().unwrap();
    assert_eq!((holder.as_str(), own), ("i0", true));
    assert!(expires_in.is_some_and(|left| left > Duration::from_secs(30)), "{expires_in:?}");
    assert_eq!(instance.account_ids().cloned().collect::<Vec<_>>(), accounts);
    let insight = instance.account_insight(&accounts[0]).unwrap();
    let known = AccountInsight {
        status: "connected".into(),
        owner: Some("i0".into()),
        own: true,
        epoch: Epoch(1),
        connected: true,
    };
    assert_eq!(insight, known);
    assert!(instance.account_insight(&AccountId::parse("other").unwrap()).is_none());
    let tick = instance.next_tick(RunKind::AutoBackfill).unwrap();
    assert!(tick > now && tick <= now + Duration::from_secs(20));
    let (estimate, time) = (instance.store_now(), rig.time());
    assert!(estimate <= time && time.since(estimate) < Duration::from_secs(1));
    assert!(instance.fence(&accounts[0]).is_some());
    assert_eq!(instance.beliefs().count(), 5);
    let belief = instance.belief(&accounts[0]).unwrap();
    assert_eq!((belief.epoch, Some(belief.until.since(now))), (Epoch(1), expires_in));
    assert_eq!(instance.run_beliefs().count(), 0);
}

#[test]
fn a_run_is_believed_no_longer_than_the_session() {
    let (mut rig, accounts) = with_five_accounts();
    rig.nodes[0].answers = |_| Some(Answer::Done);
    let second = rig.time().as_secs() - 1_000;
    put_thread(&mut rig, &accounts[4], &thread(&accounts[4], 1), second);
    rig.pass(10_000);
    assert_eq!(rig.command(0, Command::Backfill(accounts[4].clone())), Reply::Accepted);
    rig.pass(1_000);
    let instance = &rig.nodes[0].instance;
    let session = instance.lock_belief().unwrap().until;
    let [(account, kind, belief)] = instance.run_beliefs().collect::<Vec<_>>()[..] else {
        panic!("one run")
    };
    assert_eq!((account, kind), (&accounts[4], RunKind::AutoBackfill));
    assert_eq!(belief, Belief { epoch: Epoch(1), until: session });
}

#[test]
fn a_tick_that_starts_all_that_are_due_leaves_out_none() {
    let (mut rig, _) = with_up_to(5);
    rig.pass(30_000);
    assert_eq!(ticks(&rig, RunKind::AutoBackfill), [(5, BTreeMap::new())]);
}

#[test]
fn who_waits_tells_who_holds_the_lock() {
    let settings =
        |n| Settings { credentials: Credentials::Shared, ..Settings::exclusive(label(n)) };
    let mut rig = Rig::new([settings(0), settings(1)]);
    let account = rig.add_account(1, "disconnected");
    rig.pass(60_000);
    let waits = rig.nodes.iter().position(|node| !node.is_active()).unwrap();
    let holds = format!("i{}", 1 - waits);
    let instance = &rig.nodes[waits].instance;
    let LockInsight { holder, own, expires_in } = instance.lock_insight().unwrap();
    assert_eq!((holder.as_str(), own), (holds.as_str(), false));
    let term = instance.policy().session_term;
    assert!(expires_in.is_some_and(|left| left > term / 3 && left <= term), "{expires_in:?}");
    assert!(instance.account_insight(&account).is_none_or(|insight| !insight.own));
    assert_eq!((instance.beliefs().count(), instance.lock_belief()), (0, None));
}

#[test]
fn no_tick_follows_while_those_it_started_wait_for_their_turn() {
    let (mut rig, accounts) = with_five_accounts();
    rig.nodes[0].answers = |_| Some(Answer::Done);
    let second = rig.time().as_secs() - 1_000;
    put_thread(&mut rig, &accounts[4], &thread(&accounts[4], 1), second);
    rig.pass(10_000);
    // It takes the only slot until its phone has not answered twice, for a minute each.
    let reply = rig.command(0, Command::Backfill(accounts[4].clone()));
    assert_eq!(reply, Reply::Accepted);
    rig.pass(55_000);
    assert_eq!(ticks(&rig, RunKind::AutoBackfill).len(), 1);
    assert!(rig.nodes[0].instance.tick_works(RunKind::AutoBackfill));
    rig.pass(120_000);
    assert!(ticks(&rig, RunKind::AutoBackfill).len() > 2);
    assert!(!rig.nodes[0].instance.tick_works(RunKind::AutoBackfill));
}

#[test]
fn ticks_go_on_while_a_run_waits_for_its_phone() {
    let (mut rig, accounts) = with_five_accounts();
    let second = rig.time().as_secs() - 1_000;
    put_thread(&mut rig, &accounts[0], &thread(&accounts[0], 1), second);
    rig.pass(130_000);
    let all = ticks(&rig, RunKind::AutoBackfill);
    assert!(all.len() >= 5, "{all:?}");
    assert!(all.iter().skip(1).all(|(_, skipped)| skipped.get(&Skip::Running) == Some(&1)));
}

#[test]
fn what_is_switched_off_does_not_run() {
    let mut settings =
        Settings { credentials: Credentials::Shared, ..Settings::exclusive(label(0)) };
    settings.auto_backfill.enabled = false;
    settings.recent_sync.enabled = false;
    let mut rig = Rig::new([settings]);
    let account = rig.add_account(1, "disconnected");
    let second = rig.time().as_secs() - 1_000;
    put_thread(&mut rig, &account, &thread(&account, 1), second);
    rig.pass(3_600_000);
    rig.tell(0, &account, GatewayEvent::ChunkMissing { chunk: ChunkId(1) });
    rig.pass(3_600_000);
    assert_eq!(rig.status(&account), Some("connected"));
    let works = |event: &Event| matches!(event, Event::Tick { .. } | Event::RunStarted { .. });
    assert!(!rig.nodes[0].events.iter().any(|(_, event)| works(event)));
}

#[test]
fn those_who_share_the_lock_tell_until_when_they_do() {
    let credentials = Credentials::Shared;
    let mut rig = Rig::new([Settings { credentials, ..Settings::shared(label(0), "c") }]);
    assert_eq!(rig.nodes[0].instance.lock_insight(), None);
    rig.until(60_000, |rig| rig.nodes[0].is_active());
    let instance = &rig.nodes[0].instance;
    let LockInsight { holder, own, expires_in } = instance.lock_insight().unwrap();
    assert_eq!((holder.as_str(), own), ("shared:c", true));
    let term = instance.policy().session_term;
    assert!(expires_in.is_some_and(|left| left > term / 3 && left <= term), "{expires_in:?}");
}

#[test]
fn who_waits_for_other_software_tells_until_when_it_has_the_lock() {
    let mut rig = Rig::exclusive();
    let compat = DocPath::parse("wa_metrics/longrun/locks/wa_connection").unwrap();
    let until = rig.time().as_millis() + 60_000;
    let fields = [("holderInstanceId", "other".into()), ("leaseUntil", Value::Int(until))];
    rig.write(&compat, &fields);
    let left = |rig: &Rig| {
        let LockInsight { holder, own, expires_in } = rig.nodes[0].instance.lock_insight().unwrap();
        assert_eq!((holder.as_str(), own), ("other", false));
        expires_in
    };
    rig.pass(20_000);
    let known = left(&rig).unwrap();
    assert!(known >= Duration::from_secs(40) && known < Duration::from_secs(42), "{known:?}");
    rig.pass(45_000);
    assert_eq!(left(&rig), None, "by its own word it is over");
}
