//! What a new owner makes of what earlier ones left open.

use backfill_core::coverage::{Coverage, Gap, Mark, PageEnd};
use backfill_core::doc::{DocPath, Value};
use backfill_core::id::{AccountId, ThreadId};
use backfill_core::io::{
    CloseReason, GatewayCall, GatewayEvent, Hint, Ingested, Input, Source, StoreCall, StoreRequest,
    ThreadSpan,
};
use backfill_core::time::StoreTime;

use super::rig::Rig;

pub(super) fn thread(account: &AccountId, number: u16) -> ThreadId {
    ThreadId::of_chat(account, &format!("{number}@s.whatsapp.net")).unwrap()
}

pub(super) fn mark(second: i64) -> Mark {
    let id = Some(format!("m{second}").into());
    Mark { second, id, from_me: false, participant: None }
}

/// A thread with one message, as ingest leaves it.
pub(super) fn put_thread(rig: &mut Rig, account: &AccountId, thread: &ThreadId, second: i64) {
    let at = Value::from(StoreTime::from_secs(second));
    let message = DocPath::new(&thread.messages(), &format!("m{second}")).unwrap();
    let key = Value::map([("id", Value::from(format!("m{second}"))), ("fromMe", false.into())]);
    rig.write(&message, &[("tsClient", at.clone()), ("key", key)]);
    let account = Value::from(account.text());
    rig.write(&thread.path(), &[("accountId", account), ("lastMessageAt", at)]);
}

pub(super) fn coverage_path(account: &AccountId, thread: &ThreadId) -> DocPath {
    DocPath::new(&account.coverage(), thread.as_str()).unwrap()
}

/// A live message of a thread is durable.
pub(super) fn arrive(rig: &mut Rig, account: &AccountId, thread: ThreadId, second: i64) {
    arrive_beside(rig, account, thread, None, second);
}

/// A live message is durable in a thread whose chat has another name, and another thread.
fn arrive_beside(
    rig: &mut Rig,
    account: &AccountId,
    thread: ThreadId,
    twin: Option<ThreadId>,
    second: i64,
) {
    let (low, high, end) = (mark(second), mark(second), PageEnd::Unstated);
    let threads = vec![ThreadSpan { thread, twin, low, high, messages: 1, end }];
    let source = Source::Realtime;
    let ingested = Ingested { source, messages: 1, threads, newest_second: second };
    rig.give(0, Input::Ingested(account.clone(), ingested));
}

/// An account that is being loaded: what was read of it is held back.
pub(super) fn loading() -> (Rig, AccountId) {
    let mut rig = Rig::exclusive();
    rig.pass(60_000);
    rig.nodes[0].holds = |request| {
        matches!(&request.call, StoreCall::Get(paths)
            if paths.first().is_some_and(|path| path.as_str() == "accounts/account_dev_00000001"))
    };
    let account = rig.add_account(1, "disconnected");
    rig.give(0, Input::Hint(Hint::Accounts));
    rig.until(2_000, |rig| !rig.nodes[0].held.is_empty());
    (rig, account)
}

/// Many threads with new messages, and nothing open.
fn crowd(rig: &mut Rig, account: &AccountId) {
    let now = rig.time().as_secs();
    for number in 0..60 {
        let other = thread(account, number);
        let second = now - 1_000 - i64::from(number);
        let path = coverage_path(account, &other);
        rig.put(&path, Coverage::starting_at(&mark(second), 1).to_fields(1));
        put_thread(rig, account, &other, second);
    }
}

/// What the phone was asked for, by thread and anchor.
fn asked(rig: &Rig) -> Vec<(ThreadId, i64)> {
    let calls = rig.nodes[0].calls.iter().filter_map(|(_, request)| match &request.call {
        GatewayCall::History { thread, anchor, .. } => Some((thread.clone(), anchor.second)),
        _ => None,
    });
    calls.collect()
}

#[test]
fn a_tail_that_waited_under_an_earlier_owner_is_looked_at_however_old_the_thread_is() {
    let mut rig = Rig::exclusive();
    let now = rig.time().as_secs();
    let account = rig.add_account(1, "disconnected");
    rig.write(&account.sync_path(), &[("gapSeq", Value::Int(1)), ("surveyed", Value::Int(1))]);
    // Its tail was waiting for a message, which came just before the owner died.
    let old = thread(&account, 999);
    let mut coverage = Coverage::starting_at(&mark(now - 9_000), 0);
    let gap = Gap { seq: 1, from: now - 8_000, to: now - 7_000 };
    assert!(coverage.suspect(gap, None) && !coverage.is_live());
    let path = coverage_path(&account, &old);
    rig.put(&path, coverage.to_fields(1));
    put_thread(&mut rig, &account, &old, now - 6_000);
    crowd(&mut rig, &account);
    rig.pass(10 * 60_000);
    assert!(asked(&rig).contains(&(old, now - 6_000)), "{:?}", asked(&rig));
}

#[test]
fn a_short_drain_is_noticed_at_the_very_first_connection() {
    let mut rig = Rig::exclusive();
    rig.nodes[0].opens = false;
    let now = rig.time().as_secs();
    let account = rig.add_account(1, "disconnected");
    let known = thread(&account, 1);
    put_thread(&mut rig, &account, &known, now - 600);
    rig.until(60_000, |rig| !rig.nodes[0].connects(&account).is_empty());
    let (_, connection) = rig.nodes[0].connects(&account)[0];
    rig.tell(0, &account, GatewayEvent::Opened { connection });
    rig.tell(0, &account, GatewayEvent::Drained { connection, announced: 3, stored: 1 });
    rig.pass(1_000);
    let gaps = rig.doc(&account.sync_path()).unwrap().value("gaps").cloned();
    assert!(gaps.is_some_and(|gaps| gaps.as_array().is_some_and(|gaps| gaps.len() == 1)));
}

#[test]
fn what_cannot_be_decrypted_is_remembered_beyond_the_session_that_was_told() {
    let mut rig = Rig::exclusive();
    let account = rig.add_account(1, "disconnected");
    rig.until(60_000, |rig| rig.status(&account) == Some("connected"));
    rig.nodes[0].holds = |request| matches!(request.call, backfill_core::io::StoreCall::Commit(_));
    let lost = thread(&account, 7);
    let second = rig.time().as_secs();
    rig.tell(0, &account, GatewayEvent::Undecryptable { thread: lost.clone(), second });
    rig.pass(200_000);
    rig.nodes[0].holds = |_| false;
    rig.until(240_000, |rig| rig.nodes[0].connects(&account).len() > 1);
    rig.pass(5_000);
    let noted = rig.doc(&account.sync_path()).unwrap().value("threadGaps").cloned();
    let noted = noted.unwrap_or(Value::Null);
    let named =
        noted.as_array().unwrap_or_default().iter().any(|gap| {
            gap.as_map().and_then(|gap| gap.get("thread")?.as_str()) == Some(lost.as_str())
        });
    assert!(named, "{noted:?}");
}

#[test]
fn gaps_reach_back_to_the_last_message_where_the_stores_clock_is_ahead() {
    let mut rig = Rig::exclusive();
    let account = rig.add_account(1, "disconnected");
    // WhatsApp's clock shows an hour less than the store's.
    let last = rig.time().as_secs() - 3_600;
    let at = Value::from(StoreTime::from_secs(last));
    rig.write(&account.path(), &[("lastRealtimeMessageAt", at)]);
    rig.until(60_000, |rig| rig.status(&account) == Some("connected"));
    let (_, first) = rig.nodes[0].connects(&account)[0];
    let reason = CloseReason::Replaced;
    rig.tell(0, &account, GatewayEvent::Closed { connection: first, reason });
    rig.until(60_000, |rig| rig.nodes[0].connects(&account).len() > 1);
    rig.pass(2_000);
    let sync = rig.doc(&account.sync_path()).unwrap();
    let gaps = sync.value("gaps").and_then(Value::as_array).unwrap_or_default();
    let from = gaps.first().and_then(|gap| gap.as_map()?.get("from")?.as_int());
    assert!(from.is_some_and(|from| from <= last), "{gaps:?}");
}

fn redirect(rig: &mut Rig, lid: &ThreadId, phone: &ThreadId) {
    let canonical = Value::from(phone.text());
    rig.write(&lid.path(), &[("redirectTo", canonical.clone()), ("canonicalThreadId", canonical)]);
}

#[test]
fn what_is_missing_under_one_name_is_looked_for_under_the_other() {
    let mut rig = Rig::exclusive();
    let account = rig.add_account(1, "disconnected");
    crowd(&mut rig, &account);
    let lid = ThreadId::of_chat(&account, "77@lid").unwrap();
    let phone = thread(&account, 77);
    let now = rig.time().as_secs();
    for (thread, second) in [(&lid, now - 9_000), (&phone, now - 8_000)] {
        put_thread(&mut rig, &account, thread, second);
        let path = coverage_path(&account, thread);
        rig.put(&path, Coverage::starting_at(&mark(second), 1).to_fields(1));
    }
    rig.until(60_000, |rig| rig.status(&account) == Some("connected"));
    let lost = rig.time().as_secs();
    rig.tell(0, &account, GatewayEvent::Undecryptable { thread: lid.clone(), second: lost });
    rig.pass(300_000);
    // The chat's phone number becomes known: what comes from now on lies in the number's thread.
    redirect(&mut rig, &lid, &phone);
    put_thread(&mut rig, &account, &phone, lost + 60);
    assert_eq!(asked(&rig).iter().find(|(_, second)| *second > lost), None);
    arrive_beside(&mut rig, &account, phone.clone(), Some(lid), lost + 60);
    rig.pass(600_000);
    assert!(asked(&rig).contains(&(phone, lost + 60)), "{:?}", asked(&rig));
}

#[test]
fn what_an_earlier_owner_missed_under_one_name_is_looked_for_under_the_other() {
    let mut rig = Rig::exclusive();
    let account = rig.add_account(1, "disconnected");
    let lid = ThreadId::of_chat(&account, "77@lid").unwrap();
    let phone = thread(&account, 77);
    let lost = rig.time().as_secs() - 600;
    let gap = [("seq", Value::Int(1)), ("from", lost.into()), ("to", lost.into())];
    let gap = Value::map(gap.into_iter().chain([("thread", Value::from(lid.text()))]));
    let gaps = Value::Array(vec![gap]);
    let surveyed = ("surveyed", Value::Int(1));
    rig.write(&account.sync_path(), &[("gapSeq", Value::Int(1)), surveyed, ("threadGaps", gaps)]);
    let mut coverage = Coverage::starting_at(&mark(lost - 9_000), 0);
    assert!(coverage.suspect(Gap { seq: 1, from: lost, to: lost }, None));
    let path = coverage_path(&account, &lid);
    rig.put(&path, coverage.to_fields(1));
    // A message under the other name came just before the owner died, to a thread that is complete.
    put_thread(&mut rig, &account, &lid, lost - 9_000);
    redirect(&mut rig, &lid, &phone);
    put_thread(&mut rig, &account, &phone, lost + 60);
    let path = coverage_path(&account, &phone);
    rig.put(&path, Coverage::starting_at(&mark(lost - 8_000), 1).to_fields(1));
    rig.pass(10 * 60_000);
    assert!(asked(&rig).contains(&(phone, lost + 60)), "{:?}", asked(&rig));
}

#[test]
fn a_gap_of_one_thread_is_looked_at_however_old_the_thread_is_and_nothing_else_is() {
    let mut rig = Rig::exclusive();
    let now = rig.time().as_secs();
    let account = rig.add_account(1, "disconnected");
    let old = thread(&account, 999);
    let gap = [("seq", 1), ("from", now - 8_000), ("to", now - 7_000)];
    let gap = gap.map(|(name, n)| (name, Value::Int(n))).into_iter();
    let gap = Value::map(gap.chain([("thread", Value::from(old.text()))]));
    let gaps = Value::Array(vec![gap]);
    let fields = [("threadGaps", gaps), ("gapSeq", Value::Int(1)), ("surveyed", Value::Int(0))];
    rig.write(&account.sync_path(), &fields);
    let known = |rig: &mut Rig, thread: &ThreadId, second| {
        let path = coverage_path(&account, thread);
        rig.put(&path, Coverage::starting_at(&mark(second), 0).to_fields(1));
    };
    known(&mut rig, &old, now - 9_000);
    put_thread(&mut rig, &account, &old, now - 6_000);
    for number in 0..60 {
        let other = thread(&account, number);
        known(&mut rig, &other, now - 1_000);
        put_thread(&mut rig, &account, &other, now - 1_000);
    }
    let opened = |rig: &Rig| rig.status(&account) == Some("connected");
    rig.until(60_000, opened);
    rig.pass(5_000);
    let before = rig.nodes[0].asked.len();
    rig.until(5 * 60_000, |rig| asked(rig).contains(&(old.clone(), now - 6_000)));
    let looked_up = rig.nodes[0].asked[before..].iter().filter(
        |request| matches!(&request.call, StoreCall::Query(q) if q.collection.as_str().ends_with("/messages")),
    );
    assert_eq!(looked_up.count(), 1);
}

#[test]
fn what_cannot_be_decrypted_while_an_account_is_loaded_is_remembered() {
    let (mut rig, account) = loading();
    let second = rig.time().as_secs();
    rig.tell(0, &account, GatewayEvent::Undecryptable { thread: thread(&account, 7), second });
    rig.nodes[0].holds = |_| false;
    let request = rig.nodes[0].held.remove(0);
    rig.release(0, &request);
    rig.pass(1_000);
    let noted = rig.doc(&account.sync_path()).unwrap().value("threadGaps").cloned();
    assert_eq!(noted.unwrap().as_array().map(<[Value]>::len), Some(1));
}

#[test]
fn only_the_thread_of_a_lid_that_waits_for_a_message_is_followed() {
    let mut rig = Rig::exclusive();
    let now = rig.time().as_secs();
    let account = rig.add_account(1, "disconnected");
    let gap = |seq: i64, from: i64, to: i64| {
        [("seq", Value::Int(seq)), ("from", from.into()), ("to", to.into())]
    };
    let of_all = Value::map(gap(1, now - 8_000, now - 7_000));
    let lid = ThreadId::of_chat(&account, "77@lid").unwrap();
    let [with_a_gap, old] = [1, 2].map(|number| thread(&account, number));
    let of_one = gap(2, now - 5_000, now - 5_000).into_iter();
    let of_one = Value::map(of_one.chain([("thread", Value::from(with_a_gap.text()))]));
    let fields = [
        ("gaps", Value::Array(vec![of_all])),
        ("threadGaps", Value::Array(vec![of_one])),
        ("gapSeq", Value::Int(2)),
        ("surveyed", Value::Int(0)),
    ];
    rig.write(&account.sync_path(), &fields);
    // That of the LID goes on after the gap, the others wait.
    for (thread, second) in [(&lid, now - 6_000), (&with_a_gap, now - 6_000), (&old, now - 7_500)] {
        put_thread(&mut rig, &account, thread, second);
        let path = coverage_path(&account, thread);
        rig.put(&path, Coverage::starting_at(&mark(now - 9_000), 0).to_fields(1));
    }
    rig.pass(10 * 60_000);
    for thread in [lid, with_a_gap, old] {
        assert!(!rig.nodes[0].queries(thread.messages().as_str()).is_empty());
        let reads = |request: &&StoreRequest| matches!(&request.call, StoreCall::Get(paths) if paths.contains(&thread.path()));
        assert_eq!(rig.nodes[0].asked.iter().filter(reads).count(), 0, "{thread:?}");
    }
}
