//! What an instance makes of the sessions of others.

use backfill_core::doc::{DocPath, Value};
use backfill_core::io::{Answer, Hint, Input, Lane, Mode, PassiveReason, StoreCall, StoreRequest};

use super::rig::Rig;

const DAY: u64 = 24 * 3_600_000;

fn path(text: &str) -> DocPath {
    DocPath::parse(text).unwrap()
}

fn put_session(rig: &mut Rig, boot: &str, live: bool) {
    let since = Value::from(rig.time());
    rig.write(
        &path(&format!("instances/{boot}")),
        &[
            ("instanceId", boot.into()),
            ("since", since),
            ("state", if live { "active" } else { "dead" }.into()),
            ("live", live.into()),
            ("ttlMs", Value::Int(90_000)),
            ("mode", "exclusive".into()),
        ],
    );
}

#[test]
fn lease_decisions_do_not_wait_behind_work() {
    let mut rig = Rig::exclusive();
    rig.pass(60_000);
    let queries = rig.nodes[0].queries("instances");
    let live = |request: &StoreRequest| {
        matches!(&request.call, StoreCall::Query(q)
            if q.filters.iter().any(|f| f.value == Value::Bool(true)))
    };
    let looks: Vec<Lane> =
        queries.into_iter().filter(|(_, request)| live(request)).map(|(lane, _)| lane).collect();
    assert!(!looks.is_empty());
    assert!(looks.iter().all(|lane| *lane == Lane::Lease), "{looks:?}");
}

#[test]
fn the_owner_of_the_lock_is_found_among_ten_thousand_sessions() {
    let mut rig = Rig::exclusive();
    for n in 0..10_000 {
        put_session(&mut rig, &format!("boot{n:06}"), true);
    }
    put_session(&mut rig, "zzz", true);
    rig.write(&path("coordination/lock"), &[("owner", "zzz".into()), ("epoch", Value::Int(7))]);
    rig.pass(60_000);
    assert_eq!(rig.nodes[0].instance.mode(), Mode::Passive(PassiveReason::HeldByOther));
    assert_eq!(rig.doc(&path("coordination/lock")).unwrap().str("owner"), Some("zzz"));
}

#[test]
fn a_look_at_the_sessions_is_never_older_than_the_look_at_the_lock() {
    let mut rig = Rig::exclusive();
    // The first answer about sessions takes its time, and another look at the lock overtakes it.
    rig.nodes[0].holds = |request| matches!(&request.call, StoreCall::Query(q) if q.collection.as_str() == "instances");
    rig.pass(10);
    let old = rig.nodes[0].held.remove(0);
    let StoreCall::Query(query) = &old.call else { panic!("a query") };
    let found = rig.store.query(rig.time(), query).unwrap();
    put_session(&mut rig, "zzz", true);
    rig.write(&path("coordination/lock"), &[("owner", "zzz".into()), ("epoch", Value::Int(7))]);
    rig.give(0, Input::Hint(Hint::Lock));
    rig.pass(100);
    let answer = Answer::Found { read_time: found.read_time, docs: found.docs };
    rig.give(0, Input::Answer(old.id, answer));
    rig.nodes[0].holds = |_| false;
    rig.pass(60_000);
    assert_eq!(rig.nodes[0].instance.mode(), Mode::Passive(PassiveReason::HeldByOther));
    assert_eq!(rig.doc(&path("coordination/lock")).unwrap().str("owner"), Some("zzz"));
}

#[test]
fn a_dead_mark_leads_to_nothing_while_only_the_lock_has_been_looked_at() {
    let mut rig = Rig::exclusive();
    put_session(&mut rig, "old", true);
    rig.write(&path("coordination/lock"), &[("owner", "old".into()), ("epoch", Value::Int(7))]);
    // It is never renewed, and is about to be marked.
    rig.nodes[0].holds = |request| {
        matches!(&request.call, StoreCall::Commit(writes)
            if writes.iter().any(|w| w.path.as_str() == "instances/old"))
    };
    rig.until(200_000, |rig| !rig.nodes[0].held.is_empty());
    let mark = rig.nodes[0].held.remove(0);
    // Meanwhile somebody else has taken the lock, and only that is known yet.
    put_session(&mut rig, "zzz", true);
    rig.write(&path("coordination/lock"), &[("owner", "zzz".into()), ("epoch", Value::Int(8))]);
    rig.nodes[0].holds = |request| matches!(&request.call, StoreCall::Query(q) if q.collection.as_str() == "instances");
    rig.give(0, Input::Hint(Hint::Lock));
    rig.pass(100);
    assert!(!rig.nodes[0].held.is_empty());
    rig.nodes[0].holds = |_| false;
    rig.release(0, &mark);
    assert_eq!(rig.doc(&path("coordination/lock")).unwrap().str("owner"), Some("zzz"));
    rig.pass(60_000);
    assert_eq!(rig.nodes[0].instance.mode(), Mode::Passive(PassiveReason::HeldByOther));
}

#[test]
fn only_sessions_that_nothing_names_are_forgotten() {
    let mut rig = Rig::exclusive();
    for boot in ["marked", "owning", "owningdeleted", "unnamed"] {
        put_session(&mut rig, boot, false);
    }
    let held = rig.add_account(1, "needs_qr");
    let gone = rig.add_account(2, "deleted");
    rig.write(&gone.connection_path(), &[("owner", "owningdeleted".into())]);
    // Nobody takes this one: it was deleted while a crash had left the marker.
    let marked = rig.add_account(3, "deleted");
    rig.write(&marked.sync_path(), &[("connectedBoot", "marked".into())]);
    rig.write(&marked.connection_path(), &[("owner", "other".into())]);
    let elsewhere = rig.add_account(4, "disconnected");
    rig.write(&elsewhere.connection_path(), &[("owner", "owning".into())]);
    rig.pass(DAY + 2 * 3_600_000);
    assert_eq!(rig.owner(&held), Some(0));
    let exists = |boot: &str| rig.doc(&path(&format!("instances/{boot}"))).is_some();
    assert!(!exists("unnamed"));
    assert!(exists("marked"), "a marker says until when it was alive");
    assert!(exists("owningdeleted"), "an account that nobody serves names it");
    assert!(!exists("owning"), "its account has had another owner for a day");
}
