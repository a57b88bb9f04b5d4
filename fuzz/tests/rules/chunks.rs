//! The way of a history chunk: made durable, parsed, noted, forgotten.

use backfill_core::coverage::{Coverage, Goal, PageEnd};
use backfill_core::doc::{DocPath, Value};
use backfill_core::id::{AccountId, RequestId};
use backfill_core::io::{
    Answer, ChunkCounts, ChunkId, Command, Event, GatewayCall, GatewayEvent, Ingested, Input,
    Rejection, Source, ThreadSpan,
};

use super::holes::{mark, thread};
use super::rig::Rig;

const CHUNK: ChunkId = ChunkId(7);

/// A connected account; what the spool is asked waits for the test.
fn connected() -> (Rig, AccountId) {
    let mut rig = Rig::exclusive();
    let account = rig.add_account(1, "disconnected");
    // Its earlier owner left nothing open.
    rig.write(&account.sync_path(), &[("surveyed", Value::Int(0))]);
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
    let now = rig.time().as_secs();
    let span = ThreadSpan {
        thread: thread(account, 1),
        twin: None,
        low: mark(now - 9_000),
        high: mark(now - 8_000),
        messages: 5,
        end: PageEnd::MoreRemains,
    };
    let source = Source::Chunk { chunk, cursor };
    let ingested =
        Ingested { source, messages: 5, threads: vec![span], newest_second: now - 8_000 };
    rig.give(0, Input::Ingested(account.clone(), ingested));
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

    let path = DocPath::new(&account.coverage(), thread(&account, 1).as_str()).unwrap();
    let (coverage, _) = Coverage::parse(&rig.doc(&path).unwrap().fields);
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
    for _ in 0..2 {
        rig.tell(0, &account, GatewayEvent::ChunkMissing { chunk: CHUNK });
    }
    rig.pass(10);
    let sync = rig.doc(&account.sync_path()).unwrap();
    assert_eq!(sync.value("gaps").and_then(Value::as_array).map(<[Value]>::len), Some(1));
    let request = expect(&rig, "unspool 7");
    answer(&mut rig, request, Answer::Done);
    assert_eq!(asked(&rig).len(), 1);
    let incident =
        |event: &Event| matches!(event, Event::Incident { kind: "history_chunk_missing", .. });
    assert_eq!(rig.nodes[0].events.iter().filter(|(_, event)| incident(event)).count(), 1);
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
