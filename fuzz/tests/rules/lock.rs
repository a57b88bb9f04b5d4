//! Who holds the lock, and what other software is shown of it.

use backfill_core::doc::{DocPath, Value, Write, WriteOp};
use backfill_core::io::{
    Answer, CloseReason, Command, Event, GatewayEvent, Hint, Input, Mode, PassiveReason, Reply,
    StoreCall,
};
use backfill_core::policy::{Credentials, Settings};
use backfill_core::time::StoreTime;

use super::rig::{Rig, label};
use super::sharing::{incidents, unreachable};

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

/// Whoever wants the lock for itself.
fn alone(number: u8) -> Settings {
    Settings { credentials: Credentials::Shared, ..Settings::exclusive(label(number)) }
}

/// Whoever shares it.
fn in_cluster(number: u8) -> Settings {
    Settings { credentials: Credentials::Shared, ..Settings::shared(label(number), "c") }
}

fn shared() -> Rig {
    Rig::new([in_cluster(0)])
}

fn put_owner_of_the_lock(rig: &mut Rig) {
    let since = Value::from(rig.time());
    rig.write(
        &path("instances/zzz"),
        &[
            ("instanceId", "zzz".into()),
            ("since", since),
            ("state", "active".into()),
            ("live", true.into()),
            ("ttlMs", Value::Int(90_000)),
            ("mode", "exclusive".into()),
        ],
    );
    rig.write(&lock(), &[("owner", "zzz".into()), ("epoch", Value::Int(9))]);
}

/// Other software takes the lock that it knows, for 200 seconds.
fn take_by_other_software(rig: &mut Rig) {
    let until = rig.time().as_millis() + 200_000;
    let fields = [("holderInstanceId", "other".into()), ("leaseUntil", Value::Int(until))];
    rig.write(&compat(), &fields);
}

/// How often it was written that the lock is held, for other software to see.
fn shown(rig: &Rig) -> usize {
    let shows = |write: &Write| write.path == compat() && matches!(write.op, WriteOp::Merge(_));
    let asked = rig.nodes[0].asked.iter();
    asked
        .filter(|r| matches!(&r.call, StoreCall::Commit(writes) if writes.iter().any(shows)))
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
    assert_eq!(incidents(&rig, 0, "foreign_lock_holder"), 1);
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
    let mut rig = Rig::new([alone(0), alone(1)]);
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

#[test]
fn who_sees_the_lock_in_other_hands_closes_everything() {
    let mut rig = Rig::exclusive();
    rig.nodes[0].hinted = true;
    let account = rig.add_account(1, "disconnected");
    rig.until(MINUTE, |rig| rig.status(&account) == Some("connected"));
    let (_, connection) = rig.nodes[0].connects(&account)[0];
    put_owner_of_the_lock(&mut rig);
    rig.pass(30_000);
    assert_eq!(rig.nodes[0].instance.mode(), Mode::Passive(PassiveReason::HeldByOther));
    assert_eq!(rig.nodes[0].closings(connection).len(), 1);
    assert_eq!(rig.doc(&lock()).unwrap().str("owner"), Some("zzz"));
}

#[test]
fn a_foreign_holder_is_left_the_lock_and_given_it() {
    for before in [true, false] {
        let mut rig = Rig::exclusive();
        rig.nodes[0].hinted = true;
        let account = rig.add_account(1, "disconnected");
        if !before {
            rig.until(MINUTE, |rig| rig.status(&account) == Some("connected"));
        }
        take_by_other_software(&mut rig);
        rig.give(0, Input::Hint(Hint::Lock));
        rig.pass(3_000);
        assert!(!rig.nodes[0].is_active());
        rig.pass(MINUTE);
        assert_eq!(rig.nodes[0].instance.mode(), Mode::Passive(PassiveReason::HeldByForeign));
        assert_eq!(incidents(&rig, 0, "foreign_lock_holder"), usize::from(!before));
        assert_eq!(rig.doc(&compat()).unwrap().str("holderInstanceId"), Some("other"));
        assert_eq!(rig.nodes[0].connects(&account).len(), usize::from(!before));
        // When it is gone, it is taken again.
        rig.until(10 * MINUTE, |rig| rig.status(&account) == Some("connected"));
        assert!(rig.nodes[0].is_active());
    }
}

#[test]
fn of_two_with_one_name_the_later_waits_until_the_other_is_gone() {
    let mut rig = Rig::new([in_cluster(0), in_cluster(0)]);
    rig.nodes[1].holds = |_| true;
    let account = rig.add_account(1, "disconnected");
    rig.until(MINUTE, |rig| rig.nodes[0].is_active());
    rig.nodes[1].holds = |_| false;
    rig.pass(5 * MINUTE);
    let reason = Mode::Passive(PassiveReason::DuplicateInstanceId);
    assert_eq!(rig.nodes[1].instance.mode(), reason);
    assert_eq!(rig.owner(&account), Some(0));
    assert_eq!(rig.command(0, Command::Stop), Reply::Accepted);
    rig.until(2 * MINUTE, |rig| rig.owner(&account) == Some(1));
}

#[test]
fn who_wants_the_lock_alone_waits_for_those_who_share_it() {
    let mut rig = Rig::new([in_cluster(0), alone(1)]);
    // The second is held up until the first has begun.
    rig.nodes[1].holds = |_| true;
    let account = rig.add_account(1, "disconnected");
    rig.until(MINUTE, |rig| rig.nodes[0].is_active());
    rig.nodes[1].holds = |_| false;
    rig.pass(10 * MINUTE);
    assert_eq!(rig.nodes[1].instance.mode(), Mode::Passive(PassiveReason::HeldByOther));
    assert_eq!(rig.owner(&account), Some(0));
    assert_eq!(rig.command(0, Command::Stop), Reply::Accepted);
    rig.until(10 * MINUTE, |rig| rig.owner(&account) == Some(1));
    assert!(rig.nodes[1].is_active());
}

#[test]
fn the_owner_of_the_lock_looks_at_it_seldom_and_those_who_wait_often() {
    let mut rig = Rig::new([alone(0), alone(1)]);
    rig.until(MINUTE, |rig| rig.nodes.iter().any(|node| node.is_active()));
    let owner = rig.nodes.iter().position(|node| node.is_active()).unwrap();
    let looks = |rig: &Rig, node: usize| {
        let asked = rig.nodes[node].asked.iter();
        asked
            .filter(|r| matches!(&r.call, StoreCall::Get(paths) if paths.contains(&lock())))
            .count()
    };
    let before = [0, 1].map(|node| looks(&rig, node));
    rig.pass(60 * MINUTE);
    assert!((8..=14).contains(&(looks(&rig, owner) - before[owner])), "every six minutes");
    let others = looks(&rig, 1 - owner) - before[1 - owner];
    assert!((200..=300).contains(&others), "every 15 seconds: {others}");
}

#[test]
fn who_gives_up_the_lock_for_want_of_whatsapp_leaves_it_to_others() {
    let mut rig = Rig::new([alone(0), alone(1)]);
    let account = rig.add_account(1, "disconnected");
    rig.until(MINUTE, |rig| rig.status(&account) == Some("connected"));
    let owner = rig.owner(&account).unwrap();
    rig.nodes[owner].answers = unreachable;
    let (_, connection) = rig.nodes[owner].connects(&account)[0];
    let reason = CloseReason::Lost;
    rig.tell(owner, &account, GatewayEvent::Closed { connection, reason });
    rig.until(10 * MINUTE, |rig| rig.nodes[1 - owner].is_active());
    rig.pass(60 * MINUTE);
    assert!(rig.nodes[1 - owner].is_active() && !rig.nodes[owner].is_active());
    assert_eq!(rig.status(&account), Some("connected"));
}

#[test]
fn who_gave_up_the_lock_takes_it_again_where_nobody_else_wants_it() {
    let mut rig = Rig::exclusive();
    rig.nodes[0].answers = unreachable;
    let account = rig.add_account(1, "disconnected");
    let modes = |rig: &Rig, of: Mode| -> Vec<u64> {
        let events = rig.nodes[0].events.iter();
        events.filter(|(_, e)| *e == Event::Mode { mode: of }).map(|(at, _)| *at).collect()
    };
    for n in 0..4 {
        rig.until(15 * MINUTE, |rig| modes(rig, Mode::SteppingDown).len() > n);
        rig.pass(30_000);
        assert_eq!(rig.nodes[0].instance.mode(), Mode::Passive(PassiveReason::CutOff));
        rig.until(15 * MINUTE, |rig| modes(rig, Mode::Active).len() > n + 1);
        // However often that was before.
        let away = modes(&rig, Mode::Active)[n + 1] - modes(&rig, Mode::SteppingDown)[n];
        assert!((120_000..160_000).contains(&away), "{away} ms");
    }
    rig.nodes[0].answers = |_| Some(Answer::Done);
    rig.until(15 * MINUTE, |rig| rig.status(&account) == Some("connected"));
}

#[test]
fn who_stops_gives_back_the_lock_that_others_see() {
    let mut rig = Rig::exclusive();
    rig.until(MINUTE, |rig| rig.nodes[0].is_active());
    assert!(rig.doc(&compat()).unwrap().count("leaseUntil") > Some(0));
    rig.command(0, Command::Stop);
    rig.until(MINUTE, |rig| rig.nodes[0].stopped);
    assert_eq!(rig.doc(&compat()).unwrap().count("leaseUntil"), Some(0));
}
