use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use wacore::types::events::Event;
use whatsapp_double::Via;
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

#[tokio::test]
async fn files_and_the_version_come_over_a_real_port() {
    let (double, account) = world();
    let media = double.listen_for_media().await.unwrap();
    let backend = empty_backend();
    account.seed(&backend).await.unwrap();
    let client = Client::start(&double, backend).await;
    client.connected().await;
    let chat = account.contact("15550000002", "102").pn().clone();
    account.phone().keep_texts(&chat, "old", 1_700_000_000, 3);
    account.phone().send_all_history(1, Via::Blob);
    let path = double.media().paths().pop().unwrap();

    let (status, body) = get(&media.url(), &path).await;
    assert_eq!(status, 200);
    assert!(!body.is_empty());
    assert_eq!(get(&media.url(), "/nothing").await.0, 404);
    let (status, page) = get(&media.url(), "/sw.js").await;
    assert_eq!(status, 200);
    let version = whatsapp_rust::version::parse_sw_js(&String::from_utf8(page).unwrap());
    assert_eq!(version, Some((2, 3000, 1)));
    client.stop().await;
}

/// Status code and body of a GET.
async fn get(base: &str, path: &str) -> (u16, Vec<u8>) {
    let host = base.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(host).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
    (status, answer.split_off(end + 4))
}
