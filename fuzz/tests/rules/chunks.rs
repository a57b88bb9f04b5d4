//! The way of a history chunk: made durable, parsed, noted, forgotten.

use backfill_core::coverage::{Coverage, Goal, PageEnd};
use backfill_core::doc::Value;
use backfill_core::id::{AccountId, RequestId};
use backfill_core::io::{
    Answer, ChunkCounts, ChunkId, Command, Event, GatewayCall, GatewayEvent, Ingested, Input,
    PageFacts, Rejection, RunKind, Source, StoreCall, StoreRequest, ThreadSpan,
};

use super::holes::{coverage_path, loading, mark, put_thread, thread};
use super::rig::Rig;

const CHUNK: ChunkId = ChunkId(7);

/// A connected account; what the spool is asked waits for the test.
fn connected() -> (Rig, AccountId) {
    // Its earlier owner left nothing open.
    connected_after(&[("surveyed", Value::Int(0))])
}

/// As [`connected`], where an earlier owner left this.
fn connected_after(left: &[(&'static str, Value)]) -> (Rig, AccountId) {
    let mut rig = Rig::exclusive();
    let account = rig.add_account(1, "disconnected");
    rig.write(&account.sync_path(), left);
    rig.until(60_000, |rig| rig.status(&account) == Some("connected"));
    rig.nodes[0].answers = |call| match call {
        GatewayCall::Parse { .. } | GatewayCall::Spool { .. } | GatewayCall::Unspool { .. } => None,
        _ => Some(Answer::Done),
    };
    (rig, account)
}

/// What the spool was asked, in order.
fn asked(rig: &Rig) -> Vec<(RequestId, String)> {
    let calls = rig.nodes[0].called(|call| match call {
        GatewayCall::Parse { chunk, from } => Some(format!("parse {} from {from}", chunk.0)),
        GatewayCall::Spool { chunk } => Some(format!("spool {}", chunk.0)),
        GatewayCall::Unspool { chunk } => Some(format!("unspool {}", chunk.0)),
        _ => None,
    });
    calls.into_iter().map(|(_, request, call)| (request, call)).collect()
}

/// The last thing that the spool was asked is so.
fn expect(rig: &Rig, call: &str) -> RequestId {
    let (request, last) = asked(rig).pop().expect("it was asked something");
    assert_eq!(last, call);
    request
}

fn answer(rig: &mut Rig, request: RequestId, answer: Answer) {
    rig.give(0, Input::Answer(request, answer));
    rig.pass(10);
}

fn progress(rig: &mut Rig, account: &AccountId, chunk: ChunkId, cursor: u32) {
    brought(rig, account, chunk, cursor, &[1]);
}

/// So much of a chunk became durable, with some messages of these threads.
fn brought(rig: &mut Rig, account: &AccountId, chunk: ChunkId, cursor: u32, threads: &[u16]) {
    let now = rig.time().as_secs();
    let span = |number: &u16| ThreadSpan {
        thread: thread(account, *number),
        twin: None,
        low: mark(now - 9_000),
        high: mark(now - 8_000),
        messages: 5,
        end: PageEnd::MoreRemains,
    };
    let source = Source::Chunk { chunk, cursor };
    let threads = threads.iter().map(span).collect();
    let ingested = Ingested { source, messages: 5, threads, newest_second: now - 8_000 };
    rig.give(0, Input::Ingested(account.clone(), ingested));
}

/// A chunk with messages of these threads goes all its way, but for the last step.
fn until_noted(rig: &mut Rig, account: &AccountId, threads: &[u16]) -> RequestId {
    rig.tell(0, account, GatewayEvent::Chunk { chunk: CHUNK, spooled: true });
    let request = expect(rig, "parse 7 from 0");
    brought(rig, account, CHUNK, 1, threads);
    answer(rig, request, Answer::Done);
    expect(rig, "unspool 7")
}

fn coverage(rig: &Rig, account: &AccountId, number: u16) -> Option<Coverage> {
    let doc = rig.doc(&coverage_path(account, &thread(account, number)))?;
    Some(Coverage::parse(&doc.fields).0)
}

/// What tells of a time, a while ago, in which messages may be missing in every thread.
fn with_a_gap(now: i64) -> [(&'static str, Value); 3] {
    let gap = [("seq", 1), ("from", now - 500), ("to", now - 400)];
    let gap = Value::map(gap.map(|(name, n)| (name, Value::Int(n))));
    let gaps = Value::Array(vec![gap]);
    [("gaps", gaps), ("gapSeq", Value::Int(1)), ("surveyed", Value::Int(1))]
}

fn backfills(rig: &Rig) -> usize {
    let is = |event: &Event| matches!(event, Event::RunStarted { kind, .. } if *kind == RunKind::AutoBackfill);
    rig.nodes[0].events.iter().filter(|(_, event)| is(event)).count()
}

fn writes(request: &StoreRequest, part: &str) -> bool {
    matches!(&request.call, StoreCall::Commit(writes)
        if writes.iter().any(|write| write.path.as_str().contains(part)))
}

fn until_held(rig: &mut Rig) -> StoreRequest {
    rig.until(10_000, |rig| !rig.nodes[0].held.is_empty());
    rig.nodes[0].held.remove(0)
}

fn stored(rig: &mut Rig, account: &AccountId, chunk: ChunkId) {
    let counts = ChunkCounts { saved: 5, skipped: 2, errors: 1, dry_run: false };
    rig.tell(0, account, GatewayEvent::ChunkStored { chunk, counts });
}

fn syncs(rig: &Rig, account: &AccountId) -> Option<u64> {
    rig.doc(&account.path()).unwrap().count("historySyncCount")
}

#[test]
fn a_chunk_is_durable_before_it_is_parsed_and_noted_before_it_is_forgotten() {
    let (mut rig, account) = connected();
    rig.tell(0, &account, GatewayEvent::Chunk { chunk: CHUNK, spooled: false });
    let request = expect(&rig, "spool 7");
    answer(&mut rig, request, Answer::Done);
    let request = expect(&rig, "parse 7 from 0");
    progress(&mut rig, &account, CHUNK, 1);
    stored(&mut rig, &account, CHUNK);
    answer(&mut rig, request, Answer::Done);
    let request = expect(&rig, "unspool 7");

    let coverage = coverage(&rig, &account, 1).unwrap();
    assert_eq!(coverage.stretches().len(), 1);
    assert_eq!(coverage.remaining(Goal::Depth(6)), 1, "it has five messages");
    assert!(coverage.is_live(), "nobody knew the thread, and what follows arrives by itself");
    let doc = rig.doc(&account.path()).unwrap();
    let result = |name: &str| doc.count(&format!("lastHistorySyncResult.{name}"));
    assert_eq!(syncs(&rig, &account), Some(1));
    assert_eq!(["saved", "skipped", "errors", "total"].map(result), [5, 2, 1, 8].map(Some));
    assert!(doc.time("lastHistorySyncAt").is_some());
    let sync = rig.doc(&account.sync_path()).unwrap();
    assert_eq!((sync.count("spoolChunk"), sync.count("spoolCursor")), (Some(7), Some(1)));

    answer(&mut rig, request, Answer::Done);
    rig.pass(60_000);
    assert_eq!(asked(&rig).len(), 3, "it is forgotten");
}

#[test]
fn a_parse_that_broke_off_goes_on_where_it_was_and_is_counted_once() {
    let (mut rig, account) = connected();
    rig.tell(0, &account, GatewayEvent::Chunk { chunk: CHUNK, spooled: true });
    let request = expect(&rig, "parse 7 from 0");
    progress(&mut rig, &account, CHUNK, 3);
    stored(&mut rig, &account, CHUNK);
    answer(&mut rig, request, Answer::Rejected(Rejection::Unavailable));
    assert_eq!(asked(&rig).len(), 1, "after a pause");
    rig.pass(5_000);
    let again = expect(&rig, "parse 7 from 3");
    // The first one's answer comes late, and once more.
    answer(&mut rig, request, Answer::Done);
    expect(&rig, "parse 7 from 3");
    progress(&mut rig, &account, CHUNK, 4);
    stored(&mut rig, &account, CHUNK);
    answer(&mut rig, again, Answer::Done);
    let request = expect(&rig, "unspool 7");
    assert_eq!(syncs(&rig, &account), Some(1));
    // Whatever breaks off afterwards does not begin anew.
    answer(&mut rig, request, Answer::Unknown);
    rig.pass(5_000);
    let request = expect(&rig, "unspool 7");
    answer(&mut rig, request, Answer::Done);
    assert_eq!(asked(&rig).len(), 4);
    // Another chunk begins at its beginning.
    rig.tell(0, &account, GatewayEvent::Chunk { chunk: ChunkId(8), spooled: true });
    expect(&rig, "parse 8 from 0");
}

#[test]
fn chunks_are_spooled_as_they_come_and_parsed_one_after_the_other() {
    let (mut rig, account) = connected();
    for chunk in [CHUNK, ChunkId(8)] {
        rig.tell(0, &account, GatewayEvent::Chunk { chunk, spooled: false });
    }
    let names = |rig: &Rig| asked(rig).into_iter().map(|(_, call)| call).collect::<Vec<_>>();
    assert_eq!(names(&rig), ["spool 7", "spool 8"]);
    for (request, _) in asked(&rig) {
        answer(&mut rig, request, Answer::Done);
    }
    rig.pass(60_000);
    let request = expect(&rig, "parse 7 from 0");
    assert_eq!(asked(&rig).len(), 3);
    answer(&mut rig, request, Answer::Done);
    let request = expect(&rig, "unspool 7");
    answer(&mut rig, request, Answer::Done);
    expect(&rig, "parse 8 from 0");
    assert_eq!(asked(&rig).len(), 5);
}

#[test]
fn a_lost_chunk_is_a_gap_before_it_is_forgotten_and_an_incident_once() {
    let (mut rig, account) = connected();
    let opened = rig.time().as_secs();
    rig.pass(600_000);
    for _ in 0..2 {
        rig.tell(0, &account, GatewayEvent::ChunkMissing { chunk: CHUNK });
    }
    rig.pass(10);
    let sync = rig.doc(&account.sync_path()).unwrap();
    let [gap] = sync.value("gaps").and_then(Value::as_array).unwrap() else { panic!("one gap") };
    let to = gap.as_map().unwrap()["to"].as_int().unwrap();
    assert!((opened..opened + 300).contains(&to), "what came live was not in it");
    let request = expect(&rig, "unspool 7");
    answer(&mut rig, request, Answer::Done);
    assert_eq!(asked(&rig).len(), 1);
    let incident =
        |event: &Event| matches!(event, Event::Incident { kind: "history_chunk_missing", .. });
    assert_eq!(rig.nodes[0].events.iter().filter(|(_, event)| incident(event)).count(), 1);
}

#[test]
fn what_could_not_be_noted_is_noted_a_little_later() {
    let (mut rig, account) = connected();
    rig.tell(0, &account, GatewayEvent::Chunk { chunk: CHUNK, spooled: true });
    let request = expect(&rig, "parse 7 from 0");
    progress(&mut rig, &account, CHUNK, 1);
    rig.nodes[0].holds = |request| writes(request, "/coverage/");
    answer(&mut rig, request, Answer::Done);
    let commit = until_held(&mut rig);
    rig.nodes[0].holds = |_| false;
    rig.give(0, Input::Answer(commit.id, Answer::Rejected(Rejection::Unavailable)));
    rig.pass(6_000);
    let request = expect(&rig, "unspool 7");
    assert_eq!(asked(&rig).len(), 2, "it need not be parsed again");
    assert_eq!(coverage(&rig, &account, 1).unwrap().stretches().len(), 1);
    answer(&mut rig, request, Answer::Done);

    rig.nodes[0].holds = |request| writes(request, "/sync/state");
    rig.tell(0, &account, GatewayEvent::ChunkMissing { chunk: ChunkId(8) });
    let commit = until_held(&mut rig);
    rig.nodes[0].holds = |_| false;
    rig.give(0, Input::Answer(commit.id, Answer::Rejected(Rejection::Unavailable)));
    expect(&rig, "unspool 7");
    rig.pass(6_000);
    expect(&rig, "unspool 8");
    let sync = rig.doc(&account.sync_path()).unwrap();
    assert_eq!(sync.value("gaps").and_then(Value::as_array).map(<[Value]>::len), Some(1));
}

#[test]
fn all_that_a_chunk_brought_is_noted() {
    let (mut rig, account) = connected();
    // One of the threads is known.
    let known = Coverage::starting_at(&mark(rig.time().as_secs() - 100), 0);
    rig.put(&coverage_path(&account, &thread(&account, 1)), known.to_fields(1));
    let threads: Vec<u16> = (1..=200).collect();
    until_noted(&mut rig, &account, &threads);
    for number in threads {
        let stretches = coverage(&rig, &account, number).map(|c| c.stretches().len());
        assert_eq!(stretches, Some(if number == 1 { 2 } else { 1 }), "{number}");
    }
}

#[test]
fn a_thread_that_a_chunk_brought_is_not_live_beyond_a_gap() {
    let now = 1_800_000_000;
    let (mut rig, account) = connected_after(&with_a_gap(now));
    until_noted(&mut rig, &account, &[1]);
    assert!(!coverage(&rig, &account, 1).unwrap().is_live(), "more may have come since");
}

#[test]
fn what_a_chunk_brought_is_not_lost_to_a_run_that_looks_at_the_thread() {
    let now = 1_800_000_000;
    let (mut rig, account) = connected_after(&with_a_gap(now));
    put_thread(&mut rig, &account, &thread(&account, 1), now - 100);
    rig.nodes[0].holds = |request| matches!(&request.call, StoreCall::Query(q) if q.collection.as_str() == "threads");
    rig.command(0, Command::Backfill(account.clone()));
    let choosing = until_held(&mut rig);
    rig.nodes[0].holds = |request| writes(request, "/coverage/");
    rig.tell(0, &account, GatewayEvent::Chunk { chunk: CHUNK, spooled: true });
    let request = expect(&rig, "parse 7 from 0");
    progress(&mut rig, &account, CHUNK, 1);
    answer(&mut rig, request, Answer::Done);
    let noting = until_held(&mut rig);
    rig.release(0, &choosing);
    rig.nodes[0].holds = |_| false;
    rig.release(0, &noting);
    rig.pass(1_000);
    let coverage = coverage(&rig, &account, 1).unwrap();
    let ends = coverage.stretches().iter().map(|s| (s.low.second < now - 8_000, s.messages));
    assert_eq!(ends.collect::<Vec<_>>(), [(true, 5), (false, 1)]);
}

#[test]
fn what_a_chunk_brought_is_noted_although_a_run_ends_meanwhile() {
    let (mut rig, account) = connected();
    rig.nodes[0].holds = |request| writes(request, "/leases/autoBackfill");
    rig.command(0, Command::Backfill(account.clone()));
    let start = until_held(&mut rig);
    rig.release(0, &start);
    let end = until_held(&mut rig);
    rig.nodes[0].holds = |_| false;
    rig.tell(0, &account, GatewayEvent::Chunk { chunk: CHUNK, spooled: true });
    let request = expect(&rig, "parse 7 from 0");
    progress(&mut rig, &account, CHUNK, 1);
    answer(&mut rig, request, Answer::Done);
    rig.release(0, &end);
    rig.pass(10);
    expect(&rig, "unspool 7");
    assert!(coverage(&rig, &account, 1).is_some());
}

#[test]
fn a_run_goes_on_when_a_chunk_is_done() {
    let (mut rig, account) = connected();
    let now = rig.time().as_secs();
    put_thread(&mut rig, &account, &thread(&account, 1), now - 100);
    let anchors = |rig: &Rig| {
        rig.nodes[0].called(|call| match call {
            GatewayCall::History { anchor, .. } => Some(anchor.second),
            _ => None,
        })
    };
    rig.command(0, Command::Backfill(account.clone()));
    rig.until(1_000, |rig| anchors(rig).len() == 1);
    let request = until_noted(&mut rig, &account, &[1]);
    answer(&mut rig, request, Answer::Done);
    let page = PageFacts {
        thread: thread(&account, 1),
        oldest: Some(mark(now - 200)),
        messages: 3,
        end: PageEnd::MoreRemains,
    };
    let (_, request, _) = anchors(&rig)[0];
    rig.tell(0, &account, GatewayEvent::Page { request, page });
    rig.until(60_000, |rig| anchors(rig).len() == 2);
    assert_eq!(anchors(&rig)[1].2, now - 200);
}

#[test]
fn a_backfill_follows_a_chunk_that_brought_something() {
    for (threads, follows) in [(&[1][..], 1), (&[], 0)] {
        let (mut rig, account) = connected();
        rig.until(60_000, |rig| backfills(rig) == 1);
        let request = until_noted(&mut rig, &account, threads);
        answer(&mut rig, request, Answer::Done);
        rig.pass(11 * 60_000);
        assert_eq!(backfills(&rig), 1 + follows);
        let refused = |(_, event): &&(u64, Event)| matches!(event, Event::Skipped { .. });
        let tried = backfills(&rig) + rig.nodes[0].events.iter().filter(refused).count();
        assert!(follows > 0 || tried == 1, "nobody wanted one");
    }
}

#[test]
fn nothing_is_asked_of_the_spool_before_the_account_is_loaded() {
    let (mut rig, account) = loading();
    let load = until_held(&mut rig);
    let chunk = GatewayEvent::Chunk { chunk: CHUNK, spooled: false };
    rig.tell(0, &account, chunk.clone());
    assert_eq!(asked(&rig), []);
    rig.nodes[0].holds = |_| false;
    rig.release(0, &load);
    // It is asked what has arrived.
    rig.tell(0, &account, chunk);
    assert_eq!(asked(&rig)[0].1, "spool 7");
}

#[test]
fn who_stops_makes_durable_what_arrived_and_parses_no_more() {
    let (mut rig, account) = connected();
    rig.tell(0, &account, GatewayEvent::Chunk { chunk: CHUNK, spooled: false });
    let request = expect(&rig, "spool 7");
    rig.command(0, Command::Stop);
    rig.pass(500);
    assert!(!rig.nodes[0].stopped, "it is in memory only");
    answer(&mut rig, request, Answer::Done);
    rig.pass(500);
    assert!(rig.nodes[0].stopped);
    assert_eq!(asked(&rig).len(), 1, "the next owner parses it");
}

#[test]
fn who_stops_does_not_try_again_to_make_durable_what_arrived() {
    let (mut rig, account) = connected();
    rig.tell(0, &account, GatewayEvent::Chunk { chunk: CHUNK, spooled: false });
    let request = expect(&rig, "spool 7");
    rig.command(0, Command::Stop);
    answer(&mut rig, request, Answer::Unknown);
    rig.pass(500);
    assert!(rig.nodes[0].stopped, "the next owner is told that it is missing");
    assert_eq!(asked(&rig).len(), 1);
}
