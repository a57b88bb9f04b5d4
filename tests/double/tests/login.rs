use wacore::types::events::Event;
use wacore_binary::builder::NodeBuilder;
use whatsapp_double::{Handshake, SEEDED_KEYS, Seen};

use crate::harness::{Client, empty_backend, text_of, world};

#[tokio::test]
async fn a_seeded_device_logs_in_and_receives() {
    let (double, account) = world();
    let contact = account.contact("15550000002", "100000000000002");
    let client = Client::seeded(&double, &account).await;
    client.connected().await;
    let handshake = account.wait("a login", |seen| match seen {
        Seen::Connected { handshake, .. } => Some(*handshake),
        _ => None,
    });
    assert_eq!(handshake.await, Handshake::Ik);

    let id = contact.text("hello");
    let message = client.message(&id).await;
    assert_eq!(text_of(&message).as_deref(), Some("hello"));
    assert_eq!(message.info.source.sender, *contact.pn());
    assert!(!message.info.source.is_from_me);
    account.wait_receipt(&id).await;
    account.wait_drained().await;
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn many_accounts_share_a_server() {
    let (double, _) = world();
    let mut clients = Vec::new();
    for index in 0..20 {
        let account = double.account(&format!("1555200{index:04}"), &format!("2{index:04}"));
        let contact = account.contact("15550000002", "102");
        let client = Client::seeded(&double, &account).await;
        clients.push((account, contact, client));
    }
    for (account, contact, client) in clients {
        client.connected().await;
        contact.text(&format!("for {}", account.pn().user));
        assert_eq!(client.texts(1).await, [format!("for {}", account.pn().user)]);
        account.wait_drained().await;
        client.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_brings_new_keys_before_the_last_is_gone() {
    let (double, account) = world();
    let client = Client::seeded(&double, &account).await;
    client.connected().await;
    let contacts = u64::from(SEEDED_KEYS) + 10;
    for index in 0..contacts {
        let contact = account.contact(&format!("1555300{index:04}"), &format!("3{index:04}"));
        let id = contact.text("hello");
        client.message(&id).await;
    }
    let ids = account.wait("uploaded keys", |seen| match seen {
        Seen::KeysUploaded { ids } => Some(ids.clone()),
        _ => None,
    });
    assert!(ids.await.iter().all(|id| *id > SEEDED_KEYS));
    account.wait_drained().await;
    assert!(!client.events().iter().any(|event| matches!(**event, Event::UndecryptableMessage(_))));
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn two_devices_of_one_account_see_the_same() {
    let (double, account) = world();
    let contact = account.contact("15550000002", "102");
    let first = Client::seeded(&double, &account).await;
    let second = Client::seeded(&double, &account).await;
    first.connected().await;
    second.connected().await;
    let id = contact.text("to both");
    first.message(&id).await;
    second.message(&id).await;
    let reply = whatsapp_double::text("from the first");
    let sent = first.api().send_message(contact.pn().clone(), reply).await.unwrap();
    let copy = second.message(&sent.message_id).await;
    assert!(copy.info.source.is_from_me);
    assert_eq!(text_of(&copy).as_deref(), Some("from the first"));
    account.wait_drained().await;
    first.stop().await;
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_stanza_of_the_tests_own_making_waits_for_its_acknowledgement() {
    let (double, account) = world();
    let backend = empty_backend();
    account.seed(&backend).await.unwrap();
    let picture = NodeBuilder::new("notification")
        .attr("from", account.contact("15550000002", "102").pn())
        .attr("id", "picture-1")
        .attr("type", "picture")
        .attr("t", 1_750_000_000)
        .children([NodeBuilder::new("set").attr("id", "1").build()])
        .build();
    account.push(&picture);
    assert_eq!(account.unconfirmed(), ["picture-1"]);
    let client = Client::start(&double, backend).await;
    client
        .wait("PictureUpdate", |event| matches!(event, Event::PictureUpdate(_)).then_some(()))
        .await;
    account.wait_drained().await;
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_address_book_reaches_a_device_early_and_late() {
    let (double, account) = world();
    let anna = account.contact("15550000002", "102");
    let ben = account.contact("15550000003", "103");
    account.phone().add_to_address_book(&anna, "Anna Example");
    let client = Client::start(&double, empty_backend()).await;
    let code = client.wait("a QR code", |event| match event {
        Event::PairingQrCode(qr) => Some(qr.code.clone()),
        _ => None,
    });
    account.scan(&code.await).unwrap();
    client.connected().await;
    account.phone().add_to_address_book(&ben, "Ben Example");
    account.phone().add_to_address_book(&anna, "Anna Renamed");
    for (contact, name) in [(&anna, "Anna Example"), (&ben, "Ben Example"), (&anna, "Anna Renamed")]
    {
        client
            .wait(name, |event| match event {
                Event::ContactUpdate(update) => (update.jid == *contact.pn()
                    && update.action.full_name.as_deref() == Some(name))
                .then_some(()),
                _ => None,
            })
            .await;
    }
    account.wait_drained().await;
    client.stop().await;
}
