//! The in-memory transport: no sockets, so it works under a paused clock.

use std::sync::Arc;

use anyhow::{Result, anyhow};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use whatsapp_rust::transport::{Transport, TransportEvent, TransportFactory};

use crate::Double;
use crate::wire::{self, Outgoing};

/// Connects clients in this process to a [`Double`]
#[derive(Clone)]
pub struct MemoryTransport {
    double: Double,
}

impl MemoryTransport {
    pub(crate) fn new(double: Double) -> Self {
        Self { double }
    }
}

#[async_trait]
impl TransportFactory for MemoryTransport {
    async fn create_transport(
        &self,
    ) -> Result<(Arc<dyn Transport>, async_channel::Receiver<TransportEvent>)> {
        self.double.admit()?;
        let (to_server, incoming) = unbounded_channel();
        let (outgoing, mut from_server) = unbounded_channel();
        let (events, received) = async_channel::unbounded();
        self.double.spawn(wire::serve(self.double.clone(), incoming, outgoing));
        self.double.spawn(async move {
            let _ = events.try_send(TransportEvent::Connected);
            while let Some(outgoing) = from_server.recv().await {
                let (event, last) = match outgoing {
                    Outgoing::Data(bytes) => (TransportEvent::DataReceived(bytes), false),
                    Outgoing::Closed(reason) => (TransportEvent::Disconnected(reason), true),
                };
                if events.try_send(event).is_err() || last {
                    return;
                }
            }
        });
        Ok((Arc::new(Pipe { to_server: std::sync::Mutex::new(Some(to_server)) }), received))
    }
}

struct Pipe {
    /// Taken when the client hangs up, which is what the server sees as the end of the stream
    to_server: std::sync::Mutex<Option<UnboundedSender<Bytes>>>,
}

#[async_trait]
impl Transport for Pipe {
    async fn send(&self, data: Bytes) -> Result<()> {
        let sender = self.to_server.lock().expect("no panic while held").clone();
        sender
            .and_then(|sender| sender.send(data).ok())
            .ok_or_else(|| anyhow!("the connection is closed"))
    }

    async fn disconnect(&self) {
        self.to_server.lock().expect("no panic while held").take();
    }
}
