//! Connections: opened when the core says so, and never otherwise.

use std::time::Duration;

use backfill_core::io::{CloseReason, Command, GatewayCall, GatewayEvent, Reply};
use whatsapp_double::Seen;
use whatsapp_rust::transport::DisconnectReason;

use crate::harness::{Process, World};

fn connects(process: &Process) -> usize {
    let calls = process.seen.calls();
    calls.iter().filter(|request| request.call == GatewayCall::Connect).count()
}

fn logins(world: &World) -> usize {
    let log = world.account.log();
    log.iter().filter(|seen| matches!(seen, Seen::Connected { .. })).count()
}

fn closings(process: &Process) -> Vec<CloseReason> {
    let events = process.seen.events();
    let reasons = events.iter().filter_map(|event| match event {
        GatewayEvent::Closed { reason, .. } => Some(*reason),
        _ => None,
    });
    reasons.collect()
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_is_opened_again_by_the_core_alone() {
    let world = World::linked().await;
    let process = world.start().await;
    for (times, reason) in [
        DisconnectReason::StreamEnded,
        DisconnectReason::ReadError("reset".into()),
        DisconnectReason::ServerClose { code: Some(1000), reason: String::new() },
    ]
    .into_iter()
    .enumerate()
    {
        process.opened(times + 1).await;
        world.account.cut(reason);
    }
    process.opened(4).await;
    assert_eq!(closings(&process), [CloseReason::Lost; 3]);
    assert_eq!((connects(&process), logins(&world)), (4, 4));
    for code in [503, 515] {
        let before = connects(&process);
        world.account.stream_error(code);
        process.opened(before + 1).await;
        assert_eq!(logins(&world), connects(&process), "stream error {code}");
    }
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_falls_silent_is_given_up() {
    let world = World::linked().await;
    let process = world.start().await;
    process.opened(1).await;
    world.account.silence();
    process.opened(2).await;
    assert_eq!(closings(&process), [CloseReason::Lost]);
    assert_eq!(logins(&world), 2);
    let id = world.account.contact("15550000002", "102").text("still there?");
    world.until_message("15550000002@s.whatsapp.net", &id).await;
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_server_out_of_reach_is_tried_again_with_growing_patience() {
    let world = World::linked().await;
    world.double.set_reachable(false);
    let process = world.start().await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    let tries = connects(&process);
    assert!((5..=12).contains(&tries), "{tries}");
    world.double.set_reachable(true);
    tokio::time::sleep(Duration::from_secs(300)).await;
    process.opened(1).await;
    assert_eq!(logins(&world), 1);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_replaced_connection_waits_for_the_core() {
    let world = World::linked().await;
    let process = world.start().await;
    process.opened(1).await;
    world.account.replace();
    process.opened(2).await;
    assert_eq!(closings(&process), [CloseReason::Replaced]);
    assert_eq!(logins(&world), 2);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_unlinked_device_forgets_its_credentials_and_can_be_linked_anew() {
    let world = World::linked().await;
    let process = world.start().await;
    process.opened(1).await;
    world.account.unlink();
    assert_eq!(process.closed().await, CloseReason::LoggedOut);
    world.until_status("logged_out").await;
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    assert_eq!(connects(&process), 1, "not by itself");

    assert_eq!(process.command(Command::RegenerateQr).await, Reply::Accepted);
    world.until_status("qr_ready").await;
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_login_that_is_refused_for_good_ends_the_session() {
    let world = World::linked().await;
    world.account.refuse_logins();
    let process = world.start().await;
    assert_eq!(process.closed().await, CloseReason::LoggedOut);
    world.until_status("logged_out").await;
    assert!(!world.is_paired().await);
    process.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_ban_costs_no_credentials() {
    let world = World::linked().await;
    world.account.ban(101, Duration::from_secs(60));
    let process = world.start().await;
    assert_eq!(process.closed().await, CloseReason::Lost);
    world.account.accept_logins();
    process.opened(1).await;
    process.stop().await;
    assert!(world.is_paired().await);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_account_is_unlinked_and_nothing_of_it_stays() {
    let world = World::linked().await;
    let process = world.start().await;
    process.opened(1).await;
    assert_eq!(process.command(Command::DeleteAccount).await, Reply::Accepted);
    world
        .account
        .wait("the logout", |seen| matches!(seen, Seen::LoggedOut { .. }).then_some(()))
        .await;
    world.until_status("deleted").await;
    world.account.wait_gone().await;
    process.stop().await;
    assert!(!world.is_paired().await);
}

#[tokio::test(start_paused = true)]
async fn many_accounts_connect_one_after_another_and_keep_apart() {
    let world = World::linked().await;
    let mut others = Vec::new();
    for number in 1..8 {
        others.push(world.another(number).await);
    }
    let process = world.start().await;
    process.opened(8).await;
    let calls = process.seen.timed_calls();
    let connects = calls.iter().filter(|(_, request)| request.call == GatewayCall::Connect);
    let connects: Vec<_> = connects.map(|(at, _)| *at).collect();
    let stagger = world.settings().connect_stagger;
    assert_eq!(stagger, Duration::from_millis(500));
    assert!(connects.is_sorted_by(|a, b| b.since(*a) >= stagger), "{connects:?}");

    others.push(world);
    let chat = "15550000002@s.whatsapp.net";
    for world in &others {
        let id = world.account.contact("15550000002", "102").text("hello");
        let message = world.until_message(chat, &id).await;
        assert_eq!(message.str("accountId"), Some(world.id.as_str()));
        world.account.wait_drained().await;
    }
    process.stop().await;
    let documents = others[0].message_documents();
    assert_eq!(documents.len(), others.len());
}

#[tokio::test(start_paused = true)]
async fn a_second_process_continues_where_the_first_one_stopped() {
    let world = World::linked().await;
    let contact = world.account.contact("15550000002", "102");
    for round in 0..3 {
        let process = world.start().await;
        process.opened(1).await;
        let live = contact.text(&format!("live {round}"));
        world.until_message("15550000002@s.whatsapp.net", &live).await;
        world.account.wait_drained().await;
        process.stop().await;
        contact.text(&format!("away {round}"));
    }
    let process = world.start().await;
    world.account.wait_drained().await;
    process.stop().await;
    assert_eq!(world.messages().len(), 6);
}
