use wacore::types::events::Event;
use waproto::whatsapp as wa;
use waproto::whatsapp::history_sync::HistorySyncType;
use whatsapp_double::{Seen, Via};

use crate::harness::{Client, empty_backend, world};

/// Every history sync so far, decoded.
async fn syncs(client: &Client, count: usize) -> Vec<wa::HistorySync> {
    client
        .wait_for_all(&format!("{count} history syncs"), |events| {
            let syncs: Vec<_> = events
                .iter()
                .filter_map(|event| match &**event {
                    Event::HistorySync(sync) => sync.get().cloned(),
                    _ => None,
                })
                .collect();
            (syncs.len() >= count).then_some(syncs)
        })
        .await
}

fn messages(sync: &wa::HistorySync) -> usize {
    sync.conversations.iter().map(|chat| chat.messages.len()).sum()
}

#[tokio::test(start_paused = true)]
async fn history_arrives_inline_and_as_a_file() {
    let (double, account) = world();
    let client = Client::seeded(&double, &account).await;
    client.connected().await;
    let phone = account.phone();
    for index in 0..4_u64 {
        let contact = account.contact(&format!("1555100000{index}"), &format!("20{index}"));
        phone.keep_texts(contact.pn(), &format!("m{index}-"), 1_700_000_000, 100 + index);
        phone.name_chat(contact.pn(), &format!("Name {index}"));
    }

    for via in [Via::Inline, Via::Blob] {
        let before = double.media().requests();
        let earlier = client.events().len();
        phone.send_all_history(2, via);
        let all = client
            .wait_for_all("two more chunks", |events| {
                let syncs: Vec<_> = events[earlier..]
                    .iter()
                    .filter_map(|event| match &**event {
                        Event::HistorySync(sync) => sync.get().cloned(),
                        _ => None,
                    })
                    .collect();
                (syncs.len() == 2).then_some(syncs)
            })
            .await;
        assert_eq!(all.iter().map(messages).sum::<usize>(), 4 * 100 + 6);
        let mut orders: Vec<_> = all.iter().map(|s| (s.chunk_order, s.progress)).collect();
        orders.sort();
        assert_eq!(orders, [(Some(1), Some(50)), (Some(2), Some(100))]);
        assert!(all.iter().all(|sync| sync.phone_number_to_lid_mappings.len() == 2));
        let fetched = if via == Via::Blob { 2 } else { 0 };
        assert_eq!(double.media().requests() - before, fetched);
    }
    account.wait_drained().await;
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_group_row_names_its_author_outside_its_key() {
    let (double, account) = world();
    let contact = account.contact("15550000002", "102");
    let group = account.group("120363000000000001", "Team", &[&contact]);
    contact.text_to(&group, "before linking");
    let client = Client::seeded(&double, &account).await;
    client.connected().await;
    let phone = account.phone();
    let sync = phone.history_of(HistorySyncType::INITIAL_BOOTSTRAP, &[group.jid().clone()]);
    phone.send_history(&sync, Via::Inline);
    let received = syncs(&client, 1).await.remove(0);
    assert_eq!(received.sync_type, HistorySyncType::INITIAL_BOOTSTRAP);
    let row = received.conversations[0].messages[0].message.as_option().unwrap();
    assert_eq!(row.key.participant, None);
    assert_eq!(row.participant, Some(contact.lid().to_string()));
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_gone_is_lost_after_its_receipt() {
    let (double, account) = world();
    let contact = account.contact("15550000002", "102");
    let client = Client::seeded(&double, &account).await;
    client.connected().await;
    let phone = account.phone();
    phone.keep_texts(contact.pn(), "m", 1_700_000_000, 10);
    double.media().fail_next(&[404; 8]);
    let id = phone.send_history(
        &phone.history_of(HistorySyncType::RECENT, &[contact.pn().clone()]),
        Via::Blob,
    );
    account
        .wait("a history receipt", |seen| match seen {
            Seen::Receipt(receipt) if receipt.kind == "hist_sync" => {
                receipt.ids.contains(&id).then_some(())
            }
            _ => None,
        })
        .await;
    double.media().wait_requests(2).await;
    account.wait_drained().await;

    double.media().heal();
    phone.send_all_history(1, Via::Inline);
    assert_eq!(syncs(&client, 1).await.len(), 1, "only the second one");
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn history_follows_a_pairing_as_soon_as_there_are_keys() {
    let (double, account) = world();
    let contact = account.contact("15550000002", "102");
    account.phone().keep_texts(contact.pn(), "m", 1_700_000_000, 25);
    let client = Client::start(&double, empty_backend()).await;
    let code = client.wait("a QR code", |event| match event {
        Event::PairingQrCode(qr) => Some(qr.code.clone()),
        _ => None,
    });
    account.scan(&code.await).unwrap();
    account.wait("the device", |seen| matches!(seen, Seen::Paired { .. }).then_some(())).await;
    account.phone().send_all_history(1, Via::Blob);
    assert_eq!(messages(&syncs(&client, 1).await[0]), 25);
    client.connected().await;
    account.wait_drained().await;
    client.stop().await;
}
