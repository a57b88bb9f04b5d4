//! How sessions begin and end, and how a process stops.

use backfill_core::doc::{FieldOp, FieldPath, Precondition, Value, WriteOp};
use backfill_core::instance::Reason;
use backfill_core::io::{
    Answer, Command, Event, Hint, Input, Key, Mode, PassiveReason, Rejection, StoreCall,
    StoreRequest,
};
use backfill_core::policy::{Credentials, Settings};
use backfill_core::time::Mono;

use super::rig::{Rig, label};

const MINUTE: u64 = 60_000;
/// How long a process that stops waits for what does not end by itself.
const STOP_TIMEOUT: u64 = 10_000;

/// The commit that creates a session.
fn creates(request: &StoreRequest) -> bool {
    writes_state(request, "passive")
        && matches!(&request.call, StoreCall::Commit(writes)
            if writes[0].precondition == Precondition::Absent)
}

/// The commit that ends a session.
fn ends(request: &StoreRequest) -> bool {
    writes_state(request, "dead")
}

fn writes_state(request: &StoreRequest, state: &'static str) -> bool {
    let field = (FieldPath::new("state"), FieldOp::from(Value::from(state)));
    matches!(&request.call, StoreCall::Commit(writes)
        if matches!(&writes[0].op, WriteOp::Merge(ops) if ops.contains(&field)))
}

fn looks_at_sessions(request: &StoreRequest) -> bool {
    matches!(&request.call, StoreCall::Query(query) if query.collection.as_str() == "instances")
}

fn events<'a>(rig: &'a Rig, of: impl Fn(&Event) -> bool + 'a) -> impl Iterator<Item = &'a Event> {
    rig.nodes[0].events.iter().map(|(_, event)| event).filter(move |event| of(event))
}

fn lost(rig: &Rig) -> Vec<Event> {
    events(rig, |event| matches!(event, Event::LeaseLost { .. })).cloned().collect()
}

#[test]
fn every_session_is_told_of_as_it_begins_and_as_it_ends() {
    let mut rig = Rig::exclusive();
    let account = rig.add_account(1, "disconnected");
    rig.until(MINUTE, |rig| rig.status(&account) == Some("connected"));
    // What it owns is lost with the session that it cannot renew, and held again under the next.
    let first = rig.nodes[0].instance.boot().clone();
    rig.nodes[0].holds = |request| matches!(request.call, StoreCall::Commit(_));
    rig.until(2 * MINUTE, |rig| *rig.nodes[0].instance.boot() != first);
    assert_eq!(
        lost(&rig),
        [Key::Account(account.clone()), Key::Lock].map(|key| Event::LeaseLost { key })
    );
    rig.nodes[0].holds = |_| false;
    rig.until(10 * MINUTE, |rig| rig.owner(&account) == Some(0));
    // What is given back on purpose is not lost.
    let second = rig.nodes[0].instance.boot().clone();
    rig.command(0, Command::Stop);
    rig.until(MINUTE, |rig| rig.nodes[0].stopped);
    assert_eq!(lost(&rig).len(), 2);
    let told = events(&rig, |event| {
        matches!(event, Event::SessionStarted { .. } | Event::SessionEnded { .. })
    });
    assert_eq!(
        told.cloned().collect::<Vec<_>>(),
        [
            Event::SessionStarted { boot: first.clone() },
            Event::SessionEnded { boot: first, graceful: false },
            Event::SessionStarted { boot: second.clone() },
            Event::SessionEnded { boot: second, graceful: true },
        ]
    );
}

#[test]
fn a_session_that_could_not_be_created_is_tried_again_after_a_pause() {
    let mut rig = Rig::exclusive();
    rig.nodes[0].holds = creates;
    let boot = rig.nodes[0].instance.boot().clone();
    let mut asked = Vec::new();
    for tries in 1..=3 {
        rig.until(3_000, |rig| rig.nodes[0].held.len() == tries);
        let request = rig.nodes[0].held[tries - 1].clone();
        asked.push(rig.time());
        rig.give(0, Input::Answer(request.id, Answer::Rejected(Rejection::Unavailable)));
    }
    assert!(asked.windows(2).all(|pair| pair[1].since(pair[0]).as_millis() >= 500), "{asked:?}");
    assert_eq!(*rig.nodes[0].instance.boot(), boot, "nothing was created under its name");
    rig.nodes[0].holds = |_| false;
    rig.until(MINUTE, |rig| rig.nodes[0].is_active());
}

#[test]
fn nobody_looks_around_before_its_session_stands() {
    let mut rig = Rig::exclusive();
    rig.nodes[0].holds = creates;
    rig.pass(10);
    for hint in [Hint::Accounts, Hint::Lock, Hint::Outbox] {
        rig.give(0, Input::Hint(hint));
    }
    rig.pass(1_000);
    assert_eq!(rig.nodes[0].asked, rig.nodes[0].held);
}

#[test]
fn what_only_who_is_active_follows_wakes_nobody_else() {
    let settings =
        |n| Settings { credentials: Credentials::Shared, ..Settings::exclusive(label(n)) };
    let mut rig = Rig::new([settings(0), settings(1)]);
    rig.until(MINUTE, |rig| rig.nodes.iter().any(|node| node.is_active()));
    rig.pass(100);
    let waits = rig.nodes.iter().position(|node| !node.is_active()).unwrap();
    let due = rig.nodes[waits].instance.poll_timeout();
    for hint in [Hint::Accounts, Hint::Outbox] {
        rig.give(waits, Input::Hint(hint));
        assert_eq!(rig.nodes[waits].instance.poll_timeout(), due, "{hint:?}");
    }
}

#[test]
fn what_is_hinted_again_within_a_moment_is_looked_at_once() {
    let mut rig = Rig::exclusive();
    rig.until(MINUTE, |rig| rig.nodes[0].is_active());
    rig.pass(1_000);
    let before = rig.nodes[0].queries("accounts").len();
    for _ in 0..4 {
        rig.give(0, Input::Hint(Hint::Accounts));
        rig.pass(10);
    }
    assert_eq!(rig.nodes[0].queries("accounts").len(), before);
    rig.pass(1_000);
    assert_eq!(rig.nodes[0].queries("accounts").len(), before + 1);
}

#[test]
fn an_answer_is_waited_for_no_longer_than_it_may_take() {
    let mut rig = Rig::exclusive();
    rig.nodes[0].holds = looks_at_sessions;
    rig.until(MINUTE, |rig| !rig.nodes[0].held.is_empty());
    // It was asked for at the beginning; the lock is looked at again much later.
    let (at, reason) = rig.nodes[0].instance.poll_timeout().unwrap();
    assert_eq!((at, reason), (Mono::from_millis(2_000), Reason::Request));
    rig.pass(1_990);
    assert_eq!(rig.nodes[0].held.len(), 1);
    rig.nodes[0].holds = |_| false;
    rig.pass(MINUTE);
    // What comes first is waited for, be it an answer or not.
    rig.nodes[0].holds = |request| matches!(request.call, StoreCall::Commit(_));
    rig.nodes[0].held.clear();
    rig.until(MINUTE, |rig| !rig.nodes[0].held.is_empty());
    rig.give(0, Input::Hint(Hint::Lock));
    let look = Mono::from_millis(rig.now() + 50);
    assert_eq!(rig.nodes[0].instance.poll_timeout(), Some((look, Reason::Timer("lock poll"))));
}

#[test]
fn what_could_not_be_read_is_read_again_after_a_pause() {
    let mut rig = Rig::exclusive();
    rig.nodes[0].holds = |request| matches!(&request.call, StoreCall::Query(query) if query.collection.as_str() == "accounts");
    for tries in 1..=5 {
        rig.until(3_000, |rig| rig.nodes[0].held.len() == tries);
        let request = rig.nodes[0].held[tries - 1].clone();
        rig.give(0, Input::Answer(request.id, Answer::Rejected(Rejection::Unavailable)));
        rig.pass(99);
        assert_eq!(rig.nodes[0].held.len(), tries);
    }
}

#[test]
fn a_process_that_cannot_close_in_time_leaves_its_session_to_expire() {
    let mut rig = Rig::exclusive();
    let account = rig.add_account(1, "disconnected");
    rig.until(MINUTE, |rig| rig.status(&account) == Some("connected"));
    rig.nodes[0].closes = false;
    let boot = rig.nodes[0].instance.boot().clone();
    rig.command(0, Command::Stop);
    rig.pass(STOP_TIMEOUT - 1);
    assert!(!rig.nodes[0].stopped);
    rig.pass(1);
    assert!(rig.nodes[0].stopped);
    // What may still be connected is nobody else's yet.
    assert_eq!(rig.doc(&boot.path()).unwrap().bool("live"), Some(true));
    assert_eq!(lost(&rig).len(), 2);
    let ended = Event::SessionEnded { boot, graceful: false };
    assert_eq!(events(&rig, |event| *event == ended).count(), 1);
}

#[test]
fn a_process_that_cannot_end_its_session_stops_all_the_same() {
    let mut rig = Rig::exclusive();
    rig.until(MINUTE, |rig| rig.nodes[0].is_active());
    rig.nodes[0].holds = ends;
    rig.command(0, Command::Stop);
    assert_eq!(rig.nodes[0].held.len(), 1);
    rig.pass(STOP_TIMEOUT);
    assert!(rig.nodes[0].stopped);
}

#[test]
fn a_process_stops_before_its_session_has_begun() {
    for in_flight in [true, false] {
        let mut rig = Rig::exclusive();
        rig.nodes[0].holds = creates;
        rig.pass(10);
        let create = rig.nodes[0].held.remove(0);
        let refusal = Input::Answer(create.id, Answer::Rejected(Rejection::Unavailable));
        if in_flight {
            rig.command(0, Command::Stop);
            assert!(!rig.nodes[0].stopped, "it may yet begin");
            rig.give(0, refusal);
        } else {
            rig.give(0, refusal);
            rig.command(0, Command::Stop);
        }
        assert!(rig.nodes[0].stopped);
        assert_eq!(rig.nodes[0].asked, [create], "there is nothing to end");
    }
}

#[test]
fn who_waited_and_was_told_to_stop_becomes_nothing_more() {
    let shared =
        |n| Settings { credentials: Credentials::Shared, ..Settings::shared(label(n), "c") };
    let mut rig = Rig::new([shared(0), shared(1)]);
    rig.nodes[0].holds = |_| true;
    rig.until(MINUTE, |rig| rig.nodes[1].is_active());
    // It begins as the second, and is told to stop while it looks at the sessions.
    rig.nodes[0].holds = |request| looks_at_sessions(request) || ends(request);
    rig.nodes[0].held.clear();
    rig.until(MINUTE, |rig| !rig.nodes[0].held.is_empty());
    rig.command(0, Command::Stop);
    let look = rig.nodes[0].held.remove(0);
    rig.release(0, &look);
    assert_eq!(rig.nodes[0].instance.mode(), Mode::Passive(PassiveReason::Stopped));
    let flips = events(&rig, |event| matches!(event, Event::Mode { mode: Mode::Active }));
    assert_eq!(flips.count(), 0);
}

#[test]
fn who_steps_down_looks_for_nothing_more() {
    let mut rig = Rig::exclusive();
    let account = rig.add_account(1, "disconnected");
    rig.until(MINUTE, |rig| rig.status(&account) == Some("connected"));
    rig.nodes[0].closes = false;
    // What it is told of just before comes when it closes already.
    for hint in [Hint::Accounts, Hint::Outbox] {
        rig.give(0, Input::Hint(hint));
    }
    rig.command(0, Command::Stop);
    let queries = |rig: &Rig| ["accounts", "outbox"].map(|of| rig.nodes[0].queries(of).len());
    let before = queries(&rig);
    rig.pass(STOP_TIMEOUT - 1);
    assert_eq!(rig.nodes[0].instance.mode(), Mode::SteppingDown);
    assert_eq!(queries(&rig), before);
}
