//! What happens when a connection does not want to close, and when an instance has ended.

use backfill_core::doc::{DocPath, Value};
use backfill_core::id::{AccountId, RequestId};
use backfill_core::io::{
    Answer, CloseReason, Command, Event, GatewayCall, GatewayEvent, Input, Key, Rejection, Reply,
    StoreCall, StoreRequest,
};
use backfill_core::policy::{Credentials, Settings};

use super::rig::{Rig, label};

/// An account that is connected, and what its connection is called.
fn connected(rig: &mut Rig) -> (AccountId, RequestId) {
    let account = rig.add_account(1, "disconnected");
    rig.until(60_000, |rig| rig.status(&account) == Some("connected"));
    let connection = rig.nodes[0].connects(&account)[0].1;
    (account, connection)
}

#[test]
fn a_close_without_an_answer_is_issued_again_but_not_all_the_time() {
    let mut rig = Rig::exclusive();
    let (account, connection) = connected(&mut rig);
    rig.nodes[0].closes = false;
    rig.tell(0, &account, GatewayEvent::IngestFailed { connection });
    rig.until(1_000, |rig| rig.nodes[0].closings(connection).len() == 1);
    rig.until(40_000, |rig| rig.nodes[0].closings(connection).len() == 2);
    rig.pass(3_600_000);
    let tries = rig.nodes[0].closings(connection).len();
    assert!((20..=130).contains(&tries), "{tries} tries in an hour");
    assert_eq!(rig.nodes[0].connects(&account).len(), 1, "it may still be open");

    rig.nodes[0].closes = true;
    rig.until(150_000, |rig| rig.nodes[0].connects(&account).len() == 2);
    let before = rig.nodes[0].closings(connection).len();
    rig.pass(600_000);
    assert_eq!(rig.nodes[0].closings(connection).len(), before);
}

#[test]
fn a_close_that_is_refused_is_issued_again() {
    let mut rig = Rig::exclusive();
    let (account, connection) = connected(&mut rig);
    rig.nodes[0].closes = false;
    rig.tell(0, &account, GatewayEvent::IngestFailed { connection });
    let request = rig.nodes[0].calls.last().unwrap().1.id;
    let refused = Answer::Rejected(backfill_core::io::Rejection::Unavailable);
    rig.give(0, Input::Answer(request, refused));
    rig.nodes[0].closes = true;
    rig.until(15_000, |rig| rig.nodes[0].connects(&account).len() == 2);
}

#[test]
fn a_connection_left_over_from_a_lost_session_is_closed_before_the_next_one_opens() {
    let mut rig = Rig::exclusive();
    let (account, connection) = connected(&mut rig);
    rig.nodes[0].closes = false;
    rig.nodes[0].holds = |request: &StoreRequest| matches!(request.call, StoreCall::Commit(_));
    rig.pass(120_000);
    rig.nodes[0].holds = |_| false;
    assert!(rig.nodes[0].closings(connection).len() >= 2, "it is over, and still open");
    rig.pass(240_000);
    assert_eq!(rig.nodes[0].connects(&account).len(), 1);
    let reason = CloseReason::Asked;
    rig.tell(0, &account, GatewayEvent::Closed { connection, reason });
    rig.until(1_000, |rig| rig.nodes[0].connects(&account).len() == 2);
    let tries = rig.nodes[0].closings(connection).len();
    rig.pass(600_000);
    assert_eq!(rig.nodes[0].closings(connection).len(), tries);
}

#[test]
fn who_asks_after_the_end_is_answered() {
    let mut rig = Rig::exclusive();
    let (account, _) = connected(&mut rig);
    assert_eq!(rig.command(0, Command::Stop), Reply::Accepted);
    rig.pass(5_000);
    assert!(rig.nodes[0].stopped);
    assert_eq!(rig.command(0, Command::Stop), Reply::Accepted);
    assert_eq!(rig.command(0, Command::Backfill(account.clone())), Reply::Passive);
    assert_eq!(rig.command(0, Command::RegenerateQr(account.clone())), Reply::Passive);
    assert_eq!(rig.command(0, Command::DeleteAccount(account)), Reply::Passive);
}

#[test]
fn the_next_owner_waits_after_a_crash_and_not_after_a_stop() {
    for crashes in [true, false] {
        let settings =
            |n| Settings { credentials: Credentials::Shared, ..Settings::exclusive(label(n)) };
        let mut rig = Rig::new([settings(0), settings(1)]);
        rig.nodes.iter_mut().for_each(|node| node.hinted = true);
        let account = rig.add_account(1, "disconnected");
        rig.until(60_000, |rig| rig.status(&account) == Some("connected"));
        let first = rig.owner(&account).unwrap();
        let next = 1 - first;
        if crashes {
            rig.nodes[first].stopped = true;
        } else {
            rig.command(first, Command::Stop);
        }
        rig.until(400_000, |rig| !rig.nodes[next].connects(&account).is_empty());
        let connected = rig.nodes[next].connects(&account)[0].0;
        let taking =
            |event: &Event| matches!(event, Event::LeaseTaken { key: Key::Account(_), .. });
        let taken = rig.nodes[next].events.iter().find(|(_, event)| taking(event)).unwrap().0;
        let wait = connected - taken;
        assert!(if crashes { (5_000..6_000).contains(&wait) } else { wait < 1_000 }, "{wait} ms");
    }
}

#[test]
fn a_connection_that_did_not_come_about_is_tried_again_and_one_that_may_have_is_closed_first() {
    for (answer, closes) in
        [(Answer::Rejected(Rejection::Unavailable), false), (Answer::Unknown, true)]
    {
        let mut rig = Rig::exclusive();
        let account = rig.add_account(1, "disconnected");
        rig.nodes[0].answers = |call| match call {
            GatewayCall::Connect => None,
            _ => Some(Answer::Done),
        };
        rig.until(60_000, |rig| !rig.nodes[0].connects(&account).is_empty());
        let (at, connection) = rig.nodes[0].connects(&account)[0];
        rig.give(0, Input::Answer(connection, answer.clone()));
        rig.nodes[0].answers = |_| Some(Answer::Done);
        rig.until(5_000, |rig| rig.status(&account) == Some("connected"));
        assert_eq!(rig.nodes[0].closings(connection).len(), usize::from(closes), "{answer:?}");
        let connects = rig.nodes[0].connects(&account);
        assert_eq!(connects.len(), 2);
        assert!(connects[1].0 >= at + 500, "after a pause");
        // An answer that comes once more is nobody's.
        rig.give(0, Input::Answer(connection, Answer::Rejected(Rejection::Unavailable)));
        rig.pass(1_000);
        assert_eq!(rig.nodes[0].connects(&account).len(), 2);
    }
}

#[test]
fn who_leaves_does_not_connect_again_while_that_is_being_written() {
    let mut rig = Rig::exclusive();
    let (account, _) = connected(&mut rig);
    rig.nodes[0].holds = |request: &StoreRequest| {
        let state = |path: &DocPath| path.as_str().ends_with("/sync/state");
        matches!(&request.call, StoreCall::Commit(writes) if writes.iter().any(|w| state(&w.path)))
    };
    rig.command(0, Command::Stop);
    // As long as one waits at most after the first failure.
    rig.pass(2_500);
    assert!(!rig.nodes[0].stopped);
    rig.nodes[0].holds = |_| false;
    let commit = rig.nodes[0].held.remove(0);
    rig.release(0, &commit);
    rig.pass(500);
    assert!(rig.nodes[0].stopped);
    assert_eq!(rig.nodes[0].connects(&account).len(), 1);
    let marker = rig.doc(&account.sync_path()).unwrap().value("connectedBoot");
    assert_eq!(marker, Some(&Value::Null));
}
