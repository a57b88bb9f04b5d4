//! Where there is more than one page of something, nothing beyond the first is overlooked.

use std::time::Duration;

use backfill_core::coverage::{Coverage, Gap, Mark};
use backfill_core::doc::{CollectionPath, DocPath, Value};
use backfill_core::id::{AccountId, OutboxId, ThreadId};
use backfill_core::io::GatewayCall;
use backfill_core::time::StoreTime;

use super::rig::Rig;

const DAY: u64 = 24 * 3_600_000;

fn queue(rig: &mut Rig, id: &str, account: &AccountId, due: StoreTime) -> DocPath {
    let path = OutboxId::parse(id).unwrap().path();
    let thread = ThreadId::of_chat(account, "40700000000@s.whatsapp.net").unwrap();
    rig.write(
        &path,
        &[
            ("status", "queued".into()),
            ("attemptCount", Value::Int(0)),
            ("nextAttemptAt", Value::from(due)),
            ("accountId", Value::from(account.text())),
            ("threadId", Value::from(thread.text())),
        ],
    );
    path
}

#[test]
fn a_message_is_sent_however_many_wait_before_it_for_an_account_that_is_not_connected() {
    let mut rig = Rig::exclusive();
    let stuck = rig.add_account(1, "logged_out");
    let account = rig.add_account(2, "disconnected");
    let now = rig.time();
    for number in 0..1_500 {
        queue(&mut rig, &format!("{number:064x}"), &stuck, now);
    }
    rig.until(60_000, |rig| rig.status(&account) == Some("connected"));
    let due = rig.time() + Duration::from_secs(1);
    let path = queue(&mut rig, &"f".repeat(64), &account, due);
    rig.until(120_000, |rig| rig.doc(&path).unwrap().str("status") == Some("sent"));
}

#[test]
fn all_that_an_earlier_owner_claimed_is_sent_again() {
    let mut rig = Rig::exclusive();
    let account = rig.add_account(1, "disconnected");
    let now = rig.time();
    for number in 0..250 {
        let path = queue(&mut rig, &format!("{number:064x}"), &account, now);
        rig.write(&path, &[("status", "processing".into()), ("connectionEpoch", Value::Int(1))]);
    }
    rig.until(60_000, |rig| rig.status(&account) == Some("connected"));
    rig.pass(60_000);
    let calls = rig.nodes[0].calls.iter();
    let sends = calls.filter(|(_, call)| matches!(call.call, GatewayCall::Send { .. })).count();
    assert_eq!(sends, 250);
}

#[test]
fn every_thread_that_an_earlier_owner_left_open_is_read() {
    let mut rig = Rig::exclusive();
    let now = rig.time().as_secs();
    let account = rig.add_account(1, "disconnected");
    rig.write(&account.sync_path(), &[("gapSeq", Value::Int(1)), ("surveyed", Value::Int(1))]);
    let mark = |second| Mark { id: Some(format!("m{second}").into()), ..Mark::bound(second) };
    let mut coverage = Coverage::starting_at(&mark(now - 9_000), 0);
    coverage.suspect(Gap { seq: 1, from: now - 8_000, to: now - 7_000 }, None);
    coverage.newer(&mark(now - 6_000));
    for number in 0..450 {
        let thread = ThreadId::of_chat(&account, &format!("{number:03}@s.whatsapp.net")).unwrap();
        let path = DocPath::new(&account.coverage(), thread.as_str()).unwrap();
        rig.put(&path, coverage.to_fields(1));
    }
    rig.until(60_000, |rig| rig.status(&account) == Some("connected"));
    rig.pass(10_000);
    // Two full pages, and the rest.
    assert_eq!(rig.nodes[0].queries(account.coverage().as_str()).len(), 3);
}

#[test]
fn dead_sessions_that_are_named_do_not_keep_others_from_being_forgotten() {
    let mut rig = Rig::exclusive();
    // The first page of the dead is named by accounts that will not be connected again.
    let dead = |number: u32| {
        let instances = CollectionPath::root("instances");
        DocPath::new(&instances, &format!("{number:020x}")).unwrap()
    };
    for number in 0..21_u16 {
        let account = rig.add_account(number, "logged_out");
        let named = format!("{number:020x}");
        rig.write(&account.sync_path(), &[("connectedBoot", Value::from(named))]);
    }
    for number in 0..22 {
        let fields = [("live", Value::from(false)), ("state", Value::from("dead"))];
        rig.write(&dead(number), &fields);
    }
    rig.until(2 * DAY, |rig| rig.doc(&dead(21)).is_none());
    assert!((0..21).all(|number| rig.doc(&dead(number)).is_some()), "they are named");
}
