use std::time::Duration;

use wacore::types::events::Event;
use whatsapp_double::Seen;
use whatsapp_rust::transport::DisconnectReason;

use crate::harness::{Client, empty_backend, world};

async fn saw(client: &Client, what: &str, is: impl Fn(&Event) -> bool) {
    client.wait(what, |event| is(event).then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn a_second_connection_replaces_the_first() {
    let (double, account) = world();
    let backend = empty_backend();
    account.seed(&backend).await.unwrap();
    let first = Client::start(&double, backend.clone()).await;
    first.connected().await;
    let second = Client::start(&double, backend).await;
    saw(&first, "StreamReplaced", |event| matches!(event, Event::StreamReplaced(_))).await;
    first.ended().await;
    second.connected().await;
    let replaced = |seen: &Seen| matches!(seen, Seen::Replaced { device: 1 });
    assert_eq!(account.log().iter().filter(|seen| replaced(seen)).count(), 1);
    let id = account.contact("15550000002", "102").text("to the second");
    second.message(&id).await;
    account.wait_drained().await;
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_ended_stream_is_taken_up_again() {
    let (double, account) = world();
    let contact = account.contact("15550000002", "102");
    let client = Client::seeded(&double, &account).await;
    client.connected().await;
    let close = DisconnectReason::ServerClose { code: Some(1000), reason: String::new() };
    let broken = DisconnectReason::ReadError("reset".into());
    for (round, reason) in [DisconnectReason::StreamEnded, close, broken].into_iter().enumerate() {
        account.cut(reason);
        client.connected_times(round + 2).await;
        let id = contact.text(&format!("after cut {round}"));
        client.message(&id).await;
    }
    account.stream_error(503);
    client.connected_times(5).await;
    account.stream_error(515);
    client.connected_times(6).await;
    account.wait_drained().await;
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_unlinked_device_is_logged_out() {
    let (double, account) = world();
    let backend = empty_backend();
    account.seed(&backend).await.unwrap();
    let client = Client::start(&double, backend.clone()).await;
    client.connected().await;
    account.unlink();
    saw(
        &client,
        "LoggedOut",
        |event| matches!(event, Event::LoggedOut(logged_out) if !logged_out.on_connect),
    )
    .await;
    client.ended().await;

    let again = Client::start(&double, backend).await;
    saw(
        &again,
        "LoggedOut on connect",
        |event| matches!(event, Event::LoggedOut(logged_out) if logged_out.on_connect),
    )
    .await;
    again.ended().await;
    assert!(matches!(account.log().last(), Some(Seen::Refused { device: 1 })));
}

#[tokio::test(start_paused = true)]
async fn a_banned_account_is_told_for_how_long() {
    let (double, account) = world();
    let backend = empty_backend();
    account.seed(&backend).await.unwrap();
    account.ban(101, Duration::from_secs(7_200));
    let client = Client::start(&double, backend.clone()).await;
    let expires_in = client.wait("TemporaryBan", |event| match event {
        Event::TemporaryBan(ban) => Some(ban.expire.num_seconds()),
        _ => None,
    });
    assert_eq!(expires_in.await, 7_200);
    client.ended().await;
    account.accept_logins();
    let client = Client::start(&double, backend).await;
    client.connected().await;
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_refuses_for_now_is_tried_again() {
    let (double, account) = world();
    let client = Client::seeded(&double, &account).await;
    client.connected().await;
    account.fail_logins(503);
    account.cut(DisconnectReason::StreamEnded);
    account
        .wait("a refused login", |seen| matches!(seen, Seen::Refused { .. }).then_some(()))
        .await;
    account.accept_logins();
    client.connected_times(2).await;

    double.set_reachable(false);
    account.cut(DisconnectReason::StreamEnded);
    saw(&client, "Disconnected", |event| matches!(event, Event::Disconnected(_))).await;
    double.set_reachable(true);
    client.connected_times(3).await;
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_left() {
    let (double, account) = world();
    double.set_patience(Duration::from_secs(600));
    let client = Client::seeded(&double, &account).await;
    client.connected().await;
    account.silence();
    let started = tokio::time::Instant::now();
    client.connected_times(2).await;
    let noticed_after = started.elapsed().as_secs();
    assert!((15..120).contains(&noticed_after), "after {noticed_after} s");
    let id = account.contact("15550000002", "102").text("there you are");
    client.message(&id).await;
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_device_can_unlink_itself() {
    let (double, account) = world();
    let client = Client::seeded(&double, &account).await;
    client.connected().await;
    client.api().logout().await;
    account
        .wait("the logout", |seen| matches!(seen, Seen::LoggedOut { device: 1 }).then_some(()))
        .await;
    client.ended().await;
}
