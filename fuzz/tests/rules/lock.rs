//! Who holds the lock, and what other software is shown of it.

use backfill_core::doc::{DocPath, Value, Write, WriteOp};
use backfill_core::io::{
    CloseReason, Event, GatewayEvent, Hint, Input, Mode, PassiveReason, StoreCall,
};
use backfill_core::policy::{Credentials, Settings};
use backfill_core::time::StoreTime;

use super::rig::{Rig, label};
use super::sharing::unreachable;

const MINUTE: u64 = 60_000;

fn path(text: &str) -> DocPath {
    DocPath::parse(text).unwrap()
}

fn lock() -> DocPath {
    path("coordination/lock")
}

/// The lock that other software looks at.
fn compat() -> DocPath {
    path("wa_metrics/longrun/locks/wa_connection")
}

fn shared() -> Rig {
    let credentials = Credentials::Shared;
    Rig::new([Settings { credentials, ..Settings::shared(label(0), "c") }])
}

/// Other software takes the lock that it knows, for 200 seconds.
fn take_by_other_software(rig: &mut Rig) {
    let until = rig.time().as_millis() + 200_000;
    let fields = [("holderInstanceId", "other".into()), ("leaseUntil", Value::Int(until))];
    rig.write(&compat(), &fields);
}

/// Writes of the compat lock that were asked for.
fn shown(rig: &Rig) -> usize {
    let writes = |write: &&Write| write.path == compat() && matches!(write.op, WriteOp::Merge(_));
    let asked = rig.nodes[0].asked.iter();
    asked
        .filter(
            |request| matches!(&request.call, StoreCall::Commit(w) if w.iter().any(|w| writes(&w))),
        )
        .count()
}

fn foreign_at(rig: &Rig) -> Option<StoreTime> {
    rig.doc(&lock())?.time("foreignAt")
}

#[test]
fn that_other_software_had_the_lock_is_written_down_once() {
    let mut rig = Rig::exclusive();
    rig.until(MINUTE, |rig| rig.nodes[0].is_active());
    let taken = foreign_at(&rig);
    assert!(taken.is_some(), "whoever deleted it had it");
    rig.pass(10 * MINUTE);
    assert!(shown(&rig) > 15);
    assert_eq!(foreign_at(&rig), taken);
}

#[test]
fn who_finds_other_software_in_the_lock_that_it_renews_gives_way() {
    let mut rig = Rig::exclusive();
    rig.until(MINUTE, |rig| rig.nodes[0].is_active());
    rig.pass(MINUTE);
    take_by_other_software(&mut rig);
    rig.pass(31_000);
    assert_eq!(rig.nodes[0].instance.mode(), Mode::Passive(PassiveReason::HeldByForeign));
    let incident = |event: &Event| matches!(event, Event::Incident { kind, .. } if *kind == "foreign_lock_holder");
    assert_eq!(rig.nodes[0].events.iter().filter(|(_, event)| incident(event)).count(), 1);
    assert_eq!(rig.doc(&compat()).unwrap().str("holderInstanceId"), Some("other"));
}

#[test]
fn who_finds_a_note_in_the_lock_that_it_renews_goes_on_renewing() {
    for mut rig in [Rig::exclusive(), shared()] {
        rig.until(MINUTE, |rig| rig.nodes[0].is_active());
        let boot = rig.nodes[0].instance.boot().clone();
        for _ in 0..10 {
            rig.write(&compat(), &[("note", "seen".into())]);
            rig.pass(MINUTE);
        }
        assert!(rig.nodes[0].is_active());
        assert_eq!(*rig.nodes[0].instance.boot(), boot);
        let left = rig.doc(&compat()).unwrap().count("leaseUntil").unwrap();
        assert!(left > rig.time().as_millis() as u64);
    }
}

#[test]
fn a_cluster_renews_the_lock_that_others_see_when_a_third_of_its_term_is_over() {
    let mut rig = shared();
    rig.until(MINUTE, |rig| rig.nodes[0].is_active());
    assert_eq!(shown(&rig), 1);
    rig.pass(29_000);
    assert_eq!(shown(&rig), 1);
    rig.pass(13_000);
    assert_eq!(shown(&rig), 2);
    // To the millisecond.
    for (left, renews) in [(60_001, 0), (60_000, 1)] {
        // A look comes 50 ms after the hint.
        let until = rig.time().as_millis() + 50 + left;
        rig.write(&compat(), &[("leaseUntil", Value::Int(until))]);
        let before = shown(&rig);
        rig.give(0, Input::Hint(Hint::Lock));
        rig.pass(50);
        assert_eq!(shown(&rig) - before, renews, "{left} ms");
    }
}

#[test]
fn who_renews_the_lock_of_a_cluster_that_was_gone_is_active_at_once() {
    let mut rig = shared();
    rig.write(&lock(), &[("owner", "shared:c".into()), ("epoch", Value::Int(3))]);
    rig.until(2_000, |rig| rig.nodes[0].is_active());
    assert_eq!(rig.doc(&lock()).unwrap().count("epoch"), Some(3));
}

#[test]
fn who_gave_up_the_lock_says_so_until_it_may_have_it_again() {
    let settings =
        |n| Settings { credentials: Credentials::Shared, ..Settings::exclusive(label(n)) };
    let mut rig = Rig::new([settings(0), settings(1)]);
    let account = rig.add_account(1, "disconnected");
    rig.until(MINUTE, |rig| rig.status(&account) == Some("connected"));
    let owner = rig.owner(&account).unwrap();
    rig.nodes[owner].opens = false;
    rig.nodes[owner].answers = unreachable;
    let (_, connection) = rig.nodes[owner].connects(&account)[0];
    let reason = CloseReason::Lost;
    rig.tell(owner, &account, GatewayEvent::Closed { connection, reason });
    let is = |rig: &Rig, reason| rig.nodes[owner].instance.mode() == Mode::Passive(reason);
    rig.until(10 * MINUTE, |rig| is(rig, PassiveReason::CutOff));
    let mut looks = 0;
    while is(&rig, PassiveReason::CutOff) {
        rig.pass(1_000);
        looks += 1;
    }
    assert!((150..=200).contains(&looks), "for two terms: {looks} s");
    assert!(is(&rig, PassiveReason::HeldByOther));
}
