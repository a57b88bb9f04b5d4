use wacore::types::events::Event;
use wacore::types::presence::ReceiptType;
use wacore_binary::Jid;
use whatsapp_double::{Account, Addressing, Seen, SentMessage, text};

use crate::harness::{Client, world};

async fn received(account: &Account, id: &str, recipient: &Jid) -> SentMessage {
    account
        .wait(&format!("message {id}"), |seen| match seen {
            Seen::Message(sent) if sent.id == id && sent.recipient == *recipient => {
                Some(sent.clone())
            }
            _ => None,
        })
        .await
}

#[tokio::test(start_paused = true)]
async fn a_text_reaches_the_contact_and_the_phone() {
    let (double, account) = world();
    let contact = account.contact("15550000002", "102");
    let client = Client::seeded(&double, &account).await;
    client.connected().await;

    for body in ["first", "second"] {
        let sent = client.api().send_message(contact.pn().clone(), text(body)).await.unwrap();
        let id = sent.message_id;
        let message = received(&account, &id, contact.pn()).await.message;
        assert_eq!(message.conversation.as_deref(), Some(body));
        received(&account, &id, account.pn()).await;
        let kept = account.phone().chat(contact.pn()).messages;
        assert!(kept.iter().any(|stored| stored.id == id && stored.from_me), "on the phone");

        contact.deliver(&id);
        contact.read(&id);
        for kind in [ReceiptType::Delivered, ReceiptType::Read] {
            client
                .wait("a receipt", |event| match event {
                    Event::Receipt(receipt) => {
                        (receipt.r#type == kind && receipt.message_ids.contains(&id)).then_some(())
                    }
                    _ => None,
                })
                .await;
        }
    }
    account.wait_drained().await;
    assert!(!account.log().iter().any(|seen| matches!(seen, Seen::Unreadable { .. })));
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_conversation_goes_back_and_forth() {
    let (double, account) = world();
    let contact = account.contact("15550000002", "102");
    let client = Client::seeded(&double, &account).await;
    client.connected().await;
    for round in 0..3 {
        let question = contact.text(&format!("question {round}"));
        client.message(&question).await;
        let answer = text(&format!("answer {round}"));
        let sent = client.api().send_message(contact.pn().clone(), answer).await.unwrap();
        received(&account, &sent.message_id, contact.pn()).await;
    }
    assert_eq!(account.phone().chat(contact.pn()).messages.len(), 6);
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_group_text_reaches_every_member() {
    let (double, account) = world();
    let anna = account.contact("15550000002", "102");
    let ben = account.contact("15550000003", "103");
    let group = account.group("120363000000000001", "Team", &[&anna, &ben]);
    let client = Client::seeded(&double, &account).await;
    client.connected().await;
    for body in ["to all", "to all again"] {
        let sent = client.api().send_message(group.jid().clone(), text(body)).await.unwrap();
        for member in [anna.pn(), ben.pn(), account.pn()] {
            account
                .wait(&format!("{body} at {member}"), |seen| match seen {
                    Seen::Message(message)
                        if message.id == sent.message_id && message.recipient == *member =>
                    {
                        (message.message.conversation.as_deref() == Some(body)).then_some(())
                    }
                    _ => None,
                })
                .await;
        }
    }
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_migrated_account_writes_to_lids() {
    let (double, account) = world();
    account.migrate_to_lids();
    let contact = account.contact("15550000002", "102");
    contact.set_addressing(Addressing::Lid);
    let client = Client::seeded(&double, &account).await;
    client.connected().await;
    let question = contact.text("question");
    client.message(&question).await;
    let sent = client.api().send_message(contact.pn().clone(), text("answer")).await.unwrap();
    let arrived = received(&account, &sent.message_id, contact.pn()).await;
    assert_eq!(arrived.to, *contact.lid(), "the client rewrote the address");
    received(&account, &sent.message_id, account.pn()).await;
    assert_eq!(account.phone().chat(contact.pn()).messages.len(), 2, "still one chat");
    contact.deliver(&sent.message_id);
    account.wait_drained().await;
    client.stop().await;
}
