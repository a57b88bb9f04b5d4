use wacore::types::events::Event;
use whatsapp_double::{Addressing, Seen};

use crate::harness::{Client, text_of, world};

#[tokio::test(start_paused = true)]
async fn group_messages_come_from_lids_under_sender_keys() {
    let (double, account) = world();
    let anna = account.contact("15550000002", "102");
    let ben = account.contact("15550000003", "103");
    let group = account.group("120363000000000001", "Team", &[&anna, &ben]);
    let client = Client::seeded(&double, &account).await;
    client.connected().await;

    for (author, body) in [(&anna, "one"), (&anna, "two"), (&ben, "three")] {
        let id = author.text_to(&group, body);
        let message = client.message(&id).await;
        assert_eq!(text_of(&message).as_deref(), Some(body));
        let source = &message.info.source;
        assert_eq!(source.chat, *group.jid());
        assert_eq!(source.sender, *author.lid());
        assert_eq!(source.sender_alt.as_ref(), Some(author.pn()));
        assert!(source.is_group && !source.is_from_me);
    }
    let own = group.own_text("mine");
    assert!(client.message(&own).await.info.source.is_from_me);
    account.wait_drained().await;
    assert_eq!(account.phone().chat(group.jid()).messages.len(), 4);
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_contact_may_write_under_either_id() {
    let (double, account) = world();
    let contact = account.contact("15550000002", "102");
    let client = Client::seeded(&double, &account).await;
    client.connected().await;
    let by_number = client.message(&contact.text("as number")).await;
    assert_eq!(by_number.info.source.sender, *contact.pn());
    assert_eq!(by_number.info.source.sender_alt.as_ref(), Some(contact.lid()));
    contact.set_addressing(Addressing::Lid);
    let by_lid = client.message(&contact.text("as lid")).await;
    assert_eq!(by_lid.info.source.sender, *contact.lid());
    assert_eq!(by_lid.info.source.sender_alt.as_ref(), Some(contact.pn()));
    account.wait_drained().await;
    let bodies = account.phone().chat(contact.lid()).messages.len();
    assert_eq!(bodies, 2, "one chat on the phone");
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_the_owner_writes_on_the_phone_is_copied() {
    let (double, account) = world();
    let contact = account.contact("15550000002", "102");
    let client = Client::seeded(&double, &account).await;
    client.connected().await;
    let id = account.phone().text(contact.pn(), "from the phone");
    let message = client.message(&id).await;
    assert!(message.info.source.is_from_me);
    assert_eq!(message.info.source.chat, *contact.pn());
    assert_eq!(account.wait_receipt(&id).await, "sender");
    account.wait_drained().await;
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_phone_gives_out_what_nobody_sends_again() {
    let (double, account) = world();
    let contact = account.contact("15550000002", "102");
    let client = Client::seeded(&double, &account).await;
    client.connected().await;
    contact.answer_retries(false);
    double.inject(whatsapp_double::Fault::corrupt_message());
    let id = contact.text("garbled");
    let message = client.message(&id).await;
    assert_eq!(text_of(&message).as_deref(), Some("garbled"));
    assert!(message.info.unavailable_request_id.is_some(), "it came from the phone");
    account.wait_drained().await;
    client.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_unreadable_message_is_asked_for_again() {
    let (double, account) = world();
    let contact = account.contact("15550000002", "102");
    let client = Client::seeded(&double, &account).await;
    client.connected().await;
    double.inject(whatsapp_double::Fault::corrupt_message());
    let id = contact.text("garbled");
    client
        .wait("UndecryptableMessage", |event| {
            matches!(event, Event::UndecryptableMessage(_)).then_some(())
        })
        .await;
    let message = client.message(&id).await;
    assert_eq!(text_of(&message).as_deref(), Some("garbled"));
    let retried = |seen: &Seen| match seen {
        Seen::Receipt(receipt) => receipt.kind == "retry" && receipt.ids == [id.clone()],
        _ => false,
    };
    assert!(account.log().iter().any(retried));
    account.wait_drained().await;
    client.stop().await;
}
