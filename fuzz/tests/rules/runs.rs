//! One run from its start to its end, with a phone that answers as the test says.

use std::cmp::Reverse;
use std::time::Duration;

use backfill_core::coverage::{Coverage, Gap, Mark, PageEnd};
use backfill_core::doc::{DocPath, Document, Value};
use backfill_core::id::{AccountId, RequestId, ThreadId};
use backfill_core::io::{
    Answer, CloseReason, Command, Event, GatewayCall, GatewayEvent, HoleChange, Input, Key,
    PageFacts, Rejection, Reply, RunKind, RunResult, Skip, StoreCall, StoreRequest,
};
use backfill_core::policy::{Credentials, Settings};
use backfill_core::time::StoreTime;

use super::holes::{arrive, coverage_path, mark, put_thread, thread};
use super::rig::{Rig, label};

const MINUTE: u64 = 60_000;

/// An account with one thread, whose newest message is a thousand seconds old; the backfill wants
/// five of them. The phone is asked and says nothing by itself.
fn with_a_thread() -> (Rig, AccountId, ThreadId, i64) {
    with_a_thread_and(|_| {})
}

fn with_a_thread_and(change: impl FnOnce(&mut Settings)) -> (Rig, AccountId, ThreadId, i64) {
    let mut settings =
        Settings { credentials: Credentials::Shared, ..Settings::exclusive(label(0)) };
    settings.auto_backfill.depth = 5;
    settings.auto_backfill.page = 2;
    settings.auto_backfill.max_concurrency = 1;
    change(&mut settings);
    let mut rig = Rig::new([settings]);
    rig.nodes[0].answers = |_| Some(Answer::Done);
    let account = known_account(&mut rig, 1);
    let newest = rig.time().as_secs() - 1_000;
    let thread = thread(&account, 1);
    put_thread(&mut rig, &account, &thread, newest);
    (rig, account, thread, newest)
}

/// An account whose earlier owner left nothing open.
fn known_account(rig: &mut Rig, number: u16) -> AccountId {
    let account = rig.add_account(number, "disconnected");
    rig.write(&account.sync_path(), &[("surveyed", Value::Int(0))]);
    account
}

/// What the phone was asked: when, as what, with which anchor.
fn asked(rig: &Rig) -> Vec<(u64, RequestId, i64)> {
    rig.nodes[0].called(|call| match call {
        GatewayCall::History { anchor, .. } => Some(anchor.second),
        _ => None,
    })
}

fn until_asked(rig: &mut Rig, times: usize) -> (u64, RequestId, i64) {
    rig.until(15 * MINUTE, |rig| asked(rig).len() == times);
    asked(rig)[times - 1]
}

fn page(
    rig: &mut Rig,
    account: &AccountId,
    request: RequestId,
    thread: &ThreadId,
    oldest: Mark,
    messages: u32,
) {
    let end = PageEnd::MoreRemains;
    let page = PageFacts { thread: thread.clone(), oldest: Some(oldest), messages, end };
    rig.tell(0, account, GatewayEvent::Page { request, page });
}

fn ended(rig: &Rig, of: RunKind) -> Vec<RunResult> {
    let events = rig.nodes[0].events.iter();
    events
        .filter_map(|(_, event)| match event {
            Event::RunEnded { kind, result, .. } if *kind == of => Some(result.clone()),
            _ => None,
        })
        .collect()
}

fn started(rig: &Rig) -> usize {
    let is_start =
        |event: &Event| matches!(event, Event::RunStarted { kind: RunKind::AutoBackfill, .. });
    rig.nodes[0].events.iter().filter(|(_, event)| is_start(event)).count()
}

fn shown<'a>(rig: &'a Rig, account: &AccountId) -> &'a Document {
    rig.doc(&account.path()).unwrap()
}

fn changes(rig: &Rig, change: HoleChange) -> usize {
    let is = |event: &Event| matches!(event, Event::Hole { change: c, .. } if *c == change);
    rig.nodes[0].events.iter().filter(|(_, event)| is(event)).count()
}

#[test]
fn a_backfill_goes_down_page_by_page_and_shows_what_it_does() {
    let (mut rig, account, thread, newest) = with_a_thread();
    let (first, request, anchor) = until_asked(&mut rig, 1);
    assert_eq!(anchor, newest);
    let doc = shown(&rig, &account);
    let holder = format!("i0#{}", rig.nodes[0].instance.boot());
    assert_eq!(doc.bool("lastAutoBackfillStatus.running"), Some(true));
    assert_eq!(doc.str("lastAutoBackfillStatus.trigger"), Some("connect"));
    assert_eq!(doc.str("autoBackfillLeaseHolder"), Some(holder.as_str()));
    assert!(doc.time("autoBackfillLeaseUntil").unwrap() > rig.time());
    let lease = |rig: &Rig| rig.doc(&account.auto_backfill_path()).unwrap().clone();
    assert_eq!(lease(&rig).str("owner"), Some(rig.nodes[0].instance.boot().as_str()));

    rig.pass(1_000);
    page(&mut rig, &account, request, &thread, mark(newest - 100), 2);
    let (second, request, anchor) = until_asked(&mut rig, 2);
    assert_eq!(anchor, newest - 100);
    assert!((second - first) >= 30_000, "the phone has a rest");
    page(&mut rig, &account, request, &thread, mark(newest - 200), 2);
    rig.pass(MINUTE);
    let results = ended(&rig, RunKind::AutoBackfill);
    let [result] = &results[..] else { panic!("{results:?}") };
    let RunResult { ok, threads, messages, errors, remaining, duration, .. } = result.clone();
    assert_eq!((ok, threads, messages, errors, remaining), (true, 1, 4, 0, 0));
    assert!(duration >= Duration::from_secs(30));
    assert!(result.is_complete());

    let doc = shown(&rig, &account);
    let status = |name: &str| doc.count(&format!("lastAutoBackfillStatus.{name}"));
    assert_eq!(doc.bool("lastAutoBackfillStatus.running"), Some(false));
    assert_eq!(doc.bool("lastAutoBackfillStatus.ok"), Some(true));
    assert_eq!(["threads", "messages", "errors", "remaining"].map(status), [1, 4, 0, 0].map(Some));
    assert_eq!(status("durationMs"), Some(u64::try_from(duration.as_millis()).unwrap()));
    assert_eq!(doc.count("lastBackfillResult.messages"), Some(4));
    assert!(doc.time("lastAutoBackfillSuccessAt").is_some());
    assert_eq!(doc.value("autoBackfillLeaseHolder"), Some(&Value::Null));
    assert_eq!(doc.value("autoBackfillLeaseUntil"), Some(&Value::Null));
    let given_back = lease(&rig);
    assert_eq!(
        (given_back.value("owner"), given_back.count("epoch")),
        (Some(&Value::Null), Some(1))
    );

    let beats = given_back.count("beat").unwrap();
    assert_eq!(given_back.count("attempt"), Some(1));

    // There is nothing left to ask for, and each lease has an epoch of its own.
    assert_eq!(rig.command(0, Command::Backfill(account.clone())), Reply::Accepted);
    rig.pass(MINUTE);
    assert_eq!((ended(&rig, RunKind::AutoBackfill).len(), asked(&rig).len()), (2, 2));
    let later = lease(&rig);
    assert_eq!((later.count("epoch"), later.count("attempt")), (Some(2), Some(2)));
    assert_eq!((beats, later.count("beat")), (2, Some(4)), "every write changes the document");
    let events = rig.nodes[0].events.iter();
    let epochs = events.filter_map(|(_, event)| match event {
        Event::LeaseTaken { key: Key::Run(_, RunKind::AutoBackfill), epoch } => Some(epoch.0),
        _ => None,
    });
    assert_eq!(epochs.collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn a_phone_that_says_nothing_is_asked_twice() {
    let (mut rig, account, thread, newest) = with_a_thread();
    let tries = |rig: &Rig| rig.doc(&account.sync_path()).unwrap().count("askedTry");
    let (first, _, _) = until_asked(&mut rig, 1);
    assert_eq!(tries(&rig), Some(1));
    let (second, request, anchor) = until_asked(&mut rig, 2);
    assert_eq!((anchor, tries(&rig)), (newest, Some(2)));
    assert!(second - first >= 65_000, "it may still answer");
    rig.pass(3 * MINUTE);
    assert_eq!(asked(&rig).len(), 2);
    assert_eq!(changes(&rig, HoleChange::Exhausted), 1);
    let results = ended(&rig, RunKind::AutoBackfill);
    let [result] = &results[..] else { panic!("{results:?}") };
    assert_eq!((result.ok, result.errors, result.messages, result.remaining), (true, 2, 0, 0));
    // An answer to a run that is over is history, and nothing else.
    page(&mut rig, &account, request, &thread, mark(newest - 100), 2);
    // Only who is asked by somebody tries again.
    rig.pass(30 * MINUTE);
    assert_eq!(asked(&rig).len(), 2);
    rig.command(0, Command::Backfill(account));
    until_asked(&mut rig, 3);
}

#[test]
fn what_the_phone_was_not_asked_is_no_try() {
    let (mut rig, account, thread, _) = with_a_thread();
    rig.nodes[0].answers = |call| match call {
        GatewayCall::History { .. } => Some(Answer::Rejected(Rejection::Unavailable)),
        _ => Some(Answer::Done),
    };
    rig.until(15 * MINUTE, |rig| !ended(rig, RunKind::AutoBackfill).is_empty());
    let times = asked(&rig).len();
    assert!(times > 4, "{times}");
    let result = &ended(&rig, RunKind::AutoBackfill)[0];
    assert_eq!((result.ok, result.errors as usize, result.remaining), (true, times, 1));
    assert!(shown(&rig, &account).time("lastAutoBackfillSuccessAt").is_none(), "something is left");
    assert!(shown(&rig, &account).time("lastAutoBackfillAt").is_some());
    let path = DocPath::new(&account.coverage(), thread.as_str()).unwrap();
    let (coverage, _) = Coverage::parse(&rig.doc(&path).unwrap().fields);
    assert_eq!((coverage.stretches()[0].tries, coverage.stretches()[0].exhausted), (0, false));
    assert_eq!(changes(&rig, HoleChange::Exhausted), 0);
}

#[test]
fn a_run_renews_its_lease_and_ends_when_half_of_its_term_is_used() {
    let (mut rig, account, thread, newest) = with_a_thread();
    let (begun, mut request, _) = until_asked(&mut rig, 1);
    let until = |rig: &Rig| shown(rig, &account).time("autoBackfillLeaseUntil");
    let beat = |rig: &Rig| rig.doc(&account.auto_backfill_path()).unwrap().count("beat");
    let first = until(&rig).unwrap();
    assert_eq!(beat(&rig), Some(1));
    let mut times = 1;
    while ended(&rig, RunKind::AutoBackfill).is_empty() {
        let oldest = Mark { id: Some(format!("t{times}").into()), ..mark(newest - times as i64) };
        page(&mut rig, &account, request, &thread, oldest, 0);
        rig.until(2 * MINUTE, |rig| {
            asked(rig).len() > times || !ended(rig, RunKind::AutoBackfill).is_empty()
        });
        times = asked(&rig).len();
        request = asked(&rig)[times - 1].1;
        if asked(&rig)[times - 1].0 - begun > 320_000
            && ended(&rig, RunKind::AutoBackfill).is_empty()
        {
            assert!(until(&rig).unwrap().since(first) >= Duration::from_secs(250), "a third later");
            assert_eq!(beat(&rig), Some(2));
        }
    }
    let result = &ended(&rig, RunKind::AutoBackfill)[0];
    assert_eq!((result.ok, result.remaining, result.error), (true, 1, None));
    let used = result.duration.as_secs();
    assert!((450..490).contains(&used), "{used} s");
    // At a later tick it goes on where it was.
    let (_, _, anchor) = until_asked(&mut rig, times + 1);
    assert_eq!(anchor, newest - times as i64);
    assert_eq!(started(&rig), 2);
}

#[test]
fn losing_the_connection_ends_a_run_and_says_so() {
    let (mut rig, account, thread, newest) = with_a_thread();
    let (_, request, _) = until_asked(&mut rig, 1);
    let (_, connection) = rig.nodes[0].connects(&account)[0];
    let reason = CloseReason::Lost;
    rig.nodes[0].opens = false;
    rig.tell(0, &account, GatewayEvent::Closed { connection, reason });
    rig.pass(1_000);
    let doc = shown(&rig, &account);
    assert_eq!(doc.bool("lastAutoBackfillStatus.ok"), Some(false));
    assert_eq!(doc.bool("lastAutoBackfillStatus.running"), Some(false));
    assert_eq!(doc.str("lastAutoBackfillStatus.errorCode"), Some("disconnected"));
    let words = doc.str("lastAutoBackfillStatus.errorMessage");
    assert!(words.is_some_and(|words| words.contains("disconnected")));
    assert_eq!(rig.doc(&account.auto_backfill_path()).unwrap().value("owner"), Some(&Value::Null));
    page(&mut rig, &account, request, &thread, mark(newest - 100), 2);
    rig.pass(10 * MINUTE);
    let results = ended(&rig, RunKind::AutoBackfill);
    let [result] = &results[..] else { panic!("{results:?}") };
    assert_eq!((result.error, result.messages), (Some("disconnected"), 0));
}

#[test]
fn a_page_counts_only_for_the_request_and_the_thread_it_was_asked_for() {
    let (mut rig, account, thread, newest) = with_a_thread();
    let (_, request, _) = until_asked(&mut rig, 1);
    let other = super::holes::thread(&account, 2);
    page(&mut rig, &account, RequestId(request.0 + 1), &thread, mark(newest - 500), 9);
    page(&mut rig, &account, request, &other, mark(newest - 500), 9);
    rig.pass(40_000);
    assert_eq!(asked(&rig).len(), 1, "the answer is still awaited");
    page(&mut rig, &account, request, &thread, mark(newest - 100), 4);
    page(&mut rig, &account, request, &thread, mark(newest - 100), 4);
    rig.pass(MINUTE);
    assert_eq!(ended(&rig, RunKind::AutoBackfill)[0].messages, 4);
    assert_eq!(asked(&rig).len(), 1);
}

#[test]
fn runs_wait_for_a_slot_and_waiting_for_the_phone_takes_none() {
    let (mut rig, one, first, newest) = with_a_thread();
    let two = known_account(&mut rig, 2);
    put_thread(&mut rig, &two, &thread(&two, 1), newest);
    rig.until(MINUTE, |rig| {
        rig.status(&two) == Some("connected") && rig.status(&one) == Some("connected")
    });
    rig.nodes[0].holds = |request: &StoreRequest| matches!(&request.call, StoreCall::Query(q) if q.collection.as_str() == "threads");
    for account in [&one, &two] {
        assert_eq!(rig.command(0, Command::Backfill(account.clone())), Reply::Accepted);
        assert_eq!(rig.command(0, Command::Backfill(account.clone())), Reply::AlreadyInProgress);
    }
    rig.pass(1_000);
    assert_eq!((started(&rig), rig.nodes[0].held.len()), (1, 1), "one works, the other waits");
    assert_eq!(rig.nodes[0].instance.working_runs(RunKind::AutoBackfill), 1);
    rig.nodes[0].holds = |_| false;
    let query = rig.nodes[0].held.remove(0);
    rig.release(0, &query);
    rig.pass(1_000);
    assert_eq!((started(&rig), asked(&rig).len()), (1, 1), "it waits for an answer");
    let (_, request, _) = asked(&rig)[0];
    page(&mut rig, &one, request, &first, mark(newest - 100), 2);
    rig.pass(1_000);
    assert_eq!((started(&rig), asked(&rig).len()), (2, 2), "it waits until it may ask again");
}

#[test]
fn a_run_that_cannot_read_whether_it_may_start_gives_up() {
    let (mut rig, account, _, _) = with_a_thread();
    rig.until(MINUTE, |rig| rig.status(&account) == Some("connected"));
    rig.nodes[0].holds = |request: &StoreRequest| {
        let lease = |path: &DocPath| path.as_str().ends_with("leases/autoBackfill");
        matches!(&request.call, StoreCall::Get(paths) if paths.iter().any(lease))
    };
    assert_eq!(rig.command(0, Command::Backfill(account)), Reply::Accepted);
    let mut reads = 0;
    while ended(&rig, RunKind::AutoBackfill).is_empty() {
        rig.until(1_000, |rig| !rig.nodes[0].held.is_empty());
        let request = rig.nodes[0].held.remove(0);
        rig.give(0, Input::Answer(request.id, Answer::Unknown));
        reads += 1;
    }
    assert_eq!(reads, 1 + 3);
    let result = &ended(&rig, RunKind::AutoBackfill)[0];
    assert_eq!((result.ok, result.error), (false, Some("store_unavailable")));
    assert_eq!((started(&rig), rig.nodes[0].instance.working_runs(RunKind::AutoBackfill)), (0, 0));
}

#[test]
fn a_hole_that_is_closed_is_not_looked_for_again() {
    let (mut rig, account, thread, _) = with_a_thread();
    let now = rig.time().as_secs();
    rig.write(&account.sync_path(), &[("gapSeq", Value::Int(1)), ("surveyed", Value::Int(1))]);
    let mut coverage = Coverage::starting_at(&mark(now - 9_000), 0);
    coverage.suspect(Gap { seq: 1, from: now - 8_000, to: now - 7_000 }, None);
    coverage.newer(&mark(now - 1_000));
    rig.put(&coverage_path(&account, &thread), coverage.to_fields(1));
    // Whichever kind of run asks first.
    let (_, request, anchor) = until_asked(&mut rig, 1);
    assert_eq!(anchor, now - 1_000);
    page(&mut rig, &account, request, &thread, mark(now - 8_500), 7);
    rig.pass(30 * MINUTE);
    assert_eq!((changes(&rig, HoleChange::Filled), asked(&rig).len()), (1, 1));
    let results = ended(&rig, RunKind::RecentSync);
    assert_eq!(results.len(), 1, "from then on it has nothing to do");
    assert_eq!((results[0].ok, results[0].threads, results[0].remaining), (true, 1, 0));
    let doc = shown(&rig, &account);
    assert_eq!(doc.count("lastRecentSyncResult.threads"), Some(1));
    assert_eq!(doc.bool("lastRecentSyncResult.ok"), Some(true));
    assert!(doc.time("lastRecentSyncAt").is_some());
}

/// Commits that write the lease of a backfill.
fn of_the_lease(request: &StoreRequest) -> bool {
    let lease = |path: &DocPath| path.as_str().ends_with("leases/autoBackfill");
    matches!(&request.call, StoreCall::Commit(writes) if writes.iter().any(|w| lease(&w.path)))
}

fn refuse(rig: &mut Rig) {
    rig.until(10_000, |rig| !rig.nodes[0].held.is_empty());
    let request = rig.nodes[0].held.remove(0);
    rig.give(0, Input::Answer(request.id, Answer::Rejected(Rejection::Unavailable)));
}

fn let_pass(rig: &mut Rig) {
    rig.until(10_000, |rig| !rig.nodes[0].held.is_empty());
    rig.nodes[0].holds = |_| false;
    let request = rig.nodes[0].held.remove(0);
    rig.release(0, &request);
}

#[test]
fn a_run_takes_and_gives_back_its_lease_although_the_store_refuses_at_first() {
    let (mut rig, account, thread, newest) = with_a_thread();
    rig.until(MINUTE, |rig| rig.status(&account) == Some("connected"));
    rig.nodes[0].holds = of_the_lease;
    assert_eq!(rig.command(0, Command::Backfill(account.clone())), Reply::Accepted);
    refuse(&mut rig);
    assert_eq!(started(&rig), 0);
    let_pass(&mut rig);
    assert_eq!(started(&rig), 1);
    let (_, request, _) = until_asked(&mut rig, 1);
    rig.nodes[0].holds = of_the_lease;
    page(&mut rig, &account, request, &thread, mark(newest - 100), 4);
    refuse(&mut rig);
    let_pass(&mut rig);
    let results = ended(&rig, RunKind::AutoBackfill);
    let [result] = &results[..] else { panic!("{results:?}") };
    assert!(result.is_complete());
    let given_back = rig.doc(&account.auto_backfill_path()).unwrap();
    assert_eq!(given_back.value("owner"), Some(&Value::Null));
}

#[test]
fn without_a_reservation_nobody_asks() {
    let (mut rig, account, _, _) = with_a_thread();
    rig.until(MINUTE, |rig| rig.status(&account) == Some("connected"));
    rig.nodes[0].holds = |request: &StoreRequest| {
        let coverage = |path: &DocPath| path.as_str().contains("/coverage/");
        matches!(&request.call, StoreCall::Commit(writes) if writes.iter().any(|w| coverage(&w.path)))
    };
    rig.command(0, Command::Backfill(account.clone()));
    refuse(&mut rig);
    // What it knows of the thread is kept all the same.
    let_pass(&mut rig);
    rig.pass(1_000);
    let results = ended(&rig, RunKind::AutoBackfill);
    let [result] = &results[..] else { panic!("{results:?}") };
    assert_eq!((result.ok, result.error), (false, Some("store_unavailable")));
    assert_eq!(asked(&rig).len(), 0);
    let words = shown(&rig, &account).str("lastAutoBackfillStatus.errorMessage");
    assert_eq!(words, Some("the store did not answer"));
    // The phone is not kept from the next one for longer than it rests.
    rig.command(0, Command::Backfill(account.clone()));
    rig.until(31_000, |rig| asked(rig).len() == 1);
}

/// Only who is told to starts.
fn only_on_demand(settings: &mut Settings) {
    settings.auto_backfill.connect_jitter_min = Duration::from_secs(10_000);
    settings.auto_backfill.connect_jitter_max = Duration::from_secs(10_000);
    settings.auto_backfill.interval = Duration::from_secs(10_000);
}

fn until_connected(rig: &mut Rig, accounts: &[&AccountId]) {
    rig.until(MINUTE, |rig| accounts.iter().all(|a| rig.status(a) == Some("connected")));
}

fn queries_threads(request: &StoreRequest) -> bool {
    matches!(&request.call, StoreCall::Query(q) if q.collection.as_str() == "threads")
}

#[test]
fn a_run_that_would_wait_for_hours_ends_when_half_of_its_term_is_used() {
    let hour = Duration::from_secs(3_600);
    let (mut rig, account, thread, newest) = with_a_thread_and(|s| s.phone.spacing = hour);
    let (_, request, _) = until_asked(&mut rig, 1);
    page(&mut rig, &account, request, &thread, mark(newest - 100), 2);
    rig.pass(11 * MINUTE);
    let results = ended(&rig, RunKind::AutoBackfill);
    let [result] = &results[..] else { panic!("{results:?}") };
    assert_eq!((result.ok, result.remaining, asked(&rig).len()), (true, 1, 1));
    assert!(result.duration >= Duration::from_secs(450));
}

#[test]
fn a_run_asks_the_phone_no_more_than_its_share() {
    let (mut rig, account, thread, newest) = with_a_thread_and(|settings| {
        settings.phone.spacing = Duration::from_secs(5);
        settings.auto_backfill.depth = 100_000;
    });
    let mut times = 0;
    while ended(&rig, RunKind::AutoBackfill).is_empty() {
        if asked(&rig).len() > times {
            times += 1;
            let (_, request, _) = asked(&rig)[times - 1];
            let oldest = mark(newest - i64::try_from(times).unwrap());
            page(&mut rig, &account, request, &thread, oldest, 1);
        }
        rig.pass(100);
    }
    let result = &ended(&rig, RunKind::AutoBackfill)[0];
    assert_eq!((asked(&rig).len(), result.ok, result.remaining), (32, true, 1));
}

#[test]
fn who_has_waited_for_the_phone_waits_for_a_slot_and_gets_the_next() {
    let (mut rig, one, first, newest) = with_a_thread_and(only_on_demand);
    let two = known_account(&mut rig, 2);
    let second = super::holes::thread(&two, 1);
    put_thread(&mut rig, &two, &second, newest);
    until_connected(&mut rig, &[&one, &two]);
    rig.command(0, Command::Backfill(two.clone()));
    let (_, request, _) = until_asked(&mut rig, 1);
    page(&mut rig, &two, request, &second, mark(newest - 50), 2);
    rig.pass(25_000);
    rig.command(0, Command::Backfill(one.clone()));
    let (_, request, _) = until_asked(&mut rig, 2);
    rig.pass(10_000);
    assert_eq!(asked(&rig).len(), 2, "the phone is free, and there is no slot");
    page(&mut rig, &one, request, &first, mark(newest - 100), 2);
    rig.pass(1_000);
    let anchors: Vec<_> = asked(&rig).into_iter().map(|(.., anchor)| anchor).collect();
    assert_eq!(anchors, [newest, newest, newest - 50]);
    assert_eq!(rig.nodes[0].instance.working_runs(RunKind::AutoBackfill), 1);
}

#[test]
fn a_run_whose_account_is_lost_leaves_its_slot_to_others() {
    let (mut rig, one, _, newest) = with_a_thread_and(only_on_demand);
    let two = known_account(&mut rig, 2);
    put_thread(&mut rig, &two, &thread(&two, 1), newest);
    until_connected(&mut rig, &[&one, &two]);
    rig.command(0, Command::Backfill(one.clone()));
    until_asked(&mut rig, 1);
    rig.write(&one.connection_path(), &[("owner", "zzz".into()), ("epoch", Value::Int(9))]);
    let second = rig.time().as_secs();
    let lost = GatewayEvent::Undecryptable { thread: thread(&one, 7), second };
    rig.tell(0, &one, lost);
    rig.pass(1_000);
    let fenced = |event: &Event| matches!(event, Event::Fenced { .. });
    assert_eq!(rig.nodes[0].events.iter().filter(|(_, event)| fenced(event)).count(), 1);
    rig.command(0, Command::Backfill(two));
    rig.pass(2_000);
    assert_eq!((started(&rig), asked(&rig).len()), (2, 2));
}

#[test]
fn a_run_that_cannot_read_what_to_do_ends_and_says_so() {
    let (mut rig, account, _, _) = with_a_thread_and(only_on_demand);
    until_connected(&mut rig, &[&account]);
    rig.nodes[0].holds = queries_threads;
    rig.command(0, Command::Backfill(account.clone()));
    rig.pass(10_000);
    let results = ended(&rig, RunKind::AutoBackfill);
    let [result] = &results[..] else { panic!("{results:?}") };
    assert_eq!(result.error, Some("store_unavailable"));
    let lease = rig.doc(&account.auto_backfill_path()).unwrap();
    assert_eq!(lease.value("owner"), Some(&Value::Null));
}

#[test]
fn what_an_earlier_owner_asked_keeps_the_phone_from_being_asked() {
    let (mut rig, account, _, _) = with_a_thread_and(only_on_demand);
    let asked_at = rig.time();
    rig.write(&account.sync_path(), &[("askedAt", Value::from(asked_at))]);
    until_connected(&mut rig, &[&account]);
    rig.command(0, Command::Backfill(account));
    let (at, _, _) = until_asked(&mut rig, 1);
    assert!(at >= 65_000, "asked after {at} ms");
}

/// How many threads have a gap of their own that is not compared with what is known of them.
fn thread_gaps(rig: &Rig, account: &AccountId) -> usize {
    let sync = rig.doc(&account.sync_path()).unwrap();
    sync.value("threadGaps").and_then(Value::as_array).map_or(0, <[Value]>::len)
}

#[test]
fn a_gap_of_a_thread_is_kept_until_durable_coverage_says_what_is_missing() {
    let (mut rig, account, thread, newest) = with_a_thread_and(only_on_demand);
    until_connected(&mut rig, &[&account]);
    let before = GatewayEvent::Undecryptable { thread: thread.clone(), second: newest - 10 };
    rig.tell(0, &account, before);
    rig.pass(1_000);
    assert_eq!(thread_gaps(&rig, &account), 1);
    rig.until(5 * MINUTE, |rig| thread_gaps(rig, &account) == 0);
    let path = DocPath::new(&account.coverage(), thread.as_str()).unwrap();
    assert!(rig.doc(&path).is_some());

    // After the last message that is known there is nothing yet to ask the phone with.
    let after = GatewayEvent::Undecryptable { thread: thread.clone(), second: newest + 10 };
    rig.tell(0, &account, after);
    rig.pass(20 * MINUTE);
    assert_eq!(thread_gaps(&rig, &account), 1);
    let runs = ended(&rig, RunKind::RecentSync).len();
    assert!(runs >= 2);
    rig.pass(20 * MINUTE);
    assert_eq!(ended(&rig, RunKind::RecentSync).len(), runs, "nobody looks again and again");
    let times = asked(&rig).len();
    let second = rig.time().as_secs();
    put_thread(&mut rig, &account, &thread, second);
    arrive(&mut rig, &account, thread, second);
    rig.until(5 * MINUTE, |rig| thread_gaps(rig, &account) == 0);
    let (_, _, anchor) = until_asked(&mut rig, times + 1);
    assert_eq!(anchor, second);
}

#[test]
fn a_gap_is_surveyed_when_a_run_without_an_error_has_seen_every_thread() {
    let (mut rig, account, thread, newest) = with_a_thread_and(only_on_demand);
    let known = Coverage::starting_at(&mark(newest), 0);
    rig.put(&coverage_path(&account, &thread), known.to_fields(1));
    until_connected(&mut rig, &[&account]);
    let surveyed = |rig: &Rig| rig.doc(&account.sync_path()).unwrap().count("surveyed");
    let (_, connection) = rig.nodes[0].connects(&account)[0];
    let reason = CloseReason::Replaced;
    rig.tell(0, &account, GatewayEvent::Closed { connection, reason });
    rig.until(MINUTE, |rig| rig.nodes[0].connects(&account).len() == 2);
    // What the thread's newest message is cannot be read.
    rig.nodes[0].holds = |request| matches!(&request.call, StoreCall::Query(q) if q.collection.as_str().ends_with("/messages"));
    rig.until(5 * MINUTE, |rig| !ended(rig, RunKind::RecentSync).is_empty());
    assert_eq!(rig.doc(&account.sync_path()).unwrap().count("gapSeq"), Some(1));
    assert_eq!(ended(&rig, RunKind::RecentSync)[0].error, Some("store_unavailable"));
    rig.pass(1_000);
    assert_eq!(surveyed(&rig), Some(0));
    rig.nodes[0].holds = |_| false;
    rig.until(10 * MINUTE, |rig| surveyed(rig) == Some(1));
    let coverage = coverage(&rig, &account, &thread);
    assert!(!coverage.is_live(), "its tail may be missing");
}

fn syncs(rig: &Rig) -> usize {
    let is_start =
        |event: &Event| matches!(event, Event::RunStarted { kind: RunKind::RecentSync, .. });
    rig.nodes[0].events.iter().filter(|(_, event)| is_start(event)).count()
}

/// Until the new owner has looked at the newest threads.
fn until_surveyed(rig: &mut Rig) {
    rig.until(5 * MINUTE, |rig| !ended(rig, RunKind::RecentSync).is_empty());
}

fn queries_messages(request: &StoreRequest) -> bool {
    matches!(&request.call, StoreCall::Query(q) if q.collection.as_str().ends_with("/messages"))
}

fn writes_coverage(request: &StoreRequest) -> bool {
    coverage_writes(request) > 0
}

fn coverage_writes(request: &StoreRequest) -> usize {
    let StoreCall::Commit(writes) = &request.call else { return 0 };
    writes.iter().filter(|write| write.path.as_str().contains("/coverage/")).count()
}

fn coverage(rig: &Rig, account: &AccountId, thread: &ThreadId) -> Coverage {
    Coverage::parse(&rig.doc(&coverage_path(account, thread)).unwrap().fields).0
}

/// Messages may be missing in every thread since 600 seconds before a second, for 100 seconds.
fn put_gap(rig: &mut Rig, account: &AccountId, second: i64, surveyed: i64) {
    let gap = [("seq", 1), ("from", second - 600), ("to", second - 500)];
    let gap = Value::map(gap.map(|(name, n)| (name, Value::Int(n))));
    let fields = [
        ("gaps", Value::Array(vec![gap])),
        ("gapSeq", Value::Int(1)),
        ("surveyed", Value::Int(surveyed)),
    ];
    rig.write(&account.sync_path(), &fields);
}

/// As [`with_a_thread`]; an earlier owner knew the thread as it was 700 seconds before its newest
/// message. Only the gap filler starts by itself.
fn with_a_known_thread() -> (Rig, AccountId, ThreadId, i64) {
    let (mut rig, account, thread, newest) = with_a_thread_and(only_on_demand);
    let known = Coverage::starting_at(&mark(newest - 700), 0);
    rig.put(&coverage_path(&account, &thread), known.to_fields(1));
    (rig, account, thread, newest)
}

#[test]
fn a_live_message_is_looked_at_only_where_something_may_be_missing() {
    let (mut rig, account, thread, newest) = with_a_known_thread();
    until_surveyed(&mut rig);
    arrive(&mut rig, &account, thread, newest + 1);
    rig.pass(10 * MINUTE);
    assert_eq!(syncs(&rig), 1);

    // The newest was compared with the gap, this thread was not.
    let (mut rig, account, thread, newest) = with_a_thread_and(|settings| {
        only_on_demand(settings);
        settings.recent_sync.max_threads = 1;
    });
    let other = super::holes::thread(&account, 2);
    put_thread(&mut rig, &account, &other, newest + 1);
    for (thread, second, gaps) in [(&thread, newest - 700, 0), (&other, newest + 1, 1)] {
        let known = Coverage::starting_at(&mark(second), gaps);
        rig.put(&coverage_path(&account, thread), known.to_fields(1));
    }
    put_gap(&mut rig, &account, newest, 1);
    until_surveyed(&mut rig);
    assert_eq!(coverage(&rig, &account, &thread).applied_gap(), 0);
    arrive(&mut rig, &account, thread.clone(), newest + 2);
    rig.until(3 * MINUTE, |rig| syncs(rig) == 2);
    rig.until(5 * MINUTE, |rig| ended(rig, RunKind::RecentSync).len() == 2);
    assert_eq!(coverage(&rig, &account, &thread).applied_gap(), 1);
    assert_eq!(asked(&rig)[0].2, newest, "the hole below it");
    let last = rig.nodes[0].asked.iter().rfind(|r| matches!(r.call, StoreCall::Commit(_)));
    let lease = |path: &DocPath| path.as_str().ends_with("leases/recentSync");
    assert!(
        last.is_some_and(|r| matches!(&r.call, StoreCall::Commit(writes)
            if writes.iter().any(|w| lease(&w.path)))),
        "every gap was surveyed before, so nothing is left to write"
    );
    arrive(&mut rig, &account, thread, newest + 3);
    rig.pass(10 * MINUTE);
    assert_eq!(syncs(&rig), 2, "it has been compared");
}

#[test]
fn what_arrives_while_its_thread_is_looked_up_is_looked_at_again() {
    for (of_the_thread, again) in [(true, 1), (false, 0)] {
        let (mut rig, account, known, newest) = with_a_thread_and(|settings| {
            only_on_demand(settings);
            settings.auto_backfill.depth = 1;
        });
        let coverage_of_it = Coverage::starting_at(&mark(newest), 0).to_fields(1);
        rig.put(&coverage_path(&account, &known), coverage_of_it);
        let empty = thread(&account, 2);
        let at = Value::from(StoreTime::from_secs(newest - 1));
        let fields = [("accountId", Value::from(account.text())), ("lastMessageAt", at)];
        rig.write(&empty.path(), &fields);
        until_surveyed(&mut rig);
        rig.nodes[0].holds = queries_messages;
        rig.command(0, Command::Backfill(account.clone()));
        rig.until(1_000, |rig| !rig.nodes[0].held.is_empty());
        let arrives = if of_the_thread { &empty } else { &known };
        arrive(&mut rig, &account, arrives.clone(), newest + 5);
        rig.nodes[0].holds = |_| false;
        let query = rig.nodes[0].held.remove(0);
        rig.release(0, &query);
        // It was not there yet when the store was asked.
        put_thread(&mut rig, &account, arrives, newest + 5);
        rig.pass(10 * MINUTE);
        assert_eq!(syncs(&rig), 1 + again);
        if of_the_thread {
            assert!(coverage(&rig, &account, &empty).is_live());
        }
    }
}

#[test]
fn an_account_is_not_shown_as_synced_while_a_hole_is_being_filled() {
    let (mut rig, account, thread, newest) = with_a_known_thread();
    until_connected(&mut rig, &[&account]);
    rig.tell(0, &account, GatewayEvent::Undecryptable { thread, second: newest - 10 });
    rig.until(3 * MINUTE, |rig| syncs(rig) == 1);
    let mut looks = 0;
    while ended(&rig, RunKind::RecentSync).is_empty() {
        assert_eq!(shown(&rig, &account).time("lastRecentSyncAt"), None);
        looks += 1;
        rig.pass(1_000);
    }
    assert!(looks > 125, "the phone is asked twice");
    assert!(shown(&rig, &account).time("lastRecentSyncAt").is_some());
}

#[test]
fn a_lease_that_was_not_given_back_in_time_is_lost() {
    let (mut rig, _, _, _) = with_a_thread();
    until_asked(&mut rig, 1);
    rig.nodes[0].holds = of_the_lease;
    rig.pass(17 * MINUTE);
    let lost = |event: &Event| matches!(event, Event::LeaseLost { key: Key::Run(..) });
    let times = |rig: &Rig| rig.nodes[0].events.iter().filter(|(_, event)| lost(event)).count();
    assert_eq!((times(&rig), ended(&rig, RunKind::AutoBackfill).len()), (1, 0));
    rig.nodes[0].holds = |_| false;
    rig.until(MINUTE, |rig| ended(rig, RunKind::AutoBackfill).len() == 1);
    assert_eq!(times(&rig), 1);
}

#[test]
fn a_renewal_that_the_store_refused_is_tried_again_soon() {
    let hour = Duration::from_secs(3_600);
    let (mut rig, account, thread, newest) = with_a_thread_and(|s| s.phone.spacing = hour);
    let (_, request, _) = until_asked(&mut rig, 1);
    page(&mut rig, &account, request, &thread, mark(newest - 100), 2);
    rig.nodes[0].holds = of_the_lease;
    rig.until(6 * MINUTE, |rig| !rig.nodes[0].held.is_empty());
    refuse(&mut rig);
    rig.pass(1_000);
    assert!(rig.nodes[0].held.is_empty(), "but not at once");
    rig.until(3_000, |rig| !rig.nodes[0].held.is_empty());
    let_pass(&mut rig);
    let lease = rig.doc(&account.auto_backfill_path()).unwrap();
    assert_eq!((lease.count("beat"), ended(&rig, RunKind::AutoBackfill).len()), (Some(2), 0));
}

#[test]
fn a_backfill_shows_what_each_thread_brought() {
    let (mut rig, account, first, newest) = with_a_thread();
    let second = super::holes::thread(&account, 2);
    put_thread(&mut rig, &account, &second, newest - 10);
    let (_, request, _) = until_asked(&mut rig, 1);
    page(&mut rig, &account, request, &first, mark(newest - 100), 5);
    let (_, request, _) = until_asked(&mut rig, 2);
    page(&mut rig, &account, request, &second, mark(newest - 200), 7);
    rig.pass(1_000);
    let result = shown(&rig, &account).value("lastBackfillResult").cloned();
    let threads = result.as_ref().and_then(|result| result.as_map()?.get("threadResults"));
    let brought = |thread: &Value| {
        let thread = thread.as_map()?;
        Some((thread.get("threadId")?.as_str()?.to_owned(), thread.get("messages")?.as_int()?))
    };
    let brought: Vec<_> =
        threads.and_then(Value::as_array).unwrap().iter().filter_map(brought).collect();
    assert_eq!(brought, [(first.as_str().to_owned(), 5), (second.as_str().to_owned(), 7)]);
    assert_eq!(changes(&rig, HoleChange::Filled), 0, "nothing was missing");
}

#[test]
fn nobody_asks_with_a_message_that_another_run_has_asked_with() {
    let (mut rig, account, thread, newest) = with_a_thread_and(|settings| {
        only_on_demand(settings);
        settings.auto_backfill.depth = 100;
    });
    let mut known = Coverage::starting_at(&mark(newest - 9_000), 0);
    known.suspect(Gap { seq: 1, from: newest - 8_000, to: newest - 7_000 }, None);
    known.newer(&mark(newest));
    rig.put(&coverage_path(&account, &thread), known.to_fields(1));
    let (_, request, anchor) = until_asked(&mut rig, 1);
    assert_eq!((syncs(&rig), anchor), (1, newest));
    rig.command(0, Command::Backfill(account.clone()));
    rig.pass(1_000);
    assert_eq!(started(&rig), 1, "it waits for the phone, with the same message");
    page(&mut rig, &account, request, &thread, mark(newest - 50), 3);
    let (_, request, anchor) = until_asked(&mut rig, 2);
    assert_eq!(anchor, newest - 50);
    page(&mut rig, &account, request, &thread, mark(newest - 8_500), 7);
    rig.pass(1_000);
    assert_eq!((ended(&rig, RunKind::RecentSync).len(), changes(&rig, HoleChange::Filled)), (1, 1));
    let (_, _, anchor) = until_asked(&mut rig, 3);
    assert_eq!(anchor, newest - 9_000, "the other one goes on below");
}

#[test]
fn a_message_of_a_clock_that_is_a_day_ahead_is_the_newest() {
    let (mut rig, account, thread, _) = with_a_thread();
    let ahead = rig.time().as_secs() + 24 * 3_600;
    put_thread(&mut rig, &account, &thread, ahead);
    let (_, _, anchor) = until_asked(&mut rig, 1);
    assert_eq!(anchor, ahead);
}

#[test]
fn what_is_learnt_of_many_threads_is_saved_by_fifties() {
    let (mut rig, account, _, newest) = with_a_thread_and(|settings| {
        only_on_demand(settings);
        settings.auto_backfill.depth = 1;
        settings.auto_backfill.threads = 60;
    });
    for number in 2..=60 {
        put_thread(&mut rig, &account, &thread(&account, number), newest - i64::from(number));
    }
    until_connected(&mut rig, &[&account]);
    rig.command(0, Command::Backfill(account));
    rig.until(1_000, |rig| ended(rig, RunKind::AutoBackfill).len() == 1);
    let written = rig.nodes[0].asked.iter().map(coverage_writes).filter(|writes| *writes > 0);
    assert_eq!(written.collect::<Vec<_>>(), [50, 10]);
}

#[test]
fn nobody_asks_through_a_connection_that_is_being_closed() {
    let (mut rig, account, _, _) = with_a_thread_and(only_on_demand);
    until_connected(&mut rig, &[&account]);
    rig.nodes[0].holds = writes_coverage;
    rig.command(0, Command::Backfill(account.clone()));
    rig.until(1_000, |rig| !rig.nodes[0].held.is_empty());
    let (_, connection) = rig.nodes[0].connects(&account)[0];
    rig.nodes[0].closes = false;
    rig.tell(0, &account, GatewayEvent::IngestFailed { connection });
    let_pass(&mut rig);
    rig.pass(500);
    assert_eq!(asked(&rig), []);
    let reason = CloseReason::Asked;
    rig.tell(0, &account, GatewayEvent::Closed { connection, reason });
    rig.pass(500);
    assert_eq!(ended(&rig, RunKind::AutoBackfill)[0].error, Some("disconnected"));
}

#[test]
fn a_run_that_was_about_to_begin_when_the_connection_was_lost_ends_and_keeps_no_lease() {
    let reads_the_lease = |request: &StoreRequest| {
        let lease = |path: &DocPath| path.as_str().ends_with("leases/autoBackfill");
        matches!(&request.call, StoreCall::Get(paths) if paths.iter().any(lease))
    };
    for (holds, takes) in
        [(reads_the_lease as fn(&StoreRequest) -> bool, false), (of_the_lease, true)]
    {
        let (mut rig, account, _, _) = with_a_thread_and(only_on_demand);
        until_connected(&mut rig, &[&account]);
        rig.nodes[0].holds = holds;
        rig.command(0, Command::Backfill(account.clone()));
        rig.until(1_000, |rig| !rig.nodes[0].held.is_empty());
        let (_, connection) = rig.nodes[0].connects(&account)[0];
        rig.nodes[0].opens = false;
        let reason = CloseReason::Lost;
        rig.tell(0, &account, GatewayEvent::Closed { connection, reason });
        // Whether the lease is taken is not known while its commit is under way.
        assert_eq!(ended(&rig, RunKind::AutoBackfill).len(), usize::from(!takes));
        let_pass(&mut rig);
        rig.pass(1_000);
        let results = ended(&rig, RunKind::AutoBackfill);
        let [result] = &results[..] else { panic!("{results:?}") };
        assert_eq!(result.error, Some("disconnected"));
        let lease = rig.doc(&account.auto_backfill_path());
        assert_eq!(lease.is_some(), takes);
        assert!(lease.is_none_or(|lease| lease.value("owner") == Some(&Value::Null)));
        assert_eq!(rig.nodes[0].instance.working_runs(RunKind::AutoBackfill), 0);
    }
}

#[test]
fn a_thread_that_could_not_be_compared_is_compared_later_however_old_it_is_then() {
    let (mut rig, account, old, newest) = with_a_thread_and(|settings| {
        only_on_demand(settings);
        settings.recent_sync.max_threads = 1;
    });
    let known = Coverage::starting_at(&mark(newest - 700), 0);
    rig.put(&coverage_path(&account, &old), known.to_fields(1));
    put_gap(&mut rig, &account, newest, 0);
    rig.nodes[0].holds = queries_messages;
    rig.until(5 * MINUTE, |rig| !ended(rig, RunKind::RecentSync).is_empty());
    assert_eq!(ended(&rig, RunKind::RecentSync)[0].error, Some("store_unavailable"));
    rig.nodes[0].holds = |_| false;
    let newer = thread(&account, 2);
    let second = rig.time().as_secs();
    rig.put(
        &coverage_path(&account, &newer),
        Coverage::starting_at(&mark(second - 10), 0).to_fields(1),
    );
    put_thread(&mut rig, &account, &newer, second);
    rig.until(15 * MINUTE, |rig| coverage(rig, &account, &old).applied_gap() == 1);
    assert!(coverage(&rig, &account, &newer).applied_gap() == 1);
}

#[test]
fn a_failed_run_surveys_no_gap_although_it_compared_some_threads() {
    let (mut rig, account, first, newest) = with_a_known_thread();
    let second = thread(&account, 2);
    put_thread(&mut rig, &account, &second, newest - 10);
    put_gap(&mut rig, &account, newest, 0);
    rig.nodes[0].holds = queries_messages;
    rig.until(5 * MINUTE, |rig| !rig.nodes[0].held.is_empty());
    let query = rig.nodes[0].held.remove(0);
    rig.release(0, &query);
    rig.until(10_000, |rig| !ended(rig, RunKind::RecentSync).is_empty());
    assert_eq!(ended(&rig, RunKind::RecentSync)[0].error, Some("store_unavailable"));
    rig.pass(1_000);
    assert_eq!(coverage(&rig, &account, &first).applied_gap(), 1);
    assert_eq!(rig.doc(&account.sync_path()).unwrap().count("surveyed"), Some(0));
}

#[test]
fn what_a_run_leaves_is_tried_at_the_next_tick_whoever_saved_the_thread_meanwhile() {
    let (mut rig, account, thread, newest) = with_a_known_thread();
    rig.nodes[0].answers = |call| match call {
        GatewayCall::History { .. } => Some(Answer::Rejected(Rejection::Unavailable)),
        _ => Some(Answer::Done),
    };
    put_gap(&mut rig, &account, newest, 0);
    rig.until(6 * MINUTE, |rig| ended(rig, RunKind::RecentSync).len() == 1);
    assert_eq!(ended(&rig, RunKind::RecentSync)[0].remaining, 1);
    rig.command(0, Command::Backfill(account.clone()));
    rig.until(2 * MINUTE, |rig| syncs(rig) == 2);
    assert_eq!((started(&rig), ended(&rig, RunKind::AutoBackfill).len()), (1, 0));
    assert!(coverage(&rig, &account, &thread).applied_gap() == 1);
}

#[test]
fn a_run_that_ends_does_not_begin_again() {
    let (mut rig, account, thread, newest) = with_a_thread_and(|settings| {
        only_on_demand(settings);
        settings.auto_backfill.depth = 2;
    });
    let mut known = Coverage::starting_at(&mark(newest), 0);
    let anchor = known.stretches()[0].low.clone();
    known.page(&anchor, Some(&mark(newest - 100)), 1, PageEnd::MoreRemains);
    rig.put(&coverage_path(&account, &thread), known.to_fields(1));
    until_connected(&mut rig, &[&account]);
    let lost = |second| GatewayEvent::Undecryptable { thread: thread.clone(), second };
    rig.tell(0, &account, lost(newest - 1_000));
    rig.nodes[0].holds = queries_messages;
    rig.until(3 * MINUTE, |rig| syncs(rig) == 1 && !rig.nodes[0].held.is_empty());
    let of_the_sync = rig.nodes[0].held.remove(0);
    rig.command(0, Command::Backfill(account.clone()));
    rig.until(500, |rig| !rig.nodes[0].held.is_empty());
    let of_the_backfill = rig.nodes[0].held.remove(0);
    // It finds as many messages as it wants, and ends once that is saved.
    rig.nodes[0].holds = writes_coverage;
    rig.release(0, &of_the_backfill);
    assert_eq!((started(&rig), rig.nodes[0].held.len()), (1, 1));
    // Before it is, a message between them turns out to be missing.
    rig.tell(0, &account, lost(newest - 50));
    rig.release(0, &of_the_sync);
    let_pass(&mut rig);
    rig.pass(500);
    assert_eq!(ended(&rig, RunKind::AutoBackfill).len(), 1);
}

#[test]
fn ticks_pass_over_who_still_syncs() {
    let (mut rig, account, thread, _) = with_a_thread_and(|settings| {
        settings.auto_backfill.enabled = false;
        settings.recent_sync.interval = Duration::from_secs(20);
    });
    let now = rig.time().as_secs();
    rig.write(&account.sync_path(), &[("gapSeq", Value::Int(1)), ("surveyed", Value::Int(1))]);
    let mut coverage = Coverage::starting_at(&mark(now - 9_000), 0);
    coverage.suspect(Gap { seq: 1, from: now - 8_000, to: now - 7_000 }, None);
    coverage.newer(&mark(now - 1_000));
    rig.put(&coverage_path(&account, &thread), coverage.to_fields(1));
    // Its phone is away, and asked again and again.
    rig.nodes[0].answers = |call| match call {
        GatewayCall::History { .. } => Some(Answer::Rejected(Rejection::Unavailable)),
        _ => Some(Answer::Done),
    };
    until_asked(&mut rig, 1);
    let skipped = |rig: &Rig| -> Vec<_> {
        let events = rig.nodes[0].events.iter();
        events
            .filter_map(|(_, event)| match event {
                Event::Tick { kind: RunKind::RecentSync, skipped, .. } => Some(skipped.clone()),
                _ => None,
            })
            .collect()
    };
    let before = skipped(&rig).len();
    rig.pass(45_000);
    assert_eq!(skipped(&rig)[before..], vec![[(Skip::Running, 1)].into(); 2]);
}

#[test]
fn a_new_owner_looks_at_the_newest_threads_for_what_its_predecessor_could_not_note() {
    // The thread was quiet when all was compared with the gap; then its newest message came.
    let (mut rig, account, _, newest) = with_a_known_thread();
    put_gap(&mut rig, &account, newest, 1);
    let (_, _, anchor) = until_asked(&mut rig, 1);
    assert_eq!(anchor, newest);
}

#[test]
fn a_recent_sync_looks_at_all_of_the_newest_threads_once_and_then_at_those_in_need() {
    let (mut rig, account, _, newest) = with_a_thread_and(only_on_demand);
    for number in 1..6 {
        let thread = thread(&account, number);
        put_thread(&mut rig, &account, &thread, newest);
        let known = Coverage::starting_at(&mark(newest), 0);
        rig.put(&coverage_path(&account, &thread), known.to_fields(1));
    }
    until_surveyed(&mut rig);
    let lost = thread(&account, 3);
    let second = rig.time().as_secs();
    rig.tell(0, &account, GatewayEvent::Undecryptable { thread: lost, second });
    rig.until(5 * MINUTE, |rig| ended(rig, RunKind::RecentSync).len() == 2);
    let looked_at = ended(&rig, RunKind::RecentSync).into_iter().map(|result| result.threads);
    assert_eq!(looked_at.collect::<Vec<_>>(), [5, 1]);
    assert_eq!(rig.nodes[0].queries("threads").len(), 1);
}

#[test]
fn a_recent_sync_asks_for_the_newest_hole_first() {
    let (mut rig, account, _, newest) = with_a_thread_and(only_on_demand);
    rig.write(&account.sync_path(), &[("gapSeq", Value::Int(1)), ("surveyed", Value::Int(1))]);
    let mut holes = [(1, newest - 500), (2, newest - 10), (3, newest - 200)];
    for (number, end) in holes {
        let thread = thread(&account, number);
        put_thread(&mut rig, &account, &thread, newest);
        let mut coverage = Coverage::starting_at(&mark(newest - 9_000), 0);
        coverage.suspect(Gap { seq: 1, from: newest - 8_000, to: newest - 7_000 }, None);
        coverage.newer(&mark(end));
        rig.put(&coverage_path(&account, &thread), coverage.to_fields(1));
    }
    holes.sort_unstable_by_key(|(_, end)| Reverse(*end));
    for (times, (number, end)) in (1..).zip(holes) {
        let (_, request, anchor) = until_asked(&mut rig, times);
        assert_eq!(anchor, end);
        page(&mut rig, &account, request, &thread(&account, number), mark(newest - 8_500), 7);
    }
}

#[test]
fn a_new_owner_looks_at_the_newest_threads_until_it_has_seen_them() {
    let (mut rig, account, _, _) = with_a_known_thread();
    until_connected(&mut rig, &[&account]);
    rig.nodes[0].holds = queries_threads;
    rig.until(3 * MINUTE, |rig| ended(rig, RunKind::RecentSync).len() == 1);
    assert_eq!(ended(&rig, RunKind::RecentSync)[0].error, Some("store_unavailable"));
    rig.nodes[0].holds = |_| false;
    rig.until(3 * MINUTE, |rig| ended(rig, RunKind::RecentSync).len() == 2);
    assert_eq!(ended(&rig, RunKind::RecentSync)[1].threads, 1);
    let last = rig.nodes[0].asked.iter().rfind(|r| matches!(r.call, StoreCall::Commit(_)));
    let lease = |path: &DocPath| path.as_str().ends_with("leases/recentSync");
    assert!(
        last.is_some_and(|r| matches!(&r.call, StoreCall::Commit(writes)
            if writes.iter().any(|w| lease(&w.path)))),
        "there is no gap, so nothing is left to write"
    );
    rig.pass(10 * MINUTE);
    assert_eq!(syncs(&rig), 2);
}
