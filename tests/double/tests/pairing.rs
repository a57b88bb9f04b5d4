use wacore::pair_code::PairCodeOptions;
use wacore::types::events::Event;
use whatsapp_double::{Handshake, Seen};

use crate::harness::{Client, empty_backend, world};

async fn code(client: &Client) -> String {
    client
        .wait("a QR code", |event| match event {
            Event::PairingQrCode(qr) => Some(qr.code.clone()),
            _ => None,
        })
        .await
}

#[tokio::test(start_paused = true)]
async fn a_device_is_linked_by_qr_code_under_the_real_certificate_chain() {
    let (double, account) = world();
    let contact = account.contact("15550000002", "102");
    let backend = empty_backend();
    let client = Client::start(&double, backend.clone()).await;
    account.scan(&code(&client).await).unwrap();
    client
        .wait("PairSuccess", |event| match event {
            Event::PairSuccess(success) => Some(success.id.clone()),
            _ => None,
        })
        .await;
    client.connected().await;
    let ids = account
        .wait("uploaded keys", |seen| match seen {
            Seen::KeysUploaded { ids } => Some(ids.clone()),
            _ => None,
        })
        .await;
    assert!(ids.len() >= 20);
    let props = account
        .wait("a linked device", |seen| match seen {
            Seen::Paired { props, .. } => Some(props.clone()),
            _ => None,
        })
        .await;
    assert!(props.history_sync_config.is_set());

    let id = contact.text("welcome");
    client.message(&id).await;
    account.wait_drained().await;
    let stored = backend.load().await.unwrap().unwrap();
    assert_eq!(stored.pn, Some(account.pn().with_device(1)));
    assert_eq!(stored.lid, Some(account.lid().with_device(1)));
    client.stop().await;

    // The chain was valid at the time that the tests' clock shows, so the client remembers it.
    let client = Client::start(&double, backend).await;
    client.connected().await;
    let handshakes: Vec<_> = account.log().iter().filter_map(handshake).collect();
    assert_eq!(handshakes.last(), Some(&Handshake::Ik));
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_device_is_linked_by_a_code_typed_in_on_the_phone() {
    let (double, account) = world();
    let backend = empty_backend();
    let client = Client::start(&double, backend.clone()).await;
    code(&client).await;
    assert!(account.enter_code("ABCD-EFGH").is_err(), "no code was asked for yet");
    let options =
        PairCodeOptions { phone_number: account.pn().user.to_string(), ..Default::default() };
    let shown = client.api().pair_with_code(options).await.unwrap();
    account.enter_code(&shown).unwrap();
    client.connected().await;
    let id = account.contact("15550000002", "102").text("welcome");
    client.message(&id).await;
    assert_eq!(backend.load().await.unwrap().unwrap().pn, Some(account.pn().with_device(1)));
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_wrong_code_links_nothing() {
    let (double, account) = world();
    let client = Client::start(&double, empty_backend()).await;
    code(&client).await;
    let options =
        PairCodeOptions { phone_number: account.pn().user.to_string(), ..Default::default() };
    let shown = client.api().pair_with_code(options).await.unwrap();
    account.enter_code(&shown.chars().rev().collect::<String>()).unwrap();
    account.wait("the refusal", |seen| matches!(seen, Seen::CodeRefused).then_some(())).await;
    assert!(!account.log().iter().any(|seen| matches!(seen, Seen::Paired { .. })));
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_forged_certificate_chain_is_not_accepted() {
    let (double, account) = world();
    double.forge_certificates();
    let client = Client::start(&double, empty_backend()).await;
    double.wait_abandoned(2).await;
    assert!(!client.events().iter().any(|event| matches!(**event, Event::PairingQrCode(_))));
    assert!(account.log().is_empty());
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn only_a_code_on_show_can_be_scanned() {
    let (double, account) = world();
    let client = Client::start(&double, empty_backend()).await;
    let shown = code(&client).await;
    let (reference, rest) = shown.split_once(',').unwrap();
    assert!(account.scan(&format!("{reference}x,{rest}")).is_err());
    let mut fields: Vec<_> = shown.split(',').collect();
    fields.swap(1, 2);
    assert!(account.scan(&fields.join(",")).is_err(), "the keys of another device");
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_code_with_a_foreign_secret_is_refused_by_the_device() {
    let (double, account) = world();
    let client = Client::start(&double, empty_backend()).await;
    let shown = code(&client).await;
    let mut fields: Vec<_> = shown.split(',').collect();
    fields[3] = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    account.scan(&fields.join(",")).unwrap();
    client.wait("PairError", |event| matches!(event, Event::PairError(_)).then_some(())).await;
    assert!(!account.log().iter().any(|seen| matches!(seen, Seen::Paired { .. })));
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_device_that_remembers_another_key_falls_back() {
    let (double, account) = world();
    let backend = empty_backend();
    account.seed(&backend).await.unwrap();
    let mut device = backend.load().await.unwrap().unwrap();
    device.server_cert_chain.as_mut().unwrap().leaf.key = [9; 32];
    backend.save(&device).await.unwrap();

    let client = Client::start(&double, backend).await;
    client.connected().await;
    assert_eq!(account.log().iter().find_map(handshake), Some(Handshake::XxFallback));
    client.stop().await;
}

fn handshake(seen: &Seen) -> Option<Handshake> {
    match seen {
        Seen::Connected { handshake, .. } => Some(*handshake),
        _ => None,
    }
}
