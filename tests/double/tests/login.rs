use whatsapp_double::{Handshake, Seen};

use crate::harness::{Client, text_of, world};

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
