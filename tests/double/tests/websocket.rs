use wacore::types::events::Event;
use whatsapp_rust::transport::DisconnectReason;
use whatsapp_rust_tokio_transport::TokioWebSocketTransportFactory;

use crate::harness::{Client, Options, empty_backend, world};

// Sockets need real time, so these tests do not pause the clock.

#[tokio::test]
async fn messages_go_over_a_real_socket() {
    let (double, account) = world();
    let contact = account.contact("15550000002", "102");
    let server = double.listen().await.unwrap();
    let backend = empty_backend();
    account.seed(&backend).await.unwrap();
    let backlog = contact.text("while away");
    let transport = TokioWebSocketTransportFactory::new().with_url(server.url());
    let client = Client::start_with(&double, Options { backend, transport, hook: None }).await;
    client.message(&backlog).await;
    client.connected().await;
    for index in 0..100 {
        contact.text(&format!("text {index}"));
    }
    assert_eq!(client.texts(101).await.len(), 101);
    account.wait_drained().await;

    account.cut(DisconnectReason::ServerClose { code: Some(1000), reason: String::new() });
    client
        .wait("a close frame", |event| match event {
            Event::Disconnected(disconnected) => {
                matches!(disconnected.reason, DisconnectReason::ServerClose { .. }).then_some(())
            }
            _ => None,
        })
        .await;
    client.connected_times(2).await;
    client.stop().await;
}

#[tokio::test]
async fn a_device_is_linked_over_a_real_socket() {
    let (double, account) = world();
    let server = double.listen().await.unwrap();
    let transport = TokioWebSocketTransportFactory::new().with_url(server.url());
    let backend = empty_backend();
    let client = Client::start_with(&double, Options { backend, transport, hook: None }).await;
    let code = client.wait("a QR code", |event| match event {
        Event::PairingQrCode(qr) => Some(qr.code.clone()),
        _ => None,
    });
    account.scan(&code.await).unwrap();
    client.connected().await;
    let id = account.contact("15550000002", "102").text("linked");
    client.message(&id).await;
    account.wait_drained().await;
    client.stop().await;
}
