//! What a disconnection leaves behind, and what a live message does.

use std::time::Duration;

use backfill_core::doc::{DocPath, Value};
use backfill_core::id::AccountId;
use backfill_core::io::{
    Answer, CloseReason, Event, GatewayEvent, HoleChange, Input, Rejection, StoreCall, StoreRequest,
};
use backfill_core::time::StoreTime;

use super::holes::{arrive, thread};
use super::rig::Rig;

/// What shows that nobody but us has had the accounts.
const OURS: &str = "i0#0123456789abcdef0123";

/// An account that is connecting, and whose earlier owner left this.
fn connecting(left: &[(&'static str, Value)]) -> (Rig, AccountId) {
    let left = [&[("surveyed", Value::Int(0))], left].concat();
    connecting_after(OURS, &left)
}

/// An account that is connecting, after somebody else had the accounts and left this.
fn connecting_after(holder: &'static str, left: &[(&'static str, Value)]) -> (Rig, AccountId) {
    let mut rig = Rig::exclusive();
    rig.nodes[0].opens = false;
    let compat = DocPath::parse("wa_metrics/longrun/locks/wa_connection").unwrap();
    rig.write(&compat, &[("holderInstanceId", holder.into())]);
    let account = rig.add_account(1, "disconnected");
    if !left.is_empty() {
        rig.write(&account.sync_path(), left);
    }
    rig.until(60_000, |rig| !rig.nodes[0].connects(&account).is_empty());
    (rig, account)
}

fn live(rig: &mut Rig, account: &AccountId, second: i64) {
    arrive(rig, account, thread(account, 1), second);
}

fn open(rig: &mut Rig, account: &AccountId, announced: u32, stored: u32) {
    let (_, connection) = *rig.nodes[0].connects(account).last().unwrap();
    rig.tell(0, account, GatewayEvent::Opened { connection });
    rig.tell(0, account, GatewayEvent::Drained { connection, announced, stored });
    rig.pass(1_000);
}

fn reconnect(rig: &mut Rig, account: &AccountId, reason: CloseReason) {
    let before = rig.nodes[0].connects(account);
    let (_, connection) = *before.last().unwrap();
    rig.tell(0, account, GatewayEvent::Closed { connection, reason });
    rig.until(60_000, |rig| rig.nodes[0].connects(account).len() > before.len());
}

/// The times in which messages may be missing.
fn gaps(rig: &Rig, account: &AccountId) -> Vec<(i64, i64)> {
    let sync = rig.doc(&account.sync_path()).unwrap();
    let gaps = sync.value("gaps").and_then(Value::as_array).unwrap_or_default();
    let end = |gap: &Value, name: &str| gap.as_map().and_then(|gap| gap.get(name)?.as_int());
    gaps.iter().map(|gap| (end(gap, "from").unwrap(), end(gap, "to").unwrap())).collect()
}

#[test]
fn only_what_a_drain_may_have_missed_is_a_gap() {
    for (reason, announced, stored, missing) in [
        (CloseReason::Lost, 0, 0, false),
        (CloseReason::Lost, 3, 3, false),
        (CloseReason::Lost, 3, 4, false),
        (CloseReason::Lost, 3, 2, true),
        (CloseReason::Replaced, 3, 3, true),
    ] {
        let (mut rig, account) = connecting(&[]);
        open(&mut rig, &account, 0, 0);
        assert_eq!(gaps(&rig, &account), []);
        rig.pass(600_000);
        let closed = rig.time().as_secs();
        reconnect(&mut rig, &account, reason);
        open(&mut rig, &account, announced, stored);
        let opened = rig.time().as_secs();
        let found = gaps(&rig, &account);
        assert_eq!(found.len(), usize::from(missing), "{reason:?} {announced} {stored}");
        assert!(found.iter().all(|(from, to)| *from <= closed && opened - 1 <= *to), "{found:?}");
        assert!(found.iter().all(|(from, _)| closed - *from < 600), "{found:?}");
        // Once is enough.
        open(&mut rig, &account, 9, 0);
        assert_eq!(gaps(&rig, &account), found);
    }
}

#[test]
fn what_a_crash_left_open_counts_from_the_last_sign_of_life() {
    for (stored, missing) in [(3, false), (2, true)] {
        let boot = "0123456789abcdef0123";
        let (mut rig, account) = connecting(&[("connectedBoot", boot.into())]);
        let died = rig.time() - Duration::from_secs(7_200);
        let session = DocPath::parse(format!("instances/{boot}")).unwrap();
        rig.write(
            &session,
            &[("live", false.into()), ("state", "dead".into()), ("lastBeatAt", Value::from(died))],
        );
        open(&mut rig, &account, 3, stored);
        assert_eq!(gaps(&rig, &account).len(), usize::from(missing));
        let marker = rig.doc(&account.sync_path()).unwrap().str("connectedBoot");
        assert_eq!(marker, Some(rig.nodes[0].instance.boot().as_str()), "and leaves its own");
    }
}

#[test]
fn who_was_away_for_longer_than_messages_are_kept_may_have_missed_some() {
    for (days, missing) in [(13, false), (15, true)] {
        let since = StoreTime::from_secs(1_800_000_000) - Duration::from_secs(days * 86_400);
        let (mut rig, account) = connecting(&[("disconnectedSince", Value::from(since))]);
        open(&mut rig, &account, 3, 3);
        let found = gaps(&rig, &account);
        assert_eq!(found.len(), usize::from(missing), "{days}");
        assert!(found.iter().all(|(from, _)| *from <= since.as_secs()));
    }
}

#[test]
fn a_message_that_cannot_be_read_is_a_gap_in_its_thread() {
    let (mut rig, account) = connecting(&[]);
    open(&mut rig, &account, 0, 0);
    let second = rig.time().as_secs();
    let lost = thread(&account, 7);
    rig.tell(0, &account, GatewayEvent::Undecryptable { thread: lost.clone(), second });
    rig.pass(1_000);
    let sync = rig.doc(&account.sync_path()).unwrap();
    let [gap] = sync.value("threadGaps").and_then(Value::as_array).unwrap() else { panic!() };
    let gap = gap.as_map().unwrap();
    assert_eq!(gap["thread"].as_str(), Some(lost.as_str()));
    assert_eq!((gap["from"].as_int(), gap["to"].as_int()), (Some(second), Some(second)));
    assert_eq!(gaps(&rig, &account), []);
    let suspected =
        |event: &Event| matches!(event, Event::Hole { change: HoleChange::Suspected, .. });
    assert_eq!(rig.nodes[0].events.iter().filter(|(_, event)| suspected(event)).count(), 1);
}

#[test]
fn live_messages_are_stamped_at_once_and_then_no_more_than_once_a_second() {
    let (mut rig, account) = connecting(&[]);
    open(&mut rig, &account, 0, 0);
    let stamps = |rig: &Rig| {
        let doc = rig.doc(&account.path()).unwrap();
        (
            doc.time("lastRealtimeIngestAt"),
            doc.time("lastRealtimeMessageAt").map(StoreTime::as_secs),
        )
    };
    let begun = rig.time();
    for n in 0..10 {
        let second = begun.as_secs() - 100 + n;
        live(&mut rig, &account, second);
        let shown = if n == 0 { Some(second) } else { Some(begun.as_secs() - 100) };
        assert_eq!(stamps(&rig), (Some(begun), shown));
        rig.pass(90);
    }
    rig.pass(200);
    let (at, newest) = stamps(&rig);
    assert_eq!(at, Some(begun + Duration::from_secs(1)));
    assert_eq!(newest, Some(begun.as_secs() - 91));
    rig.pass(10_000);
    assert_eq!(stamps(&rig), (at, newest), "there is nothing new");
}

/// An hour before the processes begin.
fn an_hour_ago() -> Value {
    Value::from(StoreTime::from_secs(1_800_000_000 - 3_600))
}

#[test]
fn a_drain_that_shows_nothing_missing_is_not_believed_where_others_may_have_received() {
    let away = ("disconnectedSince", an_hour_ago());
    let surveyed = ("surveyed", Value::Int(0));
    for (holder, missing) in [(OURS, false), ("other", true)] {
        let (mut rig, account) = connecting_after(holder, &[surveyed.clone(), away.clone()]);
        open(&mut rig, &account, 3, 3);
        assert_eq!(gaps(&rig, &account).len(), usize::from(missing), "{holder}");
    }

    // The last one died before its own drain had shown what was missing.
    let crashed = ("connectedBoot", "0123456789abcdef0123".into());
    let (mut rig, account) = connecting(&[away.clone(), crashed]);
    open(&mut rig, &account, 3, 3);
    assert_eq!(gaps(&rig, &account).len(), 1);

    // A device that is linked anew gets nothing of the time before.
    let (mut rig, account) = connecting(&[away]);
    let (_, connection) = rig.nodes[0].connects(&account)[0];
    rig.tell(0, &account, GatewayEvent::Paired { connection });
    open(&mut rig, &account, 3, 3);
    assert_eq!(gaps(&rig, &account).len(), 1);
}

#[test]
fn who_takes_over_an_account_without_records_may_miss_all_that_the_server_kept() {
    let day = 86_400;
    for (stored, missing) in [(3, false), (2, true)] {
        let (mut rig, account) = connecting_after(OURS, &[]);
        let now = rig.time().as_secs();
        open(&mut rig, &account, 3, stored);
        let found = gaps(&rig, &account);
        assert_eq!(found.len(), usize::from(missing), "{found:?}");
        assert!(found.iter().all(|(from, _)| (13 * day..=14 * day).contains(&(now - from))));
    }
}

#[test]
fn a_connection_that_never_opened_is_no_disconnection() {
    let (mut rig, account) = connecting(&[]);
    reconnect(&mut rig, &account, CloseReason::Lost);
    rig.pass(500);
    assert_eq!(rig.doc(&account.sync_path()).unwrap().time("disconnectedSince"), None);
    assert_eq!(rig.status(&account), Some("disconnected"), "it is linked all the same");
    open(&mut rig, &account, 0, 0);
    reconnect(&mut rig, &account, CloseReason::Lost);
    assert!(rig.doc(&account.sync_path()).unwrap().time("disconnectedSince").is_some());
}

#[test]
fn gaps_reach_back_to_the_last_live_message_where_whatsapps_clock_is_behind() {
    let (mut rig, account) = connecting(&[]);
    open(&mut rig, &account, 0, 0);
    let second = rig.time().as_secs() - 3_600;
    live(&mut rig, &account, second);
    rig.pass(1_000);
    reconnect(&mut rig, &account, CloseReason::Replaced);
    open(&mut rig, &account, 0, 0);
    let found = gaps(&rig, &account);
    assert!(found.len() == 1 && found[0].0 <= second, "{found:?}");
}

fn writes_the_state(request: &StoreRequest) -> bool {
    let state = |path: &DocPath| path.as_str().ends_with("/sync/state");
    matches!(&request.call, StoreCall::Commit(writes) if writes.iter().any(|w| state(&w.path)))
}

fn refuse(rig: &mut Rig) {
    let commit = rig.nodes[0].held.remove(0);
    rig.give(0, Input::Answer(commit.id, Answer::Rejected(Rejection::Unavailable)));
}

#[test]
fn what_the_store_refused_is_written_a_little_later_or_with_what_comes_first() {
    for something_comes in [false, true] {
        let (mut rig, account) = connecting(&[]);
        open(&mut rig, &account, 0, 0);
        rig.pass(10_000);
        let before = rig.nodes[0].asked.iter().filter(|r| writes_the_state(r)).count();
        rig.nodes[0].holds = writes_the_state;
        let second = rig.time().as_secs();
        live(&mut rig, &account, second);
        refuse(&mut rig);
        rig.pass(1_000);
        assert!(rig.nodes[0].held.is_empty(), "not at once");
        rig.nodes[0].holds = |_| false;
        if something_comes {
            let thread = thread(&account, 2);
            rig.tell(0, &account, GatewayEvent::Undecryptable { thread, second });
        }
        rig.pass(2_000);
        let stamped = rig.doc(&account.path()).unwrap().time("lastRealtimeMessageAt");
        assert_eq!(stamped, Some(StoreTime::from_secs(second)));
        let commits = rig.nodes[0].asked.iter().filter(|r| writes_the_state(r)).count();
        assert_eq!(commits - before, 2, "once is enough");
    }
}
