//! The same server behind a real WebSocket on localhost.

use std::net::SocketAddr;

use anyhow::Result;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::unbounded_channel;
use tokio::task::JoinHandle;
use tokio_websockets::{CloseCode, Message, ServerBuilder};
use whatsapp_rust::transport::DisconnectReason;

use crate::Double;
use crate::wire::{self, Outgoing};

/// A listening server; dropping it stops accepting, and leaves open connections alone
pub struct WebSocketServer {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl WebSocketServer {
    pub(crate) async fn listen(double: Double) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let accepting = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                if double.admit().is_ok() {
                    tokio::spawn(carry(double.clone(), stream));
                }
            }
        });
        Ok(Self { address, accepting })
    }

    /// Where clients connect to.
    pub fn url(&self) -> String {
        format!("ws://{}/ws/chat", self.address)
    }
}

impl Drop for WebSocketServer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn carry(double: Double, stream: TcpStream) {
    let Ok((_, mut socket)) = ServerBuilder::new().accept(stream).await else { return };
    let (to_server, incoming) = unbounded_channel();
    let (outgoing, mut from_server) = unbounded_channel();
    tokio::spawn(wire::serve(double, incoming, outgoing));
    loop {
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(message)) if message.is_binary() => {
                    if to_server.send(Bytes::from(message.into_payload())).is_err() {
                        return;
                    }
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            },
            outgoing = from_server.recv() => match outgoing {
                Some(Outgoing::Data(bytes)) => {
                    if socket.send(Message::binary(bytes)).await.is_err() {
                        return;
                    }
                }
                Some(Outgoing::Closed(DisconnectReason::ServerClose { .. })) | None => {
                    let close = Message::close(Some(CloseCode::NORMAL_CLOSURE), "");
                    let _ = socket.send(close).await;
                    return;
                }
                // Anything else ends the TCP stream without a close frame.
                Some(Outgoing::Closed(_)) => return,
            },
        }
    }
}
