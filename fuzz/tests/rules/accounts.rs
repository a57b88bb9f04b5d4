//! Which accounts an instance finds, takes, moves and lets go.

use backfill_core::doc::{Value, WriteOp};
use backfill_core::id::AccountId;
use backfill_core::io::{
    Answer, CloseReason, Command, Event, GatewayCall, GatewayEvent, Hint, Input, Key, Reply,
    StoreCall,
};
use backfill_core::policy::{Credentials, Settings};

use super::rig::{Rig, label};

#[test]
fn a_new_account_is_connected_and_paired() {
    let mut rig = Rig::exclusive();
    rig.nodes[0].opens = false;
    rig.pass(60_000);
    let account = rig.add_account(1, "connecting");
    rig.give(0, Input::Credentials(account.clone(), true));
    rig.give(0, Input::Hint(Hint::Accounts));
    rig.until(2_000, |rig| !rig.nodes[0].connects(&account).is_empty());

    let [(_, connection)] = rig.nodes[0].connects(&account)[..] else { panic!("one connection") };
    let shown = |rig: &Rig| {
        let doc = rig.doc(&account.path()).unwrap();
        (doc.str("status").unwrap_or_default().to_owned(), doc.value("qrCode").cloned())
    };
    let pairing = |qr: &str| GatewayEvent::Pairing { connection, qr: Some(qr.into()), code: None };
    rig.tell(0, &account, pairing("first"));
    rig.pass(1_000);
    assert_eq!(shown(&rig), ("qr_ready".into(), Some("first".into())));
    let reply = rig.command(0, Command::RegenerateQr(account.clone()));
    assert_eq!(reply, Reply::AlreadyInProgress);
    rig.tell(0, &account, pairing("second"));
    rig.pass(20_000);
    assert_eq!(shown(&rig), ("qr_ready".into(), Some("second".into())));
    rig.tell(0, &account, GatewayEvent::Paired { connection });
    rig.pass(500);
    assert_eq!(shown(&rig).1, Some(Value::Null));
    rig.tell(0, &account, GatewayEvent::Opened { connection });
    rig.tell(0, &account, GatewayEvent::Drained { connection, announced: 0, stored: 0 });
    rig.pass(1_000);
    assert_eq!(shown(&rig), ("connected".into(), Some(Value::Null)));
    assert_eq!(rig.nodes[0].connects(&account).len(), 1);
}

#[test]
fn an_account_that_is_linked_late_soon_shows_that_there_is_nothing_to_sync() {
    let mut rig = Rig::exclusive();
    rig.nodes[0].opens = false;
    let account = rig.add_account(1, "connecting");
    rig.pass(5 * 60_000);
    let [(_, connection)] = rig.nodes[0].connects(&account)[..] else { panic!("one connection") };
    rig.tell(0, &account, GatewayEvent::Paired { connection });
    rig.tell(0, &account, GatewayEvent::Opened { connection });
    rig.tell(0, &account, GatewayEvent::Drained { connection, announced: 0, stored: 0 });
    let stamped = |rig: &Rig| rig.doc(&account.path()).and_then(|d| d.time("lastRecentSyncAt"));
    rig.until(2 * 120_000, |rig| stamped(rig).is_some());
    let first = stamped(&rig);
    rig.pass(14 * 60_000);
    assert_eq!(stamped(&rig), first, "and then every 15 minutes");
    rig.until(2 * 60_000, |rig| stamped(rig) != first);
}

#[test]
fn nobody_scans_and_the_next_code_is_for_the_asking() {
    let mut rig = Rig::exclusive();
    rig.nodes[0].opens = false;
    let account = rig.add_account(1, "connecting");
    rig.pass(60_000);
    let [(_, connection)] = rig.nodes[0].connects(&account)[..] else { panic!("one connection") };
    let qr = GatewayEvent::Pairing { connection, qr: Some("q".into()), code: Some("c".into()) };
    rig.tell(0, &account, qr);
    rig.pass(160_000);
    let reason = CloseReason::PairingExpired;
    rig.tell(0, &account, GatewayEvent::Closed { connection, reason });
    rig.pass(600_000);
    let doc = rig.doc(&account.path()).unwrap();
    assert_eq!(doc.str("status"), Some("needs_qr"));
    assert_eq!(doc.value("qrCode"), Some(&Value::Null));
    assert_eq!(doc.value("pairingCode"), Some(&Value::Null));
    assert_eq!(rig.nodes[0].connects(&account).len(), 1, "not before somebody asks");

    assert_eq!(rig.command(0, Command::RegenerateQr(account.clone())), Reply::Accepted);
    rig.until(2_000, |rig| rig.nodes[0].connects(&account).len() == 2);
    let (_, second) = rig.nodes[0].connects(&account)[1];
    rig.tell(0, &account, GatewayEvent::Paired { connection: second });
    rig.tell(0, &account, GatewayEvent::Opened { connection: second });
    rig.pass(1_000);
    assert_eq!(rig.status(&account), Some("connected"));
}

#[test]
fn asking_for_a_code_does_not_wait_for_the_next_reconnect() {
    let mut rig = Rig::exclusive();
    rig.nodes[0].opens = false;
    let account = rig.add_account(1, "connecting");
    rig.pass(60_000);
    // WhatsApp cannot be reached: the waits grow to minutes.
    for _ in 0..12 {
        let connects = rig.nodes[0].connects(&account);
        let (_, connection) = *connects.last().unwrap();
        let reason = CloseReason::Lost;
        rig.tell(0, &account, GatewayEvent::Closed { connection, reason });
        rig.until(400_000, |rig| rig.nodes[0].connects(&account).len() > connects.len());
    }
    let connects = rig.nodes[0].connects(&account);
    let (_, connection) = *connects.last().unwrap();
    rig.tell(0, &account, GatewayEvent::Closed { connection, reason: CloseReason::Lost });
    rig.pass(3_000);
    assert_eq!(rig.nodes[0].connects(&account).len(), connects.len());
    assert_eq!(rig.command(0, Command::RegenerateQr(account.clone())), Reply::Accepted);
    rig.until(2_000, |rig| rig.nodes[0].connects(&account).len() > connects.len());
}

#[test]
fn credentials_that_appear_here_are_looked_at_at_once() {
    let local = Settings { credentials: Credentials::Local, ..Settings::exclusive(label(0)) };
    let mut rig = Rig::new([local]);
    let account = rig.add_account(1, "disconnected");
    rig.pass(120_000);
    assert_eq!(rig.owner(&account), None, "its credentials lie elsewhere");
    rig.give(0, Input::Credentials(account.clone(), true));
    rig.until(2_000, |rig| !rig.nodes[0].connects(&account).is_empty());
}

#[test]
fn an_account_that_vanished_before_it_was_loaded_is_left_alone() {
    let mut rig = Rig::exclusive();
    rig.pass(60_000);
    let account = rig.add_account(1, "disconnected");
    let loads = |request: &backfill_core::io::StoreRequest| {
        matches!(&request.call, StoreCall::Get(paths)
            if paths.first().is_some_and(|path| path.as_str() == "accounts/account_dev_00000001"))
    };
    rig.nodes[0].holds = loads;
    rig.give(0, Input::Hint(Hint::Accounts));
    rig.until(2_000, |rig| !rig.nodes[0].held.is_empty());
    rig.delete(&account.path());
    rig.nodes[0].holds = |_| false;
    let request = rig.nodes[0].held.remove(0);
    rig.release(0, &request);
    rig.pass(1_000);
    assert_eq!(rig.nodes[0].instance.account_ids().count(), 0);
    rig.pass(1_300_000);
    assert_eq!(rig.nodes[0].connects(&account), []);
    assert_eq!(rig.doc(&account.path()), None, "nobody brings it back");
    assert_eq!(rig.owner(&account), None);
    assert_eq!(taken(&rig, 0, &account), 1, "it is not taken again and again");

    // Somebody adds it anew.
    rig.add_account(1, "connecting");
    rig.give(0, Input::Hint(Hint::Accounts));
    rig.until(2_000, |rig| !rig.nodes[0].connects(&account).is_empty());
}

#[test]
fn an_account_that_moves_is_taken_at_once_and_stays_there() {
    let shared =
        |n| Settings { credentials: Credentials::Shared, ..Settings::shared(label(n), "c") };
    let mut rig = Rig::new([shared(0), shared(1)]);
    rig.nodes.iter_mut().for_each(|node| node.hinted = true);
    // The second starts later: it is held up at its first write.
    rig.nodes[1].holds = |_| true;
    let accounts: Vec<AccountId> = (0..4).map(|n| rig.add_account(n, "disconnected")).collect();
    rig.pass(120_000);
    assert!(accounts.iter().all(|account| rig.owner(account) == Some(0)));
    rig.nodes[1].holds = |_| false;
    rig.until(120_000, |rig| rig.nodes[1].is_active());

    let mut released = 0;
    for _ in 0..80 {
        rig.pass(60_000);
        let left = rig.nodes[0].events.iter().filter(|(_, e)| is_release(e)).count();
        if left > released {
            released = left;
        }
    }
    for node in [0, 1] {
        let owned = accounts.iter().filter(|account| rig.owner(account) == Some(node)).count();
        assert_eq!(owned, 2);
    }
    assert_eq!(released, 2, "each moves once");
    for account in accounts.iter().filter(|account| rig.owner(account) == Some(1)) {
        let touched = |path| {
            rig.nodes[0].asked.iter().filter(move |request| {
                matches!(&request.call, StoreCall::Commit(writes)
                    if writes.iter().any(|w| w.path == path && w.op != WriteOp::Verify))
            })
        };
        let last = touched(account.connection_path()).last().unwrap();
        assert!(touched(account.path()).any(|request| request.id == last.id), "others are told");
    }
    for account in &accounts {
        let moves = taken(&rig, 0, account) + taken(&rig, 1, account);
        assert!(moves <= 2, "{moves} moves");
        if rig.owner(account) == Some(1) {
            let at = |node: usize, is: fn(&Event) -> bool| {
                let found = rig.nodes[node].events.iter().find(|(_, e)| is(e) && about(e, account));
                found.unwrap().0
            };
            let away = at(1, is_taking) - at(0, is_release);
            assert!(away < 2_000, "unowned for {away} ms");
        }
    }
}

#[test]
fn what_came_back_because_nobody_took_it_is_not_sent_away_every_ten_minutes() {
    let settings = |n, credentials| Settings { credentials, ..Settings::shared(label(n), "c") };
    // The second counts as able, and has no credentials.
    let mut rig = Rig::new([settings(0, Credentials::Shared), settings(1, Credentials::Local)]);
    let accounts: Vec<AccountId> = (0..2).map(|n| rig.add_account(n, "disconnected")).collect();
    rig.pass(6 * 3_600_000);
    let moves: usize = accounts.iter().map(|account| taken(&rig, 0, account)).sum();
    assert!(accounts.iter().any(|account| rig.owner(account) == Some(0)));
    assert!(moves <= 2 + 8, "{moves} takings in six hours");
}

fn taken(rig: &Rig, node: usize, account: &AccountId) -> usize {
    let events = rig.nodes[node].events.iter();
    events.filter(|(_, event)| is_taking(event) && about(event, account)).count()
}

fn is_taking(event: &Event) -> bool {
    matches!(event, Event::LeaseTaken { key: Key::Account(_), .. })
}

fn is_release(event: &Event) -> bool {
    matches!(event, Event::LeaseReleased { key: Key::Account(_) })
}

fn about(event: &Event, account: &AccountId) -> bool {
    matches!(event, Event::LeaseTaken { key: Key::Account(id), .. }
        | Event::LeaseReleased { key: Key::Account(id) } if id == account)
}

#[test]
fn connections_open_one_after_the_other() {
    let mut rig = Rig::exclusive();
    let accounts: Vec<AccountId> = (0..8).map(|n| rig.add_account(n, "disconnected")).collect();
    rig.pass(60_000);
    let mut at: Vec<u64> =
        accounts.iter().flat_map(|account| rig.nodes[0].connects(account)).map(|c| c.0).collect();
    at.sort_unstable();
    assert_eq!(at.len(), 8);
    assert!(at.windows(2).all(|pair| pair[1] - pair[0] >= 500), "{at:?}");
}

#[test]
fn what_lies_in_the_spool_is_asked_for_until_the_gateway_answers() {
    let mut rig = Rig::exclusive();
    rig.nodes[0].answers = |call| match call {
        GatewayCall::Recover => Some(Answer::Unknown),
        _ => Some(Answer::Done),
    };
    rig.add_account(1, "disconnected");
    let asked = |rig: &Rig| {
        let calls = rig.nodes[0].called(|call| (*call == GatewayCall::Recover).then_some(()));
        calls.iter().map(|(at, ..)| *at).collect::<Vec<_>>()
    };
    rig.until(60_000, |rig| asked(rig).len() == 3);
    assert!(asked(&rig).windows(2).all(|pair| pair[1] - pair[0] >= 4_000));
    rig.nodes[0].answers = |_| Some(Answer::Done);
    rig.pass(600_000);
    assert_eq!(asked(&rig).len(), 4);
}
