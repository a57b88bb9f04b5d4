//! Who takes what where several instances share the accounts, and who leaves what to others.

use backfill_core::doc::{DocPath, FieldPath, Value};
use backfill_core::id::AccountId;
use backfill_core::io::{
    Answer, CloseReason, Command, Event, GatewayCall, GatewayEvent, Hint, Input, Key, Rejection,
    Reply, StoreCall, StoreRequest,
};
use backfill_core::policy::{Credentials, Settings};
use std::time::Duration;

use super::rig::{Rig, label};

const MINUTE: u64 = 60_000;

fn shared(number: u8, credentials: Credentials) -> Settings {
    Settings { credentials, ..Settings::shared(label(number), "c") }
}

/// Two instances that share the accounts, both active, with nothing to do yet.
fn two(credentials: Credentials) -> Rig {
    let mut rig = Rig::new([shared(0, credentials), shared(1, credentials)]);
    rig.nodes.iter_mut().for_each(|node| node.hinted = true);
    rig.until(MINUTE, |rig| rig.nodes.iter().all(|node| node.is_active()));
    rig.pass(15_000);
    rig
}

fn owned(rig: &Rig, accounts: &[AccountId], node: usize) -> usize {
    accounts.iter().filter(|account| rig.owner(account) == Some(node)).count()
}

fn taken(rig: &Rig, node: usize) -> Vec<u64> {
    when(rig, node, |event| matches!(event, Event::LeaseTaken { key: Key::Account(_), .. }))
}

fn released(rig: &Rig, node: usize) -> Vec<u64> {
    when(rig, node, |event| matches!(event, Event::LeaseReleased { key: Key::Account(_) }))
}

fn when(rig: &Rig, node: usize, is: fn(&Event) -> bool) -> Vec<u64> {
    let events = rig.nodes[node].events.iter();
    events.filter(|(_, event)| is(event)).map(|(at, _)| *at).collect()
}

pub(super) fn incidents(rig: &Rig, node: usize, of: &str) -> usize {
    let is = |event: &Event| matches!(event, Event::Incident { kind, .. } if *kind == of);
    rig.nodes[node].events.iter().filter(|(_, event)| is(event)).count()
}

/// WhatsApp is out of reach; everything else works.
pub(super) fn unreachable(call: &GatewayCall) -> Option<Answer> {
    match call {
        GatewayCall::Connect => Some(Answer::Rejected(Rejection::Unavailable)),
        _ => Some(Answer::Done),
    }
}

/// The commit that takes or gives back an account.
fn of_an_owner(request: &StoreRequest) -> bool {
    matches!(&request.call, StoreCall::Commit(writes)
        if writes.iter().any(|w| w.path.as_str().ends_with("leases/connection")))
}

#[test]
fn what_is_new_is_shared_at_once_and_nobody_takes_more_than_a_share() {
    let mut rig = two(Credentials::Shared);
    let accounts: Vec<_> = (0..5).map(|n| rig.add_account(n, "disconnected")).collect();
    rig.pass(MINUTE);
    let shares = [0, 1].map(|node| owned(&rig, &accounts, node));
    assert!(shares == [2, 3] || shares == [3, 2], "{shares:?}");
    rig.pass(30 * MINUTE);
    assert_eq!([0, 1].map(|node| released(&rig, node).len()), [0, 0], "there is nothing to move");
}

#[test]
fn what_can_be_served_only_here_is_taken_beyond_the_share_and_stays() {
    let mut rig = two(Credentials::Local);
    let accounts: Vec<_> = (0..4).map(|n| rig.add_account(n, "disconnected")).collect();
    for account in &accounts {
        rig.give(0, Input::Credentials(account.clone(), true));
    }
    rig.pass(MINUTE);
    assert_eq!(owned(&rig, &accounts, 0), 4);
    rig.pass(60 * MINUTE);
    assert_eq!((owned(&rig, &accounts, 0), released(&rig, 0).len()), (4, 0));
    assert_eq!(incidents(&rig, 1, "session_elsewhere"), 0, "they are served");
}

#[test]
fn that_credentials_lie_elsewhere_is_said_once() {
    let mut rig = Rig::new([shared(0, Credentials::Local)]);
    rig.add_account(1, "disconnected");
    rig.pass(60 * MINUTE);
    assert_eq!(incidents(&rig, 0, "session_elsewhere"), 1);
}

#[test]
fn only_instances_that_take_accounts_have_a_share() {
    let mut rig = Rig::new([shared(0, Credentials::Shared)]);
    rig.nodes[0].hinted = true;
    rig.until(MINUTE, |rig| rig.nodes[0].is_active());
    for (boot, state, healthy) in [("waits", "passive", true), ("unhealthy", "active", false)] {
        let since = Value::from(rig.time());
        let path = DocPath::parse(format!("instances/{boot}")).unwrap();
        rig.write(
            &path,
            &[
                ("instanceId", boot.into()),
                ("since", since),
                ("state", state.into()),
                ("live", true.into()),
                ("gatewayHealthy", healthy.into()),
                ("ttlMs", Value::Int(600_000)),
                ("mode", "shared:c".into()),
            ],
        );
    }
    rig.pass(15_000);
    let accounts: Vec<_> = (0..4).map(|n| rig.add_account(n, "disconnected")).collect();
    rig.pass(15_000);
    assert_eq!(owned(&rig, &accounts, 0), 4);
}

#[test]
fn who_gave_an_account_away_leaves_it_to_others_for_two_intervals() {
    // The second counts as able, and has no credentials.
    let first =
        Settings { unowned_bound: Duration::from_secs(3_600), ..shared(0, Credentials::Shared) };
    let mut rig = Rig::new([first, shared(1, Credentials::Local)]);
    rig.nodes[0].hinted = true;
    let accounts: Vec<_> = (0..2).map(|n| rig.add_account(n, "disconnected")).collect();
    rig.until(60 * MINUTE, |rig| !released(rig, 0).is_empty());
    assert!(released(&rig, 0)[0] - taken(&rig, 0)[0] >= 600_000, "none moves before its time");
    let takings = taken(&rig, 0).len();
    // From now on nobody else could take it.
    assert_eq!(rig.command(1, Command::Stop), Reply::Accepted);
    rig.until(10 * MINUTE, |rig| taken(rig, 0).len() > takings);
    let away = taken(&rig, 0)[takings] - released(&rig, 0)[0];
    assert!((120_000..140_000).contains(&away), "{away} ms");
    assert_eq!(owned(&rig, &accounts, 0), 2);
}

#[test]
fn two_intervals_are_over_to_the_millisecond() {
    for (away, again) in [(119_999, false), (120_000, true)] {
        let first = Settings {
            unowned_bound: Duration::from_secs(3_600),
            ..shared(0, Credentials::Shared)
        };
        let mut rig = Rig::new([first, shared(1, Credentials::Local)]);
        rig.nodes[0].hinted = true;
        (0..2).for_each(|n| drop(rig.add_account(n, "disconnected")));
        rig.until(60 * MINUTE, |rig| !released(rig, 0).is_empty());
        let takings = taken(&rig, 0).len();
        assert_eq!(rig.command(1, Command::Stop), Reply::Accepted);
        // The accounts are listed 50 ms after the hint.
        let due = released(&rig, 0)[0] + away - 50;
        rig.pass(due - rig.now());
        rig.give(0, Input::Hint(Hint::Accounts));
        rig.pass(50);
        assert_eq!(taken(&rig, 0).len() > takings, again, "after {away} ms");
    }
}

/// Looks at single sessions, whose documents were asked for.
fn looked_up(rig: &Rig, node: usize) -> usize {
    let session = |path: &DocPath| path.as_str().starts_with("instances/");
    let asked = rig.nodes[node].asked.iter();
    asked.filter(|r| matches!(&r.call, StoreCall::Get(paths) if paths.iter().all(session))).count()
}

#[test]
fn an_owner_is_looked_up_only_if_it_is_not_among_the_sessions_that_live() {
    let mut rig = two(Credentials::Shared);
    let accounts: Vec<_> = (0..6).map(|n| rig.add_account(n, "disconnected")).collect();
    rig.pass(60 * MINUTE);
    assert_eq!([0, 1].map(|node| owned(&rig, &accounts, node)), [3, 3]);
    assert_eq!([0, 1].map(|node| looked_up(&rig, node)), [0, 0]);
    // Who has ended is not among them any more.
    let connected = rig.nodes[1].calls.len();
    assert_eq!(rig.command(0, Command::Stop), Reply::Accepted);
    rig.until(15_000, |rig| owned(rig, &accounts, 1) == 6);
    assert_eq!(looked_up(&rig, 1), 1);
    rig.pass(5_000);
    let connects = rig.nodes[1].calls[connected..].iter();
    assert_eq!(connects.filter(|(_, r)| r.call == GatewayCall::Connect).count(), 3);
}

#[test]
fn who_is_not_live_owns_nothing_whatever_else_its_document_says() {
    for fields in [
        vec![("note", "no session".into())],
        vec![("live", false.into())],
        vec![("state", "dead".into())],
        vec![("live", "true".into()), ("state", "active".into())],
    ] {
        let mut rig = Rig::exclusive();
        let account = rig.add_account(1, "disconnected");
        rig.write(&DocPath::parse("instances/zzz").unwrap(), &fields);
        rig.write(&account.connection_path(), &[("owner", "zzz".into()), ("epoch", Value::Int(3))]);
        rig.until(MINUTE, |rig| rig.status(&account) == Some("connected"));
        assert_eq!(rig.owner(&account), Some(0), "{fields:?}");
    }
}

#[test]
fn a_listing_reads_nothing_but_the_status_of_accounts() {
    let mut rig = two(Credentials::Shared);
    rig.add_account(1, "disconnected");
    rig.pass(MINUTE);
    let status = Some(vec![FieldPath::new("status")]);
    for node in &rig.nodes {
        let listings = node.queries("accounts");
        assert!(!listings.is_empty());
        for (_, request) in listings {
            let StoreCall::Query(query) = &request.call else { panic!("a query") };
            assert_eq!(query.select, status);
        }
    }
}

#[test]
fn who_cannot_reach_whatsapp_leaves_everything_to_who_can() {
    let mut rig = two(Credentials::Shared);
    rig.nodes[0].answers = unreachable;
    let accounts: Vec<_> = (0..4).map(|n| rig.add_account(n, "disconnected")).collect();
    rig.pass(MINUTE);
    assert_eq!(owned(&rig, &accounts, 0), 2);
    rig.until(7 * MINUTE, |rig| !released(rig, 0).is_empty());
    let first = released(&rig, 0)[0];
    assert!(first - taken(&rig, 0)[0] >= 300_000, "not before it has tried for five minutes");
    rig.pass(30_000);
    assert_eq!(owned(&rig, &accounts, 1), 4, "the other one has no share to keep to now");
    assert!(incidents(&rig, 0, "whatsapp_unreachable") >= 1);
}

#[test]
fn who_cannot_reach_whatsapp_tries_again_after_two_terms_then_twice_as_late_up_to_an_hour() {
    // Nobody else could serve the account, so nothing but this keeps it from being taken.
    let settings = Settings {
        unowned_bound: Duration::from_secs(24 * 3_600),
        ..shared(0, Credentials::Local)
    };
    let mut rig = Rig::new([settings]);
    rig.nodes[0].answers = unreachable;
    let account = rig.add_account(1, "disconnected");
    rig.give(0, Input::Credentials(account.clone(), true));
    let health = |rig: &Rig| {
        let boot = rig.nodes[0].instance.boot().path();
        rig.doc(&boot).and_then(|session| session.bool("gatewayHealthy"))
    };
    for (n, expected) in [60, 120, 240, 480, 960, 1_920, 3_600, 3_600].into_iter().enumerate() {
        rig.until(15 * MINUTE, |rig| released(rig, 0).len() > n);
        rig.pass(15_000);
        assert_eq!(health(&rig), Some(false));
        rig.until(2 * 60 * MINUTE, |rig| taken(rig, 0).len() > n + 1);
        let away = (taken(&rig, 0)[n + 1] - released(&rig, 0)[n]) / 1_000;
        assert!((expected..expected + 20).contains(&away), "{away} s instead of {expected} s");
        rig.pass(90_000);
        assert_eq!(health(&rig), Some(true), "it tries again, like all the others");
    }
    assert!(rig.nodes[0].is_active(), "those who share stay active");
    // Once it was reached, all that is forgotten.
    rig.nodes[0].answers = |_| Some(Answer::Done);
    rig.until(60 * MINUTE, |rig| rig.status(&account) == Some("connected"));
    rig.pass(3 * MINUTE);
    rig.nodes[0].answers = unreachable;
    let (_, connection) = *rig.nodes[0].connects(&account).last().unwrap();
    let reason = CloseReason::Lost;
    let before = released(&rig, 0).len();
    rig.tell(0, &account, GatewayEvent::Closed { connection, reason });
    rig.until(15 * MINUTE, |rig| released(rig, 0).len() > before);
    let takings = taken(&rig, 0).len();
    rig.until(60 * MINUTE, |rig| taken(rig, 0).len() > takings);
    let away = (taken(&rig, 0)[takings] - released(&rig, 0)[before]) / 1_000;
    assert!((60..80).contains(&away), "{away} s");
}

#[test]
fn an_account_that_is_linked_elsewhere_just_now_is_not_taken() {
    for here in [false, true] {
        let local = Settings { credentials: Credentials::Local, ..Settings::exclusive(label(0)) };
        let mut rig = Rig::new([local]);
        rig.nodes[0].hinted = true;
        rig.until(MINUTE, |rig| rig.nodes[0].is_active());
        rig.nodes[0].holds = of_an_owner;
        let account = rig.add_account(1, "needs_qr");
        rig.give(0, Input::Credentials(account.clone(), here));
        rig.until(5_000, |rig| !rig.nodes[0].held.is_empty());
        rig.nodes[0].holds = |_| false;
        rig.write(&account.path(), &[("status", "disconnected".into())]);
        let claim = rig.nodes[0].held.remove(0);
        rig.release(0, &claim);
        assert_eq!(rig.owner(&account).is_some(), here);
        rig.pass(20 * MINUTE);
        assert_eq!(rig.owner(&account).is_some(), here);
    }
}

#[test]
fn who_reads_itself_as_the_owner_of_what_it_does_not_hold_gives_it_back_first() {
    let mut rig = Rig::exclusive();
    let account = rig.add_account(1, "disconnected");
    let boot = Value::from(rig.nodes[0].instance.boot().as_str());
    rig.write(&account.connection_path(), &[("owner", boot), ("epoch", Value::Int(3))]);
    rig.until(2 * MINUTE, |rig| rig.status(&account) == Some("connected"));
    let lease = rig.doc(&account.connection_path()).unwrap();
    assert_eq!(lease.count("epoch"), Some(4), "it has an epoch of its own");
    let writes = rig.nodes[0].asked.iter().filter(|request| of_an_owner(request)).count();
    assert!(writes >= 2);
}

#[test]
fn an_owner_that_can_be_no_session_owns_nothing() {
    for owner in ["/", "a/b", "..", "__x__"] {
        let mut rig = Rig::exclusive();
        let account = rig.add_account(1, "disconnected");
        rig.write(&account.connection_path(), &[("owner", owner.into()), ("epoch", Value::Int(3))]);
        rig.until(2 * MINUTE, |rig| rig.status(&account) == Some("connected"));
        let lease = rig.doc(&account.connection_path()).unwrap();
        assert_eq!(lease.count("epoch"), Some(4), "{owner}");
    }
}

#[test]
fn a_deleted_account_is_given_back_for_good() {
    let mut rig = Rig::exclusive();
    let account = rig.add_account(1, "disconnected");
    rig.until(MINUTE, |rig| rig.status(&account) == Some("connected"));
    assert_eq!(rig.command(0, Command::DeleteAccount(account.clone())), Reply::Accepted);
    rig.pass(30 * MINUTE);
    assert_eq!((rig.status(&account), rig.owner(&account)), (Some("deleted"), None));
    assert_eq!((taken(&rig, 0).len(), released(&rig, 0).len()), (1, 1));
    assert_eq!(rig.nodes[0].connects(&account).len(), 1);
}

#[test]
fn who_steps_down_takes_nothing_more() {
    let mut rig = Rig::exclusive();
    rig.nodes[0].hinted = true;
    let first = rig.add_account(1, "disconnected");
    rig.until(MINUTE, |rig| rig.status(&first) == Some("connected"));
    let second = rig.add_account(2, "disconnected");
    // What it wanted to know about the second comes only while it closes the first.
    rig.nodes[0].closes = false;
    rig.nodes[0].holds = |request| {
        matches!(&request.call, StoreCall::Get(paths)
            if paths.iter().any(|path| path.as_str().ends_with("00000002/leases/connection")))
    };
    rig.until(MINUTE, |rig| !rig.nodes[0].held.is_empty());
    rig.nodes[0].holds = |_| false;
    assert_eq!(rig.command(0, Command::Stop), Reply::Accepted);
    let read = rig.nodes[0].held.remove(0);
    rig.release(0, &read);
    rig.pass(MINUTE);
    assert!(rig.nodes[0].stopped);
    assert_eq!(rig.doc(&second.connection_path()), None);
}

#[test]
fn every_account_is_found_and_only_what_could_be_taken_is_looked_at() {
    let local = Settings { credentials: Credentials::Local, ..Settings::exclusive(label(0)) };
    let mut rig = Rig::new([local]);
    let accounts: Vec<_> = (0..301).map(|n| rig.add_account(n, "disconnected")).collect();
    let deleted = rig.add_account(999, "deleted");
    rig.give(0, Input::Credentials(accounts[0].clone(), true));
    rig.pass(15 * MINUTE);
    assert_eq!(rig.nodes[0].instance.account_ids().count(), 302);
    let looks = |at: &DocPath| {
        let asked = rig.nodes[0].asked.iter();
        asked.filter(|r| matches!(&r.call, StoreCall::Get(paths) if paths.contains(at))).count()
    };
    assert_eq!(looks(&deleted.connection_path()), 0);
    assert_eq!(looks(&accounts[0].connection_path()), 1, "it is held from then on");
    assert!(looks(&accounts[300].connection_path()) > 1);
}
