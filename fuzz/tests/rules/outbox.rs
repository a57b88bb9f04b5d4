//! What becomes of a message on its way out.

use std::time::Duration;

use backfill_core::alias::{Alias, outbound_wa_id};
use backfill_core::doc::{DocPath, Document, Value};
use backfill_core::id::{AccountId, OutboxId, ThreadId};
use backfill_core::io::{
    Answer, CloseReason, GatewayCall, GatewayEvent, Input, Rejection, StoreCall, StoreRequest,
};
use backfill_core::policy::{Credentials, OutboxLimits, Settings};

use super::rig::{Rig, label};

/// A message has been given to WhatsApp, which has not answered.
fn sending() -> (Rig, AccountId) {
    let (mut rig, account) = connected();
    rig.nodes[0].answers = |call| match call {
        GatewayCall::Send { .. } => None,
        _ => Some(Answer::Done),
    };
    queue(&mut rig, &account, &[]);
    rig.until(3_000, |rig| !sends(rig).0.is_empty());
    (rig, account)
}

/// A connected account of an instance that looks into the outbox every second.
fn connected() -> (Rig, AccountId) {
    let (mut rig, account) = connecting();
    rig.until(60_000, |rig| rig.status(&account) == Some("connected"));
    rig.pass(1_000);
    (rig, account)
}

fn connecting() -> (Rig, AccountId) {
    let exclusive = Settings::exclusive(label(0));
    let outbox = OutboxLimits { poll: Duration::from_secs(1), ..exclusive.outbox.clone() };
    let credentials = Credentials::Shared;
    let mut rig = Rig::new([Settings { credentials, outbox, ..exclusive }]);
    let account = rig.add_account(1, "disconnected");
    (rig, account)
}

fn id() -> OutboxId {
    OutboxId::parse("f00d").unwrap()
}

fn queue(rig: &mut Rig, account: &AccountId, more: &[(&'static str, Value)]) {
    let thread = ThreadId::of_chat(account, "40700000000@s.whatsapp.net").unwrap();
    let now = Value::from(rig.time());
    let fields = [
        ("status", "queued".into()),
        ("nextAttemptAt", now),
        ("accountId", Value::from(account.text())),
        ("threadId", Value::from(thread.text())),
    ];
    rig.write(&id().path(), &fields);
    if !more.is_empty() {
        rig.write(&id().path(), more);
    }
}

fn doc(rig: &Rig) -> &Document {
    rig.doc(&id().path()).unwrap()
}

/// When it was sent, and under which ids.
fn sends(rig: &Rig) -> (Vec<u64>, Vec<String>) {
    let sends = rig.nodes[0].called(|call| match call {
        GatewayCall::Send { outbox, wa_id } => {
            assert_eq!(*outbox, id());
            Some(wa_id.to_string())
        }
        _ => None,
    });
    sends.into_iter().map(|(at, _, wa_id)| (at, wa_id)).unzip()
}

/// Commits that write it.
fn writes_it(request: &StoreRequest) -> bool {
    let outbox = |path: &DocPath| path.as_str() == "outbox/f00d";
    matches!(&request.call, StoreCall::Commit(writes) if writes.iter().any(|w| outbox(&w.path)))
}

fn until_held(rig: &mut Rig) -> StoreRequest {
    rig.until(3_000, |rig| !rig.nodes[0].held.is_empty());
    rig.nodes[0].held.remove(0)
}

#[test]
fn a_queued_message_is_claimed_then_sent_then_shown_as_sent() {
    let (mut rig, account) = sending();
    let wa_id = outbound_wa_id(&id());
    let claimed = doc(&rig);
    assert_eq!(claimed.str("status"), Some("processing"));
    assert_eq!(claimed.str("waMessageId"), Some(wa_id.as_str()), "durable before it is sent");
    assert_eq!((claimed.str("claimedBy"), claimed.count("attemptCount")), (Some("i0"), Some(1)));
    let left = claimed.time("leaseUntil").unwrap().since(rig.time());
    assert!(left > Duration::from_secs(55) && left <= Duration::from_secs(61), "{left:?}");
    let alias = rig.doc(&Alias::path(&account, &wa_id).unwrap()).unwrap();
    assert_eq!(alias.str("messageId"), Some("f00d"));

    rig.pass(10_000);
    let request =
        rig.nodes[0].called(|call| matches!(call, GatewayCall::Send { .. }).then_some(()));
    let [(_, request, ())] = request[..] else { panic!("it is sent once") };
    rig.give(0, Input::Answer(request, Answer::Done));
    rig.pass(1_000);
    let sent = doc(&rig);
    assert_eq!((sent.str("status"), sent.bool("success")), (Some("sent"), Some(true)));
    assert_eq!(sent.str("providerMessageId"), Some(wa_id.as_str()));
    assert!(sent.time("sentAt").is_some());
    rig.pass(120_000);
    assert_eq!(sends(&rig).1, [wa_id.as_str()]);
}

#[test]
fn every_try_carries_one_id_and_waits_twice_as_long_as_the_one_before() {
    let (mut rig, account) = connected();
    rig.nodes[0].answers = |call| match call {
        GatewayCall::Send { .. } => Some(Answer::Rejected(Rejection::Unavailable)),
        _ => Some(Answer::Done),
    };
    queue(&mut rig, &account, &[]);
    rig.until(3_000, |rig| !sends(rig).0.is_empty());
    assert_eq!(doc(&rig).str("status"), Some("queued"));
    rig.pass(600_000);
    let (at, ids) = sends(&rig);
    assert_eq!(ids, [outbound_wa_id(&id()).as_str(); 5]);
    for (gap, wait) in at.windows(2).map(|pair| pair[1] - pair[0]).zip([5, 10, 20, 40]) {
        // The clock is estimated, and the outbox looked into every second.
        assert!((wait * 1_000 - 1_100..wait * 1_000 + 2_000).contains(&gap), "{gap} for {wait} s");
    }
    let failed = doc(&rig);
    assert_eq!((failed.str("status"), failed.bool("success")), (Some("failed"), Some(false)));
    assert_eq!(
        (failed.str("lastError"), failed.count("attemptCount")),
        (Some("send_failed"), Some(5))
    );
}

#[test]
fn what_can_never_be_sent_is_tried_once() {
    for rejection in [Rejection::Invalid, Rejection::Denied] {
        let (mut rig, account) = connected();
        rig.nodes[0].answers = match rejection {
            Rejection::Invalid => |call| match call {
                GatewayCall::Send { .. } => Some(Answer::Rejected(Rejection::Invalid)),
                _ => Some(Answer::Done),
            },
            _ => |call| match call {
                GatewayCall::Send { .. } => Some(Answer::Rejected(Rejection::Denied)),
                _ => Some(Answer::Done),
            },
        };
        queue(&mut rig, &account, &[]);
        rig.pass(60_000);
        assert_eq!((sends(&rig).0.len(), doc(&rig).str("status")), (1, Some("failed")));
    }
}

#[test]
fn a_claim_counts_until_its_claimant_can_do_nothing_more() {
    for (fields, goes_on) in [
        (vec![("connectionEpoch", Value::Int(1)), ("waMessageId", "3EB0OLD".into())], true),
        (vec![("leaseUntil", "soon".into())], true),
        (vec![], false),
    ] {
        let (mut rig, account) = connecting();
        let until = rig.time() + Duration::from_secs(600);
        let claim = [("status", "processing".into()), ("leaseUntil", Value::from(until))];
        queue(&mut rig, &account, &claim);
        if !fields.is_empty() {
            rig.write(&id().path(), &fields);
        }
        rig.until(60_000, |rig| rig.status(&account) == Some("connected"));
        rig.pass(10_000);
        let known = fields.iter().any(|(name, _)| *name == "waMessageId");
        let wa_id = if known { "3EB0OLD".into() } else { outbound_wa_id(&id()) };
        let sent = if goes_on { vec![wa_id.to_string()] } else { Vec::new() };
        assert_eq!(sends(&rig).1, sent, "{fields:?}");
    }
    // A foreign claim that has ended by its own word is none.
    let (mut rig, account) = connecting();
    let until = rig.time();
    queue(
        &mut rig,
        &account,
        &[("status", "processing".into()), ("leaseUntil", Value::from(until))],
    );
    rig.until(60_000, |rig| doc(rig).str("status") == Some("sent"));
}

#[test]
fn what_was_claimed_when_the_connection_broke_waits_for_the_next_one() {
    let (mut rig, account) = connected();
    rig.nodes[0].holds = writes_it;
    queue(&mut rig, &account, &[]);
    rig.until(3_000, |rig| !rig.nodes[0].held.is_empty());
    let (_, connection) = rig.nodes[0].connects(&account)[0];
    rig.nodes[0].opens = false;
    let reason = CloseReason::Lost;
    rig.tell(0, &account, GatewayEvent::Closed { connection, reason });
    rig.nodes[0].holds = |_| false;
    let claim = rig.nodes[0].held.remove(0);
    rig.release(0, &claim);
    rig.pass(1_000);
    assert_eq!((sends(&rig).0.len(), doc(&rig).str("status")), (0, Some("queued")));
    rig.pass(10_000);
    let (_, connection) = *rig.nodes[0].connects(&account).last().unwrap();
    rig.tell(0, &account, GatewayEvent::Opened { connection });
    rig.until(10_000, |rig| doc(rig).str("status") == Some("sent"));
    assert_eq!(sends(&rig).0.len(), 1);
}

#[test]
fn whoever_is_told_of_a_message_sends_it_at_once() {
    let mut rig = Rig::exclusive();
    let account = rig.add_account(1, "disconnected");
    rig.until(60_000, |rig| rig.status(&account) == Some("connected"));
    rig.nodes[0].hinted = true;
    for round in 1..=3 {
        rig.pass(1_000);
        rig.delete(&id().path());
        queue(&mut rig, &account, &[]);
        rig.pass(200);
        assert_eq!(sends(&rig).0.len(), round);
    }
}

#[test]
fn a_message_that_is_found_twice_is_claimed_once() {
    let (mut rig, account) = connected();
    rig.nodes[0].holds = writes_it;
    queue(&mut rig, &account, &[]);
    let claim = until_held(&mut rig);
    rig.pass(2_500);
    rig.nodes[0].holds = |_| false;
    rig.release(0, &claim);
    rig.pass(5_000);
    let commits = rig.nodes[0].asked.iter().filter(|request| writes_it(request)).count();
    assert_eq!((commits, sends(&rig).0.len()), (2, 1), "and shown as sent once");
    assert_eq!(doc(&rig).str("status"), Some("sent"));
}

#[test]
fn a_message_that_is_found_when_the_connection_is_gone_is_left_alone() {
    let (mut rig, account) = connected();
    rig.nodes[0].holds =
        |request| matches!(&request.call, StoreCall::Query(q) if q.collection.as_str() == "outbox");
    queue(&mut rig, &account, &[]);
    let poll = until_held(&mut rig);
    let (_, connection) = rig.nodes[0].connects(&account)[0];
    rig.nodes[0].opens = false;
    let reason = CloseReason::Lost;
    rig.tell(0, &account, GatewayEvent::Closed { connection, reason });
    rig.release(0, &poll);
    rig.pass(1_000);
    assert!(!rig.nodes[0].asked.iter().any(writes_it));
}

#[test]
fn who_finds_a_message_changed_shows_what_became_of_it_unless_somebody_else_has_the_say() {
    for (status, shown) in [("processing", "sent"), ("failed", "failed")] {
        let (mut rig, _) = sending();
        rig.write(&id().path(), &[("status", status.into()), ("note", "changed".into())]);
        let sent = |call: &GatewayCall| matches!(call, GatewayCall::Send { .. }).then_some(());
        let (_, request, ()) = rig.nodes[0].called(sent)[0];
        rig.give(0, Input::Answer(request, Answer::Done));
        rig.pass(10_000);
        assert_eq!(doc(&rig).str("status"), Some(shown));
        assert_eq!(sends(&rig).0.len(), 1);
    }
}

/// How often the messages that wait were asked for.
fn looks(rig: &Rig) -> usize {
    let queued = Value::from("queued");
    let outbox = rig.nodes[0].queries("outbox").into_iter();
    outbox
        .filter(|(_, request)| {
            matches!(&request.call, StoreCall::Query(query)
                if query.filters.iter().any(|filter| filter.value == queued))
        })
        .count()
}

#[test]
fn a_poll_reads_ten_pages_and_the_next_one_goes_on_where_it_ended() {
    let (mut rig, account) = connected();
    // Those of an account that nobody serves wait before ours.
    let due = Value::from(rig.time() - Duration::from_secs(60));
    for n in 0..1_150 {
        let path = DocPath::parse(format!("outbox/{n:04}")).unwrap();
        let fields = [
            ("status", "queued".into()),
            ("nextAttemptAt", due.clone()),
            ("accountId", "elsewhere".into()),
        ];
        rig.write(&path, &fields);
    }
    queue(&mut rig, &account, &[]);
    let mut polls = Vec::new();
    for sent in [0, 1, 1] {
        let before = looks(&rig);
        rig.until(2_000, |rig| looks(rig) > before);
        polls.push(looks(&rig) - before);
        assert_eq!(sends(&rig).0.len(), sent);
    }
    assert_eq!(polls, [10, 2, 10]);
}

#[test]
fn nobody_looks_for_messages_while_nothing_is_connected() {
    let (mut rig, account) = connecting();
    rig.nodes[0].opens = false;
    rig.pass(60_000);
    assert_eq!(looks(&rig), 0);
    let (_, connection) = rig.nodes[0].connects(&account)[0];
    rig.tell(0, &account, GatewayEvent::Opened { connection });
    rig.pass(2_000);
    assert!(looks(&rig) > 1);
}
