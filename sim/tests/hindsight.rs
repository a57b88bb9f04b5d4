//! What real processes are judged by finds what is wrong with them, and only that.

use std::collections::BTreeSet;
use std::fs::File;
use std::time::Duration;

use backfill_core::doc::{Precondition, Value, Write};
use backfill_core::id::{AccountId, InstanceId};
use backfill_core::instance::Instance;
use backfill_core::io::{Answer, CloseReason, GatewayCall, GatewayEvent, Input, Output, StoreCall};
use backfill_core::policy::{Credentials, Policy, Settings};
use backfill_core::time::{Mono, StoreTime};
use backfill_driver::Observer;
use backfill_driver::port::StoreError;
use backfill_driver::recording::{Recorder, Recording, RecordingError, Told, digest};
use sim::hindsight::judge;
use sim::store::SimStore;

#[test]
fn instances_that_share_a_store_are_innocent() {
    let recordings = live(&[&["one", "two"]]);
    let judgement = judge(&recordings);
    assert_eq!(judgement.violations, []);
    assert!(judgement.commits > 10, "{judgement:?}");
}

#[test]
fn two_that_hold_the_same_are_found() {
    // Each held the lock and the account in a store of its own. As if that had been one store, both
    // held them at once.
    let recordings = live(&[&["one"], &["two"]]);
    assert_eq!(judge(&recordings[..1]).violations, []);
    let found: BTreeSet<_> = judge(&recordings).violations.iter().map(|v| v.check).collect();
    assert!(found.contains("S1") && found.contains("S2") && found.contains("S4"), "{found:?}");
}

#[test]
fn who_does_not_do_what_its_core_does_is_found() {
    let mut recordings = live(&[&["one"]]);
    let last = recordings[0].told.len() - 1;
    recordings[0].told[last].did ^= 1;
    let violations = judge(&recordings).violations;
    assert_eq!(violations.iter().map(|v| v.check).collect::<Vec<_>>(), ["S10"]);
    // An answer that it was never given.
    recordings[0].told[last].did ^= 1;
    let answer = |told: &Told| matches!(told.input, Input::Answer(_, Answer::Committed { .. }));
    let first = recordings[0].told.iter().position(answer).unwrap();
    recordings[0].told.remove(first);
    let violations = judge(&recordings).violations;
    assert!(violations.iter().any(|v| v.check == "S10"), "{violations:?}");
}

#[test]
fn a_recording_is_read_as_it_was_written() {
    let recording = live(&[&["one"]]).remove(0);
    let path = std::env::temp_dir().join(format!("wa-recording-{}", std::process::id()));
    let mut recorder = Recorder::new(File::create(&path).unwrap());
    recorder.begins(recording.begun, &recording.policy, &recording.seed);
    let mut core = Instance::new(recording.policy.clone(), recording.seed, recording.begun);
    for told in &recording.told {
        recorder.input(told.now, &told.input);
        core.handle_input(told.now, told.input.clone());
        let outputs: Vec<Output> = std::iter::from_fn(|| core.poll_output()).collect();
        recorder.settled(told.now, &core, &outputs);
    }
    let mut text = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    // The process died in the middle of a line.
    text.extend_from_slice(b"{\"now\":12");
    let read = Recording::read(text.as_slice()).unwrap();
    assert_eq!(read.told, recording.told);
    assert_eq!((read.seed, read.begun), (recording.seed, recording.begun));
    assert_eq!(read.policy, recording.policy);
    assert!(matches!(Recording::read(&b""[..]), Err(RecordingError::Empty)));
    assert!(matches!(Recording::read(&b"{}\n"[..]), Err(RecordingError::Line { line: 1, .. })));
}

/// Recordings of instances that lived for two minutes, each group on a store of its own, where
/// everything goes well.
fn live(groups: &[&[&str]]) -> Vec<Recording> {
    groups.iter().flat_map(|names| live_together(names)).collect()
}

fn live_together(names: &[&str]) -> Vec<Recording> {
    let mut store = SimStore::new();
    let account = AccountId::parse("account_prod_0123456789abcdef0123456789abcdef").unwrap();
    let fields = vec![("status".into(), Value::from("disconnected").into())];
    store.commit(at(BEGIN), &[Write::merge(account.path(), Precondition::Absent, fields)]).unwrap();
    let mut lives: Vec<Life> = names.iter().map(|name| Life::new(name)).collect();
    for now in BEGIN..BEGIN + 120_000 {
        for life in &mut lives {
            let due = life.core.poll_timeout().is_some_and(|(at, _)| at.as_millis() <= now);
            if due || now == BEGIN {
                life.tell(now, Input::Timeout);
            }
            // What was asked a moment ago is answered now.
            for output in std::mem::take(&mut life.asked) {
                life.answer(now, output, &mut store);
            }
        }
    }
    lives.into_iter().map(|life| life.recording).collect()
}

struct Life {
    core: Instance,
    recording: Recording,
    asked: Vec<Output>,
}

impl Life {
    fn new(name: &str) -> Self {
        let settings = Settings {
            credentials: Credentials::Shared,
            ..Settings::exclusive(InstanceId::parse(name).unwrap())
        };
        let policy = Policy::new(settings).unwrap();
        let mut seed = [0; 32];
        seed[..name.len()].copy_from_slice(name.as_bytes());
        let begun = Mono::from_millis(BEGIN);
        let core = Instance::new(policy.clone(), seed, begun);
        let recording = Recording { policy, seed, begun, told: Vec::new() };
        Self { core, recording, asked: Vec::new() }
    }

    fn tell(&mut self, now: u64, input: Input) {
        let now = Mono::from_millis(now);
        self.core.handle_input(now, input.clone());
        let outputs: Vec<Output> = std::iter::from_fn(|| self.core.poll_output()).collect();
        self.recording.told.push(Told { now, input, did: digest(&outputs) });
        self.asked.extend(outputs);
    }

    fn answer(&mut self, now: u64, output: Output, store: &mut SimStore) {
        match output {
            Output::Store(request) => {
                let answer = match &request.call {
                    StoreCall::Commit(writes) => match store.commit(at(now), writes) {
                        Ok(done) => Answer::Committed {
                            commit_time: done.commit_time,
                            versions: done.versions,
                        },
                        Err(StoreError::Conflict(_)) => Answer::Conflict,
                        Err(error) => panic!("{error}"),
                    },
                    StoreCall::Get(paths) => {
                        let read = store.get(at(now), paths);
                        Answer::Read { read_time: read.read_time, docs: read.docs }
                    }
                    StoreCall::Query(query) => {
                        let found = store.query(at(now), query).unwrap();
                        Answer::Found { read_time: found.read_time, docs: found.docs }
                    }
                };
                self.tell(now, Input::Answer(request.id, answer));
            }
            Output::Gateway(request) => {
                let event = match request.call {
                    GatewayCall::Connect => Some(GatewayEvent::Opened { connection: request.id }),
                    GatewayCall::Close { connection } => {
                        Some(GatewayEvent::Closed { connection, reason: CloseReason::Asked })
                    }
                    _ => None,
                };
                self.tell(now, Input::Answer(request.id, Answer::Done));
                if let Some(event) = event {
                    self.tell(now, Input::Gateway(request.account, event));
                }
            }
            Output::Event(_) | Output::Reply(..) | Output::Stopped => {}
        }
    }
}

/// The store's time when the processes' clock shows this many milliseconds.
fn at(ms: u64) -> StoreTime {
    StoreTime::from_secs(1_700_000_000) + Duration::from_millis(ms)
}

const BEGIN: u64 = 5_000;
